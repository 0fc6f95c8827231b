"""Pooling on a CPU: the book's taps, an image at a time in the cache, on channels-last memory.

A thread takes whole images. A tap of all windows is a strided view of the padded image; it is copied once, into a
buffer without gaps, where arithmetic is several times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.conv import Pair, output_size, tap
from ...ops.pool import AvgPool2d, MaxPool2d, first_taps
from .layout import to_nchw, to_nhwc
from .memory import scratch
from .threads import Span, parts_for, spans, thread_pool


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

    def each_image(self, work: Callable[[int], None]) -> None:
        """Call work(n) for every image, with all threads."""
        N, C, _, _ = self.shape
        cost = N * C * self.out[0] * self.out[1] * self.kernel[0] * self.kernel[1]

        def some(images: Span) -> None:
            for n in range(*images):
                work(n)

        thread_pool().run(some, spans(N, parts_for(cost)))

    def gather(self, x: np.ndarray, border: float, take: Callable[[int, int, np.ndarray], None]) -> None:
        """Call take(n, k, value) for every tap k of every image n; value (OH, OW, C) is what the windows see there."""

        def work(n: int) -> None:
            padded, inside = self.padded(x.dtype, border)
            np.copyto(inside, x[n])
            value = scratch("value", (*self.out, x.shape[-1]), x.dtype)
            for k, rows, cols in self.taps():
                np.copyto(value, padded[rows, cols])
                take(n, k, value)

        self.each_image(work)

    def scatter(self, share: Callable[[int, int], np.ndarray], dtype: np.dtype) -> Array:
        """dx (N, C, H, W): share(n, k) (OH, OW, C) added where tap k of every window lies, as `gather` transposed."""
        N, C, H, W = self.shape
        dx = np.empty((N, H, W, C), dtype)

        def work(n: int) -> None:
            padded, inside = self.padded(dtype, 0)
            for k, rows, cols in self.taps():
                padded[rows, cols] += share(n, k)
            np.copyto(dx[n], inside)

        self.each_image(work)
        return to_nchw(dx)


class FastMaxPool2d(_FastPool, MaxPool2d):
    """MaxPool2d, fast. `winner` is the tap that each output came from, (N, OH, OW, C)."""

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        self.start(x, kernel, stride, padding)
        x = to_nhwc(x)
        y = np.full((len(x), *self.out, x.shape[-1]), -np.inf, x.dtype)
        self.winner = np.zeros(y.shape, np.uint8)
        self.winner += first_taps(np, kernel, self.out, stride, padding)[:, :, None].astype(np.uint8)

        def take(n: int, k: int, value: np.ndarray) -> None:
            larger, nan = (scratch(name, value.shape, np.dtype(bool)) for name in ("larger", "nan"))
            np.greater(value, y[n], out=larger)
            np.logical_or(larger, np.not_equal(value, value, out=nan), out=larger)
            # Taps come in ascending order, so the last that was larger is the largest number.
            this = np.multiply(larger.view(np.uint8), np.uint8(k), out=scratch("this", value.shape, np.dtype(np.uint8)))
            np.maximum(self.winner[n], this, out=self.winner[n])
            np.maximum(y[n], value, out=y[n])

        self.gather(x, -np.inf, take)
        return to_nchw(y)

    def backward(self, dy: Array) -> Array:
        dy = to_nhwc(dy)

        def share(n: int, k: int) -> np.ndarray:
            won = np.equal(self.winner[n], k, out=scratch("won", dy.shape[1:], np.dtype(bool)))
            return np.multiply(dy[n], won, out=scratch("value", won.shape, dy.dtype))

        return self.scatter(share, dy.dtype)


class FastAvgPool2d(_FastPool, AvgPool2d):
    """AvgPool2d, fast."""

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        self.start(x, kernel, stride, padding)
        x = to_nhwc(x)
        y = np.zeros((len(x), *self.out, x.shape[-1]), x.dtype)

        def take(n: int, k: int, value: np.ndarray) -> None:
            np.add(y[n], value, out=y[n])

        self.gather(x, 0, take)
        y /= kernel[0] * kernel[1]
        return to_nchw(y)

    def backward(self, dy: Array) -> Array:
        shares = to_nhwc(dy) / (self.kernel[0] * self.kernel[1])
        return self.scatter(lambda n, k: shares[n], shares.dtype)
