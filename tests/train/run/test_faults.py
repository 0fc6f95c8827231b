"""What goes wrong in the middle of a run: signals, kills, full disks, numbers that are none (train/run/faults.py)."""

import contextlib
import errno
import operator
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import tiny
from tools import kill_runs

import train
from minigrad import diagnosis
from train import cifar, data, options
from train.measure.memory import USABLE, largest_batch
from train.run import checkpoint, config, faults, folder, loop
from train.run.checkpoint import LAST, PREVIOUS


@pytest.fixture
def at_step(monkeypatch):
    """Arrange that something happens after the nth step from now: a function of the run, or another result."""

    def arrange(n, action):
        train_step, calls = loop.train_step, iter(range(1, 1000))

        def step(run, *arguments):
            result = train_step(run, *arguments)
            return (action(run) or result) if next(calls) == n else result

        monkeypatch.setattr(loop, "train_step", step)

    return arrange


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert tiny.train(out) == 0
    return out


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_finish_saves_and_exits_with_its_number(undisturbed, tmp_path, at_step, capsys, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    at_step(5, lambda run: os.kill(os.getpid(), number))
    assert tiny.train(tmp_path) == 128 + number
    assert f"stopped by {number.name}; {tmp_path} holds the run" in capsys.readouterr().err
    _, state = checkpoint.read(tmp_path / LAST)
    assert (state["epoch"], state["step"]) == (1, 2)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert tiny.train(tmp_path, "--resume") == 0
    assert tiny.differences(undisturbed, tmp_path) == []


def test_a_signal_during_evaluation_loses_nothing_either(tmp_path, monkeypatch):
    """With averaged weights in the network's place at that moment, which must not be what is saved."""
    options = ("--average", "0.5", "--limit-test", "260", "--epochs", "1")
    assert tiny.train(tmp_path / "once", *options) == 0
    normalise, whole = loop.augment.normalise, []

    def signalled(images, *arguments):
        whole.extend([1] * (len(images) == 256))
        if len(whole) == 2:  # the first such batch is the one that is tried before training
            os.kill(os.getpid(), signal.SIGTERM)
        return normalise(images, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.augment, "normalise", signalled)
        assert tiny.train(tmp_path / "twice", *options) == 128 + signal.SIGTERM
    _, state = checkpoint.read(tmp_path / "twice" / LAST)
    assert (state["epoch"], state["step"], state["history"]) == (0, tiny.STEPS, [])
    assert tiny.train(tmp_path / "twice", *options, "--resume") == 0
    assert tiny.differences(tmp_path / "once", tmp_path / "twice") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "where", ["run.loading.load", "run.loop.create", "run.training.write_report", "run.folder.put_aside"]
)
def test_a_signal_at_any_other_moment_ends_the_command_with_its_number(tmp_path, monkeypatch, capsys, number, where):
    """While data is loaded, the network made and the report written; moving files is finished first."""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    (tmp_path / "metrics.jsonl").write_text("an earlier run's\n")

    function = operator.attrgetter(where)(train)

    def signalled(*arguments, **options):
        os.kill(os.getpid(), number)
        return function(*arguments, **options)

    monkeypatch.setattr(f"train.{where}", signalled)
    assert cifar.main([*tiny.OPTIONS, "--epochs", "1", "--out", str(tmp_path)]) == 128 + number
    rest = f"; {tmp_path} holds the run: go on with --resume" if where == "run.folder.put_aside" else ""
    assert capsys.readouterr().err == f"python -m train.cifar: stopped by {number.name}{rest}\n"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert (tmp_path / "earlier-1").exists() == (where in ("run.training.write_report", "run.folder.put_aside"))
    assert (tmp_path / LAST).exists() == (where in ("run.training.write_report", "run.folder.put_aside"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_evaluation_of_a_file(undisturbed, monkeypatch, capsys, number):
    monkeypatch.setattr(loop.augment, "normalise", lambda *arguments: os.kill(os.getpid(), number))
    assert cifar.main(["--evaluate", str(undisturbed / LAST)]) == 128 + number
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"python -m train.cifar: stopped by {number.name}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", ["numpy", "matplotlib.ticker", "train.show.report"])
def test_a_signal_ends_the_command_while_it_imports(tmp_path, number, module):
    tiny.signal_at_import(tmp_path, module, number)
    path = os.pathsep.join([str(tmp_path), str(tiny.ROOT)])
    process = tiny.start("--out", tmp_path / "out", env={"PYTHONPATH": path})
    assert process.communicate(timeout=60) == ("", f"python -m train.cifar: stopped by {number.name}\n")
    assert process.returncode == 128 + number
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict x.png --checkpoint x", "report x", "figures curves x"])
@pytest.mark.parametrize("module", ["PIL", "train.run.checkpoint"])
def test_a_signal_ends_the_other_commands_with_a_sentence_too(tmp_path, command, module):
    tiny.signal_at_import(tmp_path, module, signal.SIGINT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(tiny.ROOT)])}
    name, *arguments = command.split()
    words = [sys.executable, "-m", f"train.{name}", *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, f"python -m train.{name}: stopped by SIGINT\n")


def test_a_signal_ends_a_download_which_later_goes_on(tmp_path):
    """The server promises the archive, sends a part of it and then nothing more."""
    name, size = data.CIFAR10.remote.name, data.CIFAR10.remote.size
    part = tmp_path / f"{name}.part"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = tiny.start("--data", "cifar10", "--data-root", tmp_path, "--data-mirror", mirror)
        with server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(100_000))
            tiny.wait_until(lambda: part.exists() and part.stat().st_size > 50_000)
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.splitlines() == [f"{name} from {mirror[7:]}", "python -m train.cifar: stopped by SIGTERM"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cifar10.lock", part.name]
    assert 50_000 < part.stat().st_size <= 100_000


@pytest.mark.parametrize("block", ["caught()", "caught(), signals.postponed()"])
def test_a_second_signal_ends_the_process_at_once(block):
    code = (
        "import signal\nfrom train.run.signals import Interrupted, Signals\n"
        f"signals = Signals()\nwith signals.{block}:\n"
        "    try:\n        signal.raise_signal(signal.SIGINT)\n    except Interrupted:\n        pass\n"
        "    print('first', signals.number, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print('second', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny.ROOT, timeout=60)
    assert (done.stdout, done.returncode) == ("first 2\n", -signal.SIGTERM)


def test_signals_reach_a_process_of_its_own(tmp_path):
    """As a cluster's scheduler sends them."""
    process = tiny.start(*tiny.OPTIONS, "--epochs", "1000", "--out", tmp_path)
    assert tiny.first_line(process).startswith("epoch   1/1000")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error == f"python -m train.cifar: stopped by SIGTERM; {tmp_path} holds the run: go on with --resume\n"
    assert checkpoint.read(tmp_path / LAST)[1]["epoch"] >= 1


@pytest.mark.slow
def test_killed_runs_go_on_as_if_nothing_had_been(tmp_path):
    result = kill_runs.trial(5, 0, tmp_path)
    assert (result.kills, result.lost, result.different) == (5, 0, 0)
    assert result.finished >= 1


def test_what_a_killed_process_left_unfinished_is_cleared_away(tmp_path):
    (tmp_path / f".{LAST}.4711.part").write_bytes(b"half of a fi")
    (tmp_path / ".curves.png.part").write_bytes(b"half of a pi")
    (tmp_path / ".lock").write_text("4711\n")
    (tmp_path / "notes.part").write_text("somebody's")
    with folder.sole_user(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.part"]


# ---- disks ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("what", ["run.training.plots.draw_confusion", "run.training.plots.draw_curves"])
def test_a_disk_that_is_full_for_a_picture_is_told_with_what_is_kept(tmp_path, capsys, monkeypatch, what):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"train.{what}", fail)
    assert tiny.train(tmp_path, "--save-every", "1") == cifar.FAILED
    error = capsys.readouterr().err
    assert f"a file in {tmp_path} cannot be written: {os.strerror(errno.ENOSPC)}; " in error
    assert f"{tmp_path} holds the state after epoch " in error
    monkeypatch.undo()
    assert tiny.train(tmp_path, "--resume") == 0


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


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_learning_rate(tmp_path, at_step, capsys, value):
    at_step(5, lambda run: (value, np.zeros((8, 2))))
    assert tiny.train(tmp_path, "--save-every", "1") == cifar.FAILED
    error = capsys.readouterr().err
    assert f"the loss is {value} in epoch 2, step 2, at learning rate 0.02" in error
    assert f"{tmp_path} holds the state after epoch 1, step 1" in error
    assert np.isfinite(tiny.weights(tmp_path)).all()


def test_weights_that_are_no_numbers_replace_no_good_ones(tmp_path, at_step, capsys):
    """The loss of a step says nothing about the weights after it: those are looked at before they are saved."""

    def spoil(run):
        run.model.fc.weight.data[0, 0] = np.inf

    at_step(3, spoil)
    assert tiny.train(tmp_path, "--save-every", "1") == cifar.FAILED
    assert "fc.weight is no longer finite and is not saved" in capsys.readouterr().err
    for name, step in ((LAST, 2), (PREVIOUS, 1)):
        arrays, state = checkpoint.read(tmp_path / name)
        assert state["step"] == step
        assert np.isfinite(arrays["fc.weight"]).all()


def test_a_learning_rate_that_is_far_too_high(tmp_path, capsys):
    assert tiny.train(tmp_path, "--lr", "1e30") == cifar.FAILED
    error = capsys.readouterr().err.splitlines()[-1]
    assert "try a smaller --lr" in error
    assert not (tmp_path / LAST).exists()


# ---- two processes --------------------------------------------------------------------------------------------------


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


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder.fcntl, "flock", refuse)
    with folder.sole_user(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked" in capsys.readouterr().err


# ---- when to save ---------------------------------------------------------------------------------------------------


def saves(guard, steps):
    """The steps after which a guard saves."""
    done = []
    guard.save = lambda: done.append(guard.steps)
    for _ in range(steps):
        guard.after_step(None)
    return done


def test_a_guard_saves_every_so_many_steps_or_seconds(monkeypatch):
    assert saves(faults.Guard(save=None), 20) == []
    assert saves(faults.Guard(save=None, every_steps=5), 17) == [5, 10, 15]
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    # Looked at every 10 s, and once more when it saves.
    assert saves(faults.Guard(save=None, every_seconds=25), 12) == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("text", "options"),
    [(None, {}), ("20", {"every_steps": 20}), ("5m", {"every_seconds": 300}), ("0.5m", {"every_seconds": 30})],
)
def test_save_every(text, options):
    assert config.save_interval(text) == options


@pytest.mark.parametrize("text", ["0", "-1", "0m", "2.5", "m", "5h", "", "nanm", "infm", "1e3"])
def test_save_every_is_a_number_above_zero(text):
    with pytest.raises(ValueError, match="--save-every takes a number of steps"):
        config.save_interval(text)


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_running_out_of_memory_is_one_sentence(tmp_path, at_step, capsys):
    def grow(run):
        raise MemoryError("Unable to allocate 1.2 TiB")

    at_step(2, grow)
    assert tiny.train(tmp_path) == cifar.FAILED
    assert capsys.readouterr().err == (
        "python -m train.cifar: out of memory on cpu (Unable to allocate 1.2 TiB): try a --batch-size below 8\n"
    )


def test_a_gpu_out_of_memory_tells_how_much_of_it_is_taken_and_what_would_fit(monkeypatch):
    """With a stand-in for CuPy: its OutOfMemoryError is a MemoryError too."""
    runtime = SimpleNamespace(memGetInfo=lambda: (2**30, 3 * 2**30))
    monkeypatch.setattr(faults, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    error = MemoryError("Out of memory allocating 512 bytes (allocated so far: 2 bytes).")
    fits = largest_batch("resnext29_32x4d", int(USABLE * 3 * 2**30), "bfloat16")
    assert 16 < fits < 512
    for size, advice in (
        (512, f"a --batch-size of {fits} should fit, by `python -m train.memory --model resnext29_32x4d`"),
        (16, "try a --batch-size below 16"),
    ):
        options = ["--device", "cuda", "--dtype", "bfloat16", "--model", "resnext29_32x4d", "--batch-size", str(size)]
        assert faults.out_of_memory(error, config.parser().parse_args(options)) == (
            "out of memory on cuda (Out of memory allocating 512 bytes (allocated so far: 2 bytes); 2.00 of the GPU's "
            f"3.00 GiB are taken): {advice}"
        )


@pytest.mark.parametrize(("capability", "model"), [(90, "resnext29_8x64d"), (75, "resnext29_32x4d")])
def test_an_older_gpu_is_given_a_smaller_network(monkeypatch, capability, model):
    monkeypatch.setattr(config, "compute_capability", lambda device: capability)
    assert config.DEFAULTS[config.kind_of_device("cuda:1")]["model"] == model


# ---- a GPU that fails -----------------------------------------------------------------------------------------------


def test_a_gpu_that_fails_ends_the_run_with_a_sentence_and_leaves_its_state(
    tmp_path, at_step, capsys, monkeypatch, undisturbed
):
    def fail(run):
        raise diagnosis.GPUError("cudaErrorIllegalAddress: an illegal memory access was encountered.\nmore")

    at_step(5, fail)
    assert tiny.train(tmp_path, "--save-every", "1") == cifar.FAILED
    error = capsys.readouterr().err
    assert "the GPU failed: cudaErrorIllegalAddress: an illegal memory access was encountered; " in error
    assert f"{tmp_path} holds the run's last saved state" in error
    monkeypatch.undo()
    assert tiny.train(tmp_path, "--resume") == 0
    assert tiny.differences(undisturbed, tmp_path) == []


def test_bfloat16_is_refused_where_the_gpu_has_no_instructions_for_it(monkeypatch):
    monkeypatch.setattr(options, "compute_capability", lambda device: 75)
    pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    with pytest.raises(ValueError, match=r"bfloat16 needs .* 8\.0 or later .* cuda has 7\.5: use --dtype float32"):
        options.check_dtype("bfloat16", "cuda")
    options.check_dtype("float32", "cuda")
    monkeypatch.setattr(options, "compute_capability", lambda device: 80)
    options.check_dtype("bfloat16", "cuda")
