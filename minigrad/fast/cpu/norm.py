"""Batch norm with ReLU and shortcut on a CPU: two sweeps over the memory each way, or one where a note saves the other.

Forward: the statistics (which the convolution before may have noted already), then y = max(scale (x - μ) + bias + s, 0)
with scale = weight / √(σ² + ε). Backward: first dz = dy where y > 0, with Σ dz and Σ dz x (which the convolution after
may have taken already), hence Σ dz (x - μ) = Σ dz x - μ Σ dz, then

    dx = scale · (dz - Σ dz / m - (x - μ) / (σ² + ε) · Σ dz (x - μ) / m)

which is a number per channel times dz, plus one times x, plus one. Where μ is large against σ these differences would
cancel: then x - μ takes the place of x everywhere.

Neither x̂ nor the mask is kept: x is, and both are made again block by block in the cache. Each sweep handles a block of
256 KB at a time, so that its five or six passes read memory once.

Of numbers that are not finite these sums and differences make NaN where the formulas have infinities. The statistics
and the sums show them, and then the book's formulas compute all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array
from ...ops.norm import BatchNorm, BatchNormReLU, update_running
from ..handover import Informed, Kept, Note
from .layout import (
    FAR,
    UNIT,
    Affine,
    Moments,
    PerChannel,
    blocks,
    column_sums,
    product_sums,
    relu,
    repeat_for,
    rows_of,
    to_nchw,
    to_nhwc,
)
from .memory import scratch
from .threads import Span, parts_for, spans, thread_pool


class Remake(Note):
    """How to make a batch norm's output again, a = max(affine(x), 0), for whoever would otherwise keep a."""

    def __init__(self, x: Kept, affine: Affine, node: _FastNorm):
        self.x, self.affine, self.node = x, affine, node


def masked_sums(
    dy: np.ndarray,
    a: np.ndarray | None,
    dz: np.ndarray,
    x: np.ndarray,
    sums: np.ndarray,
    centre: np.ndarray | None,
) -> None:
    """dz ← dy where a > 0 (a is None: dz is dy); add Σ dz and Σ dz (x - centre) over the rows to `sums`."""
    if a is not None:
        mask = np.greater(a, 0, out=scratch("mask", a.shape, np.dtype(bool)))
        np.multiply(dy, mask, out=dz)
    pair = np.empty(sums.shape, dz.dtype)
    column_sums(dz, pair[0])
    if centre is not None:
        x = np.subtract(x, centre, out=scratch("deviations", x.shape, x.dtype))
    product_sums(dz, x, pair[1])
    sums += pair


class _FastNorm(Informed, BatchNorm):
    """What both operations share; `rectified` says whether ReLU follows."""

    rectified = False

    # From the convolution that took this one's output, the only one who did: the gradient, masked already and for this
    # one to overwrite, and its two sums in float64.
    received: tuple[np.ndarray, np.ndarray] | None = None

    by_the_book = False  # something is not finite

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
        rows = to_nhwc(x)
        self.m = x.size // x.shape[1]
        if training:
            moments = self.note_on(0, Moments) or measure(rows)
            _, mean, deviations = moments.join()
            var = deviations / self.m
        else:
            mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
        if not all(np.isfinite(values).all() for values in (mean, var, weight, bias)):
            self.by_the_book = True
            statistics = {"running_mean": running_mean, "running_var": running_var}
            added = () if shortcut is None else (shortcut,)
            return super().forward(x, weight, bias, *added, training=training, momentum=momentum, eps=eps, **statistics)
        if training:
            update_running(running_mean, mean.astype(x.dtype), momentum)
            update_running(running_var, (deviations / (self.m - 1)).astype(x.dtype), momentum)
        self.mean, self.inv_std = mean, 1 / np.sqrt(var + eps)
        # Rounded to x's dtype, in which it is subtracted.
        centre = mean.astype(x.dtype) if (np.abs(mean) * self.inv_std > FAR).any() else None
        self.beyond = mean - centre if centre is not None else mean  # what is left of the mean in x - centre
        scale = weight * self.inv_std
        self.affine = Affine(scale.astype(x.dtype), (bias - scale * self.beyond).astype(x.dtype), centre)

        y = np.empty_like(rows)
        self.apply_to(rows, y, None if shortcut is None else to_nhwc(shortcut))
        self.y = None
        if any(self.needs):
            self.x = self.keep(0, x, rows)
            if self.rectified and shortcut is None:
                self.pin(Remake(self.x, self.affine, self))
            elif self.rectified:
                self.y = Kept(y)  # its sign is the mask; the shortcut is not kept
                self.pin(self.y)
        return to_nchw(y)

    def apply_to(self, x: np.ndarray, y: np.ndarray, shortcut: np.ndarray | None) -> None:
        """y ← affine(x), plus the shortcut, rectified."""
        rows, out = rows_of(x), rows_of(y)
        added = None if shortcut is None else rows_of(shortcut)

        def work(span: Span) -> None:
            for start, stop in blocks(*span, rows.shape[1]):
                a = out[start:stop]
                self.affine.apply(rows[start:stop], a)
                if added is not None:
                    np.add(a, added[start:stop], out=a)
                if self.rectified:
                    relu(a)

        thread_pool().run(work, spans(len(rows), parts_for(rows.size), UNIT))

    def backward(self, dy: Array) -> tuple[Array | None, ...]:  # type: ignore[override]
        if self.by_the_book:
            return super().backward(dy)
        if self.received is not None and self.received[0] is dy:
            dz, sums, owned = to_nhwc(dy), self.received[1], True
        else:
            dz, sums = self.sweep_sums(to_nhwc(dy))
            owned = self.rectified and not self.needs[-1]
        if not np.isfinite(sums).all():
            return self.backward_by_the_book(dy)
        dbias, dweight = sums[0], (sums[1] - self.beyond * sums[0]) * self.inv_std
        dx = None
        if self.needs[0]:
            dx = to_nchw(self.sweep_dx(dz, dbias, dweight, owned))
        dtype = self.weight.dtype
        gradients = (dx, dweight.astype(dtype), dbias.astype(dtype))
        return (*gradients, to_nchw(dz)) if len(self.needs) == 4 else gradients

    def backward_by_the_book(self, dy: Array) -> tuple[Array, ...]:
        """What the book's backward pass makes of dy, masked already or not, and of what its forward pass would keep."""
        x, y = self.x.array, self.y
        self.axes, self.channels, self.dtype = (0, 2, 3), (1, -1, 1, 1), x.dtype
        self.x_hat = to_nchw(((x - self.mean) * self.inv_std).astype(x.dtype))
        if self.rectified:
            a = np.empty_like(x) if y is None else y.array
            if y is None:
                self.affine.apply(rows_of(x), rows_of(a))
            self.positive = to_nchw(a > 0)
        return super().backward(dy)

    def sweep_sums(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return dz (a new array, or dy itself where no ReLU follows) and its sums (2, C)."""
        dz = np.empty_like(dy) if self.rectified else dy
        x, dy_rows, dz_rows = rows_of(self.x.array), rows_of(dy), rows_of(dz)
        kept = None if self.y is None else rows_of(self.y.array)
        C = x.shape[1]
        parts = spans(len(x), parts_for(x.size), UNIT)
        sums = np.zeros((len(parts), 2, C))

        def work(part: tuple[int, Span]) -> None:
            i, span = part
            for start, stop in blocks(*span, C):
                rows, a = slice(start, stop), None
                if kept is not None:
                    a = kept[rows]
                elif self.rectified:
                    a = scratch("a", x[rows].shape, x.dtype)
                    self.affine.apply(x[rows], a)
                masked_sums(dy_rows[rows], a, dz_rows[rows], x[rows], sums[i], self.affine.centre)

        thread_pool().run(work, list(enumerate(parts)))
        return dz, sums.sum(axis=0)

    def sweep_dx(self, dz: np.ndarray, dbias: np.ndarray, dweight: np.ndarray, owned: bool) -> np.ndarray:
        """dx = scale dz + (slope (x - centre) + offset), over dz itself if it is `owned`."""
        scale = self.weight * self.inv_std
        share = scale / self.m if self.training else np.zeros_like(scale)
        slope = -share * dweight * self.inv_std
        back = Affine(
            slope.astype(dz.dtype), (-share * dbias - slope * self.beyond).astype(dz.dtype), self.affine.centre
        )
        dx = dz if owned else np.empty_like(dz)
        x, dz_rows, dx_rows = rows_of(self.x.array), rows_of(dz), rows_of(dx)
        C = x.shape[1]
        scaled = PerChannel(scale[None].astype(dz.dtype))

        def work(span: Span) -> None:
            for start, stop in blocks(*span, C):
                repeat = repeat_for(stop - start, C)
                shape = ((stop - start) // repeat, C * repeat)
                d = dx_rows[start:stop].reshape(shape)
                np.multiply(dz_rows[start:stop].reshape(shape), scaled.rows(repeat), out=d)
                if self.training:
                    rest = scratch("rest", (stop - start, C), x.dtype)
                    back.apply(x[start:stop], rest)
                    np.add(d, rest.reshape(shape), out=d)

        thread_pool().run(work, spans(len(x), parts_for(x.size), UNIT))
        return dx


def measure(x: np.ndarray) -> Moments:
    """Sweep over x (N, H, W, C) for its statistics."""
    rows, moments = rows_of(x), Moments(x.shape[-1])

    def work(part: tuple[int, Span]) -> None:
        i, (start, stop) = part
        moments.measure(rows[start:stop], i)

    thread_pool().run(work, list(enumerate(spans(len(rows), parts_for(rows.size), UNIT))))
    return moments


class FastBatchNorm(_FastNorm):
    """BatchNorm, fast."""


class FastBatchNormReLU(_FastNorm, BatchNormReLU):  # type: ignore[misc]
    """BatchNormReLU, fast."""

    rectified = True
