"""The training command: what it leaves, what it says, what it refuses (train/cifar.py)."""

import json
import os
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import threadpoolctl
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support import tiny

from minigrad import Tensor, registry
from minigrad import functional as F
from minigrad.weights import to_evaluate
from train import cifar
from train.data import Dataset, load
from train.run import checkpoint, loop, parallel
from train.run.checkpoint import BEST, LAST
from train.run.config import Config, adapted, configure, parser
from train.run.loop import Run
from train.run.recipes import PARTS, RECIPES, Recipe

# ---- what a run leaves ----------------------------------------------------------------------------------------------


def test_the_files(run):
    out, _ = run
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", LAST, BEST, "curves.png", "confusion.png", "report.html"}
    assert not [name for name in names if name.endswith(".part")]
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == "resnext11_2x4d_w8"
    assert config["recipe"]["epochs"] == tiny.EPOCHS
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    fields = ["epoch", "images_per_second", "lr", "test_error", "test_loss", "train_error", "train_loss"]
    assert all(sorted(line) == fields for line in lines)
    # 3 epochs of 3 steps: 0.02 in the first half, a tenth of it up to three quarters, a hundredth after.
    assert_allclose([line["lr"] for line in lines], [0.02, 0.002, 0.0002])
    for name in ("curves.png", "confusion.png"):
        with Image.open(out / name) as image:
            image.load()


def test_training_learns(tmp_path):
    """Thirty images, learnt by heart."""
    options = ("--limit-train", "30", "--limit-test", "30", "--batch-size", "10", "--epochs", "8", "--lr", "0.1")
    assert tiny.train(tmp_path, *options, "--schedule", "cosine") == 0
    losses = [line["train_loss"] for line in tiny.log(tmp_path)]
    assert losses[0] > 2.2
    assert losses[-1] < 0.9 * losses[0]
    errors = [line["test_error"] for line in tiny.log(tmp_path)]
    assert checkpoint.read(tmp_path / BEST)[1]["epoch"] == 1 + errors.index(min(errors))


def test_a_step_is_what_the_formulas_say(tmp_path):
    """The first step of a run, written out: gradient of the mean loss, decay, Nesterov's momentum."""
    options = ("--limit-train", "8", "--epochs", "1", "--nesterov", "--momentum", "0.9", "--save-every", "1")
    assert tiny.train(tmp_path, *options) == 0
    arrays, _ = checkpoint.read(tmp_path / LAST)
    config = configure(parser().parse_args([*tiny.OPTIONS, *options]))
    train_set, test_set = load("shapes", tmp_path, limit_train=8, limit_test=12)
    start = loop.Run.start(config, train_set, test_set)
    order = np.random.default_rng((0, 0)).permutation(8)
    w = start.model.fc.weight.data.copy()
    loss = F.cross_entropy(start.model(Tensor(loop.prepare(start, order, 0))), train_set.labels[order])
    loss.backward()
    dw = start.model.fc.weight.grad + 0.01 * w
    assert_allclose(arrays["velocity:fc.weight"], dw, rtol=1e-4, atol=1e-7)
    assert_allclose(arrays["fc.weight"], w - 0.02 * (dw + 0.9 * dw), rtol=1e-5, atol=1e-7)
    assert_allclose(tiny.log(tmp_path)[0]["train_loss"], loss.item(), rtol=1e-5)


def parts_of_steps(monkeypatch, ahead):
    """Let so many steps be under way, and return the list in which the parts of each are noted as they begin."""
    monkeypatch.setitem(loop.AHEAD, "cpu", ahead)
    events = []
    for name in ("prepare", "train_step", "outcome"):
        whole = getattr(loop, name)
        monkeypatch.setattr(loop, name, lambda *a, name=name, whole=whole: events.append(name) or whole(*a))
    return events


def test_the_next_batch_is_made_before_the_results_are_waited_for(tmp_path, monkeypatch):
    """So a GPU has work while Python crops images; the wait, `outcome`, comes last."""
    events = parts_of_steps(monkeypatch, ahead=0)
    assert tiny.train(tmp_path, "--epochs", "1") == 0
    assert events == ["prepare", *["train_step", "prepare", "outcome"] * 2, "train_step", "outcome"]


def test_a_gpu_is_handed_the_next_step_before_the_results_are_waited_for(tmp_path, monkeypatch):
    """So it never runs out of work; all the numbers of the run are those of a run that waits."""
    assert tiny.train(tmp_path / "waits", "--epochs", "2") == 0
    events = parts_of_steps(monkeypatch, ahead=1)
    assert tiny.train(tmp_path / "ahead", "--epochs", "2") == 0
    first, last = ["prepare", "train_step", "prepare"], ["train_step", "outcome", "outcome"]
    assert events == [*first, "train_step", "prepare", "outcome", *last] * 2
    runs = [checkpoint.read(tmp_path / name / LAST) for name in ("waits", "ahead")]
    assert {name: a.tobytes() for name, a in runs[0][0].items()} == {
        name: a.tobytes() for name, a in runs[1][0].items()
    }
    same = ("train_loss", "train_error", "test_loss", "test_error", "lr")
    logs = [[[line[part] for part in same] for line in tiny.log(tmp_path / name)] for name in ("waits", "ahead")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_loss_that_is_not_finite_is_noticed_before_anything_is_saved(tmp_path, monkeypatch, capfd, ahead):
    parts_of_steps(monkeypatch, ahead)
    train_step = loop.train_step

    def spoilt(run, *arguments):
        loss, logits = train_step(run, *arguments)
        return (loss * np.nan if run.step == 1 else loss), logits

    monkeypatch.setattr(loop, "train_step", spoilt)
    assert tiny.train(tmp_path, "--epochs", "1", "--save-every", "1") == 1
    assert "the loss is nan in epoch 1, step 2" in capfd.readouterr().err
    _, state = checkpoint.read(tmp_path / LAST)
    assert (state["step"], state["totals"]["images"]) == (1, 8)


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(tmp_path, monkeypatch):
    seen = []
    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda run, indices, step: seen.append(indices) or prepare(run, indices, step))
    assert tiny.train(tmp_path, "--epochs", "2") == 0
    assert [len(indices) for indices in seen] == [8, 8, 6] * 2
    first, second = (np.concatenate(seen[i : i + 3]) for i in (0, 3))
    assert_array_equal(np.sort(first), np.arange(22))
    assert_array_equal(np.sort(second), np.arange(22))
    assert (first != second).any()


def test_averages_follow_the_weights():
    config = configure(parser().parse_args([*tiny.OPTIONS, "--average", "0.75"]))
    train_set, test_set = load("shapes", tiny.ROOT, limit_train=2, limit_test=2)
    run = loop.Run.start(config, train_set, test_set)
    rng = np.random.default_rng(3)
    before = {}
    for name, t in run.model.named_tensors():
        before[name] = run.averaged[name].copy()
        t.data += rng.integers(1, 9, t.shape).astype(t.dtype)
    loop.update_averaged(run, 0.75)
    for name, t in run.model.named_tensors():
        counted = name.endswith("num_batches_tracked")
        expected = t.data if counted else 0.75 * before[name] + 0.25 * t.data
        assert_allclose(run.averaged[name], expected, rtol=1e-6, atol=1e-6)


def test_the_average_reaches_back_over_a_share_of_the_steps_so_far():
    assert loop.average_decay(0.999, 0) == 0.1  # the random weights of the beginning are all but forgotten
    assert loop.average_decay(0.999, 89) == 90 / 99
    assert loop.average_decay(0.999, 10**6) == 0.999
    assert loop.average_decay(0.0, 5) == 0.0


def test_a_short_run_is_not_evaluated_with_the_weights_of_its_beginning(monkeypatch):
    config = configure(parser().parse_args([*tiny.OPTIONS, "--average", "0.999"]))
    train_set, test_set = load("shapes", tiny.ROOT, limit_train=48, limit_test=2)
    run = loop.Run.start(config, train_set, test_set)
    start = run.averaged["fc.weight"].copy()
    kept = []
    monkeypatch.setattr(loop, "update_averaged", lambda run, decay: kept.append(decay))
    loop.train_epoch(run, lambda run: None)
    assert kept == [loop.average_decay(0.999, t) for t in range(len(kept))] and len(kept) > 1
    assert_array_equal(run.averaged["fc.weight"], start)  # nothing else moves it


def test_averaged_weights_are_what_is_evaluated(tmp_path, capsys):
    assert tiny.train(tmp_path, "--average", "0.75") == 0
    arrays, _ = checkpoint.read(tmp_path / LAST)
    average = checkpoint.select(arrays, checkpoint.AVERAGE)
    assert average.keys() == {name for name in arrays if ":" not in name}
    assert not np.array_equal(average["fc.weight"], arrays["fc.weight"])
    assert_array_equal(average["bn1.num_batches_tracked"], arrays["bn1.num_batches_tracked"])
    assert to_evaluate(arrays)["fc.weight"] is not arrays["fc.weight"]
    assert tiny.evaluated(capsys, tmp_path / LAST) == tiny.last_line(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(tmp_path, recipe):
    out = tmp_path / recipe
    assert tiny.train(out, "--recipe", recipe, "--epochs", "2", "--lr", "0.01") == 0
    assert len(tiny.log(out)) == 2


def test_decay_spares_vectors_where_the_recipe_says_so():
    options = [*tiny.OPTIONS, "--no-decay-all"]
    config = configure(parser().parse_args(options))
    train_set, test_set = load("shapes", tiny.ROOT, limit_train=2, limit_test=2)
    decayed, plain = loop.Run.start(config, train_set, test_set).optimizer.groups
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)


# ---- the command line -----------------------------------------------------------------------------------------------


def configured(*options):
    return configure(parser().parse_args(options))


def test_what_is_trained_by_default():
    config = configured()
    assert (config.data, config.model, config.device) == ("shapes", "resnext11_4x4d_w16", "cpu")
    assert (config.recipe, config.batch_size, config.seed) == (RECIPES["quick"], 32, 0)
    # The paper's recipe for CIFAR (appendix A).
    r = configured("--data", "cifar10").recipe
    assert (r.epochs, r.lr, r.schedule, r.momentum, r.weight_decay) == (300, 0.1, "multi-step", 0.9, 5e-4)
    schedule = configured("--data", "cifar10").schedule()
    assert_allclose([schedule(t) for t in (0, 149.9, 150, 224.9, 225, 299.9)], [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    assert configured("--data", "cifar10", "--recipe", "short", "--no-nesterov").recipe.nesterov is False


@pytest.mark.parametrize("schedule", ["multi-step", "constant", "linear", "cosine"])
def test_every_schedule_warms_up(schedule):
    lr = configured("--schedule", schedule, "--epochs", "10", "--lr", "0.2", "--warmup", "0.2").schedule()
    assert_allclose([lr(t) for t in (0, 0.5, 1, 2)], [0, 0.05, 0.1, 0.2])
    later = {"multi-step": [0.2, 0.02, 0.002], "constant": [0.2] * 3}.get(schedule)
    assert later is None or [lr(t) for t in (4.9, 5, 7.5)] == pytest.approx(later)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "resnext29_8x64"], "there is no network 'resnext29_8x64': did you mean resnext29_8x64d"),
        (["--model", "resnext30_8x64d"], "30"),
        (
            ["--data", "cifar11"],
            "--data cifar11 is not cifar10, cifar100 or shapes, and there is no such folder or file",
        ),
        (["--data", "nowhere/images"], "--data nowhere/images is not"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "-4"], "--batch-size must be at least 1, got -4"),
        (["--threads", "0"], "--threads must be from 1 to"),
        (["--threads", "100000"], "on this machine of"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--lr", "-1"], "lr must be a finite number that is not negative, got -1"),
        (["--lr", "nan"], "lr must be a finite number that is not negative, got nan"),
        (["--momentum", "-0.1"], "momentum"),
        (["--warmup", "1"], "--warmup must be at least 0 and below 1, got 1.0"),
        (["--label-smoothing", "1"], "--label-smoothing must be at least 0 and below 1, got 1.0"),
        (["--average", "-0.5"], "--average must be at least 0 and below 1, got -0.5"),
        (["--cutout", "33"], "--cutout 33 is larger than the images"),
        (["--limit-train", "0"], "--limit-train must be at least 1, got 0"),
        (["--save-every", "5h"], "--save-every takes a number of steps (20) or minutes (5m) above 0, got '5h'"),
        (["--dtype", "bfloat16"], "bfloat16 is computed on CUDA devices only"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_a_wrong_command_is_refused_in_one_sentence_and_writes_nothing(tmp_path, capsys, options, sentence):
    assert tiny.train(tmp_path / "out", *options) == cifar.USAGE
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sentence in printed.err
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_exist(capsys):
    for options, sentence in (
        (["--gpu"], "unrecognized arguments: --gpu: did you mean --device cuda?"),
        (["--learning-rate=1"], "unrecognized arguments: --learning-rate=1: did you mean --lr?"),
        (["--arch", "x"], "unrecognized arguments: --arch x: did you mean --model?"),
        (["--modle", "resnext29_8x64d"], "unrecognized arguments: --modle resnext29_8x64d: did you mean --model?"),
        (["--pretraned", "x"], "unrecognized arguments: --pretraned x: did you mean --weights?"),
        (["--foo", "x"], "unrecognized arguments: --foo x; python -m train.cifar --help lists the options"),
        (["--seeds=1"], "unrecognized arguments: --seeds=1: did you mean --seed?"),
        (["here"], "unrecognized arguments: here; python -m train.cifar --help lists the options"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--recipe", "long"], "argument --recipe: invalid choice: 'long'"),
        (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--flip", "up"], "argument --flip: invalid choice: 'up'"),
        (["--out", ""], "argument --out: the folder's name is empty"),
    ):
        with pytest.raises(SystemExit) as stop:
            cifar.main(options)
        error = capsys.readouterr().err
        assert stop.value.code == cifar.USAGE
        assert error.startswith(f"python -m train.cifar: {sentence}") and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "hog_linear"], "hog_linear expects images of shape (N, 3, 32, 32), got (2, 3, 4, 4)"),
        (["--model", "vgg11_w4"], "max_pool2d: a window of 2x2 pixels does not fit into the padded image of 1x1"),
        (["--padding", "reflect"], "reflecting needs a padding below 4 for 4 x 4 images, got 4"),
    ],
)
def test_images_that_the_network_cannot_take_are_refused_before_anything_is_written(
    tmp_path, capsys, options, sentence
):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    assert tiny.train(tmp_path / "out", "--data", str(tmp_path), *options) == cifar.USAGE
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_says_what_each_part_of_a_recipe_is(capsys):
    assert {f.name for f in fields(Recipe)} == set(PARTS)
    with pytest.raises(SystemExit):
        cifar.main(["--help"])
    text = "".join(capsys.readouterr().out.split())
    for name, meaning in PARTS.items():
        assert name == "epochs" or (f"--{name.replace('_', '-')}" in text and "".join(meaning.split()) in text), name


@pytest.mark.parametrize(("flip", "mirrored"), [("random", {0, 1}), ("none", {0})])
def test_mirroring_can_be_switched_off(flip, mirrored):
    """Images whose left half is bright: with `--flip none` none of them gets a bright right half."""
    images = np.zeros((40, 3, 16, 16), np.uint8)
    images[..., :8] = 200
    dataset = Dataset(images, np.zeros(40, np.int64), ["one", "two"], "halves", np.full(3, 100.0), np.ones(3))
    config = Config("halves", "resnext11_1x4d_w4", replace(RECIPES["quick"], flip=flip))
    batch = loop.prepare(Run.start(config, dataset, dataset), np.arange(40), 0)
    left, right = batch[:, 0, 8, 2], batch[:, 0, 8, 13]  # no shift by up to 4 pixels takes these across the middle
    assert {int(b > a) for a, b in zip(left, right, strict=True)} == mirrored


def test_cuda_without_cupy_or_gpu_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    assert tiny.train(tmp_path / "out", "--device", "cuda") == cifar.USAGE
    error = capsys.readouterr().err
    assert "device 'cuda' needs cupy, which is not installed: pip install 'cupy-cuda13x[ctk]' ml_dtypes" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model", "data"), [("resnext29_8x64", "shapes"), ("nothing", "cifar10")])
def test_the_network_s_name_is_checked_before_any_image_is_read(tmp_path, capsys, monkeypatch, model, data):
    monkeypatch.setattr("train.run.loading.load", lambda *arguments, **options: pytest.fail("images are read"))
    assert cifar.main(["--model", model, "--data", data, "--out", str(tmp_path / "out")]) == cifar.USAGE
    assert f"there is no network {model!r}" in capsys.readouterr().err


def test_quick_and_fine_tune_adapt_to_a_small_folder():
    """66 photographs are two batches of 32: too few steps of too large a size for batch norm's running averages."""
    args = parser().parse_args(["--recipe", "quick", "--data", "photos"])
    config = adapted(configure(args), args, 66)
    steps = -(-66 // config.batch_size)
    assert config.batch_size == 8 and config.recipe.lr == pytest.approx(0.1 * 8 / 32)
    assert steps * config.recipe.epochs >= 600
    assert adapted(configure(args), args, 5000) == configure(args)
    args = parser().parse_args(["--data", "shapes", "--recipe", "fine-tune"])
    config = adapted(configure(args), args, 100)
    assert (config.batch_size, config.recipe.epochs, config.recipe.lr) == (8, 16, 0.01)  # 208 steps, not 40
    assert adapted(configure(args), args, 640) == configure(args)
    args = parser().parse_args(
        ["--recipe", "quick", "--data", "photos", "--epochs", "3", "--batch-size", "16", "--lr", "0.2"]
    )
    assert adapted(configure(args), args, 66) == configure(args)
    args = parser().parse_args(["--recipe", "paper", "--data", "photos"])
    assert adapted(configure(args), args, 66) == configure(args)


@pytest.mark.parametrize("option", [("--flip", "none"), ("--cutout", "8"), ("--no-nesterov",)])
def test_what_adapts_is_known_by_its_name_and_not_by_its_numbers(option):
    for recipe in ("quick", "fine-tune"):
        args = parser().parse_args(["--recipe", recipe, "--data", "photos", *option])
        config = adapted(configure(args), args, 60)
        assert config.batch_size == 8 and config.recipe.epochs * -(-60 // 8) >= 200
    quick = RECIPES["quick"]
    words = ["--recipe", "paper", "--schedule", quick.schedule, "--warmup", str(quick.warmup), "--data", "photos"]
    args = parser().parse_args(words)
    assert adapted(configure(args), args, 60) == configure(args)


@pytest.mark.parametrize("option", ["--weights", "--data", "--model", "--out"])
def test_an_empty_word_is_no_default(option, tmp_path, capsys):
    """As of a shell's variable that is not set."""
    with pytest.raises(SystemExit) as stop:
        cifar.main([option, ""])
    assert stop.value.code == 2 and f"argument {option}: the " in capsys.readouterr().err


def test_no_momentum_asks_for_the_option_that_goes_with_it(tmp_path, capsys):
    assert cifar.main(["--momentum", "0", "--out", str(tmp_path)]) == cifar.USAGE
    assert "add --no-nesterov" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [(), ("--batch-size", "11")])
def test_the_same_command_with_resume_goes_on_with_what_quick_adapted(tmp_path, batch):
    words = ["--data", "shapes", "--limit-train", "22", "--limit-test", "4", "--model", "resnext11_2x4d_w8"]
    words += ["--recipe", "quick", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert cifar.main([*words, *batch]) == 0
    assert cifar.main([*words, *batch, "--resume"]) == 0
    assert cifar.main([*words, "--resume"]) == 0  # what is not said again is as it was
    assert not (tmp_path / "run" / "earlier-1").exists()


def test_damaged_data_is_a_failure(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for k in (1, 2):
        (tmp_path / "data" / f"data_batch_{k}.bin").write_bytes(b"short")
    assert tiny.train(tmp_path / "out", "--data", str(tmp_path / "data")) == cifar.FAILED
    assert "data_batch_1.bin has 5 bytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_threads():
    def counts():
        return {library["num_threads"] for library in threadpoolctl.threadpool_info()}

    pool = sys.modules["minigrad.fast.cpu.threads"] if registry.fast("cpu") else None
    before = pool.threads() if pool else None
    with threadpoolctl.threadpool_limits():  # puts back what there was
        for count in (2, 1):
            parallel.use_threads(count)
            assert counts() == {count}
            assert pool is None or pool.threads() == count
        parallel.use_threads(None)
        assert counts() == {1}
    if pool:
        pool.set_threads(before)


# ---- real images ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("MINIGRAD_CIFAR10" not in os.environ, reason="MINIGRAD_CIFAR10 names no folder with real images")
def test_real_images_from_the_command_to_the_evaluation(tmp_path, capsys):
    process = tiny.start(
        *("--data", "cifar10", "--data-root", os.environ["MINIGRAD_CIFAR10"], "--model", "resnext11_2x8d_w16"),
        *("--limit-train", "600", "--limit-test", "300", "--batch-size", "32", "--epochs", "3", "--lr", "0.05"),
        *("--schedule", "cosine", "--out", tmp_path),
    )
    printed, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, "")
    assert printed.count("\nepoch ") == 3
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("config.json", "metrics.jsonl", LAST, BEST, "curves.png", "confusion.png")
    }
    losses = [line["train_loss"] for line in tiny.log(tmp_path)]
    assert losses[-1] < losses[0] - 0.1
    assert tiny.last_line(tmp_path)[0] < 85
    data = ("--data-root", os.environ["MINIGRAD_CIFAR10"])
    assert_allclose(tiny.evaluated(capsys, tmp_path / LAST, *data), tiny.last_line(tmp_path), rtol=1e-6)
