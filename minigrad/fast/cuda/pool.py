"""Sums over whole images and max pooling on a GPU, on channels-last memory; see kernels/pool.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array, array_module
from ...ops import basic, conv, pool
from ...ops.conv import Pair
from ..handover import Informed
from . import gpu
from .arrays import VECTOR_BYTES, aligned, i32, suffix, supported, to_nchw, to_nhwc


def whole_vectors(x: Array) -> bool:
    """Whether x is a batch of images whose channels fill whole vectors."""
    return x.ndim == 4 and supported(x) and x.shape[1] * x.itemsize % VECTOR_BYTES == 0


class ImageSum(Informed, basic.Sum):
    """basic.Sum over the rows and columns of images, which the mean over each image is made of."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        return whole_vectors(arrays[0]) and options["axes"] == (2, 3)

    def forward(self, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        N, C, *_ = self.shape = x.shape
        y = array_module(x).empty((N, C), x.dtype)
        self.launch("image_sums", to_nhwc(x), y)
        return y.reshape(N, C, 1, 1) if keepdims else y

    def backward(self, dy: Array) -> Array:
        N, C, H, W = self.shape
        dx = array_module(dy).empty((N, H, W, C), dy.dtype)
        self.launch("image_spread", aligned(dy.reshape(N, C)), dx)
        return to_nchw(dx)

    def launch(self, name: str, source: Array, target: Array) -> None:
        N, C, H, W = self.shape
        across = -(-C * source.itemsize // VECTOR_BYTES // 32)
        gpu.launch("pool.cu", f"{name}_{suffix(source)}", (across, N), (32, 8), [source, target, i32(H * W), i32(C)])


class MaxPool2d(Informed, pool.MaxPool2d):
    """pool.MaxPool2d: a window is read once, and a byte says which of its pixels has won."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        return whole_vectors(arrays[0]) and options["kernel"][0] * options["kernel"][1] <= 256

    def forward(self, x: Array, *, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        xp, (N, C, H, W) = array_module(x), x.shape
        OH, OW = conv.output_size((H, W), kernel, stride, padding, (1, 1))
        self.shape = x.shape
        self.window = np.array((N, H, W, C, OH, OW, *kernel, *stride, *padding), np.int32).view(gpu.POOL)
        y, self.winner = xp.empty((N, OH, OW, C), x.dtype), xp.empty((N, OH, OW, C), np.uint8)
        self.launch("max_pool", y, [to_nhwc(x), y, self.winner])
        return to_nchw(y)

    def backward(self, dy: Array) -> Array:
        N, C, H, W = self.shape
        dx = array_module(dy).empty((N, H, W, C), dy.dtype)
        self.launch("max_pool_backward", dx, [to_nhwc(dy), self.winner, dx])
        return to_nchw(dx)

    def launch(self, name: str, result: Array, arrays: list[Array]) -> None:
        blocks = min(-(-result.nbytes // VECTOR_BYTES // 256), 32 * gpu.properties().processors)
        gpu.launch("pool.cu", f"{name}_{suffix(result)}", (blocks,), (256,), [*arrays, self.window])
