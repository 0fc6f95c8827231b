"""One small fixed case for every family of fast operations: what `python -m minigrad.check` computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import registry
from ..backend import Array, array_module, device_kind, device_of, to_device
from ..ops.conv import Pair
from ..ops.matmul import affine
from ..optim import sgd_step
from ..tensor import Tensor

Compute = Callable[..., list[Array]]


class Family(NamedTuple):
    """A family's case: arrays in float64, and two ways to compute the same list of arrays from them."""

    name: str
    dtype: str
    arrays: Sequence[np.ndarray | None]
    fast: Compute
    book: Compute
    leave_out: Callable[[], None]  # what to do where the fast way fails
    filters: bool = False  # whether the second array holds a convolution's weights

    def rounded(self, dtype: np.dtype) -> list[np.ndarray | None]:
        """The arrays in a dtype; beside bfloat16 parameters and statistics, the vectors and filters, are float32."""
        wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
        filters = 1 if self.filters else None  # which array they are
        return [
            None if a is None else a.astype(wide if a.ndim == 1 or i == filters else dtype)
            for i, a in enumerate(self.arrays)
        ]


class Declined(Exception):
    """The fast operation leaves this case to others."""


def families(device: str) -> list[Family]:
    """Every family of a kind of device, "cpu" or "cuda"."""
    if device == "cpu":
        return _cpu()
    to_device(np.zeros(1), device)  # makes it the current one, whose properties are asked for
    return _cuda()


def _cpu() -> list[Family]:
    from .cpu import FastAvgPool2d, FastBatchNorm, FastBatchNormReLU, FastMaxPool2d, add, sgd
    from .cpu.conv.columns import Columns
    from .cpu.conv.phases import Phases
    from .cpu.conv.pointwise import Pointwise
    from .cpu.conv.runs import Runs
    from .cpu.conv.winograd import Winograd

    made = []
    for dtype in ("float32", "float64"):
        made += [
            _blas(dtype),
            _convolution("convolution 1x1", dtype, Pointwise, (4, 64, 80, 1, 31, 32), kernel=1),
            _convolution("convolution 3x3, Winograd", dtype, Winograd, (4, 96, 96, 2, 20, 22)),
            _convolution("convolution 3x3, narrow groups", dtype, Runs, (4, 64, 64, 16, 31, 30)),
            _convolution("convolution 3x3, stride 2", dtype, Phases, (4, 32, 64, 4, 34, 32), stride=2),
            _convolution("convolution 3x3, columns", dtype, Columns, (4, 32, 64, 4, 33, 31), stride=2),
            *_norms(dtype, FastBatchNorm, FastBatchNormReLU, (8, 32, 31, 30)),
            _pooling("max pooling", dtype, FastMaxPool2d, (3, 3), (2, 2), (1, 1)),
            _pooling("average pooling", dtype, FastAvgPool2d, (2, 2), (2, 2), (0, 0)),
            _addition(dtype, add.add_gradients),
            _sgd(dtype, sgd.sgd_step),
        ]
    return made


def _cuda() -> list[Family]:
    from .cuda import (
        BatchNorm,
        BatchNormReLU,
        CrossEntropy,
        ImageSum,
        MatMul,
        Products,
        TensorCores,
        add,
        gpu,
        graph,
        linear,
        norm,
        sgd,
    )
    from .cuda import MaxPool2d as MaxPool

    made = []
    for dtype in ("float32", "bfloat16") if gpu.properties().compute >= 80 else ("float32",):
        if dtype == "bfloat16":
            made += [
                _convolution("tensor cores, groups of 64", dtype, TensorCores, (2, 128, 128, 2, 9, 10)),
                _convolution("tensor cores, groups of 128", dtype, TensorCores, (2, 128, 128, 1, 9, 10)),
                _convolution("tensor cores, stride 2", dtype, TensorCores, (2, 128, 128, 1, 10, 9), stride=2),
                _convolution("tensor cores, groups of 32", dtype, TensorCores, (2, 64, 64, 2, 9, 10)),
                _convolution("tensor cores, groups of 4", dtype, TensorCores, (2, 64, 64, 16, 9, 10)),
                *(
                    _convolution(f"tensor cores, groups of {c}, stride 2", dtype, TensorCores, sizes, stride=2)
                    for c, sizes in ((32, (2, 64, 64, 2, 10, 9)), (4, (2, 64, 64, 16, 10, 9)))
                ),
                _through_the_tape(
                    "sum over images, in float32",
                    dtype,
                    ImageSum,
                    [_normal(3, 24, 9, 7)],
                    axes=(2, 3),
                    keepdims=False,
                    dtype=np.dtype(np.float32),
                ),
            ]
        made += [
            _convolution("convolution 1x1", dtype, Products, (2, 32, 40, 1, 9, 8), kernel=1),
            _convolution("convolution 3x3, columns", dtype, Products, (2, 24, 48, 3, 9, 7), stride=2),
            *_norms(dtype, BatchNorm, BatchNormReLU, (3, 32, 7, 6)),
            _through_the_tape("sum over images", dtype, ImageSum, [_normal(3, 24, 9, 7)], axes=(2, 3), keepdims=False),
            _pooling("max pooling", dtype, MaxPool, (3, 3), (2, 2), (1, 1)),
            _through_the_tape("matrix product", dtype, MatMul, [_normal(33, 64), _normal(64, 10)]),
            _addition(dtype, add.add_gradients),
        ]
        made.append(_linear(dtype, linear.affine))
    labels = np.arange(37) % 10
    made += [
        _through_the_tape(
            "cross-entropy", "float32", CrossEntropy, [_normal(37, 10)], labels=labels, label_smoothing=0.1
        ),
        _sgd("float32", sgd.sgd_step),
        _sums_of_sums(norm, TensorCores),
        _replay(graph),
    ]
    return made


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers from N(0, 1), the same ones for the same shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def _through_the_tape(
    name: str, dtype: str, candidate: Any, arrays: Sequence[np.ndarray | None], /, **options: Any
) -> Family:
    """An operation of the book and one that stands in for it: output, gradients, and arrays that it changes."""
    book = registry.book_of(candidate)

    def compute(chosen: Any, *given: Array | None) -> list[Array]:
        device = next(device_of(a) for a in given if a is not None)
        fresh = {k: to_device(v.copy(), device) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        inputs = [None if a is None else Tensor(a, requires_grad=True) for a in given]
        with registry.book_only():
            if chosen is not book:
                registry.register(book, device_kind(device), chosen)
                if registry.choose(book, device, *given, **fresh) is not chosen:
                    raise Declined(f"{chosen.__name__} does not take its case on this machine")
            y = book.apply(*inputs, **fresh)
            dy = to_device(_normal(*y.shape, seed=1), device).astype(y.dtype)
            y.backward(dy)
        changed = [fresh[k] for k in ("running_mean", "running_var") if k in fresh]
        return [y.data, *(t.grad for t in inputs if t is not None), *changed]

    leave_out = partial(registry.leave_out, candidate)
    return Family(name, dtype, arrays, partial(compute, candidate), partial(compute, book), leave_out)


def _convolution(
    name: str, dtype: str, candidate: Any, sizes: tuple[int, ...], kernel: int = 3, stride: int = 1
) -> Family:
    N, C, O, G, H, W = sizes
    bias = _normal(O) if kernel == 1 and dtype != "bfloat16" else None  # no layer with a bias computes in bfloat16
    arrays = [_normal(N, C, H, W), _normal(O, C // G, kernel, kernel), bias]
    pad = kernel // 2
    options = {"stride": (stride, stride), "padding": (pad, pad), "dilation": (1, 1), "groups": G}
    return _through_the_tape(name, dtype, candidate, arrays, **options)._replace(filters=True)


def _norms(dtype: str, plain: Any, rectified: Any, shape: tuple[int, ...]) -> list[Family]:
    x, weight, bias, shortcut = (
        _normal(*shape) + 2,
        _normal(32),
        _normal(32, seed=1) - 1,
        _normal(*shape, seed=2),
    )
    options = {"training": True, "momentum": 0.1, "eps": 1e-5}
    statistics = {"running_mean": np.zeros(32, np.float32), "running_var": np.ones(32, np.float32)}
    if dtype == "float64":
        statistics = {k: v.astype(np.float64) for k, v in statistics.items()}
    return [
        _through_the_tape("batch norm", dtype, plain, [x, weight, bias], **statistics, **options),
        _through_the_tape("batch norm, ReLU", dtype, rectified, [x, weight, bias, None], **statistics, **options),
        _through_the_tape(
            "batch norm, shortcut, ReLU", dtype, rectified, [x, weight, bias, shortcut], **statistics, **options
        ),
    ]


def _pooling(name: str, dtype: str, candidate: Any, kernel: Pair, stride: Pair, padding: Pair) -> Family:
    return _through_the_tape(
        name, dtype, candidate, [_normal(4, 32, 30, 32)], kernel=kernel, stride=stride, padding=padding
    )


def _addition(dtype: str, candidate: Any) -> Family:
    arrays = [_normal(8, 24, 30, 64, seed=seed).transpose(0, 3, 1, 2) for seed in (0, 1)]  # channels last
    leave_out = partial(registry.leave_out, candidate)
    return Family("addition", dtype, arrays, lambda a, b: [candidate(a, b)], lambda a, b: [a + b], leave_out)


def _sgd(dtype: str, candidate: Any) -> Family:
    def step(function: Any, w: Array, dw: Array, velocity: Array) -> list[Array]:
        w, velocity = w.copy(), velocity.copy()
        function([(w, dw, velocity, 0.9, 5e-4, True)], 0.1)
        return [w, velocity]

    arrays = [_normal(1000, 67, seed=seed) for seed in range(3)]
    leave_out = partial(registry.leave_out, candidate)
    return Family("SGD", dtype, arrays, partial(step, candidate), partial(step, sgd_step), leave_out)


def _sums_of_sums(norm: Any, source: Any) -> Family:
    """What a batch norm does to more sums than its blocks should add, where the convolution before it left so many."""
    book = lambda p: [array_module(p).stack([p[i : i + norm.FOLDED].sum(0) for i in range(0, len(p), norm.FOLDED)])]  # noqa: E731
    leave_out = partial(registry.leave_out, source)
    return Family("sums of sums", "float32", [_normal(1000, 2, 40)], lambda p: [norm.few(p)], book, leave_out)


def _blas(dtype: str) -> Family:
    """Matrix products of small whole numbers, which are exact; a BLAS library has no slower one to fall back on."""
    arrays = [np.round(4 * _normal(*shape)) for shape in ((130, 257), (257, 65))]
    whole = lambda a, b: [(a.astype(np.int64) @ b.astype(np.int64)).astype(a.dtype)]  # noqa: E731
    return Family("BLAS matrix product", dtype, arrays, lambda a, b: [a @ b], whole, lambda: None)


def _linear(dtype: str, candidate: Any) -> Family:
    """A linear layer, whose stand-in is a function of tensors."""

    def compute(function: Callable[..., Tensor], *given: Array) -> list[Array]:
        tensors = [Tensor(a, requires_grad=True) for a in given]
        y = function(*tensors, None)
        y.backward(to_device(_normal(*y.shape, seed=1), y.device).astype(y.dtype))
        return [y.data, *(t.grad for t in tensors)]

    arrays = [_normal(33, 320), _normal(10, 320)]
    leave_out = partial(registry.leave_out, candidate)
    return Family("linear layer", dtype, arrays, partial(compute, candidate), partial(compute, affine), leave_out)


def _replay(graph: Any) -> Family:
    """A captured step against the same step's formula; the last of several calls is a replay with other inputs."""

    def product(a: Array, b: Array) -> list[Array]:
        return [(Tensor(a) @ Tensor(b)).relu().data]

    def replayed(a: Array, b: Array) -> list[Array]:
        step = graph.CudaGraph(product)
        for factor in (1, 2, 3, 4, 5, 1):
            (y,) = step(a * factor, b)
        return [array_module(y).array(y)]

    return Family(
        "replay of a captured step", "float32", [_normal(33, 64), _normal(64, 10)], replayed, product, graph.avoid
    )
