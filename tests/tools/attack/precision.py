"""Float32 against float64: large means, long axes, both, and numbers of very different sizes.

An operation is computed in float32 by the engine room and by the book, and in float64 by the book. Each of the two may
be as far off as rounding its inputs explains, and a factor more; neither may be far worse than the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.engine import only, results

from minigrad import functional as F
from minigrad import registry
from minigrad.fast import cpu

EPS = float(np.finfo(np.float32).eps)
WORSE = 8  # the engine room's error, in the book's; and four roundings more


def shaped(rng: random.Random, most: int) -> tuple[int, ...]:
    """A tall, a wide, a square or a deep shape of about `most` numbers."""
    n = rng.choice([most, most // 7, most // 50])
    root = int(n**0.5)
    return rng.choice([(n // 2, 2), (2, n // 2), (root, root), (n // 64, 4, 4, 4), (1, 3, root // 2, root // 2), (n,)])


def case(rng: random.Random, values: np.random.Generator) -> tuple[str, Callable, list[np.ndarray]]:
    """An operation and its inputs in float64, rounded to what float32 can hold."""
    mean, scale = rng.choice([0.0, 1.0, 1e2, 1e4, 1e6]), rng.choice([1.0, 1.0, 1e-3, 1e3])
    kind = rng.choice(["sum", "mean", "batch norm", "conv", "conv", "linear", "norm relu", "cross entropy", "softmax"])
    shape = shaped(rng, 300_000)
    if kind in ("sum", "mean"):
        axes = [None, *range(len(shape)), tuple(range(len(shape)))]
        axis, keepdims = rng.choice(axes), rng.random() < 0.5
        story = f"{kind} of {shape} along {axis} with mean {mean:g} and deviation {scale:g}"
        f = F.sum if kind == "sum" else F.mean
        return story, lambda x: f(x, axis, keepdims), [values.standard_normal(shape) * scale + mean]
    if kind == "linear":
        n, i, o = rng.choice([(20_000, 3, 4), (5, 20_000, 3), (100, 100, 100)])
        arrays = [values.standard_normal(s) + m for s, m in (((n, i), min(mean, 10.0)), ((o, i), 0.0), ((o,), 0.0))]
        return f"linear {n} {i} {o} at mean {min(mean, 10.0):g}", F.linear, arrays
    if kind in ("cross entropy", "softmax"):
        N, K = rng.choice([(20_000, 3), (3, 20_000), (100, 100)])
        labels = values.integers(0, K, N)
        f = (lambda x: F.cross_entropy(x, labels)) if kind == "cross entropy" else F.softmax
        return f"{kind} of {N} x {K} around {mean:g}", f, [values.standard_normal((N, K)) + min(mean, 1e4)]
    images = rng.choice([(2, 4, 60, 60), (64, 8, 7, 7), (4, 64, 12, 12), (1, 2, 200, 200), (16, 32, 8, 8)])
    C = images[1]
    x = values.standard_normal(images) * scale + mean * scale
    if kind == "conv":
        k, groups = rng.choice([1, 3, 5]), rng.choice([1, C])
        w = values.standard_normal((2 * C, C // groups, k, k))
        x = values.standard_normal(images) + min(mean, 1.0)
        arrays = [x, w, values.standard_normal(2 * C)]
        return f"conv {images} {k}x{k} {groups} groups", lambda x, w, b: F.conv2d(x, w, b, 1, k // 2, 1, groups), arrays
    arrays = [x, values.standard_normal(C), values.standard_normal(C)]
    story = f"batch norm of {images} at {mean:g} deviations"
    return story, lambda x, w, b: F.batch_norm(x, w, b, None, None, True), arrays


def condition(arrays: list[np.ndarray]) -> float:
    """How much the rounding of an input that is far from zero may grow: its size in deviations."""
    x = arrays[0]
    axes = (0, *range(2, x.ndim)) if x.ndim == 4 else None
    spread = np.maximum(x.std(axis=axes), 1e-30)
    return float(np.max(1 + np.abs(x.mean(axis=axes)) / spread))


def trial(rng: random.Random, folder: Path) -> None:
    """Compute one case three times."""
    story, function, arrays = case(rng, np.random.default_rng(rng.getrandbits(32)))
    arrays = [a.astype(np.float32).astype(np.float64) for a in arrays]  # both get the same numbers
    single = [a.astype(np.float32) for a in arrays]
    with registry.book_only():
        exact = results(function, arrays)
        book = results(function, single)
    with only(cpu.register):
        fast = results(function, single)
    names = ["output", *(f"gradient {i}" for i in range(len(arrays)))]
    terms = arrays[0].size / (arrays[0].shape[1] if arrays[0].ndim > 1 else 1)  # of a sum over a channel
    for name, true, one, two in zip(names, exact, book, fast, strict=True):
        largest = max(float(np.abs(true).max()), 1e-30)
        errors = [float(np.abs(np.asarray(a, np.float64) - true).max()) / largest for a in (one, two)]
        # A sum of n random terms is √n times smaller than the sum of their sizes, which its rounding belongs to.
        limit = max(WORSE * errors[0], 4 * EPS * max(16, terms**0.5))
        assert errors[1] <= limit, f"{name} of {story}: off by {errors[1]:.2g}, the book by {errors[0]:.2g}"
        bound = 64 * EPS * condition(arrays) * 4096**0.5
        assert errors[0] <= bound, f"{name} of {story}: the book is off by {errors[0]:.2g}, {bound:.2g} is allowed"
