"""1x1 convolution on a CPU: the image already is the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ops.conv import Pair
from ..layout import UNIT, rows_of, to_nchw
from ..memory import scratch
from ..norm import Remake
from ..threads import Span, parts_for, spans, steps, thread_pool
from .base import FastConv2d
from .finish import Finish
from .geometry import Geometry
from .source import Gradient, Source

ROWS = 512  # rows of a product that needs no columns: input, output and its statistics then share the cache
NUMBERS = 1 << 17  # of input and output together; few channels take more rows, for each product costs Python time too
FEW = 4  # products


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
    thread_pool().run(lambda n: np.copyto(taken[slice(*n)], view[slice(*n)]), spans(len(x), parts_for(taken.size)))
    return taken


def spread(dx: np.ndarray, out: np.ndarray, stride: Pair, other: np.ndarray | None) -> None:
    """The transpose of `every`: `out` becomes dx in every SH-th row and SW-th column, and 0 elsewhere; plus `other`."""

    def work(n: Span) -> None:
        for i in range(*n):
            if other is None:
                out[i].fill(0)
                out[i, :: stride[0], :: stride[1]] = dx[i]
            else:
                np.copyto(out[i], other[i])
                out[i, :: stride[0], :: stride[1]] += dx[i]

    thread_pool().run(work, spans(len(out), parts_for(out.size)))


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

    thread_pool().run(work, spans(O, parts_for(w.size), 8))
    return turned


def at_once(s: Geometry) -> int:
    """How many rows to multiply at a time."""
    return max(ROWS, NUMBERS // (s.C + s.O))


class Pointwise(FastConv2d):
    """y = x w with rows of pixels; dx = dy wᵀ, dw = xᵀ dy. A stride takes every SH-th row and SW-th column."""

    @staticmethod
    def suits(s: Geometry) -> bool:
        return (s.KH, s.KW, s.padding, s.groups) == (1, 1, (0, 0), 1)

    def remake(self) -> Remake | None:
        """As for all; but what a stride takes of x is copied, not made again."""
        return super().remake() if self.geometry.stride == (1, 1) else None

    def convolve(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, finish: Finish) -> None:
        taken = rows_of(every(x.x, s.stride))
        out = rows_of(y)
        matrix = w.reshape(s.O, s.C)
        # BLAS reads a transposed matrix as well, at some cost to every product: for a few, turning it would cost more.
        matrix = transposed(matrix) if len(out) >= FEW * at_once(s) else matrix.T

        def work(part: tuple[int, Span]) -> None:
            i, span = part
            for start, stop in steps(span, at_once(s), UNIT):
                np.matmul(taken[start:stop], matrix, out=out[start:stop])
                finish.rows(i, slice(start, stop))

        thread_pool().run(work, list(enumerate(spans(len(out), parts_for(s.operations), UNIT))))

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        matrix, dy_rows = w.reshape(s.O, s.C), rows_of(dy)
        strided = s.stride != (1, 1)
        if strided:
            x = Source(to_nchw(every(x.x, s.stride)), None)
        dx = None if grad is None else np.empty((len(dy_rows), s.C), dy.dtype) if strided else rows_of(grad.dx)
        parts = spans(len(dy_rows), parts_for(s.operations), UNIT)
        sums: list[Any] = [None] * len(parts)

        def work(part: tuple[int, Span]) -> None:
            i, span = part
            for start, stop in steps(span, at_once(s), UNIT):
                d = dy_rows[start:stop]
                a = x.rows(start, stop)
                if dw is not None:
                    if sums[i] is None:
                        sums[i] = np.matmul(d.T, a)
                    else:
                        sums[i] += np.matmul(d.T, a, out=scratch("dw", matrix.shape, d.dtype))
                if grad is not None and dx is not None:
                    np.matmul(d, matrix, out=dx[start:stop])
                    if not strided:
                        grad.finish(i, slice(start, stop), a, slice(None))

        thread_pool().run(work, list(enumerate(parts)))
        if dw is not None:
            dw.reshape(s.O, s.C)[:] = add_parts(sums)
        if strided and grad is not None and dx is not None:
            spread(dx.reshape(s.N, s.OH, s.OW, s.C), grad.dx, s.stride, grad.other)
