"""The command lines of `python -m train.*`: an option that is wrong gets one sentence, like every other mistake."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import minigrad
from minigrad import registry
from minigrad.backend import cupy, device_index, float_dtype
from minigrad.display import printable

# The exit codes of all commands. A command that a signal n ends returns 128 + n.
DONE, FAILED, USAGE = 0, 1, 2  # USAGE: the command line is wrong, and nothing was done


# What options are called elsewhere, and what they are called here.
MEANT = {
    **dict.fromkeys(("--resize", "--size", "--img-size", "--image-size", "--crop-size", "--imgsz"), "--image-size"),
    **dict.fromkeys(("--pretrained", "--weights", "--finetune", "--init", "--start-from"), "--weights"),
    **dict.fromkeys(("--learning-rate", "--lr-max", "--base-lr"), "--lr"),
    **dict.fromkeys(("--wd", "--l2"), "--weight-decay"),
    **dict.fromkeys(("--bs", "--batch", "--batchsize"), "--batch-size"),
    **dict.fromkeys(("--arch", "--network", "--net"), "--model"),
    **dict.fromkeys(("--dataset", "--data-dir", "--data-path", "--input"), "--data"),
    **dict.fromkeys(("--output", "--output-dir", "--out-dir", "--save-dir", "--logdir"), "--out"),
    **dict.fromkeys(("--gpu", "--cuda", "--gpus"), "--device cuda"),
    **dict.fromkeys(("--amp", "--fp16", "--half", "--bf16", "--mixed-precision"), "--dtype bfloat16"),
    **dict.fromkeys(("--workers", "--num-workers", "--num-threads"), "--threads"),
    **dict.fromkeys(("--eval", "--test", "--test-only", "--ckpt"), "--evaluate"),
    **dict.fromkeys(("--val-split", "--validation-split", "--split", "--val"), "--validate"),
    **dict.fromkeys(("--random-seed", "--manual-seed"), "--seed"),
    **dict.fromkeys(("--max-epochs", "--num-epochs", "--n-epochs"), "--epochs"),
    **dict.fromkeys(("--continue", "--restart", "--load"), "--resume"),
}


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
        own = {flag: flag for flag in self._option_string_actions if flag.startswith("--")}
        known = {flag: meant for flag, meant in MEANT.items() if meant.partition(" ")[0] in own} | own
        names = {flag.removeprefix("--"): meant for flag, meant in known.items()}
        alike = difflib.get_close_matches(unknown.removeprefix("--").replace("_", "-"), names, n=1, cutoff=0.7)
        near = [names[name] for name in alike]
        hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the options"
        self.exit(USAGE, printable(f"{self.prog}: {message}{': ' if near else '; '}{hint}") + "\n")


def sentence_of(error: Exception) -> str:
    """An error as the end of a sentence: the system's with its file's name in front, and without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def say(line: str) -> None:
    """Print a line, at once also into a pipe. Raises OSError where nobody reads it any more."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def warn(sentence: object, program: str = "python -m train.cifar", kind: str = "warning: ") -> None:
    """Print a sentence to standard error, in one line even where a file's name has several; never fails."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(printable(f"{program}: {kind}{sentence}"), file=sys.stderr, flush=True)


def refuse(error: Exception, program: str, code: int) -> int:
    """Print an error as one sentence of this program, and return the exit code."""
    warn(sentence_of(error), program, kind="")
    return code


class Decoration:
    """What makes a run pleasant but is not the run: pictures, log lines, the report. It never ends a run.

        with decoration("curves.png"): draw(...)

    What goes wrong inside is told, once for each name, and the run goes on.
    """

    def __init__(self) -> None:
        self.warned: set[str] = set()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if name not in self.warned:
                self.warned.add(name)
                warn(f"{name} cannot be written: {sentence_of(error) or type(error).__name__}; the run goes on")


def check_threads(count: int | None) -> None:
    """Raise ValueError for more threads than can help: each wants a core, and too many stand in each other's way."""
    most = max(16, 2 * (os.cpu_count() or 1))
    if count is not None and not 1 <= count <= most:
        raise ValueError(f"--threads must be from 1 to {most} on this machine of {os.cpu_count()} cores, got {count}")


def word(text: str) -> str:
    """A value that is not empty: an empty one, as of a variable that is not set, would count as none given."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


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
    return int(cupy().cuda.Device(device_index(device)).compute_capability)


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
