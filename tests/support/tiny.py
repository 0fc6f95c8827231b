"""A training run of a second, for the tests: a few drawn shapes, a network of a few thousand weights."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from train import cifar
from train.run import checkpoint, rehearsal, training

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, STEPS = 3, 3  # of a run with these options
OPTIONS = (
    *("--model", "resnext11_2x4d_w8", "--data", "shapes", "--limit-train", "22", "--limit-test", "12"),
    *("--recipe", "paper", "--batch-size", "8", "--epochs", str(EPOCHS), "--lr", "0.02", "--weight-decay", "0.01"),
)


@contextlib.contextmanager
def undecorated(pictures=False):
    """Inside, a run writes no report and, unless told, draws no pictures: each takes longer than its training."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(training, "write_report"))
        stack.enter_context(mock.patch.object(rehearsal, "render"))
        if not pictures:
            stack.enter_context(mock.patch.object(training.plots, "draw_curves"))
            stack.enter_context(mock.patch.object(training.plots, "draw_confusion"))
        yield


def train(out, *options, pictures=False):
    """Train in this process, without report and, unless told, without pictures; return the exit code."""
    with undecorated(pictures):
        return cifar.main([*OPTIONS, "--out", str(out), *options])


def start(*options, mpi=(), module="train.cifar", **settings):
    """Start a command in a process of its own, with as many threads as this one has."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, **settings.pop("env", {})}
    command = [*mpi, sys.executable, *(("-m", "mpi4py") if mpi else ()), "-m", module, *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **settings})


def signal_at_import(folder, module, number, condition="True"):
    """Let a process with this folder in its PYTHONPATH send itself a signal when it imports a module."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n\nclass Finder:\n    def find_spec(name, path, target=None):\n"
        f"        if name == {module!r} and {condition}:\n            os.kill(os.getpid(), {int(number)})\n\n"
        "sys.meta_path.insert(0, Finder)\n"
    )


def wait_until(condition, seconds=120):
    """Look again and again until a condition holds; fail where it does not within this time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} seconds in vain"
        time.sleep(0.002)


def first_epoch(process):
    """Wait for the first line of a run that reports an epoch, and return it."""
    while not (line := first_line(process)).startswith("epoch"):
        assert line, "it has ended without an epoch"
    return line


def first_line(process):
    """The first line that a process prints, which it must do within a minute."""
    assert select.select([process.stdout], [], [], 60)[0], "not a line within a minute"
    return process.stdout.readline()


def log(out):
    """The lines of a run's log, without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("images_per_second") > 0
    return lines


def differences(first, second, name=checkpoint.LAST):
    """What differs between the checkpoints and logs of two runs: names of arrays, parts of the state, "log"."""
    (a, s), (b, t) = (checkpoint.read(out / name) for out in (first, second))
    different = sorted(a.keys() ^ b.keys())
    different += [n for n in a.keys() & b.keys() if a[n].dtype != b[n].dtype or a[n].tobytes() != b[n].tobytes()]
    for state in (s, t):
        for line in state["history"]:
            line.pop("images_per_second")
    for state in (s, t):
        state["totals"].pop("seconds")
        state.pop("seconds")
    different += [n for n in s.keys() | t.keys() if s.get(n) != t.get(n)]
    return different + ["log"] * (log(first) != log(second))


def weights(out, name=checkpoint.LAST):
    """The arrays of a checkpoint, one after the other in one vector."""
    arrays, _ = checkpoint.read(out / name)
    return np.concatenate([arrays[n].ravel() for n in sorted(arrays)])


def evaluated(capsys, *options):
    """The figures that `--evaluate` prints: test error and test loss."""
    capsys.readouterr()
    assert cifar.main(["--evaluate", *map(str, options)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = re.fullmatch(r"test_error (\d+\.\d+) test_loss (\d+\.\d+)\n", printed.out)
    return float(found[1]), float(found[2])


def last_line(out):
    """The same figures in the last line of a run's log."""
    line = log(out)[-1]
    return line["test_error"], line["test_loss"]
