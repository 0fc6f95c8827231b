"""Fetch one file whose size and SHA-256 are known beforehand, whatever the network does in between.

The bytes go to `NAME.part` beside the target. A broken transfer is resumed where it stopped (HTTP Range, RFC 9110
section 14), now or in a later run. Only a file of the right size and hash is flushed to disk and renamed to `NAME`, so
that a file with that name is always whole.
"""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: two processes that download the same file at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

READ_SIZE = 1 << 18  # bytes asked of the socket at once
SLOWEST = 1024  # bytes per second below which a transfer counts as stalled


class DataError(ValueError):
    """Data that cannot be used: one sentence that names the file and what is wrong with it."""


class Interrupted(Exception):
    """A transfer that broke off and may go on at the next attempt."""


@dataclass(frozen=True)
class Remote:
    """A file on the web and how to recognise it."""

    url: str
    size: int  # bytes
    sha256: str  # 64 hexadecimal digits

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def verify(path: Path, remote: Remote) -> None:
    """Raise DataError unless the file at `path` has the size and the SHA-256 of `remote`."""
    try:
        size = path.stat().st_size
        if size != remote.size:
            raise DataError(f"{path} has {size:,} bytes where the official {remote.name} has {remote.size:,}")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if found != remote.sha256:
        raise DataError(f"{path} has SHA-256 {found} where the official {remote.name} has {remote.sha256}")


def fetch(
    remote: Remote,
    folder: Path,
    *,
    mirror: str | None = None,
    progress: bool = True,
    timeout: float = 30.0,
    attempts: int = 5,
    backoff: float = 1.0,
) -> Path:
    """Return the path of `remote` in `folder`, downloaded and verified unless it lies there already.

    `mirror` replaces all of the URL but the file's name. A transfer that stalls for `timeout` seconds is broken off;
    after `attempts` failures in a row, with pauses of `backoff` seconds that double each time, it is given up, and the
    part received stays for the next run. The bar is silent where stderr is no terminal. Raises DataError.
    """
    target = folder / remote.name
    url = remote.url if mirror is None else f"{mirror.rstrip('/')}/{remote.name}"
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # brackets that enclose no address
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or not url.isprintable() or " " in url:
        raise DataError(f"a download needs an http:// or https:// address, got {url!r}")
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / (remote.name + ".part")) as part:
                if not target.exists():  # else another process has finished it in the meantime
                    transfer(url, remote, part, progress, timeout, attempts, backoff)
                    os.fsync(part.fileno())
                    os.replace(part.name, target)
                    flush_folder(folder)
        except FileExistsError:
            raise DataError(f"cannot write {remote.name} to {folder}, which is no folder") from None
        except OSError as error:
            raise DataError(f"cannot write {remote.name} to {folder}: {error.strerror or error}") from None
    verify(target, remote)
    return target


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for reading and writing, kept if it exists; wait while another process holds it."""
    while True:
        with open(path, "a+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            if not is_at(file, path):  # whoever held the lock has renamed or removed this file
                continue
            try:
                yield file
            finally:
                if is_at(file, path) and file.seek(0, os.SEEK_END) == 0:  # seek: what is in the buffer counts too
                    path.unlink()
            return


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def flush_folder(folder: Path) -> None:
    """Flush a folder to disk, which makes a rename inside it durable (POSIX only)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def transfer(
    url: str, remote: Remote, part: BinaryIO, progress: bool, timeout: float, attempts: int, backoff: float
) -> None:
    """Bring `part` to the whole and right content, over as many connections as it takes."""
    failures = 0
    while True:
        start = part.seek(0, os.SEEK_END)
        if start > remote.size:  # left by something else
            start = part.truncate(0)
        resumed = start > 0
        reason = ""
        if start < remote.size:
            try:
                receive(url, remote, part, progress, timeout)
            except Interrupted as error:
                reason = str(error)
        received = part.seek(0, os.SEEK_END)
        if received == remote.size:
            part.flush()
            try:
                return verify(Path(part.name), remote)
            except DataError as error:
                part.truncate(0)
                if not resumed:  # all of it came from this server in one go: asking again is no use
                    raise DataError(f"{url} serves another file: {error}") from None
                reason = "the resumed file was damaged"
        # A link that keeps bringing bytes is allowed to break as often as it likes.
        failures = 1 if received - start > remote.size // 100 else failures + 1
        if failures >= attempts:
            later = "; the next run goes on from there" if received else ""
            raise DataError(
                f"{url}: {reason}, given up after {attempts} attempts at {received:,} of {remote.size:,} bytes{later}"
            )
        time.sleep(backoff * 2 ** (failures - 1))


def receive(url: str, remote: Remote, part: BinaryIO, progress: bool, timeout: float) -> None:
    """Append what one connection brings; raise Interrupted when it breaks, DataError when it is no use to go on."""
    start = part.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity", "User-Agent": "minigrad"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the server cannot go on from here: start over
            part.truncate(0)
        if error.code == 416 or error.code == 429 or error.code >= 500:
            raise Interrupted(f"the server answered {error.code} {error.reason}") from None
        raise DataError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError, refused, reset, timed out
        raise Interrupted(f"no connection ({getattr(error, 'reason', None) or error})") from None

    with response:
        content_range = response.headers.get("Content-Range")
        if response.status == 206 and content_range != f"bytes {start}-{remote.size - 1}/{remote.size}":
            raise DataError(f"{url}: bytes {start}-{remote.size - 1} were asked for, {content_range!r} were sent")
        if response.status != 206:  # the server ignores Range and sends everything
            start = part.truncate(0)
        expected = remote.size - start
        if response.headers.get_content_type() == "text/html":
            raise DataError(f"{url} answers with a web page where {remote.name} is expected; try another mirror")
        announced = response.headers.get("Content-Length")
        if announced is not None and announced != str(expected):
            raise DataError(f"{url} offers {announced} bytes where {expected:,} are expected")
        with tqdm(
            desc=remote.name,
            total=remote.size,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,  # None: disabled where stderr is no terminal
        ) as bar:
            copy(response, part, expected, timeout, bar, url)


def copy(
    response: http.client.HTTPResponse, part: BinaryIO, expected: int, timeout: float, bar: tqdm, url: str
) -> None:
    """Copy exactly `expected` bytes from `response` to the end of `part`."""
    left = expected
    mark, mark_left = time.monotonic(), left
    while left:
        try:
            block = response.read1(READ_SIZE)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(f"the connection broke ({error})") from None
        if not block:
            raise Interrupted("the connection closed early")
        if part.tell() == 0 and block.lstrip()[:1] == b"<":
            raise DataError(f"{url} answers with a web page where an archive is expected; try another mirror")
        if len(block) > left:
            part.truncate(0)
            raise DataError(f"{url} sends more than the {expected:,} bytes expected")
        part.write(block)
        left -= len(block)
        bar.update(len(block))
        now = time.monotonic()
        if now - mark > timeout:
            if mark_left - left < SLOWEST * timeout:
                raise Interrupted(f"the transfer fell below {SLOWEST} bytes per second")
            mark, mark_left = now, left
    # Chunked answers announce no length: one more read tells whether the file ends where it should.
    if not response.isclosed() and response.length is None:
        try:
            surplus = response.read1(1)
        except (OSError, http.client.HTTPException):
            surplus = b""
        if surplus:
            part.truncate(0)
            raise DataError(f"{url} sends more than the {expected:,} bytes expected")
