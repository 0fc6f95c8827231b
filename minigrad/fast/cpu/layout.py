"""Channels-last images and the arithmetic per channel that convolution and batch norm share.

On the tape images have shape (N, C, H, W). Here they are laid out as (N, H, W, C), a matrix with one row per pixel and
one column per channel, so that a 1x1 convolution is a matrix product and a value per channel is a row vector. The tape
sees the same memory through a transposed view; strides tell the layouts apart and nothing is copied.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ..handover import Note
from .memory import scratch
from .threads import Span, parts_for, spans, steps, thread_pool

BLOCK = 1 << 16  # numbers that a few passes over a block can keep in a core's L2 cache
FAR = 8  # a mean of so many deviations is subtracted before anything else: float32 has lost 3 of its 24 bits there
CANCELS = 8  # where μ² = 8 σ², Σ x² - n μ² is a ninth of Σ x², with nine times its relative error
TERMS = 1024  # numbers that are added one after the other in float32
UNIT = 64  # rows: the work is cut at multiples of it, so that a few rows can be treated as one wide row


def to_nhwc(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> contiguous (N, H, W, C); a copy only where the memory is laid out differently."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_nchw(x: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> a view (N, C, H, W) of the same memory."""
    return x.transpose(0, 3, 1, 2)


def rows_of(x: np.ndarray) -> np.ndarray:
    """Contiguous (N, H, W, C) -> (N·H·W, C), a row for each pixel."""
    return x.reshape(-1, x.shape[-1])


def blocks(start: int, stop: int, channels: int) -> list[tuple[int, int]]:
    """Cut a span of rows into blocks of about BLOCK numbers."""
    return list(steps((start, stop), max(1, BLOCK // channels), UNIT))


def repeat_for(rows: int, channels: int, numbers: int = 2048) -> int:
    """How many rows of a contiguous block to treat as one, so that NumPy's inner loop is long: about `numbers`."""
    return math.gcd(rows, 1 << max(0, (numbers // channels).bit_length() - 1))


@lru_cache(maxsize=64)
def ones(rows: int, dtype: np.dtype) -> np.ndarray:
    return np.ones((1, rows), dtype)


def wide(x: np.ndarray, numbers: int) -> np.ndarray:
    """View rows (R, c) as fewer rows of about so many numbers, where they lie side by side: (R / k, k c)."""
    R, c = x.shape
    k = repeat_for(R, c, numbers) if x.flags.c_contiguous else 1
    return x.reshape(R // k, k * c)


def add_up(sums: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out[c] = the sum over the rows that a wide row was made of, (k c,)."""
    return np.add.reduce(sums.reshape(-1, len(out)), axis=0, out=out)


def column_sums(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out[c] = Σ_r x[r, c], as a product with a row of ones: four times as fast as np.sum here.

    At most TERMS numbers are added one after the other, so for R rows the error is below (TERMS + R / TERMS) ε Σ |x|.
    """
    x = wide(x, 128)  # BLAS multiplies short rows at a quarter of its speed
    sums = np.dot(ones(min(len(x), TERMS), x.dtype), x[:TERMS])[0]
    for start in range(TERMS, len(x), TERMS):
        some = x[start : start + TERMS]
        sums += np.dot(ones(len(some), x.dtype), some)[0]
    return add_up(sums, out)


def product_sums(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out[c] = Σ_r x[r, c] y[r, c] without writing the products down; the error is that of `column_sums`."""
    x, y = (wide(x, 512), wide(y, 512)) if x.flags.c_contiguous and y.flags.c_contiguous else (x, y)
    sums = np.einsum("rc,rc->c", x[:TERMS], y[:TERMS])
    for start in range(TERMS, len(x), TERMS):
        sums += np.einsum("rc,rc->c", x[start : start + TERMS], y[start : start + TERMS])
    return add_up(sums, out)


def channel_sums(x: np.ndarray) -> np.ndarray:
    """Σ_r x[r, c] in float64: `column_sums` of blocks, by all threads."""
    parts = spans(len(x), parts_for(x.size), 8)
    sums = np.zeros((len(parts), x.shape[1]))

    def work(part: tuple[int, Span]) -> None:
        i, span = part
        for start, stop in blocks(*span, x.shape[1]):
            sums[i] += column_sums(x[start:stop], np.empty(x.shape[1], x.dtype))

    thread_pool().run(work, list(enumerate(parts)))
    return sums.sum(axis=0)


class Moments(Note):
    """A note on a convolution's output: mean and squared deviations per channel, block by block, joined in float64.

    A block gives its mean μᵢ and Mᵢ = Σ (x - μᵢ)². Over all blocks of nᵢ rows, n in total,

        μ = Σ nᵢ μᵢ / n        Σ (x - μ)² = Σ Mᵢ + Σ nᵢ (μᵢ - μ)²        (Chan, Golub, LeVeque 1979)

    which does not cancel where the mean is large against the deviation, as Σ x² - n μ² would.
    """

    def __init__(self, channels: int):
        self.channels = channels
        self.found: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}

    def measure(self, x: np.ndarray, part: int, first_channel: int = 0) -> None:
        """Take in the rows of x (R, c), whose channels start at `first_channel`. Each part is one thread's."""
        found = self.found.setdefault((first_channel, part), [])
        for start, stop in blocks(0, *x.shape):
            block = x[start:stop]
            pair = np.empty((2, x.shape[1]), x.dtype)
            mean = column_sums(block, pair[0])
            mean *= 1 / len(block)
            squares = product_sums(block, block, pair[1])
            share = mean * mean * len(block)
            squares -= share
            if not (CANCELS * squares >= share).all():
                pair = centred(block, pair)
            found.append((len(block), pair))

    def means(self) -> np.ndarray:
        """The means of all blocks: finite only where all that was measured is."""
        return np.concatenate([pair[0] for found in self.found.values() for _, pair in found])

    def join(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the number of rows, and mean and Σ (x - μ)² of every channel in float64."""
        mean, deviations, count = np.empty(self.channels), np.empty(self.channels), 0
        for first in {first for first, _ in self.found}:
            mine = [m for key in sorted(self.found) if key[0] == first for m in self.found[key]]
            n = np.array([[m[0]] for m in mine], np.float64)
            pairs = np.stack([m[1] for m in mine]).astype(np.float64)  # (blocks, 2, c)
            count = int(n.sum())
            mu = (n * pairs[:, 0]).sum(axis=0) / count
            columns = slice(first, first + len(mu))
            mean[columns] = mu
            deviations[columns] = pairs[:, 1].sum(axis=0) + (n * (pairs[:, 0] - mu) ** 2).sum(axis=0)
        return count, mean, deviations


def centred(x: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Mean and Σ (x - μ)² per channel by a second pass over x - μ, given the mean: (2, c)."""
    mean, deviations = pair
    rows = wide(x, 512)
    rest = scratch("deviations", x.shape, x.dtype)
    np.subtract(rows, np.tile(mean, rows.shape[1] // len(mean)), out=rest.reshape(rows.shape))
    product_sums(rest, rest, deviations)
    if not (mean * mean * (len(x) / FAR**2) > deviations).any():
        return pair
    # What rounding took from a mean that is large against the deviation is the mean of what is left.
    missed = column_sums(rest, np.empty_like(mean)) / len(x)
    return pair + np.stack([missed, -len(x) * missed * missed]).astype(np.float64)


class PerChannel:
    """A few numbers for each channel, (k, C), also for rows that are treated as one."""

    def __init__(self, vectors: np.ndarray):
        self.vectors = vectors
        self.wide: dict[int, np.ndarray] = {1: vectors}

    def rows(self, repeat: int, columns: slice = slice(None)) -> np.ndarray:
        """The numbers of some channels; those of all of them, where each is repeated."""
        if repeat not in self.wide:
            self.wide[repeat] = np.tile(self.vectors, (1, repeat))
        return self.wide[repeat] if repeat > 1 else self.vectors[:, columns]


class Affine:
    """a = scale (x - centre) + shift with a number per channel for each: batch norm once its statistics are known.

    Without a `centre` it is scale x + shift, a pass less. That cancels where x is large against what comes out.
    """

    def __init__(self, scale: np.ndarray, shift: np.ndarray, centre: np.ndarray | None = None):
        self.centre = centre
        self.numbers = PerChannel(np.stack([scale, shift] if centre is None else [scale, shift, centre]))

    def apply(self, x: np.ndarray, a: np.ndarray, columns: slice = slice(None)) -> None:
        """Write it for rows x (R, c) into a."""
        R, c = x.shape
        whole = x.flags.c_contiguous and a.flags.c_contiguous and c == self.numbers.vectors.shape[1]
        repeat = repeat_for(R, c) if whole else 1
        scale, shift, *centre = self.numbers.rows(repeat, columns)
        shape = (R // repeat, c * repeat)
        source, out = x.reshape(shape), a.reshape(shape)
        for number in centre:
            source = np.subtract(source, number, out=out)
        np.multiply(source, scale, out=out)
        np.add(out, shift, out=out)


def relu(x: np.ndarray) -> None:
    """x ← max(x, 0), in place. np.clip between two numbers is three times as fast as np.maximum with one."""
    np.clip(x, 0, np.inf, out=x)
