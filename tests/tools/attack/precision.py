"""Float32 against float64: large means, long axes, both, and numbers of very different sizes.

An operation is computed in float32 by the engine room and by the book, and in float64 by the book. Each of the two may
be as far off as rounding its inputs explains, and a factor more; neither may be far worse than the other. What that is
depends on the operation: a sum is the exact one, rounded; a sum of products is off by some roundings of Σ|ab|; and a
batch norm's output by as many roundings as its channels are deviations away from zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.engine import only
from support.strategies import normal

from minigrad import functional as F
from minigrad import registry
from minigrad.fast import cpu

from .chains import LAYOUTS, Minigrad, cut_for

EPS = float(np.finfo(np.float32).eps)
WORSE = 4  # the engine room's error, in the book's; and some roundings more
SUMS, PRODUCTS, NORMS = 2, 8, 4  # roundings that the book's result may be off


@dataclass
class Case:
    """An operation, its inputs in float64, and what bounds the book's error."""

    story: str
    function: Callable
    arrays: list[np.ndarray]
    roundings: float
    away: float = 1.0  # from zero: the mean of a channel in deviations
    linear: bool = False  # in each input: of absolute values it makes the sizes that rounding belongs to


def shaped(rng: random.Random, most: int) -> tuple[int, ...]:
    """A tall, a wide, a square or a deep shape of about `most` numbers."""
    n = rng.choice([most, most // 7, most // 50])
    root = int(n**0.5)
    return rng.choice([(n // 2, 2), (2, n // 2), (root, root), (n // 64, 4, 4, 4), (1, 3, root // 2, root // 2), (n,)])


def case(rng: random.Random, values: np.random.Generator) -> Case:
    """Draw an operation and its inputs."""
    mean, scale = rng.choice([0.0, 0.1, 1.0, 1e2, 1e4, 1e6]), rng.choice([1.0, 1.0, 1e-3, 1e3])
    kinds = ["sum", "mean", "batch norm", "evaluation", "conv", "conv", "linear", "cross entropy", "softmax"]
    kind = rng.choice(kinds)
    if kind in ("sum", "mean"):
        shape = shaped(rng, 300_000)
        axis, keepdims = rng.choice([None, *range(len(shape)), tuple(range(len(shape)))]), rng.random() < 0.5
        story = f"{kind} of {shape} along {axis} with mean {mean:g} and deviation {scale:g}"
        f = F.sum if kind == "sum" else F.mean
        x = values.standard_normal(shape) * scale * (rng.random() < 0.8) + mean
        return Case(story, lambda x: f(x, axis, keepdims), [x], SUMS, linear=True)
    if kind == "linear":
        n, i, o = rng.choice([(20_000, 3, 4), (5, 20_000, 3), (100, 100, 100)])
        arrays = [values.standard_normal(s) + m for s, m in (((n, i), min(mean, 10.0)), ((o, i), 0.0), ((o,), 0.0))]
        return Case(f"linear {n} {i} {o} at mean {min(mean, 10.0):g}", F.linear, arrays, PRODUCTS, linear=True)
    if kind in ("cross entropy", "softmax"):
        N, K = rng.choice([(20_000, 3), (3, 20_000), (100, 100)])
        labels = values.integers(0, K, N)
        f = (lambda x: F.cross_entropy(x, labels)) if kind == "cross entropy" else F.softmax
        x = values.standard_normal((N, K)) + min(mean, 1e4)
        return Case(f"{kind} of {N} x {K} around {mean:g}", f, [x], PRODUCTS)
    images = rng.choice(
        [(2, 4, 60, 60), (64, 8, 7, 7), (4, 64, 12, 12), (1, 2, 200, 200), (16, 32, 8, 8), (5, 7, 9, 11)]
    )
    C = images[1]
    if kind == "conv":
        k, groups = rng.choice([1, 3, 5]), rng.choice([1, C])
        x, w = values.standard_normal(images) + min(mean, 1.0), values.standard_normal((2 * C, C // groups, k, k))
        story = f"conv {images} {k}x{k} {groups} groups"
        arrays = [x, w, values.standard_normal(2 * C)]
        return Case(story, lambda x, w, b: F.conv2d(x, w, b, 1, k // 2, 1, groups), arrays, PRODUCTS, linear=True)
    x = (values.standard_normal(images) * scale + mean * scale).astype(np.float32).astype(np.float64)
    channels = x.mean((0, 2, 3)), x.var((0, 2, 3))
    away = float(np.max(1 + np.abs(channels[0]) / np.sqrt(channels[1])))  # from zero, in deviations
    training, arrays = kind == "batch norm", [x, values.standard_normal(C), values.standard_normal(C)]

    def norm(x, w, b):
        return F.batch_norm(x, w, b, *(a.astype(x.dtype) for a in channels), training)

    return Case(f"{kind} of {images} at {mean:g} deviations of {scale:g}", norm, arrays, NORMS, away)


def run(function: Callable, arrays: list[np.ndarray], absolute: bool = False) -> list[np.ndarray]:
    """The output and every input's gradient, in float64."""
    leaves = [Minigrad.leaf(a) for a in arrays]
    y = function(*leaves)
    dy = normal(0, *y.shape).astype(np.float32).astype(y.dtype)
    y.backward(np.abs(dy) if absolute else dy)
    return [np.asarray(a, np.float64) for a in (y.data, *(t.grad for t in leaves))]


def trial(rng: random.Random, folder: Path) -> None:
    """Compute one case three times."""
    c = case(rng, np.random.default_rng(rng.getrandbits(32)))
    arrays = [a.astype(np.float32).astype(np.float64) for a in c.arrays]  # both get the same numbers
    layout = rng.choice([name for name in LAYOUTS if name != "repeated"]) if arrays[0].ndim == 4 else "plain"
    single = [LAYOUTS[layout](arrays[0].astype(np.float32)), *(a.astype(np.float32) for a in arrays[1:])]
    with registry.book_only():
        exact, book = run(c.function, arrays), run(c.function, single)
        sizes = run(c.function, [np.abs(a) for a in arrays], absolute=True) if c.linear else exact
    threads = rng.choice([1, 2, 3])
    with only(cpu.register), cut_for(threads, everything=True):
        fast = run(c.function, single)
    names = ["output", *(f"gradient {i}" for i in range(len(arrays)))]
    for name, true, one, two, size in zip(names, exact, book, fast, sizes, strict=True):
        story = f"{name} of {c.story}, {layout}, {threads} threads"
        size = np.maximum(np.abs(size) if c.linear else np.abs(size).max(), 1e-30)
        errors = [float((np.abs(a - true) / size).max()) for a in (one, two)]
        limit = max(WORSE * errors[0], EPS * (16 + 2 * c.away))
        assert errors[1] <= limit, f"{story}: off by {errors[1]:.2g}, the book by {errors[0]:.2g}"
        bound = EPS * c.roundings * c.away
        assert errors[0] <= bound, f"{story}: the book is off by {errors[0]:.2g}, {bound:.2g} is allowed"
