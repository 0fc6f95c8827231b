"""A run's folder: full disks, locks, and whatever lies in its place (train/run/folder.py)."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

from train import cifar
from train.run import checkpoint, folder
from train.run.checkpoint import LAST

# ---- signals --------------------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_unfinished_is_cleared_away(tmp_path):
    (tmp_path / f".{LAST}.4711.part").write_bytes(b"half of a fi")
    (tmp_path / ".curves.png.part").write_bytes(b"half of a pi")
    (tmp_path / ".lock").write_text("4711\n")
    (tmp_path / "notes.part").write_text("somebody's")
    with folder.sole_user(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.part"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_old_state_and_stops(undisturbed, tmp_path, at_step, capsys, monkeypatch, number):
    def fill_disk(run):
        monkeypatch.setattr("minigrad.weights.os.fsync", fail)

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    at_step(5, fill_disk)
    assert tiny.train(tmp_path, "--save-every", "1") == cifar.FAILED
    error = capsys.readouterr().err
    assert f"{tmp_path / LAST} cannot be saved: {os.strerror(number)}" in error
    assert f"{tmp_path} holds the state after epoch 1, step 1" in error
    assert not list(tmp_path.glob(".*.part"))
    assert (checkpoint.read(tmp_path / LAST)[1]["epoch"], checkpoint.read(tmp_path / LAST)[1]["step"]) == (1, 1)
    monkeypatch.undo()
    assert tiny.train(tmp_path, "--resume") == 0
    assert tiny.differences(undisturbed, tmp_path) == []


def test_a_disk_that_is_full_from_the_start_is_told_with_the_file_s_name(tmp_path):
    """Not even the number in the lock can be written."""
    process = tiny.start(
        *(*tiny.OPTIONS, "--out", tmp_path / "new"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)),
    )
    _, error = process.communicate(timeout=60)
    assert process.returncode == cifar.FAILED
    assert f"{tmp_path / 'new'}" in error and " cannot be " in error and error.count("\n") == 1, error


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path):
    """The system refuses to let a file grow beyond a limit, as a full disk does: half of it is written by then."""
    assert tiny.train(tmp_path, "--epochs", "1") == 0
    before = {name: (tmp_path / name).read_bytes() for name in (LAST, "metrics.jsonl")}
    process = tiny.start(
        *(*tiny.OPTIONS, "--epochs", "1", "--out", tmp_path / "new", "--save-every", "1"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[LAST]) // 2,) * 2),
    )
    _, error = process.communicate(timeout=60)
    assert process.returncode == cifar.FAILED
    assert f"{tmp_path / 'new' / LAST} cannot be saved: File too large; nothing was saved before" in error
    assert error.count("\n") == 1
    # Seen before the first step, when the state is tried; see rehearsal.py.
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [".lock", "config.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path):
    tmp_path.chmod(0o500)
    assert tiny.train(tmp_path / "new") == cifar.USAGE


@pytest.mark.parametrize("what", ["file", "fifo", "dangling", "loop"])
@pytest.mark.parametrize("below", ["", "out"])
@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_whatever_is_in_the_place_of_the_folder_is_left_and_told(tmp_path, capsys, what, below, options):
    place = tmp_path / what
    {
        "file": lambda: place.write_text("mine"),
        "fifo": lambda: os.mkfifo(place),
        "dangling": lambda: place.symlink_to("nowhere"),
        "loop": lambda: place.symlink_to(place),
    }[what]()
    before = place.lstat().st_ino, place.lstat().st_mtime_ns
    assert tiny.train(place / below, *options) == cifar.USAGE
    error = capsys.readouterr().err
    assert f"--out {place / below} cannot be made a folder: " in error
    assert error.count("\n") == 1
    assert below or "is there and is neither a folder nor a link to one" in error
    assert os.listdir(tmp_path) == [what]
    assert (place.lstat().st_ino, place.lstat().st_mtime_ns) == before


HOSTILE = {
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "a link to nothing": lambda path: os.symlink("nowhere", path),
    "nothing": lambda path: None,
    "an empty file": lambda path: open(path, "x").close(),
    "noise": lambda path: Path(path).write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("option", ["--evaluate", "--data"])
@pytest.mark.parametrize("name", ["plain", "two\nlines", "\x1b[31mred", "x" * 255, "x" * 300])
@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_is_given_for_a_file_is_read_or_refused_in_one_line(tmp_path, capsys, option, name, what):
    with contextlib.suppress(OSError):  # no file can have the longest of the names
        HOSTILE[what](tmp_path / name)
    assert cifar.main([option, str(tmp_path / name), "--out", str(tmp_path / "out")]) in (cifar.FAILED, cifar.USAGE)
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err[:-1].isprintable()
    assert repr(name)[1:-1] in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [LAST, "config.json", "metrics.jsonl", "curves.png", "report.html"])
def test_a_folder_in_the_place_of_a_file_is_put_aside(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    assert tiny.train(tmp_path, "--epochs", "1") == 0
    assert (tmp_path / "earlier-1" / name / "mine").read_text() == "mine"


def test_a_folder_in_the_place_of_the_lock_is_told(tmp_path, capsys):
    (tmp_path / ".lock").mkdir()
    assert tiny.train(tmp_path) == cifar.FAILED
    assert capsys.readouterr().err == f"python -m train.cifar: {tmp_path / '.lock'}: Is a directory\n"


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path, capsys):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from train.run.folder import *\n"
            f"with sole_user(Path({str(tmp_path)!r})):\n print(1, flush=True)\n input()",
        ],
        cwd=tiny.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert tiny.first_line(holder) == b"1\n"
    for words in ((), ("--resume",)):
        assert tiny.train(tmp_path, *words) == cifar.FAILED
        assert f"{tmp_path} is in use by process {holder.pid}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    holder.kill()  # the lock of a killed process is no obstacle
    holder.communicate(timeout=60)
    assert tiny.train(tmp_path, "--epochs", "1") == 0


def test_the_lock_belongs_to_the_path(tmp_path):
    """Somebody removes `.lock`, or the folder: a second run must not write between the first one's files."""
    with folder.sole_user(tmp_path) as lock:
        (tmp_path / ".lock").unlink()
        lock.check()  # nobody else has come: taken anew
        with pytest.raises(folder.InUse, match=f"is in use by process {os.getpid()}"):
            folder.Lock(tmp_path)
        (tmp_path / ".lock").unlink()
        with folder.sole_user(tmp_path), pytest.raises(folder.InUse):
            lock.check()


def test_a_run_whose_folder_another_run_has_taken_ends_with_a_sentence(tmp_path, at_step, capsys):
    with contextlib.ExitStack() as other:

        def take(run):
            (tmp_path / ".lock").unlink()
            other.enter_context(folder.sole_user(tmp_path))

        at_step(5, take)
        assert tiny.train(tmp_path) == cifar.FAILED
    error = capsys.readouterr().err
    assert "is in use by process" in error and f"{tmp_path} holds the state after epoch 1, step 0" in error


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_the_lock_follows_no_symbolic_link(tmp_path, capsys, options):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("../precious.txt")
    assert tiny.train(tmp_path / "run", *options) == cifar.FAILED
    assert ".lock is a symbolic link" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with folder.sole_user(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked" in capsys.readouterr().err
