"""3x3 convolution of stride 2, padding 1, backward: without columns of x, and without adding columns back.

Pixel (2i + p, 2j + q) of x belongs to phase (p, q), one of four images of half the size. Along one axis an even pixel
meets the window's middle tap, of output i; an odd one its last tap, of output i, and its first, of output i + 1. So the
2x2 pixels of dy from (i, j) on are all that the four phases' pixel (i, j) needs. With these windows as columns,

    dx of a phase = columns(dy) · filters of its taps        dw of its taps = (x of the phase)ᵀ · columns(dy)

read one matrix, which holds each number of dy four times; the columns of x would hold nine times an image of its size,
and as many sums would take their gradient back. The windows' pixels are laid out in an order in which the taps of every
phase are neighbours:

    (row, column)    (0, 1)  (0, 0)  (1, 0)  (1, 1)
    phase (0, 0)                ×
          (0, 1)        ×       ×
          (1, 0)                ×       ×
          (1, 1)        ×       ×       ×       ×
"""

from __future__ import annotations

import numpy as np

from ..memory import scratch
from ..threads import steps, thread_pool
from .columns import Columns, as_items, merged_filters
from .geometry import Cell, Geometry
from .source import Gradient, Source, add_weight_gradients, zero_parts

ORDER = ((0, 1), (0, 0), (1, 0), (1, 1))  # of a window's pixels
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
NEEDED = ((1, 2), (0, 2), (1, 3), (0, 4))  # which of ORDER each phase needs
CHANNELS = 128  # of narrow packs at a time: for one alone, NumPy's calls would take longer than what they do
TAP = {(0, 0): 1, (1, 0): 2, (1, 1): 0}  # along an axis: a pixel's parity and the output it meets -> the window's tap


def taps() -> list[tuple[int, int, int, int]]:
    """(phase, place in ORDER, KH, KW) of the nine taps."""
    return [
        (k, place, TAP[p, a], TAP[q, b])
        for k, (p, q) in enumerate(PHASES)
        for place, (a, b) in enumerate(ORDER)
        if (p, a) in TAP and (q, b) in TAP
    ]


def phase_filters(s: Geometry, w: np.ndarray) -> list[np.ndarray]:
    """For each phase, the weights of its taps as (packs, places · CO, CI)."""
    flipped = merged_filters(s, w).transpose(0, 1, 2, 4, 3)  # (packs, KH, KW, CO, CI)
    filters = [np.empty((s.packs, stop - start, s.CO, s.CI), w.dtype) for start, stop in NEEDED]
    for k, place, kh, kw in taps():
        filters[k][:, place - NEEDED[k][0]] = flipped[:, kh, kw]
    return [f.reshape(s.packs, -1, s.CI) for f in filters]


def by_pack(x: np.ndarray, packs: int) -> np.ndarray:
    """View images (n, h, w, packs · c) as (packs, n, h, w) of items."""
    return as_items(x.reshape(*x.shape[:3], packs, -1)).transpose(3, 0, 1, 2)


def windows(dy: np.ndarray, packs: int) -> np.ndarray:
    """The 2x2 windows of images dy (n, h, w, packs · c) from every pixel on, zeros beyond the edge.

    They are the rows of a matrix for each pack: (packs, n·h·w, 4 places · c).
    """
    n, h, w, channels = dy.shape
    c = channels // packs
    columns = scratch("columns", (packs, n, h, w, 4, c), dy.dtype)
    items, source = as_items(columns), by_pack(dy, packs)
    for place, (a, b) in enumerate(ORDER):
        columns[:, :, h - a :, :, place].fill(0)
        columns[:, :, :, w - b :, place].fill(0)
        np.copyto(items[:, :, : h - a, : w - b, place], source[:, :, a:, b:])
    return columns.reshape(packs, n * h * w, 4 * c)


class Phases(Columns):
    """3x3, stride 2, padding 1, images of even height and width; forward as im2col."""

    @staticmethod
    def suits(s: Geometry) -> bool:
        window = (s.KH, s.KW, s.stride, s.padding, s.dilation) == (3, 3, (2, 2), (1, 1), (1, 1))
        return window and s.H % 2 == s.W % 2 == 0

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        filters = phase_filters(s, w)
        cells = s.grid()
        parts = zero_parts(cells, (9, s.CO, s.CI), dw)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            mine = slice(packs[0] * s.CI, packs[1] * s.CI)
            for n in s.images(images):
                a = x.images(n, mine)
                for g in steps(packs, max(1, CHANNELS // s.CI)):
                    count, first, last = g[1] - g[0], g[0] - packs[0], g[1] - packs[0]
                    columns = windows(dy[slice(*n), :, :, g[0] * s.CO : g[1] * s.CO], count)
                    pixels = scratch("phase", (count, len(a), s.OH, s.OW, s.CI), w.dtype)
                    rows = pixels.reshape(count, -1, s.CI)
                    done = 0
                    for (p, q), needed, matrix in zip(PHASES, NEEDED, filters, strict=True):
                        some = columns[:, :, needed[0] * s.CO : needed[1] * s.CO]
                        if dw is not None:
                            np.copyto(as_items(pixels), by_pack(a[:, p::2, q::2, first * s.CI : last * s.CI], count))
                            to = parts[i][first:last, done : done + needed[1] - needed[0]].reshape(count, -1, s.CI)
                            to += np.matmul(some.transpose(0, 2, 1), rows, out=scratch("dw", to.shape, w.dtype))
                        if grad is not None:
                            np.matmul(some, matrix[slice(*g)], out=rows)
                            target = grad.dx[slice(*n), p::2, q::2, g[0] * s.CI : g[1] * s.CI]
                            np.copyto(by_pack(target, count), as_items(pixels))
                        done += needed[1] - needed[0]
                if grad is not None:
                    grad.finish(i, s.rows(n, (0, s.H), s.H, s.W), a.reshape(-1, a.shape[-1]), mine)

        thread_pool().run(work, cells)
        if dw is not None:
            add_weight_gradients(s, cells, parts, dw, by_tap)


def by_tap(products: np.ndarray) -> np.ndarray:
    """Put the nine taps, (packs, 9, o, c) in the order of `taps`, where they belong: (packs, KH, KW, c, o)."""
    packs, _, o, c = products.shape
    full = np.empty((packs, 3, 3, c, o), products.dtype)
    for i, (_, _, kh, kw) in enumerate(taps()):
        full[:, kh, kw] = products[:, i].transpose(0, 2, 1)
    return full
