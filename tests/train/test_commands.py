"""Every command refuses in one line, whatever the names in it hold (train/options.py)."""

import os
import signal
import subprocess
import sys

import pytest

from minigrad import check, explore
from resnext import __main__ as networks
from train import bench, cifar, figures, memory, predict, report, scaling

NAMES = ["\x1b[31mred", "two\nlines", "\udcff", "a\0b", "x" * 300]
SCALING = "--step-ms 1 --batch-size 8 --gpus 2 --inside 1 --between 1 --latency 1"
COMMANDS = {
    "cifar --data": (cifar, lambda name: ["--data", name]),
    "cifar --model": (cifar, lambda name: ["--model", name]),
    "cifar --device": (cifar, lambda name: ["--device", name]),
    "cifar --weights": (cifar, lambda name: ["--weights", name]),
    "cifar --save-every": (cifar, lambda name: ["--save-every", name]),
    "cifar an option": (cifar, lambda name: [f"--{name}"]),
    "cifar --evaluate": (cifar, lambda name: ["--evaluate", name]),
    "predict": (predict, lambda name: ["x.png", "--checkpoint", name]),
    "report": (report, lambda name: [name]),
    "figures": (figures, lambda name: ["curves", name]),
    "figures --figure": (figures, lambda name: ["curves", "x", "--figure", name]),
    "bench --model": (bench, lambda name: ["--model", name]),
    "bench --json": (bench, lambda name: ["--model", "resnext11_1x4d", "--json", f"{name}/x"]),
    "memory": (memory, lambda name: ["--model", name]),
    "scaling": (scaling, lambda name: ["--model", name, *SCALING.split()]),
    "resnext": (networks, lambda name: [name]),
    "explore": (explore, lambda name: ["--out", f"{name}/x"]),
    "check": (check, lambda name: ["--device", name]),
}


@pytest.mark.parametrize("name", NAMES, ids=["colour", "lines", "surrogate", "null", "long"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    module, words = COMMANDS[command]
    try:
        code = module.main(words(name))
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    *usage, sentence = printed.err.splitlines()
    assert code in (1, 2) and printed.out == ""
    assert sentence.isprintable() and sentence.startswith("python -m "), printed.err
    assert all(line.startswith(("usage: ", " ")) for line in usage), printed.err  # of argparse, where nothing is quoted


@pytest.mark.parametrize("command", [explore, check, networks])
def test_a_word_too_many_is_quoted_in_one_printable_line(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["a", "b", "\x1b[31m\n\udcff"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and "unrecognized arguments" in line


def test_a_number_that_no_machine_holds_is_refused(capsys):
    huge = "1" + 400 * "0"
    assert memory.main(["--batch-size", huge]) == 2
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--model", "resnext11_2x4d", *SCALING.split(), "--ranks", huge])
    for option in ("--epochs", "--batch-size", "--limit-train", "--limit-test", "--cutout"):
        assert cifar.main(["--data", "shapes", option, huge]) == 2
    assert capsys.readouterr().err.count("below 2^31") == 7


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs SIGPIPE")
@pytest.mark.parametrize("command", ["memory --model resnext11_1x4d", f"scaling --model resnext11_1x4d {SCALING}"])
def test_a_reader_that_has_seen_enough_is_no_error(command):
    name, *words = command.split()
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    line = [sys.executable, "-m", f"train.{name}", *words]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
