"""The state of a run: saved whole, told from a damaged one, gone on from bit for bit (train/run/checkpoint.py)."""

import functools
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import save_file
from support import tiny

from train import cifar
from train.run import checkpoint, loop
from train.run.checkpoint import BEST, DAMAGED, LAST, PREVIOUS


class Killed(BaseException):
    """What a test raises where a process would have been killed: nothing in the program catches it."""


@pytest.fixture
def kill_after(monkeypatch):
    """Arrange that a run is killed within its nth step from now, after the weights have changed."""
    train_step = loop.train_step

    def arrange(n):
        steps = iter(range(n))

        def step(*arguments):
            result = train_step(*arguments)
            if next(steps, None) is None:
                monkeypatch.setattr(loop, "train_step", train_step)
                raise Killed
            return result

        monkeypatch.setattr(loop, "train_step", step)

    return arrange


ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "velocity:w": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "count": np.array(7),
    "none": np.zeros((0, 4), np.float32),
}
STATE = {
    "config": {"recipe": {}},
    "classes": ["a", "ü"],
    "mean": [1.0, 2.0, 3.0],
    "std": [1.0, 1.0, 1.0],
    "size": [32, 32],
    "images": 12,
    "epoch": 1,
    "step": 2,
    "best_error": 12.5,
    "totals": dict.fromkeys(checkpoint.TOTALS, 0.1),
    "history": [dict.fromkeys(checkpoint.FIGURES, 1)],
    "generator": np.random.PCG64(0).state,
}


def test_what_is_written_is_read(tmp_path):
    checkpoint.write(tmp_path / "x", ARRAYS, STATE)
    arrays, state = checkpoint.read(tmp_path / "x")
    assert state == STATE
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert_array_equal(arrays[name], array, strict=True)


def test_plain_weights_have_no_state(tmp_path):
    save_file({"w": np.ones(3)}, tmp_path / "x")
    arrays, state = checkpoint.read(tmp_path / "x")
    assert state == {}
    assert_array_equal(arrays["w"], np.ones(3))


def test_every_changed_byte_is_noticed(tmp_path):
    checkpoint.write(tmp_path / "x", ARRAYS, STATE)
    content = (tmp_path / "x").read_bytes()
    for i in range(len(content)):
        (tmp_path / "y").write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        try:
            arrays, state = checkpoint.read(tmp_path / "y")
        except ValueError as error:
            assert str(tmp_path / "y") in str(error)
        else:  # the key under which the state is found: without a state, it is a file of plain weights
            assert state == {}
            for name in ARRAYS:
                assert_array_equal(arrays[name], ARRAYS[name], strict=True)


WRONG = (None, "x", -1, 1e999, 10**400, [1], [None], ["a"], {}, {"a": "b"}, [{}], [[[]]], True)
FITTING = {"best_error": (None, -1), "classes": (["a"],)}


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in checkpoint.FIELDS for v in WRONG if v is True or v not in FITTING.get(n, ())],
)
def test_a_state_of_another_form_is_refused(tmp_path, name, value):
    text = json.dumps({**STATE, name: value})
    save_file({}, tmp_path / "x", metadata={checkpoint.STATE: text, checkpoint.CHECKSUM: checkpoint.checksum({}, text)})
    with pytest.raises(ValueError, match=rf"/x has a state that train.cifar does not write: {name} is "):
        checkpoint.read(tmp_path / "x")


@pytest.mark.parametrize("value", [None, "x", 10**400, -(2**200), float("inf"), {}, "DELETED"])
@pytest.mark.parametrize("keys", [("totals", "images"), ("history", 0, "lr"), ("generator", "state", "inc")])
def test_a_state_that_is_wrong_further_inside_is_refused(tmp_path, keys, value):
    state = json.loads(json.dumps(STATE))
    *way, last = keys
    inside = functools.reduce(lambda part, key: part[key], way, state)
    inside[last] = value
    if value == "DELETED":
        del inside[last]
    text = json.dumps(state)
    save_file({}, tmp_path / "x", metadata={checkpoint.STATE: text, checkpoint.CHECKSUM: checkpoint.checksum({}, text)})
    with pytest.raises(ValueError, match=rf"/x has a state that train.cifar does not write: {keys[0]} is "):
        checkpoint.read(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "9" * 10_000, '"\\ud800"'])
def test_a_state_that_is_no_object_is_refused(tmp_path, text):
    save_file({}, tmp_path / "x", metadata={checkpoint.STATE: text, checkpoint.CHECKSUM: checkpoint.checksum({}, text)})
    with pytest.raises(ValueError, match="/x has a state that is no JSON"):
        checkpoint.read(tmp_path / "x")


@pytest.mark.parametrize("links", [True, False])
def test_the_previous_state_is_kept(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*paths):
            raise OSError("no hard links here")

        monkeypatch.setattr("os.link", refuse)
    for epoch in range(3):
        checkpoint.write_last(tmp_path, ARRAYS, {**STATE, "epoch": epoch})
    assert checkpoint.read(tmp_path / LAST)[1]["epoch"] == 2
    assert checkpoint.read(tmp_path / PREVIOUS)[1]["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_a_damaged_state_is_replaced_by_the_previous_one_with_a_warning(tmp_path):
    for epoch in (1, 2):
        checkpoint.write_last(tmp_path, ARRAYS, {**STATE, "epoch": epoch})
    damage(tmp_path / LAST)
    warnings = []
    _, state = checkpoint.read_last(tmp_path, warnings.append)
    assert state["epoch"] == 1
    assert len(warnings) == 1
    assert f"{tmp_path / LAST} is damaged" in warnings[0]
    assert f"going on from {tmp_path / PREVIOUS}" in warnings[0]
    # The next save must not put the damaged file in the place of the good one.
    assert (tmp_path / DAMAGED).exists()
    checkpoint.write_last(tmp_path, ARRAYS, {**STATE, "epoch": 3})
    assert checkpoint.read(tmp_path / PREVIOUS)[1]["epoch"] == 1


def test_without_a_good_state_the_damage_is_told(tmp_path):
    assert checkpoint.read_last(tmp_path, pytest.fail) is None
    checkpoint.write_last(tmp_path, ARRAYS, STATE)
    damage(tmp_path / LAST)
    with pytest.raises(ValueError, match=f"{LAST} is damaged.* there is no other state"):
        checkpoint.read_last(tmp_path, pytest.fail)


def test_a_best_state_is_gone_on_from_where_the_last_is_missing(tmp_path):
    """A full disk, or a kill between the two writes of the first epoch."""
    checkpoint.write(tmp_path / BEST, ARRAYS, STATE)
    warnings = []
    assert checkpoint.read_last(tmp_path, warnings.append)[1] == STATE
    assert warnings == [f"{tmp_path / LAST} is missing; going on from {tmp_path / BEST}"]
    # Of several others the one that has come farthest.
    checkpoint.write(tmp_path / PREVIOUS, ARRAYS, {**STATE, "epoch": 1, "step": 3})
    assert checkpoint.read_last(tmp_path, warnings.append)[1]["step"] == 3
    (tmp_path / LAST).write_bytes(b"half")
    assert checkpoint.read_last(tmp_path, warnings.append)[1]["step"] == 3
    assert (tmp_path / DAMAGED).read_bytes() == b"half"


def test_a_run_killed_between_its_first_two_states_goes_on(undisturbed, tmp_path, monkeypatch, capsys):
    write = checkpoint.write_last

    def die(*arguments):
        raise Killed

    monkeypatch.setattr(checkpoint, "write_last", die)
    with pytest.raises(Killed):
        tiny.train(tmp_path)
    monkeypatch.setattr(checkpoint, "write_last", write)
    assert not (tmp_path / LAST).exists()
    assert tiny.train(tmp_path, "--resume") == 0
    printed = capsys.readouterr()
    assert f"going on from {tmp_path / BEST}" in printed.err and "epoch   1/3" not in printed.out.split("22 images")[-1]
    assert tiny.differences(undisturbed, tmp_path) == []


def test_a_finished_run_whose_last_state_is_missing_has_one_again(undisturbed, tmp_path, capsys):
    """There is nothing left to train, but what reads runs looks for it."""
    arrays, state = checkpoint.read(undisturbed / LAST)
    checkpoint.write(tmp_path / BEST, arrays, state)
    assert cifar.main(["--out", str(tmp_path), "--resume"]) == 0
    error = capsys.readouterr().err
    assert f"{tmp_path / LAST} is missing; going on from {tmp_path / BEST}" in error and error.count("warning") == 1
    assert (tmp_path / "report.html").is_file()
    assert tiny.differences(undisturbed, tmp_path) == []


def test_weights_without_a_state_are_not_gone_on_from(tmp_path, capsys):
    save_file({"w": np.ones(3)}, tmp_path / LAST)
    assert tiny.train(tmp_path, "--resume") == cifar.FAILED
    assert "holds weights but no state of a run, and there is no other state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"step": 4}, "after epoch 1 and step 4, in a run of 3 epochs of 3 steps"),
        ({"epoch": 4}, "after epoch 4 and step 0, in a run of 3 epochs of 3 steps"),
        ({"epoch": 2}, "1 lines of log after 2 epochs"),
        ({"step": 2}, "the sums of the epoch are"),
        ({"step": 3, "totals": {"loss": 9.0, "errors": 20, "images": 22, "seconds": 0}}, "the sums of the epoch are"),
        ({"totals": {"loss": 1.0, "errors": 1, "images": -3, "seconds": 1}}, "totals is"),
        ({"seconds": "long"}, "seconds is 'long'"),
        ({"arrays": "num_batches_tracked"}, "bn1.num_batches_tracked = -7, which cannot be negative"),
        ({"arrays": "running_var"}, "bn1.running_var = -7.0, which cannot be negative"),
    ],
)
def test_a_state_where_no_run_can_stand_is_refused_in_one_sentence(undisturbed, tmp_path, capsys, change, sentence):
    """The checksum is right: somebody has written it by hand."""
    arrays, state = checkpoint.read(undisturbed / LAST)
    state |= {"epoch": 1, "step": 0, "history": state["history"][:1]} | change
    if name := state.pop("arrays", None):
        arrays[f"bn1.{name}"] = np.full_like(arrays[f"bn1.{name}"], -7)
    checkpoint.write(tmp_path / LAST, arrays, state)
    assert cifar.main(["--out", str(tmp_path), "--resume"]) in (cifar.USAGE, cifar.FAILED)
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1, error


def test_a_finished_run_trains_on_where_its_schedule_allows_it(tmp_path, capsys):
    constant = ("--schedule", "constant", "--lr", "0.01")
    assert tiny.train(tmp_path / "once", *constant, "--epochs", "3") == 0
    assert tiny.train(tmp_path / "twice", *constant, "--epochs", "1") == 0
    capsys.readouterr()
    assert cifar.main(["--out", str(tmp_path / "twice"), "--resume", "--epochs", "3"]) == 0
    assert tiny.differences(tmp_path / "once", tmp_path / "twice") == []
    assert json.loads((tmp_path / "twice" / "config.json").read_text())["recipe"]["epochs"] == 3


def test_where_the_schedule_has_followed_the_old_number_of_epochs_the_command_says_what_helps(undisturbed, capsys):
    before = (undisturbed / LAST).read_bytes()
    assert cifar.main(["--out", str(undisturbed), "--resume", "--epochs", "9"]) == cifar.USAGE
    error = capsys.readouterr().err
    assert "--epochs was 3 and is 9, and the learning rate of the multi-step schedule has followed the old" in error
    assert "--weights" in error and error.count("\n") == 1
    assert (undisturbed / LAST).read_bytes() == before


def damage(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(content)


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_the_same_command_makes_the_same_run(undisturbed, tmp_path):
    assert tiny.train(tmp_path / "again") == 0
    assert tiny.differences(undisturbed, tmp_path / "again") == []
    assert tiny.train(tmp_path / "other", "--seed", "1") == 0
    assert "conv1.weight" in tiny.differences(undisturbed, tmp_path / "other")


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 8])
def test_a_resumed_run_is_bit_identical_to_one_never_stopped(undisturbed, tmp_path, kill_after, steps):
    kill_after(steps)
    with pytest.raises(Killed):
        tiny.train(tmp_path, "--save-every", "1")
    assert tiny.train(tmp_path, "--resume") == 0
    assert tiny.differences(undisturbed, tmp_path) == []
    assert tiny.differences(undisturbed, tmp_path, BEST) == []


def test_a_run_stopped_again_and_again_is_bit_identical_too(tmp_path, kill_after):
    """Averaged weights, smoothed labels, cutout, float64; saved every other step, so that steps are done twice."""
    options = ("--recipe", "short", "--lr", "0.02", "--dtype", "float64", "--epochs", "2", "--save-every", "2")
    assert tiny.train(tmp_path / "once", *options) == 0
    for steps in (3, 2, 0):
        kill_after(steps)
        with pytest.raises(Killed):
            tiny.train(tmp_path / "often", *options, "--resume")
    assert tiny.train(tmp_path / "often", *options, "--resume") == 0
    assert tiny.differences(tmp_path / "once", tmp_path / "often") == []
    arrays, _ = checkpoint.read(tmp_path / "often" / LAST)
    assert {name.partition(":")[0] for name in arrays if ":" in name} == {"velocity", "average"}
    assert arrays["conv1.weight"].dtype == np.float64


@pytest.mark.parametrize("file", ["metrics.jsonl", "curves.png"])
def test_the_log_agrees_with_the_state_whatever_happened_to_it(undisturbed, tmp_path, kill_after, file):
    kill_after(7)
    with pytest.raises(Killed):
        tiny.train(tmp_path, "--save-every", "1")
    assert [line["epoch"] for line in tiny.log(tmp_path)] == [1, 2]
    (tmp_path / file).write_bytes(b'{"epoch": 1}\n{"ep')
    assert tiny.train(tmp_path, "--resume", pictures=True) == 0
    assert tiny.log(tmp_path) == tiny.log(undisturbed)
    with Image.open(tmp_path / "curves.png") as image:
        image.load()


def test_resume_goes_on_from_the_previous_state_where_the_last_is_damaged(undisturbed, tmp_path, kill_after, capsys):
    kill_after(5)
    with pytest.raises(Killed):
        tiny.train(tmp_path, "--save-every", "1")
    damage(tmp_path / LAST)
    capsys.readouterr()
    assert tiny.train(tmp_path, "--resume") == 0
    assert "warning: " in capsys.readouterr().err
    assert tiny.differences(undisturbed, tmp_path) == []


def test_resume_without_a_run_starts_afresh(undisturbed, tmp_path):
    assert tiny.train(tmp_path / "new", "--resume") == 0
    assert tiny.differences(undisturbed, tmp_path / "new") == []


def test_resume_of_a_complete_run_has_nothing_to_do(undisturbed, capsys):
    before = (undisturbed / LAST).read_bytes()
    assert tiny.train(undisturbed, "--resume") == 0
    assert f"holds all {tiny.EPOCHS} epochs" in " ".join(capsys.readouterr().out.split())
    assert (undisturbed / LAST).read_bytes() == before


def test_resume_needs_no_options_and_refuses_other_ones(undisturbed, tmp_path, kill_after, capsys):
    kill_after(5)
    with pytest.raises(Killed):
        tiny.train(tmp_path, "--save-every", "1")
    for options, sentence in (
        (["--lr", "0.5"], "--lr was 0.02 and is 0.5"),
        (["--batch-size", "4", "--no-nesterov"], "--batch-size was 8 and is 4, --nesterov was True and is False"),
        (["--model", "resnext11_2x5d_w8"], "--model was resnext11_2x4d_w8 and is resnext11_2x5d_w8"),
        (["--seed", "2"], "--seed was 0 and is 2"),
        (["--limit-train", "8"], "--limit-train was 22 and is 8"),
        (["--recipe", "short"], "--lr was 0.02 and is 0.1, --schedule was multi-step and is linear"),
    ):
        assert cifar.main(["--out", str(tmp_path), "--resume", *options]) == cifar.USAGE
        error = capsys.readouterr().err
        assert f"cannot go on from {tmp_path}: the run has other settings, " in error
        assert sentence in error
        assert error.count("\n") == 1
    harmless = ["--data-root", str(tmp_path / "elsewhere"), "--save-every", "3m", "--device", "cpu"]
    assert cifar.main(["--out", str(tmp_path), "--resume", *harmless]) == 0
    assert tiny.differences(undisturbed, tmp_path) == []


def test_other_images_in_the_same_place_are_noticed(tmp_path, kill_after, capsys):
    def draw(folder, shade):
        for split in ("train", "test"):
            for colour in ("dark", "light"):
                path = folder / split / colour / "image.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (shade if colour == "dark" else 200,) * 3).save(path)

    draw(tmp_path / "images", 10)
    options = ["--data", str(tmp_path / "images"), "--out", str(tmp_path / "run"), "--model", "resnext11_2x4d_w8"]
    kill_after(1)
    with pytest.raises(Killed):
        cifar.main([*options, "--epochs", "2", "--save-every", "1"])
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = ["--data", str(tmp_path / "moved")]
    draw(tmp_path / "images", 11)
    assert cifar.main([*options, "--resume"]) == cifar.USAGE
    assert f"the images of {tmp_path / 'images'} are others" in capsys.readouterr().err
    assert cifar.main([*options, *moved, "--resume"]) == 0


def test_a_new_run_puts_an_old_one_aside(undisturbed, tmp_path, capsys):
    for number in (1, 2):
        assert tiny.train(tmp_path, "--epochs", "1", "--seed", str(number)) == 0
    assert f"{tmp_path} holds another run, which is kept in {tmp_path / 'earlier-1'}" in capsys.readouterr().out
    assert tiny.train(tmp_path) == 0
    assert tiny.differences(undisturbed, tmp_path) == []
    for number in (1, 2):
        _, state = checkpoint.read(tmp_path / f"earlier-{number}" / LAST)
        assert state["config"]["seed"] == number
        assert (tmp_path / f"earlier-{number}" / "metrics.jsonl").exists()
