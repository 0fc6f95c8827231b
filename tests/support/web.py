"""A server on this machine that misbehaves in every way the network knows."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from train.data.download import Remote

CONTENT = b"\x1f\x8b" + bytes(i * i % 251 for i in range(100_000))


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the server's next behaviour; the last one repeats."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requests.append((self.path, self.headers.get("Range")))
        behaviour = server.behaviours[min(len(server.requests), len(server.behaviours)) - 1]
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has hung up, as it should
            behaviour(self)

    def answer(self, status: int, body: bytes, sent: int | None = None, **headers: str) -> None:
        """Send `body`, or only the first `sent` bytes of it."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:sent])
        self.wfile.flush()

    def start(self) -> int:
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def log_message(self, *args: object) -> None:
        pass


def good(h: Handler, sent: int | None = None) -> None:
    """Send the file, or the rest of it where a range is asked for; with `sent`, drop the line after so many bytes."""
    start = h.start()
    if start >= len(CONTENT):
        h.answer(416, b"", Content_Range=f"bytes */{len(CONTENT)}")
    elif start:
        h.answer(206, CONTENT[start:], sent, Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
    else:
        h.answer(200, CONTENT, sent)


def drop(sent: int) -> Callable[[Handler], None]:
    return lambda h: good(h, sent)


def slow(rate: float) -> Callable[[Handler], None]:
    """Send the file, or what is asked of it, at so many bytes a second."""

    def behaviour(h: Handler) -> None:
        good(h, 0)
        for begin in range(h.start(), len(CONTENT), 1000):
            time.sleep(1000 / rate)
            h.wfile.write(CONTENT[begin : begin + 1000])

    return behaviour


def stall(h: Handler) -> None:
    """Send the beginning, and then nothing for longer than any test may take."""
    good(h, 1000)
    time.sleep(3600)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours: list[Callable[[Handler], None]] = [good]
        self.requests: list[tuple[str, str | None]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that runs inside the block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def remote(server: Server, content: bytes = CONTENT) -> Remote:
    return Remote(f"{server.base}/data/file.tar.gz", len(content), hashlib.sha256(content).hexdigest())
