"""Runs side by side: who is started when, what becomes of failures and signals, and the bar. The runs are pretended."""

import json
import signal
import sys
from dataclasses import asdict

import pytest

from train.run import jobs
from train.run.series import Stopped, System, plan

# A process that stands for `train.cifar`: it takes a step, then does what the file `script` says.
PRETEND = """
import json, pathlib, signal, sys, time
root, here = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index("--out") + 1])

def save(number, frame):
    with (here / "signals").open("a") as file:
        file.write(f"{number} ")
    time.sleep(0.05)  # a state is not saved in no time
    (here / "saved").touch()
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
here.mkdir(exist_ok=True)
(here / "arguments").write_text(" ".join(sys.argv))
(here / "begun").touch()
deadline = time.monotonic() + 120

def wait_for(n):
    while len(list(root.glob("*/begun"))) < n and time.monotonic() < deadline:
        time.sleep(0.005)
    return len(list(root.glob("*/begun"))) >= n

exec((root / "script").read_text())
(here / "config.json").write_text((root / f"{here.name}.json").read_text())
(here / "metrics.jsonl").write_text('{"epoch": 1, "train_error": 1, "test_error": 2, "images_per_second": 3}')
"""


@pytest.fixture
def series(tmp_path, monkeypatch):
    """Four runs whose processes do what `script` says; returns a function that trains them."""
    monkeypatch.setattr(jobs, "COMMAND", (sys.executable, "-c", PRETEND, str(tmp_path)))
    monkeypatch.setattr(jobs, "LOOK", 0.01)
    systems = [System(model, model) for model in ("hog_linear", "resnext11_1x4d_w8")]
    cells = plan(systems, 2, tmp_path, ["--data", "shapes", "--epochs", "1"])
    for cell in cells:
        (tmp_path / f"{cell.out.name}.json").write_text(json.dumps(asdict(cell.config)))

    def train(script, n=2):
        (tmp_path / "script").write_text(script)
        ended = []
        try:
            jobs.train_side_by_side(cells, n, lambda cell: ended.append(str(cell)))
        except Stopped as stop:
            return stop.code, ended
        return 0, ended

    train.cells = cells
    return train


def test_two_runs_are_at_work_at_once_each_with_one_thread(series):
    code, ended = series("wait_for(2) or sys.exit('alone')")
    assert code == 0 and len(ended) == 4
    for cell in series.cells:
        arguments = (cell.out / "arguments").read_text()
        assert "--resume" in arguments.split() and arguments.endswith(" --threads 1")


def test_every_run_has_a_session_of_its_own(series):
    """Ctrl-C goes to a terminal's whole session: the second signal, after the one that is handed on, loses a state."""
    assert series("import os; os.getsid(0) == os.getpid() or sys.exit('in the session of the series')")[0] == 0


def test_no_more_runs_are_at_work_than_asked_for(series):
    alone = "len(list(root.glob('*/begun'))) == 1 or sys.exit('not alone')"
    assert series(f"{alone}; (here / 'begun').unlink()", 1)[0] == 0


def test_what_is_done_is_not_done_again(series, capsys):
    code, ended = series("")
    assert code == 0 and sorted(ended) == sorted(map(str, series.cells))
    assert series("sys.exit('done again')") == (0, [])
    assert "4 of 4 runs are done" in capsys.readouterr().out
    (series.cells[2].out / "metrics.jsonl").unlink()
    assert series("") == (0, [str(series.cells[2])])


def test_a_run_that_fails_does_not_stop_the_others(series, capsys):
    code, ended = series("here.name.startswith('hog_linear-seed0') and sys.exit('train.cifar: the loss is nan')")
    assert code == 1 and len(ended) == 3
    assert "hog_linear, seed 0: train.cifar: the loss is nan\n" in capsys.readouterr().err
    assert series("")[1] == ["hog_linear, seed 0"]  # the same command does the rest


def test_a_run_that_was_killed_has_the_shells_exit_code(series, capsys):
    code, ended = series("here.name == 'hog_linear-seed1' and __import__('os').kill(__import__('os').getpid(), 9)")
    assert code == 137 and len(ended) == 3
    assert "hog_linear, seed 1: its process ended with exit code -9 and said nothing" in capsys.readouterr().err


def test_a_command_line_that_cannot_work_is_tried_once(series, capsys):
    code, ended = series("print('--lr is wrong', file=sys.stderr); sys.exit(2)", 1)
    assert (code, ended) == (2, []) and not series.cells[1].out.exists()
    assert "--lr is wrong" in capsys.readouterr().err


def test_a_folder_with_other_options_is_named(series, capsys):
    series("")
    config = series.cells[0].out / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 9'))
    code, _ = series("sys.exit(0)")
    assert code == 2 and "holds a run with other options" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once_and_is_waited_for(series, monkeypatch, capsys, number):
    sleep = jobs.time.sleep

    def look(seconds):  # the signal comes when two processes are at work
        sleep(seconds)
        if all((cell.out / "begun").exists() for cell in series.cells[:2]):
            signal.raise_signal(number)

    monkeypatch.setattr(jobs.time, "sleep", look)
    assert series("time.sleep(20)") == (128 + number, [])
    for cell in series.cells[:2]:
        assert (cell.out / "saved").exists() and (cell.out / "signals").read_text() == f"{number:d} "
    assert not series.cells[2].out.exists()
    assert f"stopped by {number.name}: the runs are saved" in capsys.readouterr().err


def test_no_process_outlives_a_failure_of_this_one(series, monkeypatch):
    def fail(self, running):
        while not all((cell.out / "begun").exists() for cell in series.cells[:2]):
            jobs.time.sleep(0.005)
        raise OSError("the disk is gone")

    monkeypatch.setattr(jobs.Progress, "show", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        series("time.sleep(20)")
    assert all((cell.out / "saved").exists() for cell in series.cells[:2])


def test_the_bar_counts_epochs_by_what_they_cost(series):
    with jobs.Progress(series.cells) as bar:
        whole = bar.bar.total
        assert bar.done() == 0
        series("")
        assert bar.done() == whole == 2 * (jobs.cost("hog_linear") + jobs.cost("resnext11_1x4d_w8"))


def test_the_last_words_are_the_last_line_that_can_be_read(series, tmp_path):
    cell = series.cells[0]
    log = jobs.log_of(cell)
    log.write_text("")
    assert "exit code -9" in jobs.last_words(cell, -9) and str(log) in jobs.last_words(cell, -9)
    log.write_bytes(b"10 %\r20 %\rgone \xff\n\n")
    assert jobs.last_words(cell, 1) == "gone \ufffd"
