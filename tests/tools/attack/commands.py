"""What the attacks on commands share: an honest run, a command in this process, and what it may say and write."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from support import tiny

from train import cifar
from train.run import loop

RAW = ("Traceback", "object at 0x", "NoneType", "[Errno", "not subscriptable", "has no attribute", "unexpected keyword")
RAW += (
    "not supported between",
    "unsupported operand",
    "object is not",
    "object cannot be",
    "indices must be",
    "JSON object must",
)


def call(main: Callable[[Sequence[str]], int], *words: object) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it printed. Checks that it ends as it should."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    story = f"{words}: exit code {code}\n{out.getvalue()}{err.getvalue()}"
    assert code in (0, 1, 2), story
    assert not any(raw in err.getvalue() for raw in RAW), story
    lines = err.getvalue().splitlines()
    assert all(line.isprintable() for line in lines), story
    complaints = [line for line in lines if line.startswith("python -m ") and ": warning: " not in line]
    assert len(complaints) == (code != 0), f"not one sentence: {story}"
    return code, out.getvalue(), err.getvalue()


@functools.cache
def home() -> Path:
    """A folder for what the trials have in common; removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="attack-home-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []


@functools.cache
def honest() -> Path:
    """A finished run that was never disturbed, with the options of support/tiny.py; made once."""
    assert train(home() / "honest") == 0
    return home() / "honest"


def train(out: Path, *options: object) -> int:
    """Train in this process, without the report; return the exit code."""
    with tiny.undecorated(pictures=True):
        return call(cifar.main, *tiny.OPTIONS, "--out", out, *options)[0]


def resume(out: Path, *options: object, pictures: bool = False) -> tuple[int, str]:
    """Go on with a run; return the exit code and what was said on standard error."""
    with tiny.undecorated(pictures):
        code, _, error = call(cifar.main, "--out", out, "--resume", *options)
    return code, error


def copy_of_honest(folder: Path, step: int | None = None) -> Path:
    """A copy of the honest run, or of one that was stopped after so many of its steps."""
    source = honest() if step is None else stopped(step)
    return Path(shutil.copytree(source, folder / "run", symlinks=True))


@functools.cache
def stopped(step: int) -> Path:
    """A run that ended after so many steps, saved after each."""
    out, steps = home() / f"stopped-{step}", iter(range(step))
    real = loop.train_step

    def limited(*arguments: Any) -> Any:
        if next(steps, None) is None:
            raise MemoryError("enough")
        return real(*arguments)

    with mock.patch.object(loop, "train_step", limited):
        assert train(out, "--save-every", "1") == 1
    return out


def same_as_honest(out: Path) -> None:
    """Raise AssertionError where a finished run differs from the honest one in a bit."""
    different = tiny.differences(honest(), out)
    assert not different, f"{out} differs from the run that was never stopped in {', '.join(different)}"
