"""Convolution as im2col and one product per pack of groups, image by image, in buffers that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....ops.conv import Pair, tap
from ..layout import rows_of
from ..memory import scratch
from ..threads import Span, thread_pool
from .base import FastConv2d
from .finish import Finish
from .geometry import ROWS, Cell, Geometry
from .source import Gradient, Source, add_weight_gradients, zero_parts


class Windows:
    """The windows of one pack's images as the rows of a matrix, in two buffers laid out once for a part of the work.

    `load` copies images into a buffer with a border of zeros, `unfold` copies its windows. What lies side by side in
    memory is copied as one item of so many bytes, a pixel's channels or a row of a window: NumPy spends its time on
    items, not on bytes, and 8 numbers as one item take two thirds of the time.
    """

    def __init__(
        self,
        images: int,
        size: Pair,
        c: int,
        kernel: Pair,
        OW: int,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        dtype: np.dtype,
    ):
        (H, W), (PH, PW) = size, padding
        self.kernel, self.OW, self.stride, self.dilation = kernel, OW, stride, dilation
        self.padded = scratch("padded", (images, H + 2 * PH, W + 2 * PW, c), dtype)
        for border in (
            self.padded[:, :PH],
            self.padded[:, PH + H :],
            self.padded[:, :, :PW],
            self.padded[:, :, PW + W :],
        ):
            border.fill(0)
        self.inside = as_items(self.padded[:, PH : PH + H, PW : PW + W])

    def load(self, x: np.ndarray) -> None:
        """Take images (n, H, W, c); the border stays as it is."""
        self.n = len(x)
        np.copyto(self.inside[: self.n], as_items(x))

    def unfold(self, rows: Span) -> np.ndarray:
        """The windows of output rows h0 ... h1 as a matrix (n·(h1 - h0)·OW, KH·KW·c), valid until the next call."""
        (KH, KW), c = self.kernel, self.padded.shape[3]
        sn, sh, sw, _ = self.padded.strides
        # The taps of a window's row are neighbours unless they are dilated.
        taps, run = (1, KW * c) if self.dilation[1] == 1 else (KW, c)
        columns = scratch("columns", (self.n, rows[1] - rows[0], self.OW, KH, taps, run), self.padded.dtype)
        to = as_items(columns)
        strides = (sn, self.stride[0] * sh, self.stride[1] * sw, self.dilation[0] * sh, self.dilation[1] * sw)
        np.copyto(to, np.ndarray(to.shape, to.dtype, self.padded, rows[0] * self.stride[0] * sh, strides))
        return columns.reshape(-1, KH * KW * c)


def as_items(x: np.ndarray) -> np.ndarray:
    """View the neighbours along the last axis (..., c) as one item (...)."""
    return x.view(np.dtype((np.void, x.shape[-1] * x.itemsize)))[..., 0]


def input_windows(s: Geometry, images: Span, dtype: np.dtype) -> Windows:
    """The windows of a convolution's input, for a part of its images."""
    return Windows(s.most(images), (s.H, s.W), s.CI, (s.KH, s.KW), s.OW, s.stride, s.padding, s.dilation, dtype)


def bands(images: Span, H: int, W: int) -> Iterator[Span]:
    """The output rows to unfold at once: all rows of several small images, or a band of a single large one."""
    height = max(1, ROWS // W) if images[1] - images[0] == 1 else H
    for h in range(0, H, height):
        yield h, min(H, h + height)


def merged_filters(s: Geometry, w: np.ndarray) -> np.ndarray:
    """The weights (O, C/groups, KH, KW) as (packs, KH, KW, CI, CO): block-diagonal where groups are merged."""
    c, o = s.CI // s.merge, s.CO // s.merge
    matrices = np.zeros((s.packs, s.KH, s.KW, s.merge, c, s.merge, o), w.dtype)
    filters = w.reshape(s.packs, s.merge, o, c, s.KH, s.KW)
    for j in range(s.merge):
        matrices[:, :, :, j, :, j] = filters[:, j].transpose(0, 3, 4, 2, 1)
    return matrices.reshape(s.packs, s.KH, s.KW, s.CI, s.CO)


class Columns(FastConv2d):
    """im2col and one product per pack.

    The backward pass of a stride-1 convolution needs the columns of dy only. With dy padded by D (K - 1) - P zeros and
    the taps in reverse order,

        dx = columns(dy) · flipped w        dw[k] = xᵀ · columns(dy)[flipped k]

    so both products read one matrix, and x is not unfolded again. Otherwise dw is made from the columns of x, and the
    columns' gradient is added back into the image. So is dw alone where x has fewer channels than dy, as in a network's
    first convolution, whose images want no gradient.
    """

    @staticmethod
    def suits(s: Geometry) -> bool:
        return True

    def convolve(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, finish: Finish) -> None:
        matrices = merged_filters(s, w).reshape(s.packs, -1, s.CO)
        out = rows_of(y)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            windows = input_windows(s, images, w.dtype)
            for n in s.images(images):
                for g in range(*packs):
                    windows.load(x.x[slice(*n), :, :, g * s.CI : (g + 1) * s.CI])
                    for h in bands(n, s.OH, s.OW):
                        columns = windows.unfold(h)
                        np.matmul(columns, matrices[g], out=out[s.rows(n, h, s.OH, s.OW), g * s.CO : (g + 1) * s.CO])
                finish.rows(i, s.rows(n, (0, s.OH), s.OH, s.OW), slice(packs[0] * s.CO, packs[1] * s.CO))

        thread_pool().run(work, s.grid())

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        reach = (s.dilation[0] * (s.KH - 1) - s.padding[0], s.dilation[1] * (s.KW - 1) - s.padding[1])
        smaller = grad is not None or s.CO <= s.CI  # the columns of dy, or dx needs them
        # Taps further apart than the image is long may all lie beside it: such a window's dy is in no column, but dw
        # has its product with zeros, which is NaN where dy is not finite.
        within = s.dilation[0] <= s.H and s.dilation[1] <= s.W
        if s.stride == (1, 1) and min(reach) >= 0 and smaller and within:
            self.backward_from_dy(s, x, w, dy, grad, dw, reach)
        else:
            self.backward_from_x(s, x, w, dy, grad, dw)

    def backward_from_dy(
        self,
        s: Geometry,
        x: Source,
        w: np.ndarray,
        dy: np.ndarray,
        grad: Gradient | None,
        dw: np.ndarray | None,
        padding: Pair,
    ) -> None:
        flipped = merged_filters(s, w)[:, ::-1, ::-1].transpose(0, 1, 2, 4, 3).reshape(s.packs, -1, s.CI)
        cells = s.grid()
        parts = zero_parts(cells, (s.CI, s.KH * s.KW * s.CO), dw)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            mine = slice(packs[0] * s.CI, packs[1] * s.CI)
            kernel, size = (s.KH, s.KW), (s.OH, s.OW)
            windows = Windows(s.most(images), size, s.CO, kernel, s.W, (1, 1), padding, s.dilation, w.dtype)
            for n in s.images(images):
                a = x.images(n, mine)
                a = a.reshape(-1, a.shape[-1])
                for g in range(*packs):
                    windows.load(dy[slice(*n), :, :, g * s.CO : (g + 1) * s.CO])
                    j = g - packs[0]
                    for band in bands(n, s.H, s.W):
                        columns = windows.unfold(band)
                        if grad is not None:
                            rows = s.rows(n, band, s.H, s.W)
                            np.matmul(columns, flipped[g], out=rows_of(grad.dx)[rows, g * s.CI : (g + 1) * s.CI])
                        if dw is not None:
                            local = s.rows((0, n[1] - n[0]), band, s.H, s.W)
                            mine_t = a[local, j * s.CI : (j + 1) * s.CI].T
                            parts[i][j] += np.matmul(mine_t, columns, out=scratch("dw", parts[i][j].shape, w.dtype))
                if grad is not None:
                    grad.finish(i, s.rows(n, (0, s.H), s.H, s.W), a, mine)

        thread_pool().run(work, cells)
        if dw is not None:
            shape = (-1, s.CI, s.KH, s.KW, s.CO)
            add_weight_gradients(
                s, cells, parts, dw, lambda d: d.reshape(shape)[:, :, ::-1, ::-1].transpose(0, 2, 3, 1, 4)
            )

    def backward_from_x(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        matrices = merged_filters(s, w).reshape(s.packs, -1, s.CO)
        cells = s.grid()
        parts = zero_parts(cells, (s.KH * s.KW * s.CI, s.CO), dw)
        dy_rows = rows_of(dy)

        def work(cell: Cell) -> None:
            i, packs, images = cell
            mine = slice(packs[0] * s.CI, packs[1] * s.CI)
            windows = input_windows(s, images, w.dtype)
            for n in s.images(images):
                a = x.images(n, mine)
                for g in range(*packs):
                    j = g - packs[0]
                    windows.load(a[..., j * s.CI : (j + 1) * s.CI])
                    dpadded = scratch("dpadded", (len(a), *windows.padded.shape[1:]), dy.dtype)
                    dpadded.fill(0)
                    for band in bands(n, s.OH, s.OW):
                        d = dy_rows[s.rows(n, band, s.OH, s.OW), g * s.CO : (g + 1) * s.CO]
                        if dw is not None:
                            columns = windows.unfold(band)
                            parts[i][j] += np.matmul(columns.T, d, out=scratch("dw", parts[i][j].shape, w.dtype))
                        if grad is not None:
                            self.col2im(s, d, matrices[g], band, dpadded)
                    if grad is not None:
                        (PH, PW), to = s.padding, slice(g * s.CI, (g + 1) * s.CI)
                        np.copyto(grad.dx[slice(*n), :, :, to], dpadded[:, PH : PH + s.H, PW : PW + s.W])
                if grad is not None:
                    grad.finish(i, s.rows(n, (0, s.H), s.H, s.W), a.reshape(-1, a.shape[-1]), mine)

        thread_pool().run(work, cells)
        if dw is not None:
            add_weight_gradients(s, cells, parts, dw, lambda d: d.reshape(-1, s.KH, s.KW, s.CI, s.CO))

    @staticmethod
    def col2im(s: Geometry, d: np.ndarray, matrix: np.ndarray, band: Span, dpadded: np.ndarray) -> None:
        """Add the gradient of a band's columns, d (R, o) @ matrixᵀ (o, KH·KW·c), into the padded images."""
        n = dpadded.shape[0]
        shape = (n, band[1] - band[0], s.OW, s.KH, s.KW, s.CI)
        dcolumns = scratch("dcolumns", shape, d.dtype)
        np.matmul(d, matrix.T, out=dcolumns.reshape(len(d), -1))
        lower = dpadded[:, band[0] * s.stride[0] :]
        for kh in range(s.KH):
            for kw in range(s.KW):
                rows, cols = tap(kh, kw, shape[1:3], s.stride, s.dilation)
                lower[:, rows, cols] += dcolumns[:, :, :, kh, kw]
