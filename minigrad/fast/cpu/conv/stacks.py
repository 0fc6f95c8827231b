"""3x3 convolution of many narrow groups, stride 1, padding 1: im2col with a third of the copies.

The columns of im2col hold every number nine times. Here it is copied three times, into stacks: for each pixel the image
rows above it, at it and below it, side by side.

    x            (n, H, W, packs·c)              c channels in each pack of groups
    stacks       (packs, n, rows, W + 2, 3·c)    with a pixel of zeros left and right of the image

In memory three neighbouring stacks, 9·c numbers, are the window around the middle one: a row of the columns' matrix,
without another copy. Every third window starts where the one before ends, so windows 0, 3, 6 ... are a plain matrix, as
are 1, 4, 7 ... and 2, 5, 8 ...; each is one product for every pack. Two windows in a row of W + 2 straddle the edge of
the image; what they give is left out afterwards (y), or meets zeros (dw).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..layout import rows_of
from ..memory import scratch
from ..threads import Span, pool, steps
from .base import FastConv2d
from .columns import as_items, merged_filters
from .finish import Finish
from .geometry import MERGED, Cell, Geometry
from .source import Gradient, Source, add_weight_gradients, zero_parts

LEAST = 4  # packs at a time: with fewer, NumPy's calls cost more than the copies that are saved
PIXELS = 1024  # at a time: whole small images, or some rows of a large one
CHANNELS = 128  # at a time: with PIXELS, the stacks fill most of a core's L2


def stacked(x: np.ndarray, packs: int, band: Span) -> np.ndarray:
    """The stacks (packs, n·rows·(W + 2), 3·c) of a band of rows of images x (n, H, W, packs·c)."""
    n, H, W, channels = x.shape
    rows, c = band[1] - band[0], channels // packs
    stacks = scratch("stacks", (packs, n, rows, W + 2, 3, c), x.dtype)
    stacks[:, :, :, :: W + 1].fill(0)
    source = as_items(x.reshape(n, H, W, packs, c)).transpose(3, 0, 1, 2)
    for k in range(3):
        first = band[0] + k - 1  # the image row that the band's first row has at level k
        start, stop = max(first, 0), min(first + rows, H)
        level = stacks[:, :, :, :, k]
        level[:, :, : start - first].fill(0)
        level[:, :, stop - first :].fill(0)
        np.copyto(as_items(level)[:, :, start - first : stop - first, 1 : W + 1], source[:, :, start:stop])
    return stacks.reshape(packs, -1, 3 * c)


def thirds(stacks: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Walk over the windows p, p + 3, p + 6 ... for p = 0, 1, 2: which they are, and themselves (packs, R, 9·c)."""
    packs, count, width = stacks.shape
    flat = stacks.reshape(packs, -1)
    for p in range(3):
        R = (count - p) // 3
        start = p * width
        yield slice(p, p + 3 * R, 3), flat[:, start : start + 3 * R * width].reshape(packs, R, 3 * width)


def by_pack(x: np.ndarray, packs: int) -> np.ndarray:
    """View (R, packs·c) as (packs, R, c)."""
    return x.reshape(len(x), packs, -1).transpose(1, 0, 2)


def tiles(s: Geometry, images: Span) -> Iterator[tuple[Span, Span]]:
    """Walk over a span of images, several small ones or a band of a large one at a time: (images, rows)."""
    for n in steps(images, max(1, PIXELS // (s.H * s.W))):
        for band in steps((0, s.H), s.H if n[1] - n[0] > 1 else max(1, PIXELS // s.W)):
            yield n, band


class Stacks(FastConv2d):
    """3x3, stride 1, padding 1, for narrow groups."""

    @staticmethod
    def as_window(w: np.ndarray) -> np.ndarray:
        """(packs, KH, KW, c, o) -> (packs, 9·c, o), as a window lies: column by column, each from above to below."""
        packs, KH, KW, c, o = w.shape
        return w.transpose(0, 2, 1, 3, 4).reshape(packs, KW * KH * c, o)

    @staticmethod
    def correlate(stacks: np.ndarray, filters: np.ndarray, y: np.ndarray) -> None:
        """y (n, rows, W, packs·o) = windows · filters, for filters (packs, 9·c, o)."""
        n, rows, W, channels = y.shape
        wide = scratch("wide", (n * rows * (W + 2), channels), y.dtype)
        for which, matrix in thirds(stacks):
            np.matmul(matrix, filters, out=by_pack(wide[which], len(filters)))
        np.copyto(y, wide.reshape(n, rows, W + 2, channels)[:, :, :W])

    @staticmethod
    def suits(s: Geometry) -> bool:
        return s.plain3x3 and max(s.CI, s.CO) <= MERGED and s.W >= 16 and s.packs >= 2 * LEAST

    def convolve(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, finish: Finish) -> None:
        filters = self.as_window(merged_filters(s, w))

        def work(cell: Cell) -> None:
            i, packs, images = cell
            mine = slice(packs[0] * s.CO, packs[1] * s.CO)
            for n, band in tiles(s, images):
                for g in steps(packs, max(1, CHANNELS // s.CI)):
                    stacks = stacked(x.x[slice(*n), :, :, g[0] * s.CI : g[1] * s.CI], g[1] - g[0], band)
                    out = y[slice(*n), slice(*band), :, g[0] * s.CO : g[1] * s.CO]
                    self.correlate(stacks, filters[slice(*g)], out)
                finish.rows(i, s.rows(n, band, s.H, s.W), mine)

        pool().run(work, s.grid(LEAST))

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        """dx correlates dy with the filters turned by half a turn; the windows of dy that it takes give dw as well.

        dx = windows(dy) · turned w        dw[turned k] = xᵀ · windows(dy)[k]
        """
        turned = self.as_window(merged_filters(s, w)[:, ::-1, ::-1].transpose(0, 1, 2, 4, 3))
        cells = s.grid(LEAST)
        parts = zero_parts(cells, (s.CI, 9 * s.CO), dw)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            mine = slice(packs[0] * s.CI, packs[1] * s.CI)
            for n, band in tiles(s, images):
                rows = s.rows(n, band, s.H, s.W)
                a = x.rows(rows.start, rows.stop, mine)
                for g in steps(packs, max(1, CHANNELS // s.CO)):
                    first, last = g[0] - packs[0], g[1] - packs[0]
                    stacks = stacked(dy[slice(*n), :, :, g[0] * s.CO : g[1] * s.CO], g[1] - g[0], band)
                    if grad is not None:
                        dx = grad.dx[slice(*n), slice(*band), :, g[0] * s.CI : g[1] * s.CI]
                        self.correlate(stacks, turned[slice(*g)], dx)
                    if dw is not None:
                        self.correlate_filters(a[:, first * s.CI : last * s.CI], s.W, stacks, parts[i][first:last])
                if grad is not None:
                    grad.finish(i, rows, a, mine)

        pool().run(work, cells)
        if dw is not None:
            shape = (-1, s.CI, 3, 3, s.CO)
            add_weight_gradients(
                s, cells, parts, dw, lambda d: d.reshape(shape)[:, :, ::-1, ::-1].transpose(0, 3, 2, 1, 4)
            )

    @staticmethod
    def correlate_filters(x: np.ndarray, W: int, stacks: np.ndarray, total: np.ndarray) -> None:
        """total (packs, c, 9·o) += xᵀ · windows, for pixels x (R, packs·c) in rows of W."""
        packs = len(stacks)
        wide = scratch("wide", (len(x) // W, W + 2, x.shape[1]), x.dtype)
        wide[:, W:].fill(0)
        np.copyto(wide[:, :W], x.reshape(-1, W, x.shape[1]))
        for which, matrix in thirds(stacks):
            product = scratch("dw", total.shape, total.dtype)
            total += np.matmul(by_pack(rows_of(wide)[which], packs).transpose(0, 2, 1), matrix, out=product)
