"""benchmarks/convergence.py, where PyTorch is installed: it trains as `train.cifar` does, and goes on after a stop."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from train import cifar

pytest.importorskip("torch")
SMALL = [
    "--data",
    "shapes",
    "--limit-train",
    "96",
    "--limit-test",
    "40",
    "--model",
    "resnext11_2x4d_w8",
    "--threads",
    "1",
]
SMALL += ["--recipe", "short", "--cutout", "0", "--average", "0.5", "--lr", "0.01", "--batch-size", "32", "--seed", "3"]


def benchmark(name):
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def convergence():
    return benchmark("convergence")


def read(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_same_losses_as_minigrad_while_rounding_has_not_grown(tmp_path, convergence):
    convergence.main([*SMALL, "--epochs", "2", "--out", str(tmp_path / "torch")])
    assert cifar.main([*SMALL, "--epochs", "2", "--out", str(tmp_path / "minigrad")]) == 0
    for ours, theirs in zip(read(tmp_path / "minigrad"), read(tmp_path / "torch"), strict=True):
        assert ours.keys() == theirs.keys() and ours["lr"] == theirs["lr"]
        np.testing.assert_allclose(theirs["train_loss"], ours["train_loss"], rtol=2e-4)
        np.testing.assert_allclose(theirs["test_loss"], ours["test_loss"], rtol=2e-4)  # of the averaged weights


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, convergence, monkeypatch):
    command = [*SMALL, "--epochs", "2", "--out"]
    convergence.main([*command, str(tmp_path / "whole")])
    epoch = convergence.Twin.epoch
    stop = lambda twin, number: sys.exit("stopped") if number == 1 else epoch(twin, number)  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(convergence.Twin, "epoch", stop)
        convergence.main([*command, str(tmp_path / "parts")])
    assert len(read(tmp_path / "parts")) == 1
    convergence.main([*command, str(tmp_path / "parts")])
    for whole, parts in zip(read(tmp_path / "whole"), read(tmp_path / "parts"), strict=True):
        del whole["images_per_second"], parts["images_per_second"]
        assert whole == parts
    with pytest.raises(SystemExit, match="other options"):
        convergence.main([*command, str(tmp_path / "parts"), "--lr", "0.02"])


def test_networks_that_do_not_start_alike_are_noticed(tmp_path, convergence, monkeypatch):
    build = convergence.ResNeXt

    def with_another_weight(model):
        twin = build(model)
        twin.fc.weight.data[0] += 0.5
        return twin

    monkeypatch.setattr(convergence, "ResNeXt", with_another_weight)
    with pytest.raises(SystemExit, match="do not start alike"):
        convergence.main([*SMALL, "--epochs", "1", "--out", str(tmp_path)])


def test_a_step_from_one_state_is_the_same_step(capsys, convergence):
    """Three steps an epoch, of which PyTorch takes the second and the last as well."""
    benchmark("lockstep").main([*SMALL, "--epochs", "2", "--every", "2"])
    *_, losses, steps = capsys.readouterr().out.splitlines()
    found = [float(number) for line in (losses, steps) for number in re.findall(r"\d\.\de-\d\d", line)]
    assert len(found) == 8
    assert max(found[:4]) < 1e-5
    assert max(found[4:]) < 1e-2


def test_pairs_agree_while_rounding_has_not_grown(capsys, convergence):
    """Three steps from each of two seeds: the same images are taken for other classes, and losses hardly differ."""
    benchmark("paired").main([*SMALL, "--epochs", "2", "--pairs", "2", "--dtype", "float64"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["3", "4"]
    assert [line.split()[-2:] for line in lines[1:3]] == [["3", "3"]] * 2, "an epoch has three steps"
    for line in lines[-3:]:
        error, loss = re.findall(r"[+-]\d+\.\d+", line)
        assert float(error) == 0 and abs(float(loss)) <= 1e-4, line


def test_logits_of_the_same_weights_agree(capsys):
    benchmark("logits").main(["resnext11_2x4d_w8"])
    name, *parts = capsys.readouterr().out.splitlines()[-1].split()
    assert (name, len(parts)) == ("resnext11_2x4d_w8", 3)
    assert 0 < max(map(float, parts)) < 1e-4
    with pytest.raises(SystemExit, match="vgg11 is no ResNet or ResNeXt with bottlenecks"):
        benchmark("logits").main(["vgg11"])
