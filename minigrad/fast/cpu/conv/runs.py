"""3x3 convolution of many narrow groups, stride 1, padding 1: several neighbouring outputs from one wider window.

A group of 4 channels has products of 36 columns by 4: BLAS spends its time on reading the columns, which im2col had to
write first, nine times the image. Here a window is 3 rows high and two pixels wider than a run of 2 or 4 outputs, and
one product gives all of them:

    windows (R, 3·(run + 2)·c)  @  filters (3·(run + 2)·c, run·o)      R rows, one for each run of outputs

with the filter once for each output, a pixel further on every time, and zeros around it. Runs of 4 multiply those
zeros, twice as much as the definition asks for; that is as much as merging two groups in one product did, but the
windows hold each number 4.5 times in place of 9, and the products, twice as wide, run at 80 in place of 70 GF/s.

    padded       (packs, n, rows + 2, W + 2, c)          a pixel of zeros around the image, W made a multiple of the run
    windows      (packs, n, rows, W / run, 3, (run + 2)·c)    a row of a window lies together in `padded` as well
    outputs      (packs, n, rows, W / run, run·o)        that is (packs, n, rows, W, o): pixel by pixel again
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..memory import scratch
from ..threads import Span, steps, thread_pool
from .base import FastConv2d
from .columns import as_items, merged_filters
from .finish import Finish
from .geometry import MERGED, Cell, Geometry
from .source import Gradient, Source, add_weight_gradients, zero_parts

LEAST = 4  # packs at a time: with fewer, NumPy's calls cost more than the copies that are saved
PIXELS = 1024  # at a time, or more: whole small images, or some rows of a large one
NUMBERS = 1 << 16  # at a time, or more: with few channels more pixels, for each call of NumPy costs time too
CHANNELS = 128  # at a time


def run_of(s: Geometry) -> int:
    """How many outputs to compute from one window: the wider the groups, the more the zeros cost."""
    return 4 if max(s.CI, s.CO) <= 4 else 2


def least_merged(s: Geometry) -> Geometry:
    """The same convolution with fewer groups merged: to 4 channels at most."""
    narrow = max(s.C, s.O) // s.groups
    return replace(s, merge=max(m for m in (1, 2, 4) if s.merge % m == 0 and (m == 1 or narrow * m <= 4)))


def padded_width(W: int, run: int) -> int:
    """The width of whole runs."""
    return -(-W // run) * run


def windows(x: np.ndarray, packs: int, band: Span, run: int) -> np.ndarray:
    """The windows around the runs of a band of rows of images x (n, H, W, packs·c), as (packs, R, 3·(run + 2)·c)."""
    n, H, W, channels = x.shape
    rows, wide, c = band[1] - band[0], padded_width(W, run), channels // packs
    padded = scratch("padded", (packs, n, rows + 2, wide + 2, c), x.dtype)
    first, last = max(band[0] - 1, 0), min(band[1] + 1, H)  # of the image's rows
    start, stop = first - band[0] + 1, last - band[0] + 1  # where they go
    for border in (padded[:, :, :start], padded[:, :, stop:], padded[:, :, :, :1], padded[:, :, :, W + 1 :]):
        border.fill(0)
    np.copyto(as_items(padded)[:, :, start:stop, 1 : W + 1], by_pack(x, packs)[:, :, first:last])
    columns = scratch("columns", (packs, n, rows, wide // run, 3, (run + 2) * c), x.dtype)
    to, (of_pack, of_image, of_row, of_pixel, _) = as_items(columns), padded.strides
    strides = (of_pack, of_image, of_row, run * of_pixel, of_row)
    np.copyto(to, np.ndarray(to.shape, to.dtype, padded, 0, strides))
    return columns.reshape(packs, -1, 3 * (run + 2) * c)


def by_pack(x: np.ndarray, packs: int) -> np.ndarray:
    """View images (n, rows, W, packs·c) as items (packs, n, rows, W) of c numbers."""
    return as_items(x.reshape(*x.shape[:3], packs, -1)).transpose(3, 0, 1, 2)


def runs(name: str, packs: int, n: int, rows: int, W: int, run: int, c: int, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Memory for runs of pixels, seen as matrices (packs, R, run·c) and as images (packs, n, rows, W, c).

    A row more than is needed for each pack: where packs were a power of two apart, they would compete for the same
    few places in the cache.
    """
    wide = padded_width(W, run)
    R = n * rows * wide // run
    matrices = scratch(name, (packs, R + 1, run * c), dtype)[:, :R]
    return matrices, matrices.reshape(packs, n, rows, wide, c)


def repeated(filters: np.ndarray, run: int) -> np.ndarray:
    """Filters (packs, 3, 3, c, o), once for each output of a run, as (packs, 3·(run + 2)·c, run·o)."""
    packs, _, _, c, o = filters.shape
    out = np.zeros((packs, 3, run + 2, c, run, o), filters.dtype)
    for q in range(run):
        out[:, :, q : q + 3, :, q] = filters
    return out.reshape(packs, -1, run * o)


def correlate(columns: np.ndarray, filters: np.ndarray, run: int, y: np.ndarray) -> None:
    """y (n, rows, W, packs·o) = windows · filters (packs, 3·(run + 2)·c, run·o)."""
    (n, rows, W, _), packs = y.shape, len(filters)
    product, pixels = runs("runs", packs, n, rows, W, run, filters.shape[2] // run, y.dtype)
    np.matmul(columns, filters, out=product)
    np.copyto(by_pack(y, packs), as_items(pixels)[:, :, :, :W])


def correlate_filters(x: np.ndarray, columns: np.ndarray, run: int, total: np.ndarray) -> None:
    """total (packs, 3·(run + 2)·o, run·c) += windowsᵀ · runs of x, for pixels x (n, rows, W, packs·c)."""
    (n, rows, W, channels), packs = x.shape, len(total)
    matrices, pixels = runs("runs", packs, n, rows, W, run, channels // packs, x.dtype)
    pixels[:, :, :, W:].fill(0)
    np.copyto(as_items(pixels)[:, :, :, :W], by_pack(x, packs))
    total += np.matmul(columns.transpose(0, 2, 1), matrices, out=scratch("dw", total.shape, total.dtype))


def pieces(s: Geometry, images: Span) -> Iterator[tuple[Span, Span]]:
    """Walk over a span of images, several small ones or a band of a large one at a time: (images, rows)."""
    pixels = max(PIXELS, NUMBERS // s.C)
    for n in steps(images, max(1, pixels // (s.H * s.W))):
        for band in steps((0, s.H), s.H if n[1] - n[0] > 1 else max(1, pixels // s.W)):
            yield n, band


class Runs(FastConv2d):
    """3x3, stride 1, padding 1, for narrow groups."""

    as_defined = False  # the zeros around a filter meet pixels beside its output's window

    @staticmethod
    def suits(s: Geometry) -> bool:
        return s.plain3x3 and max(s.CI, s.CO) <= MERGED and least_merged(s).packs >= LEAST

    def convolve(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, finish: Finish) -> None:
        s = least_merged(s)
        run = run_of(s)
        filters = repeated(merged_filters(s, w), run)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            for n, band in pieces(s, images):
                for g in steps(packs, max(1, CHANNELS // s.CI)):
                    columns = windows(x.x[slice(*n), :, :, g[0] * s.CI : g[1] * s.CI], g[1] - g[0], band, run)
                    out = y[slice(*n), slice(*band), :, g[0] * s.CO : g[1] * s.CO]
                    correlate(columns, filters[slice(*g)], run, out)
                finish.rows(i, s.rows(n, band, s.H, s.W), slice(packs[0] * s.CO, packs[1] * s.CO))

        thread_pool().run(work, s.grid(LEAST))

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        """dx correlates dy with the filters turned by half a turn; the windows of dy that it takes give dw as well.

        dx = windows(dy) · turned w        dw[turned k] = xᵀ · windows(dy)[k], summed over the pixels of a run
        """
        s = least_merged(s)
        run = run_of(s)
        turned = repeated(merged_filters(s, w)[:, ::-1, ::-1].transpose(0, 1, 2, 4, 3), run)
        cells = s.grid(LEAST)
        parts = zero_parts(cells, (3 * (run + 2) * s.CO, run * s.CI), dw)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            mine = slice(packs[0] * s.CI, packs[1] * s.CI)
            for n, band in pieces(s, images):
                rows = s.rows(n, band, s.H, s.W)
                a = x.rows(rows.start, rows.stop, mine)
                pixels = a.reshape(n[1] - n[0], band[1] - band[0], s.W, -1)
                for g in steps(packs, max(1, CHANNELS // s.CO)):
                    first, last = g[0] - packs[0], g[1] - packs[0]
                    columns = windows(dy[slice(*n), :, :, g[0] * s.CO : g[1] * s.CO], g[1] - g[0], band, run)
                    if grad is not None:
                        dx = grad.dx[slice(*n), slice(*band), :, g[0] * s.CI : g[1] * s.CI]
                        correlate(columns, turned[slice(*g)], run, dx)
                    if dw is not None:
                        some = pixels[..., first * s.CI : last * s.CI]
                        correlate_filters(some, columns, run, parts[i][first:last])
                if grad is not None:
                    grad.finish(i, rows, a, mine)

        thread_pool().run(work, cells)
        if dw is not None:

            def filter_gradients(products: np.ndarray) -> np.ndarray:
                """(packs, 3·(run + 2)·o, run·c) -> (packs, KH, KW, c, o): what `repeated` spread out is added up."""
                spread = products.reshape(-1, 3, run + 2, s.CO, run, s.CI)
                summed = sum(spread[:, :, q : q + 3, :, q] for q in range(run))
                return summed[:, ::-1, ::-1].transpose(0, 1, 2, 4, 3)  # type: ignore[index]

            add_weight_gradients(s, cells, parts, dw, filter_gradients)
