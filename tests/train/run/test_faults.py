"""What goes wrong in the middle of a run: kills, pictures, numbers that are none, memory (train/run/faults.py)."""

import errno
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import tiny
from tools import kill_runs

from minigrad import diagnosis, registry
from train import cifar, options
from train.data import load
from train.measure.memory import USABLE, largest_batch
from train.run import batches, checkpoint, config, evaluation, faults, loop, parallel, training
from train.run.checkpoint import LAST, PREVIOUS
from train.run.recipes import RECIPES


@pytest.mark.slow
def test_killed_runs_go_on_as_if_nothing_had_been(tmp_path):
    result = kill_runs.trial(5, 0, tmp_path)
    assert (result.kills, result.lost, result.different) == (5, 0, 0)
    assert result.finished >= 1


# ---- what only decorates a run --------------------------------------------------------------------------------------


DECORATION = {
    "confusion.png": "training.plots.draw_confusion",
    "curves.png": "training.plots.draw_curves",
    "the report": "training.write_report",
    "standard output": "progress.epoch_line",
    "what the run begins with": "progress.introduce",
    "the progress bar": "progress.tqdm",
}


ERRORS = (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyError("?"), MemoryError())


@pytest.mark.parametrize(("name", "error"), list(zip(DECORATION, ERRORS * 2, strict=True)))
def test_no_picture_report_bar_or_line_ends_a_run(undisturbed, tmp_path, capsys, monkeypatch, name, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(f"train.run.{DECORATION[name]}", fail)
    whole = (
        cifar.main([*tiny.OPTIONS, "--out", str(tmp_path)])
        if name == "the report"
        else tiny.train(tmp_path, pictures=True)
    )
    assert whole == 0
    assert capsys.readouterr().err.count(f"warning: {name} cannot be written: ") == 1
    assert tiny.differences(undisturbed, tmp_path) == []


def test_the_state_is_saved_before_anything_is_drawn(tmp_path, monkeypatch):
    """A process that dies while it draws, as a library's crash would end it, has lost no epoch."""

    class Killed(BaseException):
        pass

    def die(*arguments):
        raise Killed

    monkeypatch.setattr("train.run.training.plots.draw_confusion", die)
    with pytest.raises(Killed):
        tiny.train(tmp_path, pictures=True)
    assert checkpoint.read(tmp_path / LAST)[1]["epoch"] == 1


@pytest.mark.parametrize("names", [("$\\frac$", "cost$_$"), (os.fsdecode(b"caf\xe9"), "b\nc"), ("\x1b[31m", "图")])
def test_names_are_text_whatever_they_are(tmp_path, capsys, names):
    """Class folders, and the data's folder, whose names are Matplotlib's formulas, not UTF-8, or escape sequences."""
    for split in ("train", "test"):
        for shade, name in enumerate(names):
            path = tmp_path / names[0] / split / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), (100 * shade,) * 3).save(path)
    data, out = tmp_path / names[0], tmp_path / f"run{names[1]}"
    options = ["--model", "resnext11_2x4d_w8", "--epochs", "1", "--lr", "0.01"]
    assert cifar.main([*options, "--data", str(data), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err and "\x1b" not in printed.err + printed.out
    assert {path.name for path in out.iterdir()} >= {LAST, "curves.png", "confusion.png", "report.html"}
    assert cifar.main(["--evaluate", str(out / LAST)]) == 0


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
    [
        (None, {}),
        ("20", {"every_steps": 20}),
        ("5m", {"every_seconds": 300}),
        ("0.5m", {"every_seconds": 30}),
        ("0.02m", {"every_seconds": 1.2}),
    ],
)
def test_save_every(text, options):
    assert config.save_interval(text) == options


@pytest.mark.parametrize("text", ["0", "-1", "0m", "2.5", "m", "5h", "", "nanm", "infm", "1e3", "1e-300m", "1e300m"])
def test_save_every_is_a_number_above_zero(text):
    with pytest.raises(ValueError, match="--save-every takes "):
        config.save_interval(text)


@pytest.mark.parametrize("jump", [0.0, 1e9, -1e9])
def test_clocks_that_stand_still_or_jump_end_no_run(undisturbed, tmp_path, monkeypatch, jump):
    """NTP sets the time of day, virtual machines are moved, and a coarse clock shows no time between two steps."""
    days = iter(range(10**9))
    monkeypatch.setattr("train.run.loop.time.perf_counter", lambda: 5.0)
    monkeypatch.setattr(time, "time", lambda: 2e9 + jump * (next(days) % 2))
    assert tiny.train(tmp_path, "--save-every", "2") == 0
    assert tiny.differences(undisturbed, tmp_path) == []  # which also looks at images_per_second
    assert tiny.train(tmp_path, "--resume") == 0


# ---- memory ---------------------------------------------------------------------------------------------------------


def run_out(*_, **__):
    raise MemoryError("Unable to allocate 1.2 TiB")


SHAPES = ("--data", "shapes", "--model", "resnext11_2x4d_w8", "--limit-train", "80", "--limit-test", "12")


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        (("--batch-size", "8"), 8),
        ((), 8),  # `quick` for 80 shapes, in smaller batches than its 32
        (("--limit-train", "700"), 32),
        (("--recipe", "paper"), 128),
    ],
)
def test_running_out_of_memory_names_the_batch_that_the_run_has(tmp_path, monkeypatch, capsys, options, batch):
    monkeypatch.setattr(training, "try_batches", run_out)
    with tiny.undecorated():
        assert cifar.main([*SHAPES, *options, "--out", str(tmp_path)]) == cifar.FAILED
    assert capsys.readouterr().err == (
        f"python -m train.cifar: out of memory on cpu (Unable to allocate 1.2 TiB): try a --batch-size below {batch}\n"
    )


def test_running_out_of_memory_in_the_middle_says_what_is_kept(tmp_path, at_step, capsys):
    at_step(tiny.STEPS + 2, run_out)
    assert tiny.train(tmp_path) == cifar.FAILED
    told = "python -m train.cifar: out of memory on cpu (Unable to allocate 1.2 TiB): "
    kept = f"; {tmp_path} holds the state after epoch 1, step 0\n"
    assert capsys.readouterr().err == f"{told}try a --batch-size below 8{kept}"
    at_step(1, run_out)
    assert tiny.train(tmp_path, "--resume") == cifar.FAILED
    assert capsys.readouterr().err.startswith(
        f"{told}a run that is resumed keeps its --batch-size 8; in one that starts from its --weights, try a "
        "--batch-size below 8"
    )


def test_an_evaluation_out_of_memory_is_not_advised_about_batches(run, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", run_out)
    assert cifar.main(["--evaluate", str(run[0] / LAST)]) == cifar.FAILED
    assert capsys.readouterr().err == "python -m train.cifar: out of memory on cpu (Unable to allocate 1.2 TiB)\n"


def test_a_gpu_out_of_memory_tells_how_much_of_it_is_taken_and_what_would_fit(monkeypatch):
    """With a stand-in for CuPy: its OutOfMemoryError is a MemoryError too."""
    free, total = 2**30, 3 * 2**30
    runtime = SimpleNamespace(memGetInfo=lambda: (free, total))
    monkeypatch.setattr(faults, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    error = MemoryError("Out of memory allocating 512 bytes (allocated so far: 2 bytes).")
    model = "resnext29_32x4d"
    made = config.Config("cifar10", model, RECIPES["paper"], "cuda:1", "bfloat16", batch_size=512)
    usable = int(USABLE * 3 * 2**30)
    fits = largest_batch(model, usable, "bfloat16")
    assert 16 < fits < 512
    shared = parallel.Ranks()
    shared.size = 4
    averaged = replace(made, recipe=replace(made.recipe, average=0.999), image_size=64, batch_size=4000)
    fits_averaged = largest_batch(model, usable, "bfloat16", 64, average=True)
    by = f"by `python -m train.memory --model {model}`"
    for settings, ranks, advice in (
        (made, parallel.ALONE, f"a --batch-size of {fits} should fit, {by}"),
        (replace(made, batch_size=16), parallel.ALONE, "try a --batch-size below 16"),
        (replace(made, batch_size=8 * fits), shared, f"a --batch-size of {4 * fits} should fit on 4 GPUs, {by}"),
        (replace(made, batch_size=fits + 8), shared, f"try a --batch-size below {fits + 8}"),
        (averaged, parallel.ALONE, f"a --batch-size of {fits_averaged} should fit, {by}"),
        (replace(made, batch_size=4), shared, "try a smaller --model"),
    ):
        with (
            pytest.raises(faults.TrainingError) as told,
            faults.memory_for(settings, lambda c=settings, r=ranks: faults.smaller_step(c, r)),
        ):
            raise error
        assert str(told.value) == (
            "out of memory on cuda:1 (Out of memory allocating 512 bytes (allocated so far: 2 bytes); 2.00 of the "
            f"GPU's 3.00 GiB are taken): {advice}"
        )
    total = 2**20
    assert faults.smaller_step(made) == "try a smaller --model, of which one image fits"


@pytest.mark.parametrize(("capability", "model"), [(90, "resnext29_8x64d"), (75, "resnext29_32x4d")])
def test_an_older_gpu_is_given_a_smaller_network(monkeypatch, capability, model):
    monkeypatch.setattr(config, "compute_capability", lambda device: capability)
    assert config.defaults_for("cuda:1")["model"] == model


@pytest.mark.parametrize("capability", [90, 75])
def test_every_gpu_trains_and_evaluates(monkeypatch, tmp_path, capability):
    """An older one too. It is made up: the arrays stay on the host."""
    monkeypatch.setattr(config, "compute_capability", lambda device: capability)
    monkeypatch.setattr(batches, "to_device", lambda array, device: array)
    monkeypatch.setattr(loop, "synchronize", lambda device: None)
    settings = config.configure(config.parser().parse_args(tiny.OPTIONS))
    run = loop.Run.start(settings, *load("shapes", tmp_path, limit_train=8, limit_test=12))
    run.config = replace(settings, device="cuda:1")
    with registry.book_only():
        loop.train_epoch(run, lambda run: None)
        found = evaluation.evaluate(run.model, run.test_set, run.mean, run.std, run.config)
    assert run.totals["images"] == 8 and found.confusion.sum() == 12


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
