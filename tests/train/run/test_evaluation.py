"""`--evaluate`: a checkpoint or weights on a data set (train/run/evaluation.py)."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from support import tiny

from minigrad import Tensor, manual_seed, save_weights
from minigrad import functional as F
from minigrad.weights import to_evaluate
from resnext import create
from train import cifar, predict
from train.data import Dataset, load
from train.run import checkpoint, evaluation
from train.run.checkpoint import BEST, LAST
from train.run.config import configure, parser
from train.run.loop import Run
from train.run.predictor import IMAGENET_MEAN, IMAGENET_STD

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


def test_other_images_of_the_same_classes(tmp_path, capsys):
    """A run on a flat folder with --validate is tested on a folder that has test/ alone, and on some of its classes."""

    def draw(folder, **shades):
        for name, value in shades.items():
            (folder / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (value + i, value, value)).save(folder / name / f"{i}.png")

    options = ["--data", str(tmp_path / "flat"), "--model", "resnext11_2x4d_w8", "--epochs", "1", "--validate", "0.5"]
    draw(tmp_path / "flat", a=10, b=120, c=240)
    assert cifar.main([*options, "--out", str(tmp_path / "run")]) == 0
    draw(tmp_path / "all" / "test", a=20, b=100, c=230)
    draw(tmp_path / "some" / "test", b=100, c=230)
    predictor = predict.load_predictor(tmp_path / "run" / LAST, None, None, "cpu")
    for folder, classes in (("all", "abc"), ("some", "bc")):
        losses = [
            -np.log(predictor.probabilities(tmp_path / folder / "test" / name / f"{i}.png", "cpu")["abc".index(name)])
            for name in classes
            for i in range(4)
        ]
        _, loss = tiny.evaluated(capsys, tmp_path / "run" / LAST, "--data", str(tmp_path / folder))
        assert_allclose(loss, np.mean(losses), rtol=1e-4)
    draw(tmp_path / "other" / "test", a=20, d=100)
    assert cifar.main(["--evaluate", str(tmp_path / "run" / LAST), "--data", str(tmp_path / "other")]) == 1
    assert "other has a class 'd', the network knows ['a', 'b', 'c']\n" in capsys.readouterr().err


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


def test_imagenet_weights_see_images_as_train_predict_shows_them(tmp_path, capsys, monkeypatch):
    save_weights(create("resnet50", num_classes=10), tmp_path / "weights.safetensors")
    seen = []

    def look(model, dataset, mean, std, *rest, **options):
        seen.append((mean.tolist(), std.tolist()))
        return evaluation.Evaluation(1.0, 50.0, np.zeros((10, 10)))

    monkeypatch.setattr(evaluation, "evaluate", look)
    words = ["--evaluate", str(tmp_path / "weights.safetensors"), "--model", "resnet50", "--data", "shapes"]
    assert cifar.main([*words, "--limit-test", "4", "--limit-train", "4"]) == 0
    assert seen == [(IMAGENET_MEAN.tolist(), IMAGENET_STD.tolist())]


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


def test_an_answer_that_is_no_number_is_told_as_such(tmp_path, capsys):
    """Weights that are finite may still lead to infinity: nan was printed as a result, and the command ended well."""
    model = create("resnext11_2x4d_w8")
    for p in model.parameters():
        p.data = np.full_like(p.data, 1e30)
    save_weights(model, tmp_path / "w.safetensors")
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    shapes = ("--data", "shapes", "--limit-train", "2", "--limit-test", "2", "--model", "resnext11_2x4d_w8")
    assert cifar.main(["--evaluate", str(tmp_path / "w.safetensors"), *shapes]) == 1
    assert "the test loss of " in (error := capsys.readouterr()).err and not error.out
    words = [tmp_path / "x.png", "--checkpoint", tmp_path / "w.safetensors", "--model", shapes[-1]]
    assert predict.main([str(word) for word in words]) == 1
    printed = capsys.readouterr()
    assert "x.png is nan: its weights cannot be used" in printed.err and "%" not in printed.out


def test_a_folder_is_not_taken_for_a_missing_file(run, tmp_path, capsys):
    out, _ = run
    assert cifar.main(["--evaluate", str(out)]) == cifar.USAGE
    assert f"{out} is a folder: name the file in it, {out / LAST}" in capsys.readouterr().err
    assert cifar.main(["--evaluate", str(tmp_path)]) == cifar.USAGE
    assert f"{tmp_path} is a folder, no file" in capsys.readouterr().err


# ---- on a GPU, which is made up -------------------------------------------------------------------------------------


def test_a_gpus_results_are_read_when_the_next_batch_is_handed_over(run, monkeypatch, tmp_path):
    """The same numbers as at once, in the same order; and nothing is left unread."""
    out, _ = run
    events = []

    def fetch(loss, logits):
        batch = len(events)
        events.append(f"launch {len(logits)}")
        return lambda: events.append(f"read {events[batch]}") or (loss, logits)

    _, test_set = load("shapes", tmp_path, limit_train=1, limit_test=12)
    model = create("resnext11_2x4d_w8", num_classes=len(test_set.classes))
    model.load_state_dict(to_evaluate(checkpoint.read(out / LAST)[0]))
    config = configure(parser().parse_args([*tiny.OPTIONS]))
    monkeypatch.setattr(Dataset, "at_once", 5)
    arguments = model, test_set, test_set.mean, test_set.std, config
    expected = evaluation.evaluate(*arguments)
    monkeypatch.setattr(evaluation, "fetch", fetch)
    monkeypatch.setitem(evaluation.AHEAD, "cpu", 1)
    graph = partial(evaluation.classify, model.eval())  # as a CUDA graph is called
    for classifier in (None, graph):
        events.clear()
        found = evaluation.evaluate(*arguments, cuda_graph=classifier)
        assert events == ["launch 5", "launch 5", "read launch 5", "launch 2", "read launch 5", "read launch 2"]
        assert_allclose(found.loss, expected.loss, rtol=1e-6)
        assert found.error == expected.error and (found.confusion == expected.confusion).all()


def test_tests_are_a_graph_in_the_memory_of_training(monkeypatch, tmp_path):
    """One for the whole run, which looks at the averaged weights, where they stay from epoch to epoch."""
    made, seen = [], []

    class Graph:
        def __init__(self, step, workspace):
            self.step, self.workspace = step, workspace
            made.append(self)

        def __call__(self, batch, labels):
            assert labels.dtype == np.int64
            seen.append(id(self.step.args[0].fc.weight.data))
            return self.step(batch, labels)

    monkeypatch.setattr(evaluation, "as_cuda_graph", lambda step, config, workspace: Graph(step, workspace))
    config = configure(parser().parse_args([*tiny.OPTIONS, "--average", "0.9"]))
    run = Run.start(config, *load("shapes", tmp_path, limit_train=22, limit_test=12))
    run.cuda_graph = SimpleNamespace(workspace="training's")
    first = evaluation.evaluate_run(run)
    assert evaluation.evaluate_run(run).loss == first.loss
    assert [graph.workspace for graph in made] == ["training's"] and run.test_cuda_graph is made[0]
    assert seen == [id(run.averaged["fc.weight"])] * 2 and id(run.model.fc.weight.data) not in seen
