"""One connection to one server, and the file that its bytes go to, whatever the network does in between.

The bytes go to the end of a part that an earlier connection may have left (HTTP Range, RFC 9110 section 14). What makes
it whole, from which of several servers, is in fetch.py. Here a connection ends in one of four ways: the part is as long
as the file; it broke and may go on (`Interrupted`); another server promises more (`TooSlow`); this server is of no use
(`DataError`).
"""

import hashlib
import http.client
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from minigrad.display import printable

READ_SIZE = 1 << 18  # bytes asked of the socket at once
SLOWEST = 1024  # bytes per second below which a transfer counts as stalled


class DataError(ValueError):
    """Data that cannot be used: one sentence that names the file and what is wrong with it."""


class Interrupted(Exception):
    """A transfer that broke off and may go on at the next attempt."""


class TooSlow(Exception):
    """A transfer that works, but was left because another server may be faster."""


@dataclass(frozen=True)
class Remote:
    """A file on the web and how to recognise it: by its hash, never by who serves it."""

    url: str
    size: int  # bytes
    sha256: str  # 64 hexadecimal digits
    also: tuple[str, ...] = ()  # other addresses of the same bytes

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


def check_address(url: str) -> None:
    """Raise DataError, with the address in its sentence, unless it is one on the web that can be asked."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises ValueError where it is no number, or too large a one
        whole = bool(parts.hostname and parts.hostname.encode("idna"))  # UnicodeError: a label is empty or too long
    except ValueError:  # also for brackets that enclose no address
        whole = False
    if not whole or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise DataError(f"a download needs an http:// or https:// address, got {url!r}")


# ---- what a connection brings ---------------------------------------------------------------------------------------


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http:// and https:// only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            check_address(newurl)
        except DataError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener() -> urllib.request.OpenerDirector:
    """What opens an address: nothing that could open another scheme is in it (urllib's own would follow to ftp://)."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        Redirects,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        director.add_handler(handler())
    return director


class Feed:
    """The answer to one request, read by a thread of its own: the response, then its blocks, then b"" at the end.

    http.client waits for as long as a server sends a byte now and then: in the status line, in headers, between chunks,
    in trailers, in endless "100 Continue". Who reads from a feed waits by the clock, and leaves when it likes.
    """

    def __init__(self, request: urllib.request.Request, timeout: float):
        self.items: queue.Queue[Any] = queue.Queue(maxsize=8)
        self.left = threading.Event()  # nobody reads any more
        threading.Thread(target=self._read, args=(request, timeout), daemon=True).start()

    def get(self, seconds: float) -> Any:
        """The next item, None if it takes longer than so many seconds; raises what the thread met."""
        try:
            item = self.items.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self, request: urllib.request.Request, timeout: float) -> None:
        try:
            with opener().open(request, timeout=timeout) as response:
                self._put(response)
                while not self.left.is_set() and (block := response.read1(READ_SIZE)):
                    self._put(block)
            self._put(b"")
        except urllib.error.HTTPError as error:
            error.close()
            self._put(error)
        except Exception as error:  # whatever it is, it is told where it is known which file it concerns
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self.left.is_set():
            try:
                return self.items.put(item, timeout=0.1)
            except queue.Full:
                pass


class Pace:
    """Watches the bytes that count: says every `look` seconds how long the rest will take; `timeout` is the limit."""

    def __init__(self, left: int, timeout: float, look: float, slow: Callable[[float, float], None]):
        self.left, self.timeout, self.look, self.slow = left, timeout, look, slow
        self.looked = self.alive = time.monotonic()
        self.left_looked = self.left_alive = left

    def wait(self) -> float:
        """Seconds until the next look is due."""
        return min(self.looked + self.look, self.alive + self.timeout) - time.monotonic()

    def check(self) -> None:
        """Raise Interrupted for a stall; call `slow` with the rate and the seconds left, which may raise TooSlow."""
        now = time.monotonic()
        if now - self.alive >= self.timeout:
            if self.left_alive - self.left < SLOWEST * (now - self.alive):
                raise Interrupted(f"timed out: it fell below {SLOWEST} bytes per second for {self.timeout:g} seconds")
            self.alive, self.left_alive = now, self.left
        if now - self.looked >= self.look and self.left:
            rate = (self.left_looked - self.left) / (now - self.looked)
            self.slow(rate, self.left / rate if rate else float("inf"))
            self.looked, self.left_looked = now, self.left


def receive(
    url: str,
    remote: Remote,
    part: BinaryIO,
    *,
    progress: bool = True,
    timeout: float = 30.0,
    look: float = 5.0,
    slow: Callable[[float, float], None] = lambda rate, seconds: None,
) -> None:
    """Append what one connection brings, until `part` is as long as the file.

    Every `look` seconds `slow(rate, seconds_left)` is called, which may raise TooSlow. Raises Interrupted when the
    connection breaks or stalls for `timeout` seconds, whatever it sends instead of the file's bytes, and DataError when
    it is no use to ask this server again.
    """
    start = part.seek(0, 2)
    headers = {"Accept-Encoding": "identity", "User-Agent": "minigrad"}
    if start:
        headers["Range"] = f"bytes={start}-"
    pace = Pace(remote.size - start, timeout, look, slow)
    feed = Feed(urllib.request.Request(url, headers=headers), timeout)
    try:
        response = following(feed, pace, url, "no connection", part)
        start = begin(response, url, remote, part, start)
        pace.left = pace.left_looked = pace.left_alive = remote.size - start
        with tqdm(
            desc=remote.name,
            total=remote.size,
            initial=start,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None if progress else True,  # None: disabled where stderr is no terminal
        ) as bar:
            copy(feed, pace, url, remote, part, bar)
    finally:
        feed.left.set()


def in_one_line(text: object) -> str:
    """What a server or the system has said: its beginning, without line breaks and with no character that acts."""
    return printable(" ".join(str(text).split())[:200])


def following(feed: Feed, pace: Pace, url: str, trouble: str, part: BinaryIO) -> Any:
    """The feed's next item, waited for by the clock; what the network does wrong becomes Interrupted or DataError."""
    while True:
        try:
            item = feed.get(pace.wait())
        except urllib.error.HTTPError as error:
            answer = f"the server answered {error.code} {in_one_line(error.reason)}"
            if error.code == 416:  # the server cannot go on from here: start over
                part.truncate(0)
            if error.code in (408, 416, 429) or error.code >= 500:
                raise Interrupted(answer) from None
            raise DataError(f"{url}: {answer}") from None
        except http.client.InvalidURL as error:
            raise DataError(f"{url}: {in_one_line(error)}") from None
        except (OSError, http.client.HTTPException) as error:  # URLError, refused, reset, timed out
            reason = getattr(error, "reason", None) or error
            raise Interrupted(f"{trouble} ({in_one_line(reason) or 'closed'})") from None
        except Exception as error:  # an address, or one that a redirect leads to, that cannot be asked
            raise DataError(f"{url}: {in_one_line(error)}") from None
        pace.check()
        if item is not None:
            return item


def begin(response: Any, url: str, remote: Remote, part: BinaryIO, start: int) -> int:
    """Look at an answer's headers; return from which byte of the file it goes on. Raises DataError for another file."""
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
        raise DataError(f"{url} offers {in_one_line(announced)} bytes where {expected:,} are expected")
    return start


def copy(feed: Feed, pace: Pace, url: str, remote: Remote, part: BinaryIO, bar: tqdm) -> None:
    """Copy exactly the bytes that are left from the feed to the end of `part`."""
    expected = pace.left
    surplus = f"{url} sends more than the {expected:,} bytes expected"
    while pace.left:
        block = following(feed, pace, url, "the connection broke", part)
        if not block:
            raise Interrupted("the connection closed early")
        if part.tell() == 0 and block.lstrip()[:1] == b"<":
            raise DataError(f"{url} answers with a web page where an archive is expected; try another mirror")
        if len(block) > pace.left:
            part.truncate(0)
            raise DataError(surplus)
        part.write(block)
        pace.left -= len(block)
        bar.update(len(block))
    # Chunked answers announce no length: the next block tells whether the file ends where it should. Nobody waits for
    # it longer than for any other, and if it does not come, the hash decides.
    try:
        block = feed.get(min(pace.timeout, 5.0))
    except Exception:
        block = b""
    if block:
        part.truncate(0)
        raise DataError(surplus)
