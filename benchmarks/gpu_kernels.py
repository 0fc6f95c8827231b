"""Time every kernel of the CUDA engine room on the layers of the paper's networks, beside PyTorch's.

    python benchmarks/gpu_kernels.py [--json FILE] [--only SECTION] [--dry-run]

Sections: peak (the card's copy bandwidth and matrix product), step (a whole step eager and as a graph), layers (each
convolution forward, input gradient, weight gradient), norm, sgd, columns, load (a kernel for sm_90a). A time is the
median of several replays of a CUDA graph that holds the work many times over, so launches cost nothing; minigrad and
PyTorch take turns. --dry-run prints what would be measured and needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 128
REPEATS, REPLAYS = 10, 5  # the work, in one graph; the graph, timed
SECTIONS = ("peak", "step", "layers", "norm", "sgd", "columns", "load")


class Layer(NamedTuple):
    """One convolution: channels in and out, rows of its square input, kernel, stride, groups."""

    name: str
    C: int
    O: int
    H: int
    kernel: int
    stride: int
    groups: int

    def flops(self) -> float:
        """Floating-point operations of one pass over a batch, two for each multiply-add."""
        out = (self.H - 1) // self.stride + 1
        return 2.0 * BATCH * out * out * self.O * (self.C // self.groups) * self.kernel**2


def layers(cardinality: int, width: int) -> list[Layer]:
    """The different convolutions of a ResNeXt-29 for CIFAR, by stage."""
    name, found, C, H = f"{cardinality}x{width}d", [Layer("first", 3, 64, 32, 3, 1, 1)], 64, 32
    for stage in range(3):
        D, out, stride = cardinality * width << stage, 256 << stage, 1 if stage == 0 else 2
        found += [
            Layer(f"{name} stage {stage + 1} shortcut", C, out, H, 1, stride, 1),
            Layer(f"{name} stage {stage + 1} first 1x1", C, D, H, 1, 1, 1),
            Layer(f"{name} stage {stage + 1} 3x3 stride {stride}", D, D, H, 3, stride, cardinality),
        ]
        H //= stride
        found += [
            Layer(f"{name} stage {stage + 1} 3x3", D, D, H, 3, 1, cardinality),
            Layer(f"{name} stage {stage + 1} last 1x1", D, out, H, 1, 1, 1),
            Layer(f"{name} stage {stage + 1} 1x1", out, D, H, 1, 1, 1),
        ]
        C = out
    return list(dict.fromkeys(found))


class Bench:
    """The clocks of both libraries."""

    def __init__(self) -> None:
        import cupy as cp
        import ml_dtypes
        import numpy as np
        import torch

        self.cp, self.np, self.torch, self.bf16 = cp, np, torch, np.dtype(ml_dtypes.bfloat16)
        torch.backends.cudnn.benchmark = True
        self.generator = np.random.default_rng(0)

    def array(self, *shape: int, dtype: Any = None) -> Any:
        """Random values, made on the device."""
        values = self.cp.random.standard_normal(shape, dtype=self.np.float32)
        return values.astype(self.bf16 if dtype is None else dtype)

    def ours(self, work: Callable[[], Any]) -> float:
        """Milliseconds of one `work()` of CuPy launches."""
        from minigrad.fast.cuda.graph import EAGER_CALLS, CudaGraph

        graph = CudaGraph(lambda: [work() for _ in range(REPEATS)][-1:])
        for _ in range(EAGER_CALLS + 1):
            graph()
        times = []
        for _ in range(REPLAYS):
            start, end = self.cp.cuda.Event(), self.cp.cuda.Event()
            start.record(graph.workspace.stream)
            graph.graph.launch(graph.workspace.stream)
            end.record(graph.workspace.stream)
            end.synchronize()
            times.append(self.cp.cuda.get_elapsed_time(start, end) / REPEATS)
        return statistics.median(times)

    def theirs(self, work: Callable[[], Any]) -> float:
        """Milliseconds of one `work()` of PyTorch."""
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                work()
        graph.replay()
        times = []
        for _ in range(REPLAYS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / REPEATS)
        return statistics.median(times)

    def as_torch(self, array: Any) -> Any:
        """A PyTorch tensor with the same values, shape and strides; bfloat16 travels as 16-bit integers."""
        torch = self.torch
        if array.dtype == self.bf16:
            return torch.from_dlpack(array.view(self.np.int16)).view(torch.bfloat16)
        return torch.from_dlpack(array)


def copy(bench: Bench) -> dict[str, Any]:
    """What the card can move: a large copy in GB/s, read and written."""
    source = bench.cp.zeros(1 << 30, bench.np.uint8)
    target = bench.cp.empty_like(source)
    # The driver's copy: CuPy's own `copyto` is a kernel that moves a byte at a time.
    stream = bench.cp.cuda.get_current_stream
    ms = bench.ours(lambda: target.data.copy_from_device_async(source.data, source.nbytes, stream()))
    return {"name": "copy", "ms": ms, "GB/s": 2 * source.nbytes / ms / 1e6}


def product(bench: Bench) -> dict[str, Any]:
    """What the card can multiply: a large product of bfloat16 matrices in TFLOP/s."""
    from minigrad.fast.cuda import cublas

    n = 8192
    a, b = bench.array(n, n), bench.array(n, n)
    out = bench.cp.empty_like(a)
    ms = bench.ours(lambda: cublas.matmul(a, b, out))
    return {"name": f"product of {n} x {n}", "ms": ms, "TFLOP/s": 2 * n**3 / ms / 1e9}


def convolution(bench: Bench, layer: Layer) -> dict[str, Any]:
    """Forward, input gradient and weight gradient of a layer: ours, ours by columns and products, PyTorch's."""
    from minigrad import registry
    from minigrad.fast.cuda import conv
    from minigrad.ops.conv import Conv2d

    p, k, out = layer.kernel // 2, layer.kernel, (layer.H - 1) // layer.stride + 1
    options = (layer.stride, layer.stride), (p, p), (1, 1), layer.groups
    x = bench.array(BATCH, layer.H, layer.H, layer.C)
    w = bench.array(layer.O, layer.C // layer.groups, k, k)
    dy = bench.array(BATCH, out, out, layer.O)
    named = dict(zip(("stride", "padding", "dilation", "groups"), options, strict=True))
    methods: dict[str, Any] = {"ours": registry.choose(Conv2d, "cuda", x.transpose(0, 3, 1, 2), w, **named)()}
    if isinstance(methods["ours"], conv.TensorCores):
        methods["columns"] = conv.Products()
    for method in methods.values():
        method.needs = (True, True, False)
        method.prepare(x, w, *options)

    tx, tdy = (bench.as_torch(a).permute(0, 3, 1, 2) for a in (x, dy))
    tw = bench.as_torch(w).contiguous(memory_format=bench.torch.channels_last)
    conv2d = bench.torch.nn.functional.conv2d

    def backward(dx: bool, dw: bool) -> Any:
        sizes = [list(options[0]), list(options[1]), [1, 1], False, [0, 0], layer.groups]
        return bench.torch.ops.aten.convolution_backward(tdy, tx, tw, None, *sizes, [dx, dw, False])

    passes: dict[str, tuple[Callable, Callable]] = {
        "forward": (lambda m: m.convolve(x), lambda: conv2d(tx, tw, None, *options)),
        "dgrad": (lambda m: m.input_gradient(dy), lambda: backward(True, False)),
        "wgrad": (lambda m: m.weight_gradient(x, dy), lambda: backward(False, True)),
    }
    row: dict[str, Any] = {"name": layer.name, "GFLOP": layer.flops() / 1e9}
    for name, (ours, theirs) in passes.items():
        for kind, method in methods.items():
            row[f"{name} {kind} ms"] = bench.ours(partial(ours, method))
        row[f"{name} torch ms"] = bench.theirs(theirs)
    tensor_cores = methods["ours"]
    if isinstance(tensor_cores, conv.TensorCores):  # what the sums for the batch norm cost
        plan, packed, y = tensor_cores.plan.forward, tensor_cores._packed()[0], bench.cp.empty_like(dy)
        row["forward kernel ms"] = bench.ours(lambda: tensor_cores._convolve(plan, x, packed, y, tensor_cores.sums))
        row["without sums ms"] = bench.ours(lambda: tensor_cores._convolve(plan, x, packed, y))
    return row


def batch_norm(bench: Bench, C: int, H: int, with_shortcut: bool) -> dict[str, Any]:
    """Batch norm with ReLU, with or without shortcut, in training: forward and backward."""
    from minigrad.fast.cuda import norm

    cp, np, torch = bench.cp, bench.np, bench.torch
    x, dy, shortcut = (bench.array(BATCH, H, H, C).transpose(0, 3, 1, 2) for _ in range(3))
    weight, bias, mean, var = (cp.ones(C, np.float32) for _ in range(4))
    state = {"running_mean": mean, "running_var": var, "training": True, "momentum": 0.1, "eps": 1e-5}
    node = norm.BatchNormReLU()
    node.needs = (True,) * 4
    arrays = (x, weight, bias, shortcut if with_shortcut else None)
    row: dict[str, Any] = {"name": f"{C} channels, {H}x{H}{', shortcut' if with_shortcut else ''}"}
    row["GB"] = x.nbytes / 1e9
    row["forward ours ms"] = bench.ours(lambda: node.forward(*arrays, **state))
    node.heard = ([norm.Sums(cp.zeros((BATCH * H * H // 256, 2, C), np.float32))],)  # as after a convolution
    row["forward after 3x3 ms"] = bench.ours(lambda: node.forward(*arrays, **state))
    row["backward ours ms"] = bench.ours(lambda: node.backward(dy))

    F = torch.nn.functional
    tx, tdy, ts = (bench.as_torch(a.transpose(0, 2, 3, 1)).permute(0, 3, 1, 2) for a in (x, dy, shortcut))
    tmean, tvar, tweight, tbias = (bench.as_torch(a) for a in (mean, var, weight, bias))
    leaves = [
        t.detach().requires_grad_() for t in ((tx, tweight, tbias, ts) if with_shortcut else (tx, tweight, tbias))
    ]

    def forward() -> Any:
        y = F.batch_norm(leaves[0], tmean, tvar, leaves[1], leaves[2], True, 0.1, 1e-5)
        return F.relu(y + leaves[3] if with_shortcut else y)

    with torch.no_grad():
        row["forward torch ms"] = bench.theirs(forward)
    row["backward torch ms"] = (
        bench.theirs(lambda: torch.autograd.grad(forward(), leaves, tdy)) - row["forward torch ms"]
    )
    return row


def addition(bench: Bench, C: int, H: int) -> dict[str, Any]:
    """Two gradients that meet behind a residual block."""
    from minigrad.fast.cuda import add

    a, b = (bench.array(BATCH, H, H, C).transpose(0, 3, 1, 2) for _ in range(2))
    ta, tb = (bench.as_torch(x.transpose(0, 2, 3, 1)) for x in (a, b))
    row = {"name": f"addition, {C} channels, {H}x{H}", "GB": a.nbytes / 1e9}
    return row | {"ours ms": bench.ours(lambda: add.add_gradients(a, b)), "torch ms": bench.theirs(lambda: ta + tb)}


def sgd(bench: Bench) -> dict[str, Any]:
    """One step on the parameters of resnext29_8x64d."""
    from minigrad.fast.cuda import sgd as fast
    from resnext import create

    cp, torch = bench.cp, bench.torch
    shapes = [p.shape for p in create("resnext29_8x64d").parameters()]
    there = [tuple(bench.array(*shape, dtype="float32") for _ in range(3)) for shape in shapes]
    lr = cp.full(1, 0.1, "float32")
    total = sum(w.size for w, _, _ in there)
    ours = bench.ours(lambda: fast.sgd_step([(*arrays, 0.9, 5e-4, True) for arrays in there], lr))
    parameters = [torch.nn.Parameter(bench.as_torch(w)) for w, _, _ in there]
    for parameter, (_, dw, _) in zip(parameters, there, strict=True):
        parameter.grad = bench.as_torch(dw)
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    theirs = bench.theirs(optimizer.step)
    return {"name": f"{total} parameters", "ours ms": ours, "torch ms": theirs, "ours GB/s": 20 * total / ours / 1e6}


def columns(bench: Bench, D: int, H: int) -> dict[str, Any]:
    """im2col alone, on what it would do for a stage of 8x64d: GB/s written."""
    from minigrad.fast.cuda import conv

    x, w = bench.array(BATCH, H, H, D), bench.array(D, D // 8, 3, 3)
    method = conv.Products()
    method.prepare(x, w, (1, 1), (1, 1), (1, 1), 8)
    size = max(1, conv.COLUMN_BYTES // (H * H * method.ld * 2))
    ms = bench.ours(lambda: method._columns(x[:size]))
    return {"name": f"{D} channels, {H}x{H}", "ms": ms, "GB/s": size * H * H * method.ld * 2 / ms / 1e6}


def whole_step(bench: Bench, model: str) -> dict[str, Any]:
    """A whole training step: the wall clock of an eager one and of a captured one."""
    import minigrad
    from minigrad import functional, optim
    from minigrad.fast.cuda.graph import CudaGraph
    from resnext import create

    cp, np = bench.cp, bench.np
    network = create(model).to("cuda")
    optimizer = optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batch, labels = bench.array(BATCH, 3, 32, 32), cp.asarray(bench.generator.integers(0, 10, BATCH))
    lr = cp.full(1, 0.01, np.float32)

    def step(batch: Any, labels: Any, lr: Any) -> tuple[Any, ...]:
        optimizer.lr = lr
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(minigrad.Tensor._of(batch)).to(dtype="float32"), labels)
        loss.backward()
        optimizer.step()
        return (loss.data,)

    row: dict[str, Any] = {"name": model}
    for kind, call in (("eager", step), ("graph", CudaGraph(step))):
        times = []
        for i in range(25):
            cp.cuda.Device().synchronize()
            begin = time.perf_counter()
            call(batch, labels, lr)
            cp.cuda.Device().synchronize()
            if i >= 5:
                times.append(time.perf_counter() - begin)
        row[f"{kind} ms"] = 1e3 * statistics.median(times)
        row[f"{kind} images/s"] = BATCH / statistics.median(times)
    return row


WGMMA = r"""
extern "C" __global__ void probe(int* out) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    out[threadIdx.x] = 90;
}
"""


def load(bench: Bench) -> dict[str, Any]:
    """Whether CuPy compiles, loads and runs a kernel with Hopper's own instructions."""
    cp = bench.cp
    if cp.cuda.Device().compute_capability != "90":
        return {"name": "sm_90a kernel", "ran": "not a Hopper GPU"}
    out = cp.zeros(128, bench.np.int32)
    cp.RawModule(code=WGMMA, options=("-std=c++17", "-arch=sm_90a")).get_function("probe")((1,), (128,), (out,))
    return {"name": "sm_90a kernel", "ran": bool((out == 90).all())}


def work() -> Iterator[tuple[str, Callable[[Bench], dict[str, Any]]]]:
    """Yield (section, measurement), the most telling first, in case time runs out."""
    yield "peak", copy
    yield "peak", product
    for model in ("resnext29_8x64d", "resnext29_4x16d"):
        yield "step", partial(whole_step, model=model)
    for layer in dict.fromkeys(layers(8, 64) + layers(4, 16)):
        yield "layers", partial(convolution, layer=layer)
    for C, H, with_shortcut in ((512, 32, False), (256, 32, True), (2048, 8, False), (64, 32, False)):
        yield "norm", partial(batch_norm, C=C, H=H, with_shortcut=with_shortcut)
    yield "norm", partial(addition, C=256, H=32)
    yield "sgd", sgd
    for D, H in ((512, 32), (1024, 16), (2048, 8)):
        yield "columns", partial(columns, D=D, H=H)
    yield "load", load


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the CUDA kernels beside PyTorch's.")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=SECTIONS, help="measure one section")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    options = parser.parse_args(arguments)
    if options.dry_run:
        for layer in dict.fromkeys(layers(8, 64) + layers(4, 16)):
            print(f"{layer.name:28} {layer.C:5} -> {layer.O:5}, {layer.H}x{layer.H}, {layer.flops() / 1e9:7.1f} GFLOP")
        return 0
    bench = Bench()
    results: dict[str, list[dict[str, Any]]] = {}
    failed = 0
    for section, measure in work():
        if options.only not in (None, section):
            continue
        try:
            row = measure(bench)
        except Exception as error:  # one measurement that fails must not cost the others
            print(f"{section}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        results.setdefault(section, []).append(row)
        print(section, *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
