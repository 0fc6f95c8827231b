"""`--evaluate`: a checkpoint or weights on a data set (train/run/evaluation.py)."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from support import tiny

from minigrad import Tensor, manual_seed, save_weights
from minigrad import functional as F
from resnext import create
from train import cifar
from train.data import load
from train.run import checkpoint
from train.run.checkpoint import BEST, LAST

# ---- what a run leaves ----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_evaluated_as_the_run_evaluated_it(run, capsys):
    out, _ = run
    assert tiny.evaluated(capsys, out / LAST) == tiny.last_line(out)
    best = min(tiny.log(out), key=lambda line: line["test_error"])
    assert tiny.evaluated(capsys, out / BEST) == (best["test_error"], best["test_loss"])
    # What is said on the command line goes before what the checkpoint says.
    assert tiny.evaluated(capsys, out / LAST, "--limit-test", "24") != tiny.last_line(out)


def test_evaluation_needs_no_training_images(tmp_path, capsys):
    for split, shades in (("train", (10, 120, 240)), ("test", (20, 100, 230))):
        for name, value in zip("abc", shades, strict=True):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (32, 32), (value + i, value, value)).save(
                    tmp_path / "data" / split / name / f"{i}.png"
                )
    options = ["--data", str(tmp_path / "data"), "--model", "resnext11_2x4d_w8", "--epochs", "1"]
    assert cifar.main([*options, "--out", str(tmp_path / "run")]) == 0
    for name in "abc":
        for i in (1, 2):
            (tmp_path / "data" / "train" / name / f"{i}.png").unlink()
    assert tiny.evaluated(capsys, tmp_path / "run" / LAST) == tiny.last_line(tmp_path / "run")


def test_plain_weights_are_evaluated_with_model_and_data(tmp_path, capsys):
    manual_seed(5)
    model = create("resnext11_2x4d_w8")
    save_weights(model, tmp_path / "w.safetensors")
    error, loss = tiny.evaluated(
        capsys,
        tmp_path / "w.safetensors",
        "--model",
        "resnext11_2x4d_w8",
        *("--data", "shapes", "--limit-train", "2", "--limit-test", "40"),
    )
    _, test_set = load("shapes", tmp_path, limit_train=1, limit_test=40)
    x = (test_set.images - np.float32(123)) / np.float32(58)
    logits = model.eval()(Tensor(x))
    assert error == 100 * (logits.numpy().argmax(axis=1) != test_set.labels).mean()
    assert_allclose(loss, F.cross_entropy(logits, test_set.labels).item(), rtol=1e-5)


def test_evaluation_refuses_what_does_not_fit(run, tmp_path, capsys):
    out, _ = run
    save_weights(create("resnext11_2x4d_w8", num_classes=7), tmp_path / "seven.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes((out / LAST).read_bytes()[:-1])
    (tmp_path / "pickle.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    shapes = ("--data", "shapes", "--limit-train", "2", "--limit-test", "2")
    for code, sentence, *options in (
        (cifar.USAGE, "there is no file", tmp_path / "nothing"),
        (cifar.USAGE, "holds weights but not the name of their network", tmp_path / "seven.safetensors"),
        (cifar.USAGE, "did you mean .*resnext11_4", tmp_path / "seven.safetensors", "--model", "resnext11", *shapes),
        (cifar.FAILED, r"does not fit resnext11_2x4d_w8 with 10 classes: fc.weight has shape \(7, 128\)",
         tmp_path / "seven.safetensors", "--model", "resnext11_2x4d_w8", *shapes),
        (cifar.FAILED, "does not fit resnext11_2x5d_w8", out / LAST, "--model", "resnext11_2x5d_w8"),
        (cifar.FAILED, "damaged.safetensors is not a complete", tmp_path / "damaged.safetensors"),
        (cifar.FAILED, "pickle.pt is not a complete safetensors file", tmp_path / "pickle.pt"),
    ):  # fmt: skip
        assert cifar.main(["--evaluate", *map(str, options)]) == code
        error = capsys.readouterr().err
        assert re.search(sentence, error), error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": 3}, "/x has model = 3 in its configuration"),
        ({"model": "resnext29_9999999x9999d"}, "does not fit resnext29_9999999x9999d, which is a larger network"),
        ({"model": "resnext900000002_1x1d"}, "does not fit resnext900000002_1x1d, which is a larger network"),
        ({"model": "resnext11_1x8d_w8"}, "does not fit resnext11_1x8d_w8 with 10 classes"),
        ({"data": "/dev/null/x"}, "--data /dev/null/x is not cifar10, cifar100 or shapes"),
        ({"surprise": 1}, "/x has a configuration of another version: .'surprise'."),
        ({"recipe": {}}, "/x has a configuration of another version: 'something is missing'"),
        ({"limit_test": -1}, "--limit-test must be at least 1, got -1"),
        ({"dtype": "float8"}, "float8"),
        ({"seed": 1.5}, "/x has seed = 1.5"),
        ({"seed": "DELETED"}, "/x has seed = None"),
    ],
)
def test_a_checkpoint_with_a_strange_configuration(run, tmp_path, capsys, change, sentence):
    arrays, state = checkpoint.read(run[0] / LAST)
    state["config"].update(change)
    state["config"] = {name: value for name, value in state["config"].items() if value != "DELETED"}
    checkpoint.write(tmp_path / "x", arrays, state)
    assert cifar.main(["--evaluate", str(tmp_path / "x")]) in (cifar.USAGE, cifar.FAILED)
    error = capsys.readouterr().err
    assert re.search(sentence, error), error
    assert error.count("\n") == 1


def test_a_folder_is_not_taken_for_a_missing_file(run, tmp_path, capsys):
    out, _ = run
    assert cifar.main(["--evaluate", str(out)]) == cifar.USAGE
    assert f"{out} is a folder: name the file in it, {out / LAST}" in capsys.readouterr().err
    assert cifar.main(["--evaluate", str(tmp_path)]) == cifar.USAGE
    assert f"{tmp_path} is a folder, no file" in capsys.readouterr().err
