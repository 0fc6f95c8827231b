"""The command lines of `python -m train.*`: an option that is wrong gets one sentence, like every other mistake."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import minigrad
from minigrad import registry
from minigrad.backend import cupy, float_dtype

# The exit codes of all commands. A command that a signal n ends returns 128 + n.
DONE, FAILED, USAGE = 0, 1, 2  # USAGE: the command line is wrong, and nothing was done


class UsageError(ValueError):
    """A command line that asks for something that cannot be."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Inside, a bad value is the fault of the command line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest option where one is misspelt, and without the list of all."""

    def error(self, message: str) -> NoReturn:
        words = message.split() if message.startswith("unrecognized arguments") else []
        unknown = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
        near = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the options"
        self.exit(USAGE, f"{self.prog}: {message}{': ' if near else '; '}{hint}\n")


def printable(text: str) -> str:
    """A text in one line that every terminal and every page can show: other characters as Python writes them.

    Names of files and classes may hold line breaks, escape sequences, or bytes that are no UTF-8.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def said(error: Exception) -> str:
    """An error as the end of a sentence: the system's with its file's name in front, and without its number."""
    named = isinstance(error, OSError) and error.filename and error.strerror
    return f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[attr-defined]


def say(line: str) -> None:
    """Print a line, at once also into a pipe. Raises OSError where nobody reads it any more."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def warn(sentence: object, program: str = "python -m train.cifar", kind: str = "warning: ") -> None:
    """Print a sentence to standard error, in one line even where a file's name has several."""
    print(printable(f"{program}: {kind}{sentence}"), file=sys.stderr, flush=True)


def folder(text: str) -> Path:
    """A folder's name; an empty one, as of a variable that is not set, would otherwise mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the folder's name is empty")
    return Path(text)


def default_dtype(device: str) -> str:
    """The dtype in which networks are trained on a device unless told otherwise.

    "bfloat16" on GPUs whose tensor cores multiply it (Ampere and later), else "float32".
    """
    return "bfloat16" if device != "cpu" and compute_capability(device) >= 80 else "float32"


def compute_capability(device: str) -> int:
    """A GPU's compute capability times ten: 75 for a T4, 90 for an H100."""
    return int(cupy().cuda.Device(int(device.partition(":")[2] or 0)).compute_capability)


def check_dtype(name: str, device: str) -> None:
    """Raise ValueError for a dtype that the device has no instructions for."""
    float_dtype(name, device)
    if name == "bfloat16" and (found := compute_capability(device)) < 80:
        raise ValueError(
            f"bfloat16 needs a GPU of compute capability 8.0 or later (A100, RTX 30 and newer), {device} has "
            f"{found / 10}: use --dtype float32"
        )


def prepare_process() -> list[str]:
    """Let this process, which is minigrad's own, compute as fast as it can; return what was switched in it.

    See minigrad/fast/process.py; a library's import leaves all of that alone.
    """
    return minigrad.fast.process.prepare() if registry.fast("cpu") else []
