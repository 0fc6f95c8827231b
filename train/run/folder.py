"""A run's folder: one process at a time writes to it, and another run that is in it is put aside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..options import warn
from . import checkpoint

RUN_FILES = (
    checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST, checkpoint.DAMAGED,
    "config.json", "metrics.jsonl", "curves.png", "confusion.png", "report.html",
)  # fmt: skip
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks say


class InUse(ValueError):
    """A run folder that another process writes to."""


class Lock:
    """The right to write to a run's folder. The system takes it back when the process ends, however it ends.

    It is a lock on the file `.lock`, and holds for that path, not for a file that once had the name: where somebody
    removes the file, or the folder with it, `check` takes the lock anew, or says that another run has it.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ".lock"
        self.file: FileLock | None = None
        self.identity: tuple[int, int] | None = None  # of the locked file; None on a file system without locks
        self.acquire()

    def acquire(self) -> None:
        """Take the lock. Raises InUse if another process holds it, or if a symbolic link is in its place."""
        if self.path.is_symlink():
            raise InUse(f"{self.path} is a symbolic link, which is not followed: remove it, or choose another --out")
        self.file = FileLock(self.path, timeout=0, thread_local=False)
        try:
            self.file.acquire()
        except Timeout:
            raise InUse(f"{self.folder} is in use by {self.holder()}: choose another --out") from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in CANNOT_LOCK:
                raise
            reason = getattr(error, "strerror", None) or "no locks on this file system"
            warn(f"{self.folder} cannot be locked ({reason}): keep other processes out of it")
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0))
        try:
            self.identity = self.identify(os.fstat(descriptor))
            with suppress(OSError):  # a full disk will be told by name as soon as something matters
                os.write(descriptor, f"{os.getpid()}\n".encode())
        finally:
            os.close(descriptor)

    def holder(self) -> str:
        """Who holds the lock, as far as the file says."""
        try:
            number = self.path.read_text(errors="replace").strip()
        except OSError:
            number = ""
        return f"process {number}" if number.isdecimal() else "another process"

    @staticmethod
    def identify(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """Make sure that the lock still holds, before something is written. Raises InUse where it is another's."""
        if self.identity is None:
            return
        try:
            if self.identify(os.lstat(self.path)) == self.identity:
                return
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise InUse(f"{self.folder} is gone: somebody has removed it while this run was going on") from None
        self.release()
        self.acquire()

    def release(self) -> None:
        if self.file is not None:
            self.file.release(force=True)


@contextmanager
def sole_user(folder: Path) -> Iterator[Lock]:
    """Keep other processes out of a run folder inside this block, and clear away what a killed one left unfinished."""
    lock = Lock(folder)
    try:
        for part in folder.glob(".*.part"):
            part.unlink()
        yield lock
    finally:
        lock.release()


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
