"""What happens only at the end of an epoch is tried before the first step, and leaves no trace."""

import os

import numpy as np
import pytest
from support import tiny

import minigrad
from train import cifar
from train.data import load
from train.run import checkpoint, rehearsal, training
from train.run.config import Config
from train.run.loop import Run
from train.run.recipes import RECIPES


@pytest.fixture
def steps(monkeypatch):
    """Counts the steps that are taken."""
    taken, train_step = [], training.train_epoch
    monkeypatch.setattr(training, "train_epoch", lambda *args: taken.append(args) or train_step(*args))
    return taken


def a_run(**options):
    config = Config("shapes", "resnext11_2x4d_w8", RECIPES["paper"], limit_train=9, limit_test=5, **options)
    return Run.start(config, *load("shapes", tiny.ROOT, limit_train=9, limit_test=5))


def test_a_last_batch_that_batch_norm_cannot_take_is_seen_before_the_first_step(tmp_path, steps, capsys):
    from PIL import Image

    for split, count in (("train", 5), ("test", 1)):
        for name in "ab":
            (tmp_path / "points" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4, 4), (i, 9, 9)).save(tmp_path / "points" / split / name / f"{i}.png")
    options = ["--data", tmp_path / "points", "--model", "resnext11_2x4d_w8", "--epochs", 1, "--out", tmp_path / "out"]
    words = [str(word) for word in options]
    assert cifar.main([*words, "--batch-size", "3"]) == cifar.USAGE
    said = capsys.readouterr().err
    assert (
        "of 10 training images in batches of 3, the last batch has a single one: batch_norm in training needs" in said
    )
    assert said.rstrip().endswith("choose another --batch-size or --limit-train") and said.count("\n") <= 2
    assert not steps and not (tmp_path / "out").exists()
    assert cifar.main([*words, "--batch-size", "4"]) == 0
    assert len(steps) == 1


@pytest.mark.parametrize("last", [1, 2, 4])
def test_it_leaves_the_run_as_it_was(last, tmp_path):
    run = a_run(batch_size={1: 4, 2: 7, 4: 5}[last])
    arrays, state = run.state()
    before = {name: a.copy() for name, a in arrays.items()}
    result = rehearsal.try_batches(run)
    rehearsal.try_files(run, tmp_path, result)
    arrays, after = run.state()
    assert after.pop("seconds") >= state.pop("seconds")
    assert after == state and arrays.keys() == before.keys()
    assert all(arrays[name].tobytes() == before[name].tobytes() for name in before)
    assert all(p.grad is None for p in run.model.parameters())
    assert minigrad.backend.generator().bit_generator.state == state["generator"]
    assert os.listdir(tmp_path) == []
    assert result.confusion.sum() == 5


def test_no_room_for_the_state_is_seen_before_the_first_step(tmp_path, steps, capsys, monkeypatch):
    write = checkpoint.write

    def full(path, *args):
        if path.name == rehearsal.TRIAL:
            raise OSError(28, "No space left on device", str(path))
        write(path, *args)

    monkeypatch.setattr(checkpoint, "write", full)
    assert tiny.train(tmp_path / "out") == cifar.FAILED
    said = capsys.readouterr().err
    assert "last.safetensors cannot be saved: No space left on device; nothing was saved before" in said
    assert not steps and rehearsal.TRIAL not in os.listdir(tmp_path / "out")


def test_a_report_that_cannot_be_rendered_is_a_warning_before_the_first_step(tmp_path, capsys, monkeypatch):
    def broken(*args):
        raise ValueError("no such page")

    run = a_run()
    monkeypatch.setattr(rehearsal, "render", broken)
    rehearsal.try_files(run, tmp_path, rehearsal.try_batches(run))
    assert "warning: the report will not be written: no such page" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_too_little_memory_for_the_tests_is_seen_before_the_first_step(tmp_path, steps, capsys, monkeypatch):
    def large(*args, **options):
        raise np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("u1"))

    monkeypatch.setattr(rehearsal, "evaluate", large)
    assert tiny.train(tmp_path / "out") == cifar.FAILED
    assert "memory" in capsys.readouterr().err and not steps
