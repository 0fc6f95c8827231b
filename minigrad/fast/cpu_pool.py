"""Pooling on a CPU: the book's taps, an image at a time in the cache, on channels-last memory.

A thread takes whole images. A tap of all windows is a strided view of the padded image; it is copied once, into a
buffer without gaps, where arithmetic is several times as fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array
from ..ops.conv import Pair, output_size, tap
from ..ops.pool import AvgPool2d, MaxPool2d
from .channels import to_nchw, to_nhwc
from .pool import Span, parts_for, pool, scratch, spans


class _FastPool:
    """What both kinds share: the sizes, and the walk over images and taps."""

    shape: tuple[int, ...]
    kernel: Pair
    stride: Pair
    padding: Pair

    @classmethod
    def accepts(cls, *arrays: Array | None, **options: Any) -> bool:
        KH, KW = options["kernel"]
        return arrays[0].dtype in (np.float32, np.float64) and KH * KW <= 256  # type: ignore[union-attr]

    def start(self, x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair) -> None:
        """Note the sizes for an input (N, C, H, W)."""
        self.shape, self.kernel, self.stride, self.padding = x.shape, kernel, stride, padding
        self.out = output_size(x.shape[2:], kernel, stride, padding, (1, 1))

    def taps(self) -> list[tuple[int, slice, slice]]:
        """Every tap k of the windows with the rows and columns of a padded image that it sees."""
        KH, KW = self.kernel
        return [(k, *tap(*divmod(k, KW), self.out, self.stride, (1, 1))) for k in range(KH * KW)]

    def padded(self, dtype: np.dtype, border: float) -> tuple[np.ndarray, np.ndarray]:
        """Scratch for one padded image, all `border`, and its inside (H, W, C)."""
        (_, C, H, W), (PH, PW) = self.shape, self.padding
        image = scratch("padded", (H + 2 * PH, W + 2 * PW, C), dtype)
        image.fill(border)
        return image, image[PH : PH + H, PW : PW + W]

    def images(self, work: Any) -> None:
        """Call work(images) on every thread's share of the images."""
        N, C, _, _ = self.shape
        cost = N * C * self.out[0] * self.out[1] * self.kernel[0] * self.kernel[1]
        pool().run(work, spans(N, parts_for(cost)))


class FastMaxPool2d(_FastPool, MaxPool2d):
    """MaxPool2d, fast. `winner` is the tap that each output came from, (N, OH, OW, C)."""

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        self.start(x, kernel, stride, padding)
        x = to_nhwc(x)
        y = np.empty((len(x), *self.out, x.shape[-1]), x.dtype)
        self.winner = np.zeros(y.shape, np.uint8)

        def work(images: Span) -> None:
            padded, inside = self.padded(x.dtype, -np.inf)
            value, this = scratch("value", y.shape[1:], x.dtype), scratch("this", y.shape[1:], np.dtype(np.uint8))
            larger, nan = (scratch(name, y.shape[1:], np.dtype(bool)) for name in ("larger", "nan"))
            for n in range(*images):
                np.copyto(inside, x[n])
                y[n].fill(-np.inf)
                for k, rows, cols in self.taps():
                    np.copyto(value, padded[rows, cols])
                    np.greater(value, y[n], out=larger)
                    np.not_equal(value, value, out=nan)
                    np.logical_or(larger, nan, out=larger)
                    # Taps come in ascending order, so the last that was larger is the largest number.
                    np.multiply(larger.view(np.uint8), np.uint8(k), out=this)
                    np.maximum(self.winner[n], this, out=self.winner[n])
                    np.maximum(y[n], value, out=y[n])

        self.images(work)
        return to_nchw(y)

    def backward(self, dy: Array) -> Array:
        dy = to_nhwc(dy)
        N, C, H, W = self.shape
        dx = np.empty((N, H, W, C), dy.dtype)

        def work(images: Span) -> None:
            share, won = scratch("value", dy.shape[1:], dy.dtype), scratch("larger", dy.shape[1:], np.dtype(bool))
            for n in range(*images):
                padded, inside = self.padded(dy.dtype, 0)
                for k, rows, cols in self.taps():
                    np.equal(self.winner[n], k, out=won)
                    np.multiply(dy[n], won, out=share)
                    padded[rows, cols] += share
                np.copyto(dx[n], inside)

        self.images(work)
        return to_nchw(dx)


class FastAvgPool2d(_FastPool, AvgPool2d):
    """AvgPool2d, fast."""

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        self.start(x, kernel, stride, padding)
        x = to_nhwc(x)
        y = np.zeros((len(x), *self.out, x.shape[-1]), x.dtype)

        def work(images: Span) -> None:
            padded, inside = self.padded(x.dtype, 0)
            value = scratch("value", y.shape[1:], x.dtype)
            for n in range(*images):
                np.copyto(inside, x[n])
                for _, rows, cols in self.taps():
                    np.copyto(value, padded[rows, cols])
                    np.add(y[n], value, out=y[n])
                np.divide(y[n], kernel[0] * kernel[1], out=y[n])

        self.images(work)
        return to_nchw(y)

    def backward(self, dy: Array) -> Array:
        dy = to_nhwc(dy)
        N, C, H, W = self.shape
        dx = np.empty((N, H, W, C), dy.dtype)

        def work(images: Span) -> None:
            share = scratch("value", dy.shape[1:], dy.dtype)
            for n in range(*images):
                padded, inside = self.padded(dy.dtype, 0)
                np.divide(dy[n], self.kernel[0] * self.kernel[1], out=share)
                for _, rows, cols in self.taps():
                    padded[rows, cols] += share
                np.copyto(dx[n], inside)

        self.images(work)
        return to_nchw(dx)
