"""Kill training runs with SIGKILL at random moments; is anything lost? `python tests/tools/kill_runs.py` tells.

A run saves after every step. It is killed at a random moment, started again with --resume, killed again, and so on
until it gets to its end; then the next run begins. One kill in five comes while the process starts and reads its state,
the others within half a second of its first save. Counted are the kills, those that came while a file was being
written, the times that a run could not go on, and the finished runs whose weights, momentum, statistics or log differ
in a single bit from those of a run that was never stopped.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from support import tiny  # noqa: E402

from train.run.checkpoint import LAST  # noqa: E402


@dataclass
class Trial:
    """What happened to the runs."""

    kills: int = 0
    while_writing: int = 0  # kills that left a part of a file behind
    finished: int = 0  # runs that got to their end
    lost: int = 0  # runs that could not go on
    different: int = 0  # finished runs that differ from the undisturbed one


def trial(kills, seed, folder, options=()):
    """Kill runs until there have been `kills` kills and the last run is finished."""
    rng, result = random.Random(seed), Trial()
    command = (*tiny.OPTIONS, *options, "--save-every", "1", "--resume", "--out")
    undisturbed = folder / "undisturbed"
    assert finish(tiny.start(*command, undisturbed)) == 0
    while result.kills < kills:
        out = folder / f"run{result.finished + result.lost}"
        while True:
            process = tiny.start(*command, out)
            if result.kills < kills:
                if rng.random() < 0.8:
                    wait_for_save(process, out)
                    time.sleep(rng.uniform(0, 0.5))
                else:
                    time.sleep(rng.uniform(0, 2))
                process.send_signal(signal.SIGKILL)
            code = finish(process)
            if code != -signal.SIGKILL:
                break
            result.kills += 1
            result.while_writing += any(out.glob(".*.part"))
        if code:
            result.lost += 1
        else:
            result.finished += 1
            difference = tiny.differences(undisturbed, out)
            result.different += bool(difference)
            if difference:
                print(f"{out} differs in {', '.join(difference)}", file=sys.stderr)
    return result


def wait_for_save(process, out):
    """Wait until the run in a folder has saved its state, or has ended."""

    def saved():
        with contextlib.suppress(FileNotFoundError):
            return (out / LAST).stat().st_mtime_ns
        return 0

    before = saved()
    tiny.wait_until(lambda: saved() not in (0, before) or process.poll() is not None)


def finish(process):
    """Wait for a process to end; print what it complained about, return its exit code."""
    _, error = process.communicate(timeout=600)
    if process.returncode not in (0, -signal.SIGKILL):
        print(error, file=sys.stderr)
    return process.returncode


def main():
    p = argparse.ArgumentParser(description="Kill training runs at random moments and count what is lost.")
    p.add_argument("--kills", type=int, default=200, help="how often to kill (default: 200)")
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    p.add_argument("--epochs", type=int, default=6, help="of each run (default: 6)")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = trial(args.kills, args.seed, Path(folder), options=("--epochs", str(args.epochs)))
    print(
        f"{result.kills} kills, {result.while_writing} of them while a file was being written: {result.finished} runs "
        f"finished, {result.lost} could not go on, {result.different} differ from the undisturbed run"
    )
    return 1 if result.lost or result.different else 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
