"""3x3 convolution of many narrow groups, stride 1, padding 1: im2col with a third of the copies.

The columns of im2col hold every number nine times. Here it is copied three times, into stacks: for each pixel the image
rows above it, at it and below it, side by side.

    x            (n, H, W, G·c)               c channels in each of G groups
    stacks       (G, n, rows, W + 2, 3·c)     with a pixel of zeros left and right of the image

In memory three neighbouring stacks, 9·c numbers, are the window around the middle one: a row of the columns' matrix,
without another copy. Every third window starts where the one before ends, so windows 0, 3, 6 ... are a plain matrix, as
are 1, 4, 7 ... and 2, 5, 8 ...; each is one product for every group. Two windows in a row of W + 2 straddle the edge of
the image; what they give is left out afterwards (y), or meets zeros (dw).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..layout import Moments, pixels
from ..threads import Span, pool, scratch, steps
from .columns import as_items, merged_filters
from .geometry import Geometry, Gradient, Source, add_weight_gradients, zero_parts

PIXELS = 1024  # at a time: whole small images, or some rows of a large one
CHANNELS = 128  # at a time: with PIXELS, the stacks fill most of a core's L2


def stacked(x: np.ndarray, groups: int, band: Span) -> np.ndarray:
    """The stacks (groups, n·rows·(W + 2), 3·c) of a band of rows of images x (n, H, W, groups·c)."""
    n, H, W, channels = x.shape
    rows, c = band[1] - band[0], channels // groups
    stacks = scratch("stacks", (groups, n, rows, W + 2, 3, c), x.dtype)
    stacks[:, :, :, :: W + 1].fill(0)
    source = as_items(x.reshape(n, H, W, groups, c)).transpose(3, 0, 1, 2)
    for k in range(3):
        first = band[0] + k - 1  # the image row that the band's first row has at level k
        start, stop = max(first, 0), min(first + rows, H)
        level = stacks[:, :, :, :, k]
        level[:, :, : start - first].fill(0)
        level[:, :, stop - first :].fill(0)
        np.copyto(as_items(level)[:, :, start - first : stop - first, 1 : W + 1], source[:, :, start:stop])
    return stacks.reshape(groups, -1, 3 * c)


def thirds(stacks: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Walk over the windows p, p + 3, p + 6 ... for p = 0, 1, 2: which they are, and themselves (groups, R, 9·c)."""
    groups, count, width = stacks.shape
    flat = stacks.reshape(groups, -1)
    for p in range(3):
        R = (count - p) // 3
        start = p * width
        yield slice(p, p + 3 * R, 3), flat[:, start : start + 3 * R * width].reshape(groups, R, 3 * width)


def by_group(x: np.ndarray, groups: int) -> np.ndarray:
    """View (R, groups·c) as (groups, R, c)."""
    return x.reshape(len(x), groups, -1).transpose(1, 0, 2)


def tiles(s: Geometry, images: Span) -> Iterator[tuple[Span, Span]]:
    """Walk over a span of images, several small ones or a band of a large one at a time: (images, rows)."""
    for n in steps(images, max(1, PIXELS // (s.H * s.W))):
        for band in steps((0, s.H), s.H if n[1] - n[0] > 1 else max(1, PIXELS // s.W)):
            yield n, band


class Narrow:
    """3x3, stride 1, padding 1, for narrow groups; a method of cpu_conv.py."""

    @staticmethod
    def filters(w: np.ndarray) -> np.ndarray:
        """(G, KH, KW, c, o) -> (G, 9·c, o), in the order of a window: column by column, each from above to below."""
        G, KH, KW, c, o = w.shape
        return w.transpose(0, 2, 1, 3, 4).reshape(G, KW * KH * c, o)

    @staticmethod
    def correlate(stacks: np.ndarray, filters: np.ndarray, y: np.ndarray) -> None:
        """y (n, rows, W, groups·o) = windows · filters, for filters (groups, 9·c, o)."""
        n, rows, W, channels = y.shape
        wide = scratch("wide", (n * rows * (W + 2), channels), y.dtype)
        for which, matrix in thirds(stacks):
            np.matmul(matrix, filters, out=by_group(wide[which], len(filters)))
        np.copyto(y, wide.reshape(n, rows, W + 2, channels)[:, :, :W])

    def forward(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, moments: Moments | None) -> None:
        filters = self.filters(merged_filters(s, w))

        def work(cell: tuple[int, Span, Span]) -> None:
            i, groups, images = cell
            mine = slice(groups[0] * s.o, groups[1] * s.o)
            for n, band in tiles(s, images):
                for g in steps(groups, max(1, CHANNELS // s.c)):
                    stacks = stacked(x.x[slice(*n), :, :, g[0] * s.c : g[1] * s.c], g[1] - g[0], band)
                    out = y[slice(*n), slice(*band), :, g[0] * s.o : g[1] * s.o]
                    self.correlate(stacks, filters[slice(*g)], out)
                if moments is not None:
                    moments.measure(pixels(y)[s.rows(n, band, s.H, s.W), mine], i, mine.start)

        pool().run(work, s.grid())

    def backward(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        """dx correlates dy with the filters turned by half a turn; the windows of dy that it takes give dw as well.

        dx = windows(dy) · turned w        dw[turned k] = xᵀ · windows(dy)[k]
        """
        turned = self.filters(merged_filters(s, w)[:, ::-1, ::-1].transpose(0, 1, 2, 4, 3))
        cells = s.grid()
        parts = zero_parts(cells, (s.c, 9 * s.o), dw)

        def work(cell: tuple[int, Span, Span]) -> None:
            i, groups, images = cell
            mine = slice(groups[0] * s.c, groups[1] * s.c)
            for n, band in tiles(s, images):
                rows = s.rows(n, band, s.H, s.W)
                a = x.rows(rows.start, rows.stop, mine)
                for g in steps(groups, max(1, CHANNELS // s.o)):
                    first, last = g[0] - groups[0], g[1] - groups[0]
                    stacks = stacked(dy[slice(*n), :, :, g[0] * s.o : g[1] * s.o], g[1] - g[0], band)
                    if grad is not None:
                        dx = grad.dx[slice(*n), slice(*band), :, g[0] * s.c : g[1] * s.c]
                        self.correlate(stacks, turned[slice(*g)], dx)
                    if dw is not None:
                        self.correlate_filters(a[:, first * s.c : last * s.c], s.W, stacks, parts[i][first:last])
                if grad is not None:
                    grad.finish(i, rows, a, mine)

        pool().run(work, cells)
        if dw is not None:
            shape = (-1, s.c, 3, 3, s.o)
            add_weight_gradients(s, parts, dw, lambda d: d.reshape(shape)[:, :, ::-1, ::-1].transpose(0, 3, 2, 1, 4))

    @staticmethod
    def correlate_filters(x: np.ndarray, W: int, stacks: np.ndarray, total: np.ndarray) -> None:
        """total (groups, c, 9·o) += xᵀ · windows, for pixels x (R, groups·c) in rows of W."""
        groups = len(stacks)
        wide = scratch("wide", (len(x) // W, W + 2, x.shape[1]), x.dtype)
        wide[:, W:].fill(0)
        np.copyto(wide[:, :W], x.reshape(-1, W, x.shape[1]))
        for which, matrix in thirds(stacks):
            product = scratch("dw", total.shape, total.dtype)
            total += np.matmul(by_group(pixels(wide)[which], groups).transpose(0, 2, 1), matrix, out=product)
