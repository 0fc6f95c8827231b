"""What a server may send instead of the file (train/data/download.py)."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.web import CONTENT, Handler, Server, good
from test_download import check_whole, get

from train.data.download import DataError


def drip(prefix: bytes, piece: bytes) -> Callable[[Handler], None]:
    """Send `prefix`, then `piece` again and again, each soon enough for the socket's own limit."""

    def behaviour(h: Handler) -> None:
        h.wfile.write(prefix)
        for _ in range(100):
            time.sleep(0.02)
            h.wfile.write(piece)
            h.wfile.flush()

    return behaviour


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("prefix", "piece"),
    [
        (b"HTTP/1.1 200 O", b"K"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED + b"5;", b"x"),
        (CHUNKED + b"1\r\n\x1f\r\n0", b"0"),
        (CHUNKED, b"1\r\n\x1f\r\n"),
    ],
    ids=["status line", "header", "headers", "100 Continue", "chunk extension", "chunk size", "tiny chunks"],
)
def test_whatever_drips_is_a_stall(server: Server, tmp_path: Path, prefix: bytes, piece: bytes) -> None:
    server.behaviours = [drip(prefix, piece)]
    with pytest.raises(DataError, match=r"timed out: it fell below 1024 bytes per second for 0\.2 seconds"):
        get(server, tmp_path, timeout=0.2, attempts=1)


def test_trailers_that_drip_do_not_hold_up_a_whole_file(server: Server, tmp_path: Path) -> None:
    body = b"%x\r\n%b\r\n0\r\n" % (len(CONTENT), CONTENT)
    server.behaviours = [drip(CHUNKED + body, b"X: y\r\n")]
    check_whole(get(server, tmp_path, timeout=0.2))
    assert len(server.requests) == 1


def test_bytes_that_are_thrown_away_are_no_progress(server: Server, tmp_path: Path) -> None:
    """A server that resumes with wrong bytes, and ignores Range when it is asked for all, would go on for ever."""

    def wrong(h: Handler) -> None:
        if h.start():
            rest = bytes(len(CONTENT) - h.start())
            h.answer(206, rest, Content_Range=f"bytes {h.start()}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            good(h, 50_000)

    server.behaviours = [wrong]
    with pytest.raises(DataError, match="given up after 3 attempts"):
        get(server, tmp_path)
    assert len(server.requests) < 10


@pytest.mark.parametrize(
    "answer",
    [
        b"X: y\r\n\r\n",
        b"HTTP/1.1 -1 OK\r\n\r\n",
        b"HTTP/1.1 \x1b[31m\r\n\r\n",
        b"HTTP/1.1 404 \x1b[31mred\rX\r\n\r\n",
        b"HTTP/1.1 503 " + b"x" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \x1b[31m\r\n\r\n",
    ],
)
def test_what_a_server_says_is_told_in_one_line(server: Server, tmp_path: Path, answer: bytes) -> None:
    server.behaviours = [lambda h: h.wfile.write(answer)]
    with pytest.raises(DataError) as error:
        get(server, tmp_path, attempts=1)
    assert str(error.value).isprintable() and str(error.value).startswith(server.base) and len(str(error.value)) < 400


def test_a_redirect_that_leaves_the_web_is_refused(server: Server, tmp_path: Path) -> None:
    for address in (
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "data:text/plain,x",
        "gopher://x/",
        "http://a..b/",
        "http://x:y/",
    ):
        server.behaviours = [lambda h, address=address: h.answer(302, b"", Location=address)]
        with pytest.raises(DataError) as error:
            get(server, tmp_path, attempts=1)
        sentence = str(error.value)
        assert sentence.startswith(server.base) and address[:6] in sentence, sentence
        assert "\n" not in sentence
