"""Batch norm on a GPU, with ReLU and shortcut inside: two passes forward and two backward; see kernels/norm.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array, array_module
from ...ops import norm
from ..handover import Informed, Kept, Note
from . import gpu
from .arrays import VECTOR_BYTES, aligned, f32, i32, i64, suffix, supported, to_nchw, to_nhwc

FOLDED = 16  # chunks that become one, where there are too many


class Sums(Note):
    """A note of a convolution about its output: each channel's sum and sum of squares over each tile of pixels."""

    def __init__(self, partial: Array):
        self.partial = partial  # (tiles, 2, C), float32


def rows_of(x: Array) -> Array:
    """x (N, C, H, W) or (N, C) as a matrix (M, C), one row a pixel."""
    return aligned(x) if x.ndim == 2 else to_nhwc(x).reshape(-1, x.shape[1])


def _like(rows: Array, x: Array) -> Array:
    """A matrix (M, C) in x's shape."""
    N, C, *size = x.shape
    return rows if not size else to_nchw(rows.reshape(N, *size, C))


class _Sweep:
    """How norm.cu goes over a matrix (M, C): grid and block of its passes, and the number of chunks of rows."""

    def __init__(self, rows: Array):
        self.M, self.C = rows.shape
        vectors = self.C * rows.itemsize // VECTOR_BYTES
        bx = min(8, 1 << (vectors - 1).bit_length())
        self.block = (bx, 256 // bx)
        across = -(-vectors // bx)
        # Two blocks a processor have 32 KiB of each array under way, which keeps the memory busy; more would leave more
        # chunks to add (on an H200 three and four were slower). None has fewer rows than threads.
        wanted = max(1, 2 * gpu.properties().processors // across)
        self.rows = max(-(-self.M // wanted), self.block[1])
        self.chunks = -(-self.M // self.rows)
        self.grid = (across, self.chunks)
        self.suffix = suffix(rows)

    def run(self, name: str, *arguments: Any) -> None:
        """A pass over all rows."""
        sizes = (i64(self.M), i32(self.C), i64(self.rows))
        pointers = [a for a in arguments if not isinstance(a, np.generic)]
        flags = [a for a in arguments if isinstance(a, np.generic)]
        gpu.launch("norm.cu", f"{name}_{self.suffix}", self.grid, self.block, (*pointers, *sizes, *flags))


def few(partial: Array) -> Array:
    """The same sums in fewer chunks, where each block of the next pass would have too many to add.

    That is more than the sweep over a narrow matrix leaves itself; then sums of 16 chunks.
    """
    chunks, _, C = partial.shape
    if chunks <= 2 * gpu.properties().processors:
        return partial
    folded = array_module(partial).empty((-(-chunks // FOLDED), 2, C), np.float32)
    grid = (-(-2 * C // 256), len(folded))
    gpu.launch("norm.cu", "bn_fold", grid, (256,), [partial, folded, i32(C), i32(chunks), i32(FOLDED)])
    return folded


class BatchNorm(Informed, norm.BatchNorm):
    """norm.BatchNorm in two passes forward and two backward; see norm.cu."""

    fresh = True
    relu = False

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        x, weight, bias, shortcut = (*arrays, None)[:4]
        statistics = (options["running_mean"], options["running_var"])
        return (
            x.ndim in (2, 4)
            and supported(x, shortcut)
            and x.shape[1] * x.itemsize % VECTOR_BYTES == 0
            and all(a is None or (a.dtype == np.float32 and a.flags.c_contiguous) for a in (weight, bias, *statistics))
        )

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        shortcut: Array | None = None,
        *,
        running_mean: Array | None,
        running_var: Array | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Array:
        xp, rows = array_module(x), rows_of(x)
        C = rows.shape[1]
        sweep = _Sweep(rows)
        stats = xp.empty((4, C), np.float32)
        y = xp.empty_like(rows)
        statistics = (running_mean, running_var)  # the kernel updates those that nobody keeps too
        running_mean, running_var = (xp.zeros(C, np.float32) if a is None else a for a in statistics)
        partial, known = None, self.note_on(0, Sums) if training else None
        if known is not None:
            partial = few(known.partial)
        elif training:
            partial = xp.empty((sweep.chunks, 2, C), np.float32)
            sweep.run("bn_sums", rows, partial)
        added = None if shortcut is None else rows_of(shortcut)
        sweep.run(
            "bn_apply", rows, added, partial, weight, bias, running_mean, running_var, stats, y,
            i32(0 if partial is None else len(partial)), i32(known is None), i32(training), f32(momentum), f32(eps),
            i32(self.relu),
        )  # fmt: skip
        if any(self.needs):
            # With a shortcut the mask cannot be recomputed from x; y, which the next layer keeps anyway, tells it.
            self.x, self.stats, self.y = self.keep(0, x, rows), stats, None if shortcut is None else Kept(y)
            if self.y is not None:
                self.pin(self.y)
            self.training = training
        return _like(y, x)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:  # type: ignore[override]
        xp, rows, upstream = array_module(dy), self.x.array, rows_of(dy)
        C = rows.shape[1]
        sweep = _Sweep(rows)
        y = None if self.y is None else self.y.array
        masked = y is not None
        dz = xp.empty_like(rows) if masked else None
        partial = xp.empty((sweep.chunks, 2, C), np.float32)
        dweight, dbias = xp.empty(C, np.float32), xp.empty(C, np.float32)
        dx = xp.empty_like(rows)
        sweep.run("bn_backward_sums", upstream, rows, y, self.stats, dz, partial, i32(self.relu))
        sweep.run(
            "bn_backward_apply", dz if masked else upstream, rows, self.stats, partial, dweight, dbias, dx,
            i32(sweep.chunks), i32(self.training), i32(self.relu), i32(masked),
        )  # fmt: skip
        gradients = _like(dx, dy), dweight, dbias
        return gradients if len(self.needs) == 3 else (*gradients, None if dz is None else _like(dz, dy))


class BatchNormReLU(BatchNorm, norm.BatchNormReLU):  # type: ignore[misc]
    """norm.BatchNormReLU, in as many passes as the plain one."""

    relu = True
