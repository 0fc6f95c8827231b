"""Batch norm with ReLU and shortcut on a CPU: two sweeps over the memory each way, or one where a note saves the other.

Forward: the statistics (which the convolution before may have noted already), then y = max(scale (x - μ) + bias + s, 0)
with scale = weight / √(σ² + ε). Backward: first dz = dy where y > 0, with Σ dz and Σ dz x (which the convolution after
may have noted already), hence Σ dz (x - μ), then

    dx = scale · (dz - Σ dz / m - (x - μ) / (σ² + ε) · Σ dz (x - μ) / m)

which is a number per channel times dz, plus one times x, plus one.

Neither x̂ nor the mask is kept: x is, and both are made again block by block in the cache. Each sweep handles a block of
256 KB at a time, so that its five or six passes read memory once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array
from ...ops.norm import BatchNorm, BatchNormReLU, update_running
from .. import handover
from .layout import Affine, Moments, blocks, column_sums, pixels, relu, repeat_for, to_nchw, to_nhwc
from .threads import parts_for, pool, scratch, spans


class Recipe:
    """How to make a batch norm's output again, a = max(scale x + shift, 0), for whoever would otherwise keep a."""

    def __init__(self, x: np.ndarray, affine: Affine, node: BatchNorm):
        self.x, self.affine, self.node = x, affine, node


class ReLUSums:
    """A note on a gradient that a convolution made for `node`: masked already, with Σ dz and Σ dz x in float64.

    The gradient was made for nobody else, so `node` may overwrite it.
    """

    def __init__(self, node: BatchNorm, sums: np.ndarray):
        self.node, self.sums = node, sums


def masked_sums(dz: np.ndarray, a: np.ndarray | None, x: np.ndarray, sums: np.ndarray) -> None:
    """dz ← dz where a > 0 (a is None: everywhere), in place; add Σ dz and Σ dz x over the rows to `sums` (2, C)."""
    if a is not None:
        mask = np.greater(a, 0, out=scratch("mask", a.shape, np.dtype(bool)))
        np.multiply(dz, mask, out=dz)
    pair = np.empty(sums.shape, dz.dtype)
    column_sums(dz, pair[0])
    column_sums(np.multiply(dz, x, out=scratch("product", x.shape, x.dtype)), pair[1])
    sums += pair


class _FastNorm(BatchNorm):
    """What both operations share; `rectified` says whether ReLU follows."""

    rectified = False

    @classmethod
    def accepts(cls, *arrays: Array | None, **options: Any) -> bool:
        x, weight = arrays[:2]
        return x.ndim == 4 and x.dtype == weight.dtype and x.dtype in (np.float32, np.float64)  # type: ignore[union-attr]

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        shortcut: Array | None = None,
        *,
        running_mean: Array,
        running_var: Array,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Array:
        self.training, self.weight = training, weight
        self.x = to_nhwc(x)
        self.m = x.size // x.shape[1]
        if training:
            moments = handover.find(x, Moments) or self.measure()
            _, mean, deviations = moments.join()
            update_running(running_mean, mean.astype(x.dtype), momentum)
            update_running(running_var, (deviations / (self.m - 1)).astype(x.dtype), momentum)
            var = deviations / self.m
        else:
            mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
        self.inv_std = 1 / np.sqrt(var + eps)
        self.mean = mean
        scale = weight * self.inv_std
        self.affine = Affine(scale.astype(x.dtype), (bias - scale * mean).astype(x.dtype))

        y = np.empty_like(self.x)
        self.apply_to(y, None if shortcut is None else to_nhwc(shortcut))
        out = to_nchw(y)
        self.y = y if shortcut is not None else None
        if self.rectified and shortcut is None:
            handover.attach(out, Recipe(self.x, self.affine, self))
        return out

    def measure(self) -> Moments:
        """Sweep over x for its statistics."""
        rows, moments = pixels(self.x), Moments(self.x.shape[-1])

        def work(part: tuple[int, tuple[int, int]]) -> None:
            i, (start, stop) = part
            moments.measure(rows[start:stop], i)

        pool().run(work, list(enumerate(spans(len(rows), parts_for(rows.size)))))
        return moments

    def apply_to(self, y: np.ndarray, shortcut: np.ndarray | None) -> None:
        """y ← scale x + shift, plus the shortcut, rectified."""
        rows, out = pixels(self.x), pixels(y)
        added = None if shortcut is None else pixels(shortcut)

        def work(span: tuple[int, int]) -> None:
            for start, stop in blocks(*span, rows.shape[1]):
                a = out[start:stop]
                self.affine.apply(rows[start:stop], a)
                if added is not None:
                    np.add(a, added[start:stop], out=a)
                if self.rectified:
                    relu(a)

        pool().run(work, spans(len(rows), parts_for(rows.size), 8))

    def backward(self, dy: Array) -> tuple[Array | None, ...]:  # type: ignore[override]
        note = handover.find(dy, ReLUSums)
        if note is not None and note.node is self:
            dz, sums, owned = to_nhwc(dy), note.sums, True
        else:
            dz, sums = self.sweep_sums(to_nhwc(dy))
            owned = self.rectified and not self.needs[-1]
        dbias, dweight = sums[0], (sums[1] - self.mean * sums[0]) * self.inv_std
        dx = None
        if self.needs[0]:
            dx = to_nchw(self.sweep_dx(dz, dbias, dweight, owned))
        dtype = self.weight.dtype
        gradients = (dx, dweight.astype(dtype), dbias.astype(dtype))
        return (*gradients, to_nchw(dz)) if len(self.needs) == 4 else gradients

    def sweep_sums(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return dz (a new array, or dy itself where no ReLU follows) and its sums (2, C)."""
        dz = np.empty_like(dy) if self.rectified else dy
        x, dy_rows, dz_rows = pixels(self.x), pixels(dy), pixels(dz)
        kept = None if self.y is None else pixels(self.y)
        C = x.shape[1]
        parts = spans(len(x), parts_for(x.size), 8)
        sums = np.zeros((len(parts), 2, C))

        def work(part: tuple[int, tuple[int, int]]) -> None:
            i, span = part
            for start, stop in blocks(*span, C):
                block, mask = x[start:stop], None
                if self.rectified:
                    np.copyto(dz_rows[start:stop], dy_rows[start:stop])
                    if kept is None:
                        mask = scratch("a", block.shape, x.dtype)
                        self.affine.apply(block, mask)
                    else:
                        mask = kept[start:stop]
                masked_sums(dz_rows[start:stop], mask, block, sums[i])

        pool().run(work, list(enumerate(parts)))
        return dz, sums.sum(axis=0)

    def sweep_dx(self, dz: np.ndarray, dbias: np.ndarray, dweight: np.ndarray, owned: bool) -> np.ndarray:
        """dx = scale dz + (slope x + offset), over dz itself if it is `owned`."""
        scale = self.weight * self.inv_std
        share = scale / self.m if self.training else np.zeros_like(scale)
        slope = -share * dweight * self.inv_std
        back = Affine(slope.astype(dz.dtype), (-share * dbias - slope * self.mean).astype(dz.dtype))
        dx = dz if owned else np.empty_like(dz)
        x, dz_rows, dx_rows = pixels(self.x), pixels(dz), pixels(dx)
        C = x.shape[1]
        scale = scale.astype(dz.dtype)

        def work(span: tuple[int, int]) -> None:
            for start, stop in blocks(*span, C):
                repeat = repeat_for(stop - start, C)
                shape = ((stop - start) // repeat, C * repeat)
                d = dx_rows[start:stop].reshape(shape)
                np.multiply(dz_rows[start:stop].reshape(shape), np.tile(scale, repeat), out=d)
                if self.training:
                    rest = scratch("rest", (stop - start, C), x.dtype)
                    back.apply(x[start:stop], rest)
                    np.add(d, rest.reshape(shape), out=d)

        pool().run(work, spans(len(x), parts_for(x.size), 8))
        return dx


class FastBatchNorm(_FastNorm):
    """BatchNorm, fast."""


class FastBatchNormReLU(_FastNorm, BatchNormReLU):  # type: ignore[misc]
    """BatchNormReLU, fast."""

    rectified = True
