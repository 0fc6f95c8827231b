"""Convolution on a CPU: four ways to make matrix products of it, all on channels-last memory.

    Pointwise   1x1: the image already is the matrix; rows (N·OH·OW, C) @ (C, O)
    Winograd    3x3, stride 1, wide groups: winograd.py; 2.25 times fewer multiplications
    Narrow      3x3, stride 1, narrow groups: narrow.py; im2col with a third of the copies
    Columns     everything else: im2col into a buffer that stays in the cache, then one product per group

Narrow groups are merged first: a product 4 columns wide runs at a few per cent of a core's speed, so neighbouring
groups become one product with a block-diagonal matrix. Its zeros are multiplied too, and it is still far faster.

The work is cut over threads by groups where their number allows (then every thread owns its part of dw), and by images
otherwise (then the parts' dw are added in order). A thread walks over its images a few at a time, so that a product has
several hundred rows and everything it touches fits in the cache.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ....backend import Array
from ....ops.conv import Conv2d, Pair
from ... import handover
from ..layout import Moments, pixels, to_nchw, to_nhwc
from ..norm import Recipe
from ..threads import Span, parts_for, pool, scratch, spans, steps
from .columns import Columns
from .geometry import Geometry, Gradient, Source, geometry
from .stacks import Narrow
from .winograd import Winograd

ROWS = 512  # rows of a product that needs no columns: input, output and its statistics then share the cache
NUMBERS = 1 << 17  # of input and output together; few channels take more rows, for each product costs Python time too


class Method(Protocol):
    """One way to compute a convolution; `x`, `y` and `dy` are channels-last."""

    def forward(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, moments: Moments | None) -> None: ...

    def backward(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None: ...


class FastConv2d(Conv2d):
    """Conv2d, fast."""

    @classmethod
    def accepts(cls, *arrays: Array | None, **options: Any) -> bool:
        x, w = arrays[:2]
        return x.dtype == w.dtype and x.dtype in (np.float32, np.float64)  # type: ignore[union-attr]

    def forward(
        self, x: Array, w: Array, bias: Array | None = None, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        self.geometry = s = geometry(x.shape, w.shape, stride, padding, dilation, groups)
        self.w = w
        recipe = None if s.pointwise and s.stride != (1, 1) else handover.find(x, Recipe)
        y = np.empty((s.N, s.OH, s.OW, s.O), x.dtype)
        # A batch norm that trains will want the statistics; without a tape there is nobody to want them.
        moments = Moments(s.O) if bias is None and any(self.needs) else None
        method(s).forward(s, Source(x, None), w, y, moments)
        if any(self.needs):
            self.x = Source(x, recipe)
        if bias is not None:
            y += bias
        out = to_nchw(y)
        if moments is not None:
            handover.attach(out, moments)
        return out

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        s, dy = self.geometry, to_nhwc(dy)
        grad = None
        if self.needs[0]:
            recipe = self.x.recipe
            # Only the batch norm itself may be handed a masked gradient, not a leaf that shares its array.
            direct = recipe is not None and self.parents is not None and self.parents[0] is recipe.node
            grad = Gradient(self.x.x.shape, dy.dtype, recipe if direct else None, parts_for(s.operations))
        dw = np.empty(self.w.shape, self.w.dtype) if self.needs[1] else None
        if grad is not None or dw is not None:
            method(s).backward(s, self.x, self.w, dy, grad, dw)
        dbias = pixels(dy).sum(axis=0) if self.needs[2] else None
        return (None if grad is None else grad.result()), dw, dbias


def add_parts(parts: list[np.ndarray]) -> np.ndarray:
    """The sum of the parts, in order, in the first one."""
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


def every(x: np.ndarray, stride: Pair) -> np.ndarray:
    """Every SH-th row and SW-th column of images (N, H, W, C), as an array of their own."""
    if stride == (1, 1):
        return x
    view = x[:, :: stride[0], :: stride[1]]
    taken = np.empty(view.shape, x.dtype)
    pool().run(lambda n: np.copyto(taken[slice(*n)], view[slice(*n)]), spans(len(x), parts_for(taken.size)))
    return taken


def spread(dx: np.ndarray, out: np.ndarray, stride: Pair) -> None:
    """The transpose of `every`: `out` becomes dx in every SH-th row and SW-th column and 0 elsewhere."""

    def work(n: Span) -> None:
        for i in range(*n):
            out[i].fill(0)
            out[i, :: stride[0], :: stride[1]] = dx[i]

    pool().run(work, spans(len(out), parts_for(out.size)))


def transposed(w: np.ndarray) -> np.ndarray:
    """wᵀ as an array of its own, a strip of eight columns at a time.

    Where a row's length is a power of two, a column's numbers compete for the same few places in the cache; a wider
    strip would push its own lines out before they are full.
    """
    O, C = w.shape
    turned = np.empty((C, O), w.dtype)

    def work(span: Span) -> None:
        for start in range(*span, 8):
            np.copyto(turned[:, start : start + 8], w[start : start + 8].T)

    pool().run(work, spans(O, parts_for(w.size), 8))
    return turned


class Pointwise:
    """y = x w with rows of pixels; dx = dy wᵀ, dw = xᵀ dy. A stride takes every SH-th row and SW-th column."""

    @staticmethod
    def rows(s: Geometry) -> int:
        """How many rows to multiply at a time."""
        return max(ROWS, NUMBERS // (s.C + s.O))

    def forward(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, moments: Moments | None) -> None:
        matrix = transposed(w.reshape(s.O, s.C))
        taken = pixels(every(x.x, s.stride))
        out = pixels(y)

        def work(part: tuple[int, Span]) -> None:
            i, span = part
            for start, stop in steps(span, self.rows(s)):
                np.dot(taken[start:stop], matrix, out=out[start:stop])
                if moments is not None:
                    moments.measure(out[start:stop], i)

        pool().run(work, list(enumerate(spans(len(out), parts_for(s.operations), 16))))

    def backward(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        matrix, dy_rows = w.reshape(s.O, s.C), pixels(dy)
        strided = s.stride != (1, 1)
        if strided:
            x = Source(to_nchw(every(x.x, s.stride)), None)
        dx = None if grad is None else np.empty((len(dy_rows), s.C), dy.dtype) if strided else pixels(grad.dx)
        parts = spans(len(dy_rows), parts_for(s.operations), 16)
        sums: list[Any] = [None] * len(parts)

        def work(part: tuple[int, Span]) -> None:
            i, span = part
            for start, stop in steps(span, self.rows(s)):
                d = dy_rows[start:stop]
                a = x.rows(start, stop)
                if dw is not None:
                    if sums[i] is None:
                        sums[i] = np.dot(d.T, a)
                    else:
                        sums[i] += np.dot(d.T, a, out=scratch("dw", matrix.shape, d.dtype))
                if grad is not None and dx is not None:
                    np.dot(d, matrix, out=dx[start:stop])
                    grad.finish(i, slice(start, stop), a, slice(None))

        pool().run(work, list(enumerate(parts)))
        if dw is not None:
            dw.reshape(s.O, s.C)[:] = add_parts(sums)
        if strided and grad is not None and dx is not None:
            spread(dx.reshape(s.N, s.OH, s.OW, s.C), grad.dx, s.stride)


def method(s: Geometry) -> Method:
    """The fastest way to compute a convolution of this geometry."""
    return Pointwise() if s.pointwise else Winograd() if s.winograd else Narrow() if s.narrow else Columns()
