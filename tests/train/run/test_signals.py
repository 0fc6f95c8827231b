"""SIGINT and SIGTERM at any moment: one sentence, the right exit code, nothing lost (train/run/signals.py)."""

import operator
import os
import signal
import socket
import subprocess
import sys

import pytest
from support import tiny

import train
from train import cifar, data
from train.data import augment
from train.run import checkpoint
from train.run.checkpoint import LAST

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
    normalise, whole = augment.normalise, []

    def signalled(images, *arguments):
        whole.extend([1] * (len(images) == 256))
        if len(whole) == 2:  # the first such batch is the one that is tried before training
            os.kill(os.getpid(), signal.SIGTERM)
        return normalise(images, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(augment, "normalise", signalled)
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
    monkeypatch.setattr(augment, "normalise", lambda *arguments: os.kill(os.getpid(), number))
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
    root, home = tmp_path / "root", str(tmp_path / "home")  # where nobody keeps CIFAR-10
    part = root / f"{name}.part"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}"
        homes = dict.fromkeys(("HOME", "TORCH_HOME", "KERAS_HOME", "XDG_CACHE_HOME"), home)
        process = tiny.start("--data", "cifar10", "--data-root", root, "--data-mirror", mirror, env=homes, cwd=tmp_path)
        with server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(100_000))
            tiny.wait_until(lambda: part.exists() and part.stat().st_size > 50_000)
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.splitlines() == [f"{name} from {mirror[7:]}", "python -m train.cifar: stopped by SIGTERM"]
    assert sorted(path.name for path in root.iterdir()) == [".cifar10.lock", part.name]
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
    assert tiny.first_epoch(process).startswith("epoch   1/1000")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error == f"python -m train.cifar: stopped by SIGTERM; {tmp_path} holds the run: go on with --resume\n"
    assert checkpoint.read(tmp_path / LAST)[1]["epoch"] >= 1
