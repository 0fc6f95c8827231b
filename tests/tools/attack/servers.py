"""Servers that answer with anything: noise, lies, pieces, pauses, redirects, too much, too little.

A download ends, soon, with the whole file or with one sentence that names the address; what lies in the folder then is
the file, or the part that the next run goes on with. Behaviours are drawn anew for every request.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from support.web import CONTENT, Handler, Server, drop, good, remote, serving

from train.data import DataError
from train.data.fetch import fetch

TARGETS = (
    "ftp://x/",
    "file:///etc/passwd",
    "data:,x",
    "http://[::1",
    "//x",
    "",
    "http://a..b/",
    "javascript:1",
    "/x\nX: y",
)
SIZE = len(CONTENT)


def raw(*pieces: bytes, pause: float = 0.0) -> Callable[[Handler], None]:
    """Send these bytes as they are."""

    def behaviour(h: Handler) -> None:
        for piece in pieces:
            h.wfile.write(piece)
            h.wfile.flush()
            time.sleep(pause)

    return behaviour


def ranged(rng: random.Random, h: Handler) -> None:
    """Answer a range with something near to it."""
    start = max(0, h.start() + rng.choice([0, 0, -1, 1, 100]))
    last, whole = SIZE - 1 + rng.choice([0, 0, -1, 1]), SIZE + rng.choice([0, 0, 1])
    body = bytes(len(CONTENT[start:])) if rng.random() < 0.5 else CONTENT[start:]
    h.answer(rng.choice([206, 206, 200]), body, Content_Range=f"bytes {start}-{last}/{whole}")


def behaviour(rng: random.Random, server: Server) -> Callable[[Handler], None]:
    """What a server does with one request."""
    status = rng.choice(
        [400, 401, 403, 404, 408, 410, 416, 418, 429, 500, 502, 503, 599, 204, 205, 299, 304, 100, 101, 999]
    )
    address = rng.choice([*TARGETS, f"{server.base}/data/file.tar.gz", f"{server.base}/x" + "y" * 1000])
    kind = rng.choice(["good", "drop", "status", "redirect", "raw", "ranged", "lies", "chunks", "slow", "html"])
    head = b"HTTP/1.1 200 OK\r\n"
    chunk = b"%x\r\n%b\r\n" % (SIZE, CONTENT)
    noise = [
        *(b"", b"\r\n", b"HTTP/1.1 200", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 -1 OK\r\n\r\n", b"ICY 200 OK\r\n\r\n"),
        *(head, head + b"X" * 70_000 + b"\r\n\r\n", head + b"X: y\r\n" * 300 + b"\r\n", rng.randbytes(500)),
        *(head + b"Content-Length: -5\r\n\r\n", head + b"Content-Length: 1e3\r\n\r\n", head + b"\xff: \xff\r\n\r\n"),
        head + b"Content-Encoding: gzip\r\n\r\n" + CONTENT[:1000],
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    ]
    ends = [b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"5\r\nabcde\r\n0\r\n\r\n", b"0;" + b"x" * 1000]
    return {
        "good": lambda h: good(h),
        "drop": drop(rng.choice([0, 1, 500, 50_000, SIZE - 1])),
        "status": lambda h: h.answer(status, b""),
        "redirect": lambda h: h.answer(rng.choice([301, 302, 303, 307, 308, 300]), b"", Location=address),
        "raw": raw(rng.choice(noise)),
        "ranged": lambda h: ranged(rng, h),
        "lies": lambda h: h.answer(
            200, CONTENT + bytes(rng.choice([0, 1, 9999])), Content_Length=rng.choice(["", "5", str(SIZE)])
        ),
        "chunks": raw(head + b"Transfer-Encoding: chunked\r\n\r\n", chunk, rng.choice(ends)),
        "slow": raw(rng.choice([b"", head, head + b"X: "]), *[rng.choice([b"x", b"X: y\r\n"])] * 3000, pause=0.02),
        "html": lambda h: h.answer(200, b"<html>".ljust(SIZE), Content_Type=rng.choice(["text/html", "x"])),
    }[kind]


def trial(rng: random.Random, folder: Path) -> None:
    """Download from one or two such servers, again and again into the same folder."""
    with serving() as server, serving() as other:
        wanted = remote(server)
        for each in (server, other):
            each.behaviours = [behaviour(rng, each) for _ in range(rng.randint(1, 6))]
        mirrors = [f"{s.base}/data/" for s in rng.choice([[server], [server, other]])]
        for again in range(2):
            if again:
                other.behaviours = server.behaviours = [good]
            begin = time.monotonic()
            limits = {"timeout": 0.2, "backoff": 0.001, "attempts": 3, "look": 0.2, "patience": 0.3}
            try:
                path = fetch(wanted, folder, mirrors=mirrors, progress=False, **limits)
                assert path.read_bytes() == CONTENT and os.listdir(folder) == [path.name]
                break
            except DataError as error:
                assert "\n" not in str(error) and "http://127.0.0.1:" in str(error), repr(error)
                assert not again, f"after that, an honest server cannot be downloaded from: {error}"
            left = os.listdir(folder)
            assert not left or left == ["file.tar.gz.part"], left
            assert time.monotonic() - begin < 30 and len(server.requests) + len(other.requests) < 200
