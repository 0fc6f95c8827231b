"""Convolution on a GPU, by one of two methods, asked in this order:

TensorCores   3x3 with padding 1 in bfloat16: kernels/conv3x3.cu, without columns
Products      everything else, and 1x1 as it is: kernels/im2col.cu, a chunk of images at a time, and cuBLAS
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...backend import Array, array_module, total
from ...ops import conv
from ...ops.conv import Pair
from ..handover import Informed
from . import cublas, gpu, tiles
from .arrays import VECTOR_BYTES, i32, suffix, supported, to_nchw, to_nhwc
from .norm import Sums

SIDE = 16  # filters, and channels, of the piece of weights that a block packs: SIDE in filters.cu
COLUMN_BYTES = 64 << 20  # columns built at a time: more fill the GPU, fewer stay in its cache. Not measured yet


class _Conv2d(Informed, conv.Conv2d):
    """What both methods share: channels-last arrays in and out, and the bias."""

    fresh = True

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        x, *weights = arrays
        return supported(x) and all(supported(a) and a.dtype in (x.dtype, np.float32) for a in weights if a is not None)

    def forward(
        self, x: Array, w: Array, bias: Array | None = None, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        rows = to_nhwc(x)
        self.prepare(rows, w, stride, padding, dilation, groups)
        y = self.convolve(rows)
        if bias is not None:
            y += bias.astype(y.dtype, copy=False)
        if any(self.needs):
            self.rows = rows
        return to_nchw(y)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        upstream = to_nhwc(dy)
        dx = to_nchw(self.input_gradient(upstream)) if self.needs[0] else None
        dw = self.weight_gradient(self.rows, upstream) if self.needs[1] else None
        dbias = total(upstream, (0, 1, 2)) if self.needs[2] else None
        return dx, dw, dbias

    def prepare(self, x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
        """Lay out the work for images like x (N, H, W, C); w is of x's dtype, or float32."""
        raise NotImplementedError

    def convolve(self, x: Array) -> Array:
        """y (N, OH, OW, O) for images x (N, H, W, C)."""
        raise NotImplementedError

    def input_gradient(self, dy: Array) -> Array:
        """dx (N, H, W, C)."""
        raise NotImplementedError

    def weight_gradient(self, x: Array, dy: Array) -> Array:
        """dw, in w's shape."""
        raise NotImplementedError


class TensorCores(_Conv2d):
    """A grouped 3x3 convolution with padding 1 in bfloat16, without columns; see conv3x3.cu and tiles.py."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        """Whether the kernel computes it, and the GPU has the shared memory for it."""
        x, w = arrays[:2]
        regular = w.shape[2:] == (3, 3) and options["padding"] == options["dilation"] == (1, 1)
        if not (
            super().accepts(*arrays) and suffix(x) == "bfloat16" and regular and options["stride"] in ((1, 1), (2, 2))
        ):
            return False
        N, C, H, W = x.shape
        packing = tiles.Packing.of(C, len(w), options["groups"])
        return packing is not None and cls.planned((N, H, W, C), w, options["stride"][0], packing) is not None

    @staticmethod
    def planned(shape: tiles.Shape, w: Array, stride: int, packing: tiles.Packing) -> tiles.Plan | None:
        return tiles.plan(shape, len(w), stride, packing, gpu.properties().shared_bytes)

    def prepare(self, x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
        packing = tiles.Packing.of(x.shape[3], len(w), groups)
        plan = packing and self.planned(x.shape, w, stride[0], packing)
        assert packing is not None and plan is not None  # or `accepts` would have declined
        self.shape, self.dtype = x.shape, x.dtype
        self.w, self.step, self.packing, self.plan = w, stride[0], packing, plan

    def forward(self, x: Array, w: Array, bias: Array | None = None, **options: Any) -> Array:
        y = super().forward(x, w, bias, **options)
        if any(self.needs) and bias is None:
            self.pin(Sums(self.sums))
        return y

    def convolve(self, x: Array) -> Array:
        N, H, W, _ = self.shape
        xp, O = array_module(x), len(self.w)
        y = xp.empty((N, *tiles.output_size(H, W, self.step), O), x.dtype)
        self.sums = xp.empty((self.plan.forward.most("tiles"), 2, O), np.float32)
        packed, self.turned = self._packed()
        self._convolve(self.plan.forward, x, packed, y, self.sums)
        return y

    def input_gradient(self, dy: Array) -> Array:
        dx = array_module(dy).empty(self.shape, dy.dtype)
        self._convolve(self.plan.dgrad, dy, self.turned, dx)
        return dx

    def weight_gradient(self, x: Array, dy: Array) -> Array:
        xp, plan, p = array_module(x), self.plan.wgrad, self.packing
        blocks = p.packs * (p.CO // tiles.ROW) * (p.CI // tiles.ROW)
        # One block a processor; each takes its share of the tiles, and the shares' sums are added afterwards.
        shares = max(1, min(plan.most("tiles"), gpu.properties().processors // blocks))
        partial = xp.empty((shares, p.packs * p.CO, 9, p.CI), np.float32)
        gpu.launch(
            "conv3x3.cu", plan.wgrad_kernel(), (shares * blocks,), (256,),
            [x, dy, partial, plan.structs, i32(shares)], plan.wgrad_bytes(),
        )  # fmt: skip
        return add_shares(partial, self.w, p.CI, p.CO, p.o)

    def _packed(self) -> tuple[Array, Array | None]:
        """The weights as the kernel reads them, (packs, CO, 9, CI), and turned, where the input gradient is wanted."""
        xp, p = array_module(self.w), self.packing
        packed = xp.empty((p.packs, p.CO, 9, p.CI), self.dtype)
        turned = xp.empty((p.packs, p.CI, 9, p.CO), self.dtype) if self.needs[0] else None
        blocks = p.packs * (p.CO // SIDE) * (p.CI // SIDE)
        arguments = [xp.ascontiguousarray(self.w), packed, turned, *map(i32, (p.CO, p.CI, p.o, p.c))]
        gpu.launch("filters.cu", f"conv3x3_pack_{suffix(self.w)}", (blocks,), (256,), arguments)
        return packed, turned

    @staticmethod
    def _convolve(plan: tiles.Launch, x: Array, packed: Array, y: Array, sums: Array | None = None) -> None:
        gpu.launch(
            "conv3x3.cu",
            plan.kernel(),
            plan.grid(),
            plan.block(),
            [x, packed, y, sums, plan.parts()],
            plan.shared_bytes(),
        )


class Products(_Conv2d):
    """A convolution as matrix products, one for each group, on columns (pixels, G KH KW c); see im2col.cu.

    The columns of a 1x1 convolution with stride 1 are the image itself. Others are built for a few images at a time,
    and again for the weight gradient unless they are few. Products of the groups are slices of one product:

        forward   y_g        (M, o) = columns_g (M, K) @ w_gᵀ (K, o)          K = KH KW c
        dgrad     dcolumns_g (M, K) = dy_g (M, o) @ w_g (o, K)
        wgrad     dw_g       (o, K) = dy_gᵀ (o, M) @ columns_g (M, K)         in float32, M cut into shares
    """

    def prepare(self, x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
        N, H, W, C = self.shape = x.shape
        self.O, c, KH, KW = w.shape
        self.kernel, self.G = (KH, KW), groups
        self.OH, self.OW = conv.output_size((H, W), (KH, KW), stride, padding, dilation)
        self.plain = (KH, KW, stride, padding) == (1, 1, (1, 1), (0, 0))
        # Without groups the rows may be padded to whole vectors, with zeros that the weights have too (27 -> 32).
        vector = VECTOR_BYTES // x.itemsize
        self.K = c * KH * KW if groups > 1 or self.plain else -(-c * KH * KW // vector) * vector
        self.wide = c % vector == 0
        ld = C if self.plain else self.K * groups
        self.window = np.array(
            (N, H, W, C, groups, KH, KW, self.OH, self.OW, *stride, *padding, *dilation, ld), np.int32
        )
        self.ld, self.w = ld, w
        self.few: Array | None = None  # the columns of the whole batch, where the weight gradient need not build them
        w = array_module(w).ascontiguousarray(w)
        if (KH, KW) == (1, 1) and c == self.K and w.dtype == x.dtype:
            self.matrix = w.reshape(self.O, c)
            return
        self.matrix = array_module(w).empty((self.O, self.K), x.dtype)  # a filter's taps as in a column
        name = f"filters_{suffix(w)}_{suffix(x)}"
        sizes = map(i32, (self.O, c, KH * KW, self.K))
        gpu.launch("filters.cu", name, (-(-self.matrix.size // 256),), (256,), [w, self.matrix, *sizes])

    def convolve(self, x: Array) -> Array:
        y = array_module(x).empty((len(x), self.OH, self.OW, self.O), x.dtype)
        o, G = self.O // self.G, self.G
        w = self.operand(self.matrix, self.K, o * self.K, transposed=True)
        for some in self._chunks(len(x)):
            columns, part = self._columns(x[some]), y[some]
            M = part.size // self.O
            cublas.product(M, o, self.K, self.operand(columns, self.ld, self.K), w, self.operand(part, self.O, o), G)
        # The weight gradient's are the same: kept where they were built at once and take no more memory than y.
        if self.needs[1] and not self.plain and len(part) == len(x) and columns.nbytes <= y.nbytes:
            self.few = columns
        return y

    def input_gradient(self, dy: Array) -> Array:
        xp, o, G = array_module(dy), self.O // self.G, self.G
        other = self.take_pending() if self.plain else None
        dx = xp.empty(self.shape, dy.dtype) if other is None else to_nhwc(other)
        w = self.operand(self.matrix, self.K, o * self.K)
        for some in self._chunks(len(dy)):
            upstream, part = dy[some], dx[some]
            M = upstream.size // self.O
            columns = part if self.plain else xp.empty((M, self.ld), dy.dtype)
            result = self.operand(columns, self.ld, self.K)
            cublas.product(M, self.K, o, self.operand(upstream, self.O, o), w, result, G, other is not None)
            if not self.plain:
                self._move("col2im", columns, part, part.shape[3], part.size // part.shape[3], len(part))
        return dx

    def weight_gradient(self, x: Array, dy: Array) -> Array:
        # Where one product has fewer squares (of about 128 x 128) than the GPU processors, several share the pixels.
        squares = -(-self.O // 128) * -(-self.K // 128)
        most = max(1, gpu.properties().processors // squares) if self.G == 1 else 1
        partial: Array = None
        for some in self._chunks(len(x)):
            count = len(x[some])
            shares = max(n for n in range(1, count + 1) if count % n == 0 and n <= most)
            first = partial is None
            if first:  # later chunks add to it; the last one may be smaller, but must not have more shares
                most, shape = shares, (shares, self.O, self.K)
                if shares == 1 and self.w.shape == (self.O, self.K, 1, 1) and self.w.dtype == np.float32:
                    shape = self.w.shape  # nothing to add, and in the weights' order: it is dw already
                partial = array_module(x).empty(shape, np.float32)
            columns = self._columns(x[some]) if self.few is None else self.few
            self._weight_gradient(columns, dy[some], partial, shares, accumulate=not first)
        if partial.shape == self.w.shape:
            return partial
        return add_shares(partial, self.w, self.w.shape[1], self.O, self.O)

    def _weight_gradient(self, columns: Array, dy: Array, partial: Array, shares: int, accumulate: bool) -> None:
        """Set `partial` (shares, O, K) to dyᵀ columns, or add it: the product's batch is the groups, or the shares."""
        o, rows = self.O // self.G, dy.size // self.O // shares
        strides = (o, self.K, o * self.K) if self.G > 1 else (rows * self.O, rows * self.ld, self.O * self.K)
        a = self.operand(dy, self.O, strides[0], transposed=True)
        b = self.operand(columns, self.ld, strides[1])
        c = self.operand(partial, self.K, strides[2])
        cublas.product(o, self.K, rows, a, b, c, shares * self.G, accumulate)

    def _chunks(self, N: int) -> Iterator[slice]:
        """Slices of the batch whose columns are built together."""
        size = N
        if not self.plain:
            size = max(1, COLUMN_BYTES // (self.OH * self.OW * self.ld * self.matrix.itemsize))
        return (slice(begin, min(begin + size, N)) for begin in range(0, N, size))

    def _columns(self, x: Array) -> Array:
        """The windows of x (N, H, W, C) as rows (N OH OW, ld)."""
        if self.plain:
            return x
        columns = array_module(x).empty((len(x) * self.OH * self.OW, self.ld), x.dtype)
        self._move("im2col", x, columns, self.ld, len(columns), len(x))
        return columns

    def _move(self, name: str, source: Array, target: Array, length: int, rows: int, N: int) -> None:
        """Launch im2col or col2im over `rows` rows of `length` values."""
        window = self.window.copy()
        window[0] = N
        pieces = length // (VECTOR_BYTES // target.itemsize if self.wide else 1)
        bx = min(64, 1 << (pieces - 1).bit_length())
        by = 256 // bx
        down = min(-(-rows // by), 32 * gpu.properties().processors)
        arguments = [source, target, window.view(gpu.WINDOW), i32(self.wide)]
        gpu.launch("im2col.cu", f"{name}_{suffix(target)}", (-(-pieces // bx), down), (bx, by), arguments)

    @staticmethod
    def operand(array: Array, ld: int, stride: int, transposed: bool = False) -> cublas.Matrix:
        return cublas.Matrix(gpu.address(array), array.dtype.name, ld, stride, transposed)


def add_shares(partial: Array, w: Array, tap_length: int, CO: int, o: int) -> Array:
    """dw, of w's shape and dtype, from its sums over shares of the pixels, (shares, filters, row); see filters.cu."""
    filters, c, KH, KW = w.shape
    dw = array_module(w).empty(w.shape, w.dtype)
    shares = len(partial)
    sizes = (filters, c, KH * KW, tap_length, partial.size // (shares * filters), CO, o, shares)
    name = f"add_shares_{suffix(dw)}"
    gpu.launch("filters.cu", name, (-(-dw.size // 256),), (256,), [partial, dw, *map(i32, sizes)])
    return dw
