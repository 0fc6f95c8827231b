"""Fetch one of several files, each known by its SHA-256, from one of several servers: the one that is fast enough.

The rule: begin with the first address. After `look` seconds, and then again and again, the rate says how long the rest
will take. Where that is more than `patience` seconds, and more than twice what another server promises (one that was
not tried yet promises everything), go over to that one. What has come stays in `NAME.part`: the same file goes on from
there, from whichever server, now or in a later run. Only a file of the right size and hash is flushed to disk and
renamed to `NAME`, so that a file with that name is always whole.
"""

import os
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from minigrad.display import printable
from train.data.download import DataError, Interrupted, Remote, TooSlow, check_address, receive, verify

LEAVINGS = 3  # how often a server is left for another before it may be as slow as it likes


def note(sentence: str) -> None:
    """Say something on standard error that is no error, in one line, around a bar that may be there."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody listens: no reason to stop
            tqdm.write(printable(sentence), file=sys.stderr)


def silent(sentence: str) -> None:
    """Say nothing."""


@dataclass(eq=False)
class Source:
    """One file at one address."""

    url: str
    remote: Remote
    promise: float = 0.0  # seconds that the rest would take, as far as is known
    leavings: int = 0

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc.rpartition("@")[2]


def sources(remotes: Sequence[Remote], mirrors: Sequence[str]) -> list[Source]:
    """Where to ask, in this order: the first address of every file, then the second of each, ...

    Mirrors take the place of the known addresses. One is a folder that may hold any of the files, or the address of a
    file itself, which is recognised by its name.
    """
    if not mirrors:
        lists = [[Source(url, r) for url in (r.url, *r.also)] for r in remotes]
    else:
        names = {remote.name for remote in remotes}
        lists = [
            [
                Source(m if m.endswith(f"/{r.name}") else f"{m.rstrip('/')}/{r.name}", r)
                for m in mirrors
                if m.rpartition("/")[2] in {"", r.name} or m.rpartition("/")[2] not in names
            ]
            for r in remotes
        ]
    found = [source for source in chain.from_iterable(zip_longest(*lists)) if source]
    for source in found:
        check_address(source.url)
    return found


def fetch(
    remotes: Remote | Sequence[Remote],
    folder: Path,
    *,
    mirrors: Sequence[str] = (),
    progress: bool = True,
    timeout: float = 30.0,
    attempts: int = 5,
    backoff: float = 1.0,
    look: float = 5.0,
    patience: float = 60.0,
) -> Path:
    """Return the path in `folder` of one of the files `remotes`, downloaded and verified unless it lies there already.

    A transfer that stalls for `timeout` seconds is broken off; a server that fails is asked again after the others,
    with pauses of `backoff` seconds that double each time, and is given up after `attempts` failures in a row. The part
    received stays for the next run. The bar is silent where stderr is no terminal. Raises DataError. Two downloads of
    the same file into the same folder at once must be kept apart, with `alone`.
    """
    remotes = [remotes] if isinstance(remotes, Remote) else remotes
    asked = sources(remotes, mirrors)
    for remote in remotes:
        if (target := folder / remote.name).exists():
            verify(target, remote)
            return target
    limits = {"timeout": timeout, "look": look, "progress": progress}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remote = race(asked, folder, attempts, backoff, patience, note if progress else silent, limits)
        target = folder / remote.name
        os.replace(f"{target}.part", target)
        flush_folder(folder)
        for other in remotes:
            (folder / f"{other.name}.part").unlink(missing_ok=True)
        return target
    except FileExistsError:
        raise DataError(f"cannot write {remotes[0].name} to {folder}, which is no folder") from None
    except OSError as error:
        raise DataError(f"cannot write {remotes[0].name} to {folder}: {error.strerror or error}") from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait while another process or thread holds the lock at this path, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock  # brings asyncio, 25 ms that only a download should wait for

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire()
    except NotImplementedError:  # a file system that knows no locks: two downloads at once are not kept apart there
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a part for reading and writing, kept if it exists; an empty one is removed in the end."""
    with open(path, "a+b") as file:
        try:
            yield file
        finally:
            if file.seek(0, os.SEEK_END) == 0:  # seek: what is in the buffer counts too
                path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder to disk, which makes a rename inside it durable (POSIX only)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_of(path: Path) -> int:
    """The size of a file in bytes, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def race(
    asked: list[Source],
    folder: Path,
    attempts: int,
    backoff: float,
    patience: float,
    say: Callable[[str], None],
    limits: dict,
) -> Remote:
    """Bring one part to the whole and right content, over as many connections as it takes; return what it is."""
    parts = {s.remote.name: folder / f"{s.remote.name}.part" for s in asked}
    asked = sorted(asked, key=lambda s: -size_of(parts[s.remote.name]))  # go on with what is nearly there
    record = {name: size_of(path) for name, path in parts.items()}  # the longest that each part ever was
    failures: Counter[str] = Counter()  # of each host, in a row
    reasons: dict[str, str] = {}
    previous = None
    while True:
        source = min(asked, key=lambda s: (failures[s.host], s.promise))
        host, name, path = source.host, source.remote.name, parts[source.remote.name]
        if failures[host] >= attempts:
            raise given_up(asked, reasons, failures, parts)
        if failures[host]:
            time.sleep(backoff * 2 ** (failures[host] - 1))
        if source is not previous:
            say(f"{name} from {host}")
        previous, began, before = source, time.monotonic(), size_of(path)
        try:
            reason = attempt(source, path, partial(look_around, source, asked, failures, patience), limits)
        except TooSlow as error:
            say(str(error))
            continue
        except DataError as error:
            say(str(error))
            reasons[source.url] = str(error)
            asked.remove(source)
            if not asked:
                raise DataError("; ".join(reasons.values())) from None
            continue
        received = size_of(path)
        if not reason:
            say(f"{name}: {(received - before) / 1e6:.1f} MB from {host} in {time.monotonic() - began:.1f} s")
            return source.remote
        # A link that keeps bringing bytes is allowed to break as often as it likes; bytes that had to be thrown away,
        # and come again, are no progress.
        failures[host] = 1 if received - record[name] > source.remote.size // 100 else failures[host] + 1
        record[name] = max(record[name], received)
        reasons[source.url] = f"{source.url}: {reason}"
        say(reasons[source.url])


def attempt(source: Source, path: Path, slow: Callable[[float, float], None], limits: dict) -> str:
    """Let one connection go on with a part; return "" if it is whole and right then, else why the connection ended.

    Raises TooSlow, and DataError where it is no use to ask at this address again.
    """
    with opened(path) as part:
        if part.seek(0, os.SEEK_END) > source.remote.size:  # left by something else
            part.truncate(0)
        before = part.seek(0, os.SEEK_END)
        try:
            if before < source.remote.size:
                receive(source.url, source.remote, part, slow=slow, **limits)
        except Interrupted as error:
            return str(error)
        part.flush()
        try:
            verify(path, source.remote)
        except DataError as error:
            part.truncate(0)
            if before:
                return "the resumed file was damaged"
            raise DataError(f"{source.url} serves another file: {error}") from None  # all of it, in one go
        os.fsync(part.fileno())
        return ""


def look_around(
    source: Source, asked: list[Source], failures: Counter[str], patience: float, rate: float, left: float
) -> None:
    """Raise TooSlow where the rest takes unreasonably long from here, and may not take that from another server."""
    for s in asked:
        if s.host == source.host:  # they share the line
            s.promise = left
    others = [s for s in asked if s.host != source.host and failures[s.host] <= failures[source.host]]
    best = min(others, key=lambda s: s.promise, default=source)
    if source.leavings < LEAVINGS and left > patience and left > 2 * best.promise and best is not source:
        source.leavings += 1
        time_left = f"{left / 60:,.0f} minutes" if left < float("inf") else "for ever"
        raise TooSlow(f"{source.host} gives {rate / 1000:,.0f} kB/s, which would take {time_left}: over to {best.host}")


def given_up(asked: list[Source], reasons: dict[str, str], failures: Counter[str], parts: dict[str, Path]) -> DataError:
    """The sentence for a download that no server wants to finish."""
    told = [reasons[s.url] for s in asked if s.url in reasons] or list(reasons.values())
    received, size = max((size_of(parts[s.remote.name]), s.remote.size) for s in asked)
    later = "; the next run goes on from there" if received else ""
    attempts = max(failures.values())
    return DataError(f"{'; '.join(told)}, given up after {attempts} attempts at {received:,} of {size:,} bytes{later}")
