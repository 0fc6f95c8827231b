"""Several files on several servers: which is asked, when one is left for another, and what is kept."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from support.web import CONTENT, Server, drop, good, slow

from train.data.download import DataError, Remote
from train.data.fetch import fetch

DIGEST = hashlib.sha256(CONTENT).hexdigest()
FAST = {"timeout": 2.0, "backoff": 0.001, "attempts": 3, "look": 0.4, "patience": 0.5}


def remotes(*servers: Server, name: str = "file.tar.gz") -> Remote:
    first, *more = (f"{server.base}/{name}" for server in servers)
    return Remote(first, len(CONTENT), DIGEST, tuple(more))


def test_a_slow_server_is_left_for_a_fast_one_which_goes_on(
    server: Server, other: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server.behaviours = [slow(20_000)]  # the whole takes five seconds
    path = fetch(remotes(server, other), tmp_path, **FAST)
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ["file.tar.gz"]
    assert len(server.requests) == len(other.requests) == 1
    assert int(other.requests[0][1].removeprefix("bytes=").removesuffix("-")) >= 1000  # what is complete is kept
    first, second = server.base.removeprefix("http://"), other.base.removeprefix("http://")
    said = capsys.readouterr().err
    assert f"file.tar.gz from {first}\n" in said
    assert f"{first} gives " in said and f" minutes: over to {second}\n" in said
    assert f"file.tar.gz from {second}\n" in said and f" MB from {second} in " in said


def test_another_file_of_the_same_images_will_do(server: Server, other: Server, tmp_path: Path) -> None:
    server.behaviours = [slow(20_000)]
    path = fetch([remotes(server, name="a.tar.gz"), remotes(other, name="b.tgz")], tmp_path, **FAST)
    assert path.name == "b.tgz" and os.listdir(tmp_path) == ["b.tgz"]  # nor is the other's part left


@pytest.mark.parametrize(
    ("rates", "asked"),
    [
        ((30_000, 200_000), "ab"),
        ((100_000, 30_000), "aba"),  # there and back: 1.5 seconds more from b, 0.6 promised by a
        ((30_000, 20_000), "ab"),  # the first one would have to be twice as fast to be gone back to
        ((100_000, 1_000, 2_000), "abca"),
        ((1_000, 900, 800), "abc"),  # each may be fast until it was tried
    ],
)
def test_the_least_slow_of_slow_servers_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: tuple[int, ...], asked: str
) -> None:
    """Servers of exact rates, by a clock that stands still while this test waits for its machine."""
    found = []

    def receive(url: str, remote: Remote, part: BinaryIO, *, look: float, slow: Callable, **limits: object) -> None:
        name = url[len("http://")]
        found.append(name)
        rate = rates["abc".index(name)]
        while (at := part.seek(0, os.SEEK_END)) < len(CONTENT):
            part.write(CONTENT[at : at + int(rate * look)])
            if left := len(CONTENT) - part.tell():
                slow(rate, left / rate)

    monkeypatch.setattr("train.data.fetch.receive", receive)
    first, *more = (f"http://{name}/file.tar.gz" for name in "abc"[: len(rates)])
    path = fetch(Remote(first, len(CONTENT), DIGEST, tuple(more)), tmp_path, **FAST | {"patience": 0.1})
    assert path.read_bytes() == CONTENT
    assert "".join(found) == asked


def test_a_single_server_may_be_slow(server: Server, tmp_path: Path) -> None:
    server.behaviours = [slow(200_000)]
    fetch([remotes(server, name="file.tar.gz"), remotes(server, name="other.tgz")], tmp_path, **FAST | {"patience": 0})
    assert len(server.requests) == 1


@pytest.mark.parametrize("trouble", [404, 403, 500, "gone", "page", "wrong", "drop"])
def test_where_one_fails_the_next_is_asked(server: Server, other: Server, tmp_path: Path, trouble: int | str) -> None:
    if isinstance(trouble, int):
        server.behaviours = [lambda h: h.answer(trouble, b"")]
    elif trouble == "page":
        server.behaviours = [lambda h: h.answer(200, b"<html>".ljust(len(CONTENT)))]
    elif trouble == "wrong":
        server.behaviours = [lambda h: h.answer(200, b"\x1f" + bytes(len(CONTENT) - 1))]
    elif trouble == "drop":
        server.behaviours = [drop(500)]
    else:
        server.socket.close()
    assert fetch(remotes(server, other), tmp_path, **FAST).read_bytes() == CONTENT
    assert len(other.requests) == 1


def test_when_all_fail_every_address_is_named(server: Server, other: Server, tmp_path: Path) -> None:
    server.behaviours, other.behaviours = [lambda h: h.answer(404, b"")], [lambda h: h.answer(503, b"")]
    with pytest.raises(DataError) as error:
        fetch(remotes(server, other), tmp_path, **FAST)
    other.behaviours = [lambda h: h.answer(404, b"")]
    with pytest.raises(DataError) as both:
        fetch(remotes(server, other), tmp_path, **FAST)
    assert f"{other.base}/file.tar.gz: the server answered 503" in str(error.value)
    assert f"{server.base}/file.tar.gz: the server answered 404" in str(both.value)
    assert f"{other.base}/file.tar.gz: the server answered 404" in str(both.value)


def test_mirrors_may_hold_any_of_the_files_or_be_one(server: Server, other: Server, tmp_path: Path) -> None:
    known = [Remote(f"https://unreachable.invalid/{name}", len(CONTENT), DIGEST) for name in ("a.tar.gz", "b.tgz")]
    server.behaviours = [lambda h: h.answer(404, b"") if "a.tar.gz" in h.path else good(h)]
    path = fetch(known, tmp_path / "1", mirrors=[f"{server.base}/there"], **FAST)
    assert (path.name, [p for p, _ in server.requests]) == ("b.tgz", ["/there/a.tar.gz", "/there/b.tgz"])
    path = fetch(known, tmp_path / "2", mirrors=[f"{other.base}/x/b.tgz"], **FAST)
    assert (path.name, [p for p, _ in other.requests]) == ("b.tgz", ["/x/b.tgz"])
    server.requests.clear(), other.requests.clear()
    server.behaviours = [lambda h: h.answer(404, b"")]
    path = fetch(known, tmp_path / "3", mirrors=[server.base, other.base], **FAST)
    assert path.name == "a.tar.gz" or len(server.requests) == 2
    assert len(other.requests) == 1


def test_what_an_earlier_run_left_is_gone_on_with_first(server: Server, other: Server, tmp_path: Path) -> None:
    (tmp_path / "b.tgz.part").write_bytes(CONTENT[:60_000])
    path = fetch([remotes(server, name="a.tar.gz"), remotes(other, name="b.tgz")], tmp_path, **FAST)
    assert path.name == "b.tgz" and not server.requests
    assert other.requests == [("/b.tgz", "bytes=60000-")]
