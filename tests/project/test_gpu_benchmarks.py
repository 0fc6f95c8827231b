"""benchmarks/gpu.sh as far as a machine without a GPU can rehearse it: syntax, time limits, layers, report."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import minigrad
from train.measure import workers as bench

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where NamedTuple looks for the annotations' names
    spec.loader.exec_module(module)
    return module


def test_the_script_stays_within_ten_minutes(monkeypatch, tmp_path):
    script = BENCHMARKS / "gpu.sh"
    assert subprocess.run(["bash", "-n", script], check=False, timeout=60).returncode == 0
    environment = {"PATH": "/usr/bin:/bin", "MINIGRAD_CIFAR10": "/images", "PYTHON": sys.executable}
    command = ["bash", script, "--dry-run", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    limits = [int(n) for n in re.findall(r"\(at most (\d+) s\)", done.stdout)]
    assert len(limits) == 10 and sum(limits) <= 600
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"
    for file in re.findall(r"\S+/(gpu_\w+\.py)", done.stdout):
        assert (BENCHMARKS / file).exists()


@pytest.mark.slow
def test_the_sanitizers_find_tests():
    """What gpu.sh selects by markers exists: small arrays for memcheck, the racing kernels among them for racecheck."""
    script = (BENCHMARKS / "gpu.sh").read_text()
    assert all(f"-m {marker} -p no:cacheprovider tests/minigrad/fast" in script for marker in ("memcheck", "racecheck"))
    collect = "import pytest, sys; sys.exit(max(pytest.main([*sys.argv[2:], '-m', m]) for m in sys.argv[1].split()))"
    options = "-p no:cacheprovider -p no:xdist --collect-only -q tests/minigrad/fast"
    command = [sys.executable, "-c", collect, "memcheck racecheck", "-o", "addopts=", *options.split()]
    root = BENCHMARKS.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    memcheck, racecheck = (set(re.findall(r"^\S+::.*", part, re.M)) for part in done.stdout.split("collected")[:2])
    assert racecheck and racecheck < memcheck


def test_the_layers_are_those_of_the_networks(capsys):
    """The benchmark's layers, each as often as it occurs, add up to the network's multiply-adds."""
    kernels = load("gpu_kernels")
    from minigrad.nn import Conv2d
    from resnext import create

    for cardinality, width in ((8, 64), (4, 16)):
        network = create(f"resnext29_{cardinality}x{width}d")
        shapes = {
            (m.weight.shape[1] * m.groups, m.weight.shape[0], m.weight.shape[2], m.groups)
            for m in network.modules()
            if isinstance(m, Conv2d)
        }
        assert {(l.C, l.O, l.kernel, l.groups) for l in kernels.layers(cardinality, width)} == shapes
    assert kernels.main(["--dry-run"]) == 0
    assert "8x64d stage 1 3x3" in capsys.readouterr().out
    grouped = next(l for l in kernels.layers(8, 64) if l.name == "8x64d stage 2 3x3")
    assert grouped.flops() == pytest.approx(2 * 38.65e9 / 1, rel=1e-3), "38.65 G multiply-adds a batch"


def test_the_report_reads_what_the_script_leaves(tmp_path, capsys):
    report = load("gpu_report")
    (tmp_path / "steps.tsv").write_text("tests\t0\t12\nkernels\t124\t100\n")
    (tmp_path / "environment.json").write_text(json.dumps({"device": "a GPU", "packages": {"torch": "2"}}))
    figures = {"model": "resnext29_8x64d", "train_images_per_second": 9000.0, "versus": {"eager": {"ratio": 1.5}}}
    (tmp_path / "resnext29_8x64d.json").write_text(json.dumps(figures))
    rows = [
        {"name": "3x3", "forward ours ms": 2.0, "forward torch ms": 3.0},
        {"name": "1x1", "ours ms": 1.0, "torch ms": 2.0},
    ]
    (tmp_path / "kernels.json").write_text(json.dumps({"layers": rows}))
    (tmp_path / "cifar10.jsonl").write_text('{"epoch": 1, "test_error": 40.0}\n')
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "| a GPU | 2 |" in text and "| kernels | 124 | 100 |" in text and "| resnext29_8x64d | 9000 | 1.5 |" in text
    assert "| name | forward ours ms | forward torch ms | forward ratio | ours ms | torch ms | ratio |" in text
    assert "| 3x3 | 2 | 3 | 1.5 | - | - | - |" in text and "| 1x1 | - | - | - | 1 | 2 | 2 |" in text
    assert "| 1 | 40 |" in text


def test_the_report_says_what_is_missing(tmp_path, capsys):
    report = load("gpu_report")
    assert "No figures" in report.report(tmp_path)
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_timed_step_on_a_gpu_is_a_replay_and_all_its_memory_counts(monkeypatch):
    """A graph's first calls are eager and one captures, in a memory pool of the graph's own."""
    graph = minigrad.fast.cuda.graph
    calls = []

    class FakeGraph:
        def __init__(self, step):
            self.pool = SimpleNamespace(total_bytes=lambda: 5)

        def __call__(self, *arrays):
            calls.append(arrays)

    pool = SimpleNamespace(total_bytes=lambda: 3)
    monkeypatch.setattr(graph, "CudaGraph", FakeGraph)
    for name, value in (
        ("Tensor", lambda array, **options: SimpleNamespace(data=array)),
        ("to_device", lambda array, device: array),
        ("synchronize", lambda device: None),
        ("cupy", lambda: SimpleNamespace(get_default_memory_pool=lambda: pool)),
    ):
        monkeypatch.setattr(bench, name, value)
    worker: Any = object.__new__(bench.Minigrad)
    worker.device, worker.dtype, worker.model = "cuda", "float32", SimpleNamespace(train=lambda: None)
    worker.use(2, 8)
    assert len(calls) > graph.EAGER_CALLS
    assert worker.peak_memory() == 8
