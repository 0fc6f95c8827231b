"""Starting from weights: a new last layer, the statistics of their images, and parts that keep what they have."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from support import tiny

import minigrad
from minigrad import save_weights
from minigrad.weights import to_evaluate
from resnext import create
from train import cifar, predict
from train.data import CIFAR10, CIFAR100
from train.run import checkpoint, fine_tuning
from train.run.config import configure, parser
from train.run.predictor import IMAGENET_MEAN, IMAGENET_STD

NAME = "resnext11_2x4d_w8"


@pytest.fixture
def pretrained(tmp_path):
    """Weights of a network for seven classes whose statistics are not those at its beginning."""
    minigrad.manual_seed(5)
    model = create(NAME, num_classes=7)
    rng = np.random.default_rng(0)
    for name, t in model.named_tensors():
        if "running" in name:
            t.data = (t.data + rng.uniform(0.1, 0.5, t.shape)).astype(np.float32)
    save_weights(model, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def train(out, weights, *options):
    return tiny.train(out, "--weights", str(weights), *map(str, options))


def arrays_of(out):
    return {n: a for n, a in checkpoint.read(out / "last.safetensors")[0].items() if ":" not in n}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("none", ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "fc.")),
        ("all-but-last-stage", ("layer3.", "fc.")),
        ("all-but-last-layer", ("fc.",)),
    ],
)
def test_what_is_frozen_keeps_weights_and_statistics(freeze, trained, pretrained, tmp_path, capsys):
    before, _ = checkpoint.read(pretrained)
    assert train(tmp_path / "run", pretrained, "--model", NAME, "--freeze", freeze, "--epochs", 1) == 0
    after = arrays_of(tmp_path / "run")
    for name, array in after.items():
        if name.startswith("fc."):
            assert array.shape[0] == 10
        elif name.startswith(trained):
            assert (array != before[name]).any(), name
        else:
            assert array.tobytes() == before[name].tobytes(), name
    said = capsys.readouterr().err
    total = sum(a.size for n, a in after.items() if "running" not in n and "tracked" not in n)
    some = sum(a.size for n, a in after.items() if n.startswith(trained) and "running" not in n and "tracked" not in n)
    assert f"weights from {pretrained}, a new last layer; {some:,} of {total:,} parameters are trained" in said
    state = checkpoint.read(tmp_path / "run" / "last.safetensors")[1]
    assert (state["mean"], state["std"]) == (list(CIFAR10.mean), list(CIFAR10.std))
    velocities = checkpoint.select(checkpoint.read(tmp_path / "run" / "last.safetensors")[0], checkpoint.VELOCITY)
    assert all(name.startswith(trained) for name in velocities)


def test_frozen_random_weights_are_noted(tmp_path, capsys):
    assert tiny.train(tmp_path, "--freeze", "all-but-last-layer", "--epochs", "1") == 0
    assert "--freeze all-but-last-layer without --weights: what is frozen keeps random" in capsys.readouterr().err


def test_a_run_of_ones_own_says_its_network_and_statistics(tmp_path):
    assert tiny.train(tmp_path / "first", "--average", "0.5", "--epochs", "1") == 0
    arrays, state = checkpoint.read(tmp_path / "first" / "last.safetensors")
    state["mean"] = [1.0, 2.0, 3.0]
    checkpoint.write(tmp_path / "first" / "last.safetensors", arrays, state)
    path = tmp_path / "first" / "last.safetensors"
    options = ["--data", "shapes", "--limit-train", "22", "--limit-test", "12", "--epochs", "1", "--lr", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.training.write_report", lambda *args: None)
        words = ["--weights", str(path), *options, "--freeze", "all-but-last-layer", "--out", str(tmp_path / "second")]
        assert cifar.main(words) == 0
    second, last = checkpoint.read(tmp_path / "second" / "last.safetensors")
    assert last["mean"] == [1.0, 2.0, 3.0] and last["config"]["model"] == NAME
    averaged = to_evaluate(arrays)  # what was evaluated is what is gone on from
    assert second["layer3.0.conv2.weight"].tobytes() == averaged["layer3.0.conv2.weight"].tobytes()


def test_it_is_resumed_bit_by_bit_without_the_file(pretrained, tmp_path):
    options = ["--model", NAME, "--freeze", "all-but-last-stage", "--epochs", 2]
    assert train(tmp_path / "whole", pretrained, *options) == 0

    class Stop(RuntimeError):
        pass

    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == 4:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.faults.Guard.check", stop)
        with pytest.raises(Stop):
            train(tmp_path / "parts", pretrained, *options, "--save-every", 1)
    pretrained.unlink()
    assert tiny.train(tmp_path / "parts", "--resume", "--epochs", "2") == 0
    assert not tiny.differences(tmp_path / "whole", tmp_path / "parts")


def test_imagenet_weights_bring_the_statistics_of_imagenet(tmp_path):
    model = create("resnet50", num_classes=1000)
    weights = {f"module.{name}": a for name, a in model.state_dict().items() if "num_batches" not in name}
    save_file(weights, tmp_path / "timm.safetensors")
    minigrad.manual_seed(1)
    other = create("resnet50", num_classes=3)
    mean, std = fine_tuning.start_from(other, "resnet50", str(tmp_path / "timm.safetensors"))
    assert mean.tolist() == IMAGENET_MEAN.tolist() and std.tolist() == IMAGENET_STD.tolist()
    np.testing.assert_array_equal(other.layer4[2].conv3.weight.numpy(), model.layer4[2].conv3.weight.numpy())
    assert other.fc.weight.shape == (3, 2048)
    fine_tuning.freeze(other, "all-but-last-stage")
    assert {n.split(".")[0] for n, p in other.named_parameters() if p.requires_grad} == {"layer4", "fc"}


def test_a_hundred_classes_bring_the_statistics_of_cifar_100(tmp_path):
    for classes, cifar_n in ((100, CIFAR100), (10, CIFAR10)):
        save_weights(create(NAME, num_classes=classes), tmp_path / "weights.safetensors")
        mean, std = fine_tuning.start_from(create(NAME), NAME, str(tmp_path / "weights.safetensors"))
        assert (mean.tolist(), std.tolist()) == (list(cifar_n.mean), list(cifar_n.std))


def test_weights_are_not_taken_from_where_the_run_will_put_its_own(tmp_path, capsys):
    assert tiny.train(tmp_path / "run", "--epochs", "1") == 0
    best = tmp_path / "run" / "best.safetensors"
    before = best.read_bytes()
    assert train(tmp_path / "run", best) == cifar.USAGE
    assert f"--weights {best} lies in --out {tmp_path / 'run'}" in capsys.readouterr().err
    assert best.read_bytes() == before


def test_files_that_do_not_fit_are_refused_in_a_sentence(pretrained, tmp_path, capsys):
    for words, sentence in (
        (["--weights", tmp_path / "none"], f"there is no file {tmp_path / 'none'}"),
        (["--weights", pretrained], "holds weights but not the name of their network: give it with --model"),
        (
            ["--weights", pretrained, "--model", "resnext20_2x4d_w8"],
            "resnext20_2x4d_w8: it lacks layer1.1.",
        ),
        (["--weights", pretrained, "--model", "resnext11_2x8d_w8"], "does not fit resnext11_2x8d_w8: layer1.0.conv1"),
    ):
        options = ["--data", "shapes", "--limit-train", 8, "--limit-test", 4, "--out", tmp_path / "run", *words]
        assert cifar.main([str(word) for word in options]) == cifar.USAGE
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float16"), (-np.inf, "float32"), (1e39, "float64")])
def test_weights_that_are_not_finite_are_refused_where_they_come_from(pretrained, tmp_path, capsys, value, dtype):
    """They were trained, and the sentence asked for a smaller learning rate; an evaluation printed nan and ended."""
    arrays = {name: a.astype(dtype) for name, a in load_file(pretrained).items()}
    arrays["layer2.0.conv2.weight"][-1, 0, 0, 0] = value
    path = tmp_path / "w.safetensors"
    save_file(arrays, path)
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    data = ["--data", "shapes", "--limit-train", "8", "--limit-test", "4", "--model", NAME]
    for command, words in (
        (cifar, ["--weights", path, "--out", tmp_path / "run", *data]),
        (cifar, ["--evaluate", path, *data]),
        (predict, [tmp_path / "x.png", "--checkpoint", path, "--model", NAME]),
    ):
        assert command.main([str(word) for word in words]) in (1, 2)
        printed = capsys.readouterr()
        assert "w.safetensors has values in layer2.0.conv2.weight that are not finite in float32" in printed.err
        assert printed.err.count("\n") == 1 and not printed.out
    assert not (tmp_path / "run").exists()


def test_the_recipe_for_it_is_the_default(pretrained):
    config = configure(parser().parse_args(["--weights", str(pretrained), "--model", NAME, "--data", "shapes"]))
    assert (config.recipe.epochs, config.recipe.lr, config.batch_size, config.freeze) == (10, 0.01, 32, "none")


@pytest.mark.parametrize("model", ["hog_linear", "vgg11_w4"])
def test_networks_without_stages_are_trained_whole(model, tmp_path, capsys):
    assert tiny.train(tmp_path / "a", "--model", model, "--epochs", "1") == 0
    assert tiny.train(tmp_path / "b", "--model", model, "--freeze", "all-but-last-stage") == cifar.USAGE
    assert (
        "--freeze all-but-last-stage is for networks with parameters called layer0...., which"
        in capsys.readouterr().err
    )
