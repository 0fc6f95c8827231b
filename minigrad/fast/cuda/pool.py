"""Sums over whole images and max pooling on a GPU, on channels-last memory; see kernels/pool.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array, array_module
from ...ops import basic, conv, pool
from ...ops.conv import Pair
from ..handover import Informed
from . import gpu
from .arrays import VECTOR_BYTES, f32, i32, suffix, supported, to_nchw, to_nhwc


def whole_vectors(x: Array) -> bool:
    """Whether x is a batch of images whose channels fill whole vectors."""
    return x.ndim == 4 and supported(x) and x.shape[1] * x.itemsize % VECTOR_BYTES == 0


class ImageSum(Informed, basic.Sum):
    """basic.Sum over the rows and columns of images, or their mean: of bfloat16 it may be float32."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        (x,) = arrays
        dtype = options.get("dtype") or x.dtype  # compared alone: NumPy takes None for float64
        return whole_vectors(x) and options["axes"] == (2, 3) and dtype in (x.dtype, np.float32)

    def forward(
        self, x: Array, *, axes: tuple[int, ...], keepdims: bool, scale: float = 1.0, dtype: np.dtype | None = None
    ) -> Array:
        self.shape, self.dtype, self.scale = x.shape, x.dtype, scale
        N, C, *_ = x.shape
        y = array_module(x).empty((N, C), dtype or x.dtype)
        self.launch("image_sums", to_nhwc(x), y, suffix(y))
        return y.reshape(N, C, 1, 1) if keepdims else y

    def backward(self, dy: Array) -> Array:
        xp, (N, C, H, W) = array_module(dy), self.shape
        dx = xp.empty((N, H, W, C), self.dtype)
        self.launch("image_spread", xp.ascontiguousarray(dy.reshape(N, C)), dx, suffix(dy))
        return to_nchw(dx)

    def launch(self, name: str, source: Array, target: Array, sums: str) -> None:
        N, C, H, W = self.shape
        across = -(-C * self.dtype.itemsize // VECTOR_BYTES // 32)
        arguments = [source, target, f32(self.scale), i32(H * W), i32(C)]
        gpu.launch("pool.cu", f"{name}_{self.dtype.name}_{sums}", (across, N), (32, 8), arguments)


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
