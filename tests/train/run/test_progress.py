"""What a run says while it goes (train/run/progress.py)."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from support import tiny

from train import cifar
from train.data import load
from train.run import checkpoint, progress, training
from train.run.config import configure, parser
from train.run.loop import Run
from train.show import plots

# ---- what a run leaves ----------------------------------------------------------------------------------------------


def configured(*options):
    return configure(parser().parse_args(options))


def test_it_says_what_it_read_then_a_line_an_epoch_and_at_last_where_to_look(run):
    out, printed = run
    lines = [line for line in printed.splitlines() if line.startswith("epoch")]
    assert len(lines) == tiny.EPOCHS
    before, _, after = printed.partition(lines[0])
    assert before.splitlines() == [
        "resnext11_2x4d_w8 on shapes: 10 classes, 32x32 pixels",
        "training: 22 images (arrow 2, bolt 2, circle 2, crescent 2,",
        *before.splitlines()[2:],
    ]
    assert after.splitlines()[-1] == f"open {out / 'report.html'}"
    seconds = plots.duration(checkpoint.read(out / checkpoint.LAST)[1]["seconds"])
    assert f"{seconds} in all" in " ".join(after.split()) and f"<b>{seconds}</b>" in (out / "report.html").read_text()
    assert all(len(line) <= 60 for line in before.splitlines())
    for i, line in enumerate(lines, start=1):
        assert re.fullmatch(
            rf"epoch +{i}/3  lr \S+  train loss \S+ error +\S+ %  test loss \S+ error +\S+ %  \d+ images/s", line
        )


@pytest.mark.parametrize("columns", [60, 120])
def test_it_shows_a_bar_on_a_terminal(tmp_path, columns):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, columns))
    process = tiny.start(*tiny.OPTIONS, "--epochs", "2", "--limit-train", "200", "--out", tmp_path, stderr=end)
    os.close(end)
    shown = b""
    try:
        while select.select([terminal], [], [], 60)[0] and (block := os.read(terminal, 4096)):
            shown += block
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    rest = r", error \d+\.\d %, \d+ images/s" if columns == 120 else ""
    bar = rf"epoch 1/2: .*\| *\d+/25, \d+:\d\d left, all \d+:\d\d, loss \d\.\d+{rest}"
    assert re.search(bar, shown.decode())
    assert max(map(len, re.split("[\r\n]", shown.decode()))) <= columns
    assert "\nepoch   1/2" in printed


def test_a_run_of_few_steps_and_one_whose_answers_are_all_the_same_are_told(tmp_path, capsys):
    assert tiny.train(tmp_path, "--lr", "1e-9", "--epochs", "1") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: this run has 3 steps, too few to learn much: try --epochs 67" in printed
    confusion = np.zeros((10, 10), np.int64)
    confusion[:, 3] = 2
    train_set, test_set = load("shapes", tmp_path, limit_train=2, limit_test=2)
    progress.advise_on_answers(Run.start(configured(), train_set, test_set), confusion)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"every test image is taken for {test_set.classes[3]!r}" in printed and "try a lower --lr than 0.1" in printed
    )


def test_the_time_left_is_that_of_the_steps_and_evaluations_to_come():
    train_set, test_set = load("shapes", tiny.ROOT, limit_train=320, limit_test=2)
    run = Run.start(configured("--epochs", "5"), train_set, test_set)
    run.epoch, run.step, run.between = 2, 4, 7.0
    bar = progress.Bar(run, steps=10)
    bar.first, bar.begin = 0, time.monotonic() - 8  # two seconds a step
    here, whole = bar.time_left()
    assert here == pytest.approx(12, rel=0.01)
    assert whole == pytest.approx(12 + 2 * 20 + 3 * 7, rel=0.01)
    assert [progress.clock(s) for s in (0.5, 59.2, 200, 7510)] == ["0:01", "1:00", "3:20", "2:05:10"]
    assert [plots.duration(s) for s in (48, 200, 7500, 273_600)] == ["48 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"]


def test_a_reader_that_leaves_and_closed_streams(tmp_path):
    """Nobody reads what the run prints: it goes on to its end."""
    command = [sys.executable, "-m", "train.cifar", *tiny.OPTIONS, "--out"]
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, tmp_path / "a"], env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr.count("cannot be written: Broken pipe; the run goes on\n") == done.stderr.count("\n") <= 2
    assert (tmp_path / "a" / "report.html").exists() and "the report" not in done.stderr  # which was written
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == tiny.EPOCHS
    shell = 'exec "$@" >&- 2>&-'
    closed = subprocess.run(["sh", "-c", shell, "sh", *command, tmp_path / "b"], env=environment, timeout=300)
    assert closed.returncode == 0
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == tiny.EPOCHS


def test_a_report_that_cannot_be_written_makes_no_run_fail(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError("no room")

    options = [*tiny.OPTIONS, "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(training, "write_report", fail)
    assert cifar.main(options) == 0
    printed = capsys.readouterr()
    assert "warning: the report cannot be written: no room" in printed.err
    assert "best test error" in printed.out and "open" not in printed.out
