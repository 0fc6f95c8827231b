"""Downloads against a server on this machine that misbehaves in every way the network knows."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.web import CONTENT, Handler, Server, drop, good, remote, stall

from train.data.download import DataError, Remote, verify
from train.data.fetch import alone, fetch

PART = "file.tar.gz.part"


def get(server: Server, folder: Path, **options: object) -> Path:
    settings: dict = {"timeout": 0.3, "backoff": 0.001, "attempts": 3} | options
    return fetch(remote(server), folder, **settings)


def check_whole(path: Path) -> None:
    """The file is there with its content, and nothing else is."""
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]


def test_fetches_once_and_then_uses_the_file(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "new" / "folder")
    check_whole(path)
    assert get(server, path.parent) == path
    assert server.requests == [("/data/file.tar.gz", None)]


def test_a_dropped_line_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.behaviours = [drop(30_000), drop(20_000), good]
    check_whole(get(server, tmp_path))
    assert [asked for _, asked in server.requests] == [None, "bytes=30000-", "bytes=50000-"]


def test_a_link_that_keeps_breaking_but_brings_bytes_gets_there(server: Server, tmp_path: Path) -> None:
    server.behaviours = [drop(9_000)]
    check_whole(get(server, tmp_path, attempts=2))
    assert len(server.requests) == 12


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.behaviours = [drop(40_000), drop(0)]
    with pytest.raises(DataError, match=r"closed early, given up after 3 attempts at 40,000 of 100,002 bytes"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == [PART]
    server.behaviours = [good]
    check_whole(get(server, tmp_path))
    assert server.requests[-1][1] == "bytes=40000-"


def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT[:500])
    server.behaviours = [lambda h: h.answer(200, CONTENT)]
    check_whole(get(server, tmp_path))
    assert server.requests == [("/data/file.tar.gz", "bytes=500-")]


def test_a_whole_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT)
    check_whole(get(server, tmp_path))
    assert server.requests == []


@pytest.mark.parametrize(
    "leftover", [bytes(len(CONTENT)), bytes(700), CONTENT + b"more"], ids=["whole", "some", "long"]
)
def test_a_damaged_part_is_fetched_again(server: Server, tmp_path: Path, leftover: bytes) -> None:
    (tmp_path / PART).write_bytes(leftover)
    check_whole(get(server, tmp_path))


def test_range_not_satisfiable_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT[:500])
    server.behaviours = [lambda h: h.answer(416, b""), good]
    check_whole(get(server, tmp_path))
    assert [asked for _, asked in server.requests] == ["bytes=500-", None]


def test_a_wrong_range_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT[:500])
    server.behaviours = [lambda h: h.answer(206, CONTENT[400:], Content_Range=f"bytes 400-100001/{len(CONTENT)}")]
    with pytest.raises(DataError, match=r"bytes 500-100001 were asked for, 'bytes 400-100001/100002' were sent"):
        get(server, tmp_path)


def test_a_stall_is_broken_off_and_resumed(server: Server, tmp_path: Path) -> None:
    server.behaviours = [stall, good]
    check_whole(get(server, tmp_path))
    assert server.requests[1][1] == "bytes=1000-"


def test_a_stall_before_the_answer_is_given_up(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: time.sleep(0.5)]
    with pytest.raises(DataError, match="timed out"):
        get(server, tmp_path, timeout=0.1, attempts=2)
    assert os.listdir(tmp_path) == []


def test_a_trickle_counts_as_a_stall(server: Server, tmp_path: Path) -> None:
    def trickle(h: Handler) -> None:
        h.answer(200, CONTENT, 10)
        for _ in range(20):
            time.sleep(0.05)
            h.wfile.write(b"x")

    server.behaviours = [trickle]
    with pytest.raises(DataError, match="below 1024 bytes per second"):
        get(server, tmp_path, timeout=0.2, attempts=1)


def test_a_slow_server_is_waited_for(server: Server, tmp_path: Path) -> None:
    def slow(h: Handler) -> None:
        h.answer(200, CONTENT, 0)
        for start in range(0, len(CONTENT), 20_000):
            time.sleep(0.1)
            h.wfile.write(CONTENT[start : start + 20_000])

    server.behaviours = [slow]
    check_whole(get(server, tmp_path))
    assert len(server.requests) == 1


def test_wrong_bytes_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: h.answer(200, b"\x1f" + bytes(len(CONTENT) - 1))]
    with pytest.raises(DataError, match=r"serves another file: .* has SHA-256 .* where the official file.tar.gz has"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_wrong_length_is_refused_before_it_is_read(server: Server, tmp_path: Path, difference: int) -> None:
    length = len(CONTENT) + difference
    server.behaviours = [lambda h: h.answer(200, bytes(length))]
    with pytest.raises(DataError, match=f"offers {length} bytes where 100,002 are expected"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("surplus", [b"x", bytes(10_000_000)], ids=["one", "many"])
def test_too_many_bytes_without_a_length_are_refused(server: Server, tmp_path: Path, surplus: bytes) -> None:
    server.behaviours = [lambda h: h.answer(200, CONTENT + surplus, Content_Length="")]
    with pytest.raises(DataError, match="sends more than the 100,002 bytes expected"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_answer_without_a_length_is_accepted(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: h.answer(200, CONTENT, Content_Length="")]
    check_whole(get(server, tmp_path))


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/gzip"])
def test_a_web_page_gets_its_own_sentence(server: Server, tmp_path: Path, kind: str) -> None:
    page = b"<!DOCTYPE html><p>Please log in.".ljust(len(CONTENT))
    server.behaviours = [lambda h: h.answer(200, page, Content_Type=kind)]
    with pytest.raises(DataError, match="answers with a web page"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: h.answer(503, b"<html>busy", Content_Type="text/html"), good]
    check_whole(get(server, tmp_path))


def test_a_server_that_stays_busy_is_given_up(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: h.answer(503, b"<html>busy", Content_Type="text/html")]
    with pytest.raises(DataError, match="the server answered 503 Service Unavailable, given up after 3 attempts"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(server.requests) == 3


def test_a_missing_file_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: h.answer(404, b"")]
    with pytest.raises(DataError, match="the server answered 404 Not Found"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_redirects_are_followed_and_loops_are_not(server: Server, tmp_path: Path) -> None:
    server.behaviours = [lambda h: h.answer(302, b"", Location="/elsewhere"), good]
    check_whole(get(server, tmp_path / "a"))
    assert server.requests[1][0] == "/elsewhere"
    server.behaviours = [lambda h: h.answer(302, b"", Location="/round")]
    with pytest.raises(DataError, match="302"):
        get(server, tmp_path / "b", attempts=1)


def test_a_redirect_to_a_local_file_is_refused(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    server.behaviours = [lambda h: h.answer(302, b"", Location=secret.as_uri())]
    with pytest.raises(DataError):
        get(server, tmp_path / "a", attempts=1)
    assert os.listdir(tmp_path / "a") == []


def test_a_mirror_replaces_the_address(server: Server, tmp_path: Path) -> None:
    official = Remote("https://unreachable.invalid/x/file.tar.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    check_whole(fetch(official, tmp_path, mirrors=[f"{server.base}/mirror/"]))
    assert server.requests == [("/mirror/file.tar.gz", None)]


@pytest.mark.parametrize(
    "mirror",
    [
        "file:///etc",
        "/etc",
        "ftp://127.0.0.1/",
        "",
        "http://",
        "http://[",
        "http://a b/",
        "http://a\n/",
        "http://a:b/",
        "http://a:99999/",
        "http://a..b/",
        f"http://{64 * 'a'}/",
        "http://[::1/",
    ],
)
def test_a_mirror_must_be_on_the_web(server: Server, tmp_path: Path, mirror: str) -> None:
    with pytest.raises(DataError, match="needs an http:// or https:// address, got ") as error:
        fetch(remote(server), tmp_path, mirrors=[mirror])
    assert repr(mirror.rstrip("/"))[1:-1] in str(error.value)


def test_nobody_listens(tmp_path: Path) -> None:
    closed = Server()
    closed.server_close()
    with pytest.raises(DataError, match=r"no connection \(.*refused.*\), given up after 3 attempts"):
        get(closed, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_put_there_by_hand_is_verified(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.tar.gz"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"has 100,001 bytes where the official file.tar.gz has 100,002"):
        get(server, tmp_path)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(DataError, match="SHA-256"):
        get(server, tmp_path)
    assert server.requests == []
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        verify(tmp_path / "none", remote(server))


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write file.tar.gz to .*: Not a directory"):
        get(server, tmp_path / "file" / "below")


def test_a_full_disk_is_told_and_leaves_no_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write file.tar.gz to .*: No space left on device"):
        get(server, tmp_path)
    assert not (tmp_path / "file.tar.gz").exists()


def test_a_file_in_the_place_of_the_folder_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"cannot write file.tar.gz to .*/link, which is no folder"):
        get(server, tmp_path / "link")


def in_four_threads(run: Callable[[], None]) -> None:
    """Call run() in four threads at once, and wait for them."""
    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_two_threads_at_once_make_one_file(server: Server, tmp_path: Path) -> None:
    server.behaviours = [drop(20_000), drop(20_000), good]
    failures = []

    def run() -> None:
        try:
            with alone(tmp_path / ".lock"):
                get(server, tmp_path)
        except DataError as error:
            failures.append(error)

    in_four_threads(run)
    assert failures == []
    assert len(server.requests) == 3
    (tmp_path / ".lock").unlink()
    check_whole(tmp_path / "file.tar.gz")


def test_killed_in_the_middle_leaves_a_part_that_is_resumed(server: Server, tmp_path: Path) -> None:
    held = threading.Event()

    def hold(h: Handler) -> None:
        good(h, 60_000)
        held.set()
        time.sleep(2)

    server.behaviours = [hold]
    code = (
        "import sys; from pathlib import Path; from train.data.download import *\nfrom train.data.fetch import fetch\n"
        "fetch(Remote(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    r = remote(server)
    child = subprocess.Popen([sys.executable, "-c", code, r.url, str(r.size), r.sha256, str(tmp_path)])
    assert held.wait(20)
    time.sleep(0.1)
    child.kill()
    child.wait(60)
    assert os.listdir(tmp_path) == [PART]
    server.behaviours = [good]
    check_whole(get(server, tmp_path))
