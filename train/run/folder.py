"""A run's folder: one process at a time writes to it, and another run that is in it is put aside."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import checkpoint

RUN_FILES = (
    checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST, checkpoint.DAMAGED,
    "config.json", "metrics.jsonl", "curves.png", "confusion.png", "report.html",
)  # fmt: skip


class InUse(ValueError):
    """A run folder that another process writes to."""


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder inside this block, and clear away what a killed one left unfinished.

    The lock is on the open file `.lock`, not in its content: the system releases it when the process ends, however it
    ends. Raises InUse if another process holds it.
    """
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InUse(f"{folder} is in use by process {file.read().strip() or '?'}: choose another --out") from None
        except OSError as error:  # some network file systems cannot lock
            print(f"{folder} cannot be locked ({error.strerror}): keep other processes out of it", file=sys.stderr)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for part in folder.glob(".*.part"):
            part.unlink()
        yield


def holds_run(folder: Path) -> bool:
    """Whether a run has left a state or a log in the folder."""
    return any((folder / name).exists() for name in RUN_FILES)


def put_aside(folder: Path) -> Path:
    """Move the files of the run in `folder` to a new folder below it, `earlier-1`, `earlier-2`, ...; return that."""
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    aside = folder / f"earlier-{number}"
    aside.mkdir()
    for name in RUN_FILES:
        if (folder / name).exists():
            os.replace(folder / name, aside / name)
    return aside
