"""Count what a step of training asks of a GPU: python -m tests.virtual_gpu.count --model resnext11_2x4d_w8 --steps 6

Takes the options of train.cifar, and: --steps N (of one epoch; the last but one is counted), --eager (no graph), --json
and --blank, where kernels are counted and not run: then the networks of the paper with their batches take a minute.
"""

import argparse
import json
import sys
from typing import Any
from unittest import mock

from . import install, missing

SMALL = ["--device", "cuda", "--data", "shapes", "--recipe", "paper", "--lr", "0.02", "--batch-size", "4"]


def train(options: list[str], steps: int, eager: bool, after_step: Any = None) -> list[float]:
    """Train a network as train.cifar does, on its options, for some steps; return the mean loss of each.

    `after_step()` is called after each of them. The device may be the CPU.
    """
    from train import data
    from train.run import config as settings
    from train.run import loop

    arguments = settings.parser().parse_args([*SMALL, *options])
    arguments.limit_train = arguments.batch_size * steps
    config = settings.configure(arguments)
    limits = {"limit_train": config.limit_train, "limit_test": 1}
    train_set, test_set = data.load(config.data, arguments.data_root, **limits)
    run = loop.Run.start(config, train_set, test_set)
    if eager:
        run.cuda_graph = None
    losses = []
    outcome = loop.outcome

    def noted(*results: Any) -> tuple[float, int]:
        loss, errors = outcome(*results)
        losses.append(loss)
        return loss, errors

    with mock.patch.object(loop, "outcome", noted):
        loop.train_epoch(run, lambda run: after_step() if after_step else None)
    return losses


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.virtual_gpu.count", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="how many steps; the last but one is counted (default: 6)")
    parser.add_argument("--eager", action="store_true", help="launch every kernel from Python, without a graph")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--blank", action="store_true", help="count launches without running kernels or products")
    args, options = parser.parse_known_args(argv)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    install()
    from .counters import COUNTERS

    if args.blank:
        from .properties import Device

        COUNTERS.blank = True
        Device.memory, Device.attributes[16] = 80 << 30, 132  # an H100's, and its processors
    counts: list[dict[str, Any]] = []

    def after_step() -> None:
        counts.append(COUNTERS.report())
        COUNTERS.reset()

    losses = train(options, args.steps, args.eager, after_step)
    report = {"losses": losses, **counts[-2]}  # the last one waits for all results
    print(json.dumps(report) if args.json else COUNTERS.table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
