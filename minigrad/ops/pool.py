"""Pooling: the largest or the mean value of every window, and of the whole image.

Axes as in conv.py. The windows are visited tap by tap with the same slices that im2col uses, so nothing is copied KH KW
times: tap (kh, kw) of all windows at once is one strided view of the image.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ..backend import Array, array_module, widened
from ..tensor import Function, Tensor
from .arguments import Pair, as_pair, check_images, check_window
from .basic import mean
from .conv import output_size, pad_image, tap


def first_taps(xp: ModuleType, kernel: Pair, positions: Pair, stride: Pair, padding: Pair) -> Array:
    """The number kh KW + kw of the first tap that lies on the image, not on its border, for every window (OH, OW)."""
    kh, kw = (xp.maximum(p - s * xp.arange(n), 0) for n, s, p in zip(positions, stride, padding, strict=True))
    return (kh[:, None] * kernel[1] + kw).astype(np.int32)


class MaxPool2d(Function):
    """y = the largest value of each window;  dx = dy at the place it came from (the first, where several are equal)."""

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        xp = array_module(x)
        self.shape, self.kernel, self.stride, self.padding = x.shape, kernel, stride, padding
        positions = output_size(x.shape[2:], kernel, stride, padding, (1, 1))
        padded = pad_image(x, padding, -np.inf)
        y = xp.full((*x.shape[:2], *positions), -np.inf, x.dtype)
        # The tap kh KW + kw that each y came from; where all pixels are -∞, the first of them, and never the border.
        self.winner = xp.zeros(y.shape, np.int32) + first_taps(xp, kernel, positions, stride, padding)
        for k in range(kernel[0] * kernel[1]):
            rows, cols = tap(*divmod(k, kernel[1]), positions, stride, (1, 1))
            value = padded[:, :, rows, cols]
            # `maximum` lets NaN through, which compares false with everything; counted as larger, it has the gradient.
            larger = (value > y) | (value != value)
            self.winner = xp.where(larger, np.int32(k), self.winner)
            y = xp.maximum(y, value)
        return y

    def backward(self, dy: Array) -> Array:
        (N, C, H, W), (PH, PW) = self.shape, self.padding
        dx = array_module(dy).zeros((N, C, H + 2 * PH, W + 2 * PW), dy.dtype)
        for k in range(self.kernel[0] * self.kernel[1]):
            rows, cols = tap(*divmod(k, self.kernel[1]), dy.shape[2:], self.stride, (1, 1))
            dx[:, :, rows, cols] += dy * (self.winner == k)
        return dx[:, :, PH : PH + H, PW : PW + W]


class AvgPool2d(Function):
    """y = the mean of each window, padding zeros included;  dx = dy / (KH KW) at each of its places.

    Both are added up in float64, as `total` does: in bfloat16 the sum of a 17x17 window of ones would stop at 256.
    """

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        self.shape, self.kernel, self.stride, self.padding = x.shape, kernel, stride, padding
        positions = output_size(x.shape[2:], kernel, stride, padding, (1, 1))
        padded = pad_image(widened(x), padding)
        y = array_module(x).zeros((*x.shape[:2], *positions), np.float64)
        for k in range(kernel[0] * kernel[1]):
            rows, cols = tap(*divmod(k, kernel[1]), positions, stride, (1, 1))
            y += padded[:, :, rows, cols]
        return (y / (kernel[0] * kernel[1])).astype(x.dtype)

    def backward(self, dy: Array) -> Array:
        (N, C, H, W), (PH, PW) = self.shape, self.padding
        dx = array_module(dy).zeros((N, C, H + 2 * PH, W + 2 * PW), np.float64)
        share = widened(dy) / (self.kernel[0] * self.kernel[1])
        for k in range(self.kernel[0] * self.kernel[1]):
            rows, cols = tap(*divmod(k, self.kernel[1]), dy.shape[2:], self.stride, (1, 1))
            dx[:, :, rows, cols] += share
        return dx[:, :, PH : PH + H, PW : PW + W].astype(dy.dtype)


def _pool(
    operation: type[Function],
    name: str,
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None,
    padding: int | Pair,
) -> Tensor:
    """Check the arguments that both kinds of pooling share, and run one."""
    check_images(x, name)
    kernel = as_pair(kernel_size, "kernel_size", 1)
    steps = kernel if stride is None else as_pair(stride, "stride", 1)
    border = as_pair(padding, "padding", 0)
    if any(2 * p > k for p, k in zip(border, kernel, strict=True)):
        raise ValueError(
            f"{name}: padding {border} must be at most half of the window {kernel}, or windows see no pixel"
        )
    check_window(x, kernel, steps, border, (1, 1), name)
    return operation.apply(x, kernel=kernel, stride=steps, padding=border)


def max_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The largest value of each window of x (N, C, H, W); the stride is the window's size unless given.

    Padding does not take part: it counts as -∞. Raises ValueError where the window does not fit.
    """
    return _pool(MaxPool2d, "max_pool2d", x, kernel_size, stride, padding)


def avg_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The mean of each window of x (N, C, H, W); the stride is the window's size unless given.

    Padding counts as zeros (PyTorch's count_include_pad=True). Raises ValueError where the window does not fit.
    """
    return _pool(AvgPool2d, "avg_pool2d", x, kernel_size, stride, padding)


def global_avg_pool2d(x: Tensor, dtype: str | np.dtype | None = None) -> Tensor:
    """The mean over each channel's image: (N, C, H, W) -> (N, C) (Lin et al., Network in Network, 2013).

    `dtype` is that of `mean`.
    """
    check_images(x, "global_avg_pool2d")
    return mean(x, axis=(2, 3), dtype=dtype)
