"""train.bench: what it measures, what it prints and what it refuses. The figures themselves are nobody's test."""

import io
import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from train import bench, options
from train.measure import environment, rounds, workers
from train.measure.tables import speed_table

SMALL = ["--model", "resnext11_4x4d_w16", "--batch-size", "2", "--rounds", "2", "--threads", "1"]


def test_the_figures_of_a_network(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert bench.main([*SMALL, "--image-size", "16", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["model"], result["device"], result["dtype"]) == ("resnext11_4x4d_w16", "cpu", "float32")
    assert (result["batch_size"], result["image_size"]) == (2, 16)
    for name in ("train", "forward"):
        rounds = result[f"{name}_rounds"]
        assert len(rounds) == 2 and min(rounds) > 0
        assert min(rounds) <= result[f"{name}_images_per_second"] <= max(rounds)
    assert result["peak_memory_bytes"] > 20 << 20, "Python and NumPy alone take more"
    step = 2 / result["train_images_per_second"]
    assert 0.2 * step < sum(result["layers"].values()) < 50 * step
    assert {"Conv2d 3x3, 4 groups, forward", "BatchNormReLU, backward", "everything else"} <= set(result["layers"])
    printed = capsys.readouterr().out
    assert printed.startswith("resnext11_4x4d_w16, batch 2, images of 16 pixels, float32\n")
    assert "one training step by kind of layer" in printed


def test_columns_stand_apart_whatever_they_hold():
    """A fast network fills its cells, and the name of a mode may be long."""
    rounds = {"train_rounds": [1234.5, 12345.7], "forward_rounds": [123456.8, 234567.8], "peak_memory_bytes": 1}
    graphs = "torch compile, CUDA graphs, channels_last bfloat16"
    result = {"model": "m", "batch_size": 1, "image_size": 1, "dtype": "d", "hardware": "h", "versions": {}, **rounds}
    printed = speed_table(result | {"layers": {"a": 1.0}, "versus": {graphs: rounds}}).splitlines()
    head, here, there = printed[3:6]
    for line in (here, there):
        for cell in ("6790.10 (1234.50 to 12345.70)", "179012.30 (123456.80 to 234567.80)", "0 MiB"):
            assert f"   {cell}" in line
    assert there.startswith(f"{graphs}   ") and here.startswith("minigrad   ")
    assert [line.index(")") for line in (here, there)] == [head.index("training") + 7] * 2


def test_the_process_that_measures_holds_nothing_but_what_it_measures():
    """Its peak is printed as the network's: Matplotlib and Pillow alone are 20 MiB."""
    code = "import sys, train.bench; print([m for m in ('matplotlib', 'PIL', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout == b"[]\n"


class Turns:
    """A process that measures: its figures are drawn, and who is there while the layers are timed is noted."""

    there: ClassVar[list[str]] = []
    alone: ClassVar[list[list[str]]] = []

    def __init__(self, mode, args):
        self.mode = mode
        self.there.append(mode)

    def ask(self, command, patience=None):
        if command == "layers":
            self.alone.append(list(self.there))
        return {"peak_memory": 1 << 30, "describe": {self.mode: "1.0"}, "layers": {"Add, forward": 1.0}}.get(command, 2)

    def stop(self):
        if self.mode in self.there:
            self.there.remove(self.mode)


def test_what_is_there_is_kept_after_every_round_and_the_layers_are_timed_alone(monkeypatch):
    """A benchmark that is killed keeps its rounds; PyTorch's processes give their memory back before the profile."""
    monkeypatch.setattr(rounds, "Worker", Turns)
    args = bench.parser().parse_args([*SMALL, "--versus", "torch"])
    args.dtype = "float32"
    kept = []
    result = rounds.measure(args, lambda text: None, lambda figures: kept.append(json.loads(json.dumps(figures))))
    assert len(kept) == 2 * args.rounds + 1 and kept[-1] == result
    assert [len(k["train_rounds"]) for k in kept] == [1, 2, 2, 2, 2]
    assert [len(k.get("forward_rounds", ())) for k in kept] == [0, 0, 1, 2, 2]
    assert kept[0]["versus"]["ratio"] == 1.0 and "forward_ratio" not in kept[0]["versus"]
    assert (kept[3]["layers"], result["layers"]) == ({}, {"Add, forward": 1.0})
    assert Turns.alone == [["minigrad"]] and Turns.there == []


def test_the_process_that_measures_pytorch_has_nothing_of_minigrads(monkeypatch):
    """A heap that minigrad set up makes PyTorch's steps a third faster, and a second network takes a GPU's memory."""
    monkeypatch.setattr(workers, "Minigrad", lambda args: pytest.fail("minigrad was started beside PyTorch"))
    twin = SimpleNamespace(Torch=lambda args, mode: SimpleNamespace(describe=lambda: {"mode": mode}))
    monkeypatch.setitem(sys.modules, "train.measure.torch_model", twin)
    monkeypatch.setattr(sys, "stdin", io.StringIO("describe\n"))
    answers = io.StringIO()
    monkeypatch.setattr(sys, "stdout", answers)
    assert workers.serve(bench.parser().parse_args([*SMALL, "--worker", "torch eager"])) == 0
    assert json.loads(answers.getvalue()) == {"mode": "torch eager"}


@pytest.mark.parametrize(("words", "kept"), [([], None), (["--keep-heap"], workers.KEPT_HEAP)])
def test_pytorch_is_told_to_keep_its_heap_only_when_asked(monkeypatch, words, kept):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    started = {}
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *a, env, **kw: started.update(env))
    args = bench.parser().parse_args([*SMALL, "--versus", "torch", *words])
    workers.Worker("torch eager channels_last float32", args)
    assert started.get("GLIBC_TUNABLES") == kept
    started.clear()
    workers.Worker(workers.MINIGRAD, args)
    assert "GLIBC_TUNABLES" not in started


def test_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rounds, "BATCHES", (1, 3))
    file = tmp_path / "sweep.json"
    assert bench.main([*SMALL, "--image-size", "16", "--sweep", "batch", "--json", str(file)]) == 0
    assert [row["batch_size"] for row in json.loads(file.read_text())["sweep"]] == [1, 3]
    assert "3" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("torch") is not None, reason="needs a machine without PyTorch, where its mode fails")
def test_a_mode_that_fails_is_left_out_and_said(capfd):
    args = bench.parser().parse_args([*SMALL, "--image-size", "16", "--versus", "torch"])
    args.dtype = "float32"
    result = rounds.measure(args, lambda text: None)
    assert result["train_images_per_second"] > 0 and "versus" not in result
    error = capfd.readouterr().err
    assert error.count("left out: the process that measures torch") == len(rounds.torch_modes("float32", "cpu"))


def test_patience_has_an_end(capfd):
    args = bench.parser().parse_args([*SMALL, "--image-size", "16"])
    args.dtype = "float32"
    worker = workers.Worker(workers.MINIGRAD, args)
    worker.mode = "torch asleep"
    started = [worker]
    rounds.warm_up(started, worker, ["train"], patience=0.001)
    assert not started and worker.process.returncode is not None
    assert "left out: the process that measures torch asleep took more than 0.001 s" in capfd.readouterr().err


def test_the_ratio_is_to_the_fastest_mode_in_the_same_round():
    own = {"train_rounds": [10.0, 12.0, 30.0], "forward_rounds": [1.0, 1.0, 1.0]}
    slow = {"train_rounds": [1.0] * 3, "train_images_per_second": 1.0}
    fast = {"train_rounds": [5.0, 4.0, 20.0], "train_images_per_second": 5.0}
    for mode in (slow, fast):
        mode |= {"forward_rounds": [2.0] * 3, "forward_images_per_second": 2.0}
    found = rounds.ratios(own, {"slow": slow, "fast": fast})
    assert (found["ratio"], found["ratio_against"], found["ratio_spread"]) == (2.0, "fast", [1.5, 3.0])
    assert found["forward_ratio"] == 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "resnext29_8x64"], "there is no network 'resnext29_8x64'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--dtype", "bfloat16"], "bfloat16 is computed on CUDA devices only"),
        (["--versus", "torch", "--sweep", "batch"], "--sweep measures minigrad alone"),
        (["--keep-heap"], "--keep-heap concerns PyTorch's processes"),
        (["--versus", "torch", "--dtype", "float64"], "--versus compares in float32 or bfloat16"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(capsys, words, sentence):
    assert bench.main(words) == bench.USAGE
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1) and sentence in printed.err


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_that_is_asked_for_is_named(monkeypatch, device, index):
    runtime = SimpleNamespace(getDeviceProperties=lambda i: {"name": f"GPU {i}".encode()})
    gpu = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(environment, "cupy", lambda: gpu)
    assert environment.hardware(bench.parser().parse_args(["--device", device])) == f"GPU {index}"


def test_pytorch_is_waited_for_on_the_gpu_that_is_asked_for(monkeypatch):
    """With a stand-in for PyTorch, whose current GPU is the first one, whatever tensors lie on another."""
    asked = []

    def of_device(answer):
        return lambda device="cuda:0": asked.append(device) or answer

    torch = ModuleType("torch")
    torch.Tensor = object
    torch.cuda = SimpleNamespace(synchronize=of_device(None), max_memory_reserved=of_device(3 << 30))
    torch.nn = SimpleNamespace(Module=object, functional=SimpleNamespace())
    torch._inductor = SimpleNamespace(config=SimpleNamespace())
    parts = {"torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional}
    parts |= {"torch._inductor": torch._inductor, "torch._inductor.config": torch._inductor.config}
    for name, part in {"torch": torch, **parts}.items():
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.delitem(sys.modules, "train.measure.torch_model", raising=False)
    side = import_module("train.measure.torch_model").Torch
    monkeypatch.delitem(sys.modules, "train.measure.torch_model")
    network = side.__new__(side)
    network.device = "cuda:1"
    side.wait(network)
    assert network.peak_memory() == 3 << 30
    assert asked == ["cuda:1", "cuda:1"]


@pytest.mark.parametrize(("capability", "dtype"), [("75", "float32"), ("80", "bfloat16"), ("90", "bfloat16")])
def test_a_gpu_measures_as_it_trains(monkeypatch, capability, dtype):
    """bfloat16 where tensor cores multiply it, batches of 128, several steps in a row."""
    device = SimpleNamespace(compute_capability=capability)
    gpu = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: device))
    monkeypatch.setattr(options, "cupy", lambda: gpu)  # nothing is put on it: this process only looks after others
    monkeypatch.setattr(bench, "check_device", lambda device: 0)
    args = bench.parser().parse_args(["--device", "cuda:0", "--model", "resnext11_4x4d_w16"])
    bench.check(args)
    assert (args.dtype, args.batch_size, workers.in_a_row(args.device)) == (dtype, 128, 10)
    assert workers.in_a_row("cpu") == 1
    modes = rounds.torch_modes(args.dtype, args.device)
    assert modes == [f"torch {kind} channels_last {dtype}" for kind in ("eager", "compile", "compile, CUDA graphs,")]
