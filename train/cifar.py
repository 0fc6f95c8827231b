"""Train a network on CIFAR-10, CIFAR-100, the embedded shapes or your own images: `python -m train.cifar`.

What the options mean is in run/config.py, a whole run in run/training.py, a step and an epoch in run/loop.py. Here is
the command, which must end well whatever happens to it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from .run.signals import Interrupted, Signals, end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.cifar")  # the imports below take a second

from minigrad import diagnosis

from .options import DONE, FAILED, USAGE, UsageError, prepare_process, sentence_of, warn
from .run import faults, parallel
from .run.config import parser
from .run.evaluation import evaluate_file
from .run.faults import TrainingError
from .run.parallel import ALONE, Deserted, Ranks
from .run.training import train_command

# Seconds in which the other ranks leave it to rank 0 to say what is wrong: its exit ends them before they repeat it.
SILENCE = float(os.environ.get("MINIGRAD_SILENCE", 3))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(argv)
    prepare_process()
    try:
        ranks = parallel.start()
    except ValueError as error:
        return complain(error, USAGE, ALONE)
    signals = Signals()
    if ranks is not ALONE:
        ranks.signals = signals
    with signals.caught():
        return run_command(args, ranks, signals)


def run_command(args: argparse.Namespace, ranks: Ranks, signals: Signals) -> int:
    """Evaluate or train; say what goes wrong in one sentence, and return the exit code."""
    try:
        if args.evaluate:
            evaluate_file(args, ranks)
        else:
            train_command(args, ranks, signals)
        return DONE
    except UsageError as error:
        return complain(error, USAGE, ranks)
    except Interrupted as stop:
        return complain(stop, 128 + stop.number, ranks)
    except MemoryError as error:
        return complain(faults.out_of_memory(error, args.device or "cpu"), FAILED, ranks)
    except diagnosis.errors() as error:
        return complain(faults.gpu_failed(error, args.out), FAILED, ranks)
    except OSError as error:
        return complain(sentence_of(error), FAILED, ranks)
    except Deserted as error:
        return complain(error, 128 + signals.number if signals.number else FAILED, ranks)
    except (TrainingError, ValueError, TypeError) as error:
        return complain(error, FAILED, ranks)


def complain(sentence: object, code: int, ranks: Ranks) -> int:
    """Print a sentence to standard error and return the exit code."""
    if ranks.rank > 0:
        time.sleep(SILENCE)
    warn(sentence, kind="")
    return code


if __name__ == "__main__":
    sys.exit(main())
