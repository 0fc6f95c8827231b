"""benchmarks/gpu.sh as far as a machine without a GPU can rehearse it: syntax, time limits, layers, report."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.cuda_shim import kernel_names

import minigrad
from minigrad import backend, tensor
from minigrad.fast import cases
from minigrad.fast.cuda import cublas, gpu
from train import options
from train.measure import workers as bench

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where NamedTuple looks for the annotations' names
    spec.loader.exec_module(module)
    return module


SCRIPT = BENCHMARKS / "gpu.sh"


def run_script(*words, **variables):
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], "PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=60)


def test_the_script_stays_within_ten_minutes(tmp_path):
    assert subprocess.run(["bash", "-n", SCRIPT], check=False, timeout=60).returncode == 0
    done = run_script("--dry-run", tmp_path / "out", MINIGRAD_CIFAR10="/images")
    limits = re.findall(r"^(\S+) \(at most (\d+) s\)", done.stdout, re.M)
    benches = "bench-resnext29_8x64d bench-resnext29_4x16d bench-resnext29_32x4d"
    names = f"preflight check {benches} kernels trace tests cifar10 suite memcheck racecheck"
    assert [name for name, _ in limits] == [*names.split(), "report"]
    assert sum(int(seconds) for _, seconds in limits) <= 600
    assert done.returncode == 0 and not (tmp_path / "out").exists(), "a dry run writes nothing"
    for file in re.findall(r"benchmarks/\w+\.py", done.stdout):
        assert (BENCHMARKS.parent / file).exists()


def test_without_a_gpu_the_script_says_so_in_one_sentence(tmp_path):
    done = run_script(tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stderr == ""
    assert done.stdout.splitlines()[0] == "=== preflight" and len(done.stdout.splitlines()) == 2
    assert done.stdout.splitlines()[1].startswith("nothing can be measured here: ")
    assert (tmp_path / "out" / "steps.tsv").read_text().split("\t")[:2] == ["preflight", "2"]
    assert not (tmp_path / "out" / "gpu.md").exists()


def test_earlier_figures_are_put_aside_and_a_missing_interpreter_is_named(tmp_path):
    earlier = tmp_path / "out"
    earlier.mkdir()
    (earlier / "environment.json").write_text("{}")
    done = run_script(f"{earlier}/", PYTHON="no-such-python")
    assert (done.returncode, done.stderr) == (2, "there is no no-such-python: name an interpreter in PYTHON\n")
    assert (earlier / "environment.json").exists(), "nothing was begun"
    assert "holds earlier figures, which are kept in" in run_script(f"{earlier}/", CUDA_VISIBLE_DEVICES="").stdout
    (kept,) = tmp_path.glob("out-before-*")
    assert (kept / "environment.json").read_text() == "{}" and not (earlier / "environment.json").exists()


# ---- what the script looks for first --------------------------------------------------------------------------------


def card_of(gib, free=None, capability="90"):
    """CuPy with a GPU of this much memory."""
    memory = int((gib if free is None else free) * 2**30), gib << 30
    runtime = SimpleNamespace(memGetInfo=lambda: memory)
    device = SimpleNamespace(compute_capability=capability)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=lambda index: device))


def test_every_part_that_is_left_out_says_why(monkeypatch):
    preflight = load("gpu_preflight")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    monkeypatch.setenv("MINIGRAD_CIFAR10", "/nowhere/at/all")
    assert dict(preflight.parts()) == {
        "tests": "pytest and hypothesis missing (pip install -e '.[test]'): the tests are left out",
        "torch": "PyTorch is not installed: the networks are measured alone, the kernels not at all",
        "sanitizer": "compute-sanitizer is not on the PATH: memory accesses are not checked (it comes with the CUDA "
        "toolkit)",
        "cifar10": "MINIGRAD_CIFAR10 names no folder (/nowhere/at/all): the epochs on CIFAR-10 are left out",
    }


@pytest.mark.parametrize(
    ("code", "stdout", "fault"),
    [
        (0, "2.13.0+cpu None False", "PyTorch 2.13.0+cpu is built without CUDA"),
        (0, "2.13.0 13.0 False", "PyTorch 2.13.0, built for CUDA 13.0, finds no GPU"),
        (1, "", r"PyTorch cannot be imported (OSError: libcublas.so.13: not found)"),
        (0, "2.13.0 13.0 True", None),
    ],
)
def test_pytorch_without_cuda_is_told_from_pytorch_without_a_gpu(monkeypatch, code, stdout, fault):
    preflight = load("gpu_preflight")
    monkeypatch.setattr(preflight, "find_spec", lambda name: name)
    answer = SimpleNamespace(returncode=code, stdout=stdout, stderr="Traceback\nOSError: libcublas.so.13: not found\n")
    monkeypatch.setattr(preflight.subprocess, "run", lambda *a, **k: answer)
    assert preflight.torch_fault() == fault


@pytest.mark.parametrize(
    ("card", "with_torch", "dtype", "batch", "sentences"),
    [
        (card_of(80), True, "bfloat16", 128, []),
        (card_of(12), False, "bfloat16", 128, []),
        (card_of(12), True, "bfloat16", 80, ["12.0 of the GPU's 12.0 GiB are free: batches of 80 instead of 128"]),
        (card_of(80, free=9), False, "bfloat16", 128, []),
        (card_of(15, capability="75"), False, "float32", 128, ["this GPU multiplies no bfloat16"]),
        (card_of(15, capability="75"), True, "float32", 48, ["no bfloat16", "batches of 48 instead of 128"]),
    ],
)
def test_dtype_and_batch_are_what_the_card_can_do(monkeypatch, card, with_torch, dtype, batch, sentences):
    preflight = load("gpu_preflight")
    monkeypatch.setattr(options, "cupy", lambda: card)
    (_, found, older), (_, size, smaller) = preflight.choices(card, with_torch)
    assert (found, int(size)) == (dtype, batch)
    told = [sentence for sentence in (older, smaller) if sentence]
    assert len(told) == len(sentences) and all(s in t for s, t in zip(sentences, told, strict=True))


def test_a_full_card_and_a_full_disk_stop_it(monkeypatch, tmp_path):
    preflight = load("gpu_preflight")
    card = card_of(80, free=0.2)
    monkeypatch.setattr(options, "cupy", lambda: card)
    with pytest.raises(preflight.Stop, match=r"0\.2 of the GPU's 80\.0 GiB are free, too few for resnext29_8x64d"):
        list(preflight.choices(card, False))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    preflight.check_disk(tmp_path / "new" / "out")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    with pytest.raises(preflight.Stop, match=r"has 5 MiB left for the results, and 1 GiB may be needed: name another"):
        preflight.check_disk(tmp_path / "new" / "out")


def test_every_kernel_is_launched_for_the_sanitizer(monkeypatch):
    """With launches that do nothing: all kernels of all files, and no memory pool."""
    pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
    from support import host_gpu

    launcher = load("launch_kernels")
    allocators, launched = [], set()
    host_gpu.install(monkeypatch)
    for module, name, value in (
        (launcher, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(set_allocator=allocators.append))),
        (launcher, "to_device", lambda array, device: array),
        (launcher, "synchronize", lambda device: None),
        (launcher, "families", lambda device: cases._cuda()),
        (tensor, "float_dtype", lambda dtype, device: backend.float_dtype(dtype, "cuda")),  # bfloat16 on the host
        (gpu, "launch", lambda file, name, *arguments: launched.add(name)),
        (cublas, "product", lambda *arguments, **options: None),
    ):
        monkeypatch.setattr(module, name, value)
    with np.errstate(all="ignore"):  # nothing is computed: results are what the memory holds
        assert launcher.main() == 0
    assert allocators == [None] and gpu.properties() == host_gpu.HOPPER
    assert {name for file in gpu.FOLDER.glob("*.cu") for name in kernel_names(file.name)} == launched


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


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_is_measured_in_all_passes(monkeypatch, kernel, groups):
    """With launches that do nothing: each pass is called as the benchmark calls it."""
    pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
    from support import host_gpu

    kernels = load("gpu_kernels")
    host_gpu.install(monkeypatch)
    monkeypatch.setattr(gpu, "launch", lambda *arguments: None)
    monkeypatch.setattr(cublas, "product", lambda *arguments, **options: None)
    dtype = backend.float_dtype("bfloat16", "cuda")
    torch = SimpleNamespace(
        channels_last=None, nn=SimpleNamespace(functional=SimpleNamespace(conv2d=None)), ops=SimpleNamespace()
    )
    tensor_of_torch = SimpleNamespace(permute=lambda *order: None, contiguous=lambda memory_format: None)
    bench = SimpleNamespace(
        cp=np, torch=torch, as_torch=lambda array: tensor_of_torch, theirs=lambda work: 1.0,
        array=lambda *shape: np.zeros(shape, dtype), ours=lambda work: (work(), 1.0)[1],
    )  # fmt: skip
    with np.errstate(all="ignore"):
        row = kernels.convolution(bench, kernels.Layer("a layer", 64, 64, 8, kernel, 1, groups))
    assert {f"{way} {whose} ms" for way in ("forward", "dgrad", "wgrad") for whose in ("ours", "torch")} <= row.keys()
    assert ("forward columns ms" in row) == ("without sums ms" in row) == (kernel == 3)


def test_launches_are_summed_by_kind():
    trace = load("gpu_trace")
    launches = [
        ("conv3x3_256x64", 0.0, 100.0), ("conv3x3_wgrad_128", 150.0, 50.0), ("conv3x3_pack_float32", 210.0, 4.0),
        ("conv3x3_256x64", 300.0, 100.0), ("nvjet_sm90_tst_64x512", 400.0, 90.0), ("Memset (Unknown)", 490.0, 10.0),
    ]  # fmt: skip
    rows = {row["kind"]: (row["ms"], row.get("launches")) for row in trace.by_kind(launches, 2)}
    assert rows["3x3 on tensor cores, forward and input gradient"] == (pytest.approx(0.1), 1.0)
    assert rows["3x3 on tensor cores, weight gradient"] == (pytest.approx(0.025), 0.5)
    assert rows["busy"] == (pytest.approx(0.177), 3.0) and rows["span"] == (pytest.approx(0.25), None)
    assert rows["everything else"] == (pytest.approx(0.005), 0.5)
    own = {name for file in gpu.FOLDER.glob("*.cu") for name in kernel_names(file.name)}
    assert all(any(name.startswith(start) for name in own) for start in trace.KINDS), "a kernel was renamed"
    products = (
        "nvjet_sm90_tst_64x512",
        "ampere_bf16_s16816gemm_bf16_128x64",
        "void cutlass::Kernel<x>",
        "volta_sgemm_64x64",
    )
    assert {trace.kind_of(name) for name in products} == {"products (cuBLAS)"}


def test_the_report_reads_what_the_script_leaves(tmp_path, capsys):
    report = load("gpu_report")
    (tmp_path / "steps.tsv").write_text("tests\t0\t12\nkernels\t124\t100\n")
    (tmp_path / "environment.json").write_text(json.dumps({"device": "a GPU", "packages": {"torch": "2"}}))
    figures = {"model": "resnext29_8x64d", "train_images_per_second": 9000.0, "versus": {"eager": {"ratio": 1.5}}}
    figures["layers"] = {"Add, forward": 0.25}
    (tmp_path / "resnext29_8x64d.json").write_text(json.dumps(figures))
    rows = [
        {"name": "3x3", "forward ours ms": 2.0, "forward torch ms": 3.0},
        {"name": "1x1", "ours ms": 1.0, "torch ms": 2.0},
    ]
    (tmp_path / "kernels.json").write_text(json.dumps({"layers": rows}))
    (tmp_path / "trace.json").write_text(json.dumps({"a network": [{"kind": "SGD", "ms": 0.25}]}))
    (tmp_path / "cifar10.jsonl").write_text('{"epoch": 1, "test_error": 40.0}\n')
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "| a GPU | 2 |" in text and "| kernels | 124 | 100 |" in text and "| resnext29_8x64d | 9000 | 1.5 |" in text
    assert "| name | forward ours ms | forward torch ms | forward ratio | ours ms | torch ms | ratio |" in text
    assert "| 3x3 | 2 | 3 | 1.5 | - | - | - |" in text and "| 1x1 | - | - | - | 1 | 2 | 2 |" in text
    assert "| 1 | 40 |" in text and "a network\n\n| kind | ms |\n| --- | --- |\n| SGD | 0.25 |" in text
    assert "resnext29_8x64d, one eager step\n\n| layer | seconds |\n| --- | --- |\n| Add, forward | 0.25 |" in text


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
            self.workspace = SimpleNamespace(memory_pool=SimpleNamespace(total_bytes=lambda: 5))

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
    # The profile is of eager steps, and the graph's memory, which they cannot use, is given back first.
    worker.optimizer = SimpleNamespace(zero_grad=lambda: calls.append("no gradients"))
    seen = []
    monkeypatch.setattr(bench, "times_of_step", lambda step, model, device: (seen.append(worker.cuda_graph), {}, 1.0))
    assert worker.layers() == {"everything else": 1.0}
    assert seen == [None] and calls[-1] == "no gradients" and worker.step == worker.update
