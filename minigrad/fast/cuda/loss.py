"""The operations of a ResNeXt on a GPU: the same functions as in the book, on kernels and cuBLAS products.

Arrays keep their public shape (N, C, H, W), but every result is stored channels last, as (N, H, W, C): strides tell, no
flag is needed. `pixels` gives that memory back as a matrix with one row a pixel, without a copy if it was so already.

    convolution     1x1: one matrix product. 3x3 with padding 1 in bfloat16: the tensor-core kernel of conv3x3.cu.
                    Everything else: im2col.cu, a chunk of images at a time, and products.
    batch norm      norm.cu, with ReLU and shortcut inside
    linear layer    cuBLAS, float32 sums
    residual        add.cu, where the gradients of the two ways meet
    SGD             sgd.cu, all parameters in one launch

Each class here replaces one of the book's (see the end of the file) where its `accepts` says that it can: float32 and
bfloat16 on compute capability 8.0 and later; float64 and everything odd is left to the book. No kernel uses atomics,
and cuBLAS has a workspace for each stream: on one GPU the same input gives the same bits, so `--deterministic` costs
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import optim, tensor
from ...backend import Array, array_module, total
from ...ops import basic, conv, loss, norm
from ...ops.conv import Pair
from .. import handover
from . import cublas, tiles
from .gpu import PARAMETERS, WINDOW, address, launch, properties

VECTOR_BYTES = 16  # what a thread of norm.cu and im2col.cu moves at once
COLUMN_BYTES = 64 << 20  # columns built at a time: more fill the GPU, fewer stay in its cache. Not measured yet
i32, i64, f32 = np.int32, np.int64, np.float32


def _suffix(array: Array) -> str:
    """How the kernels of the array's dtype are called: "float32" or "bfloat16"."""
    return array.dtype.name


def _supported(*arrays: Array | None) -> bool:
    """True for arrays of one dtype that has kernels, none of them empty, on a GPU that has the instructions."""
    given = [a for a in arrays if a is not None]
    names = {a.dtype.name for a in given}
    known = len(names) == 1 and names <= {"float32", "bfloat16"}
    return known and all(a.size for a in given) and properties().compute >= 80


def aligned(x: Array) -> Array:
    """x in contiguous memory that starts at a multiple of 16 bytes; a copy only if it is not so already."""
    x = array_module(x).ascontiguousarray(x)
    return x.copy() if address(x) % VECTOR_BYTES else x


def pixels(x: Array) -> Array:
    """x (N, C, H, W) as its channels-last memory (N, H, W, C); a copy only if it is stored otherwise."""
    return aligned(x.transpose(0, 2, 3, 1))


def images(y: Array) -> Array:
    """Channels-last memory (N, H, W, C) in its public shape (N, C, H, W)."""
    return y.transpose(0, 3, 1, 2)


class Sums(NamedTuple):
    """A note of a convolution about its output: each channel's sum and sum of squares over each tile of pixels."""

    partial: Array  # (tiles, 2, C), float32


# *** batch norm ***


def _rows(x: Array) -> Array:
    """x (N, C, H, W) or (N, C) as a matrix (M, C), one row a pixel."""
    return aligned(x) if x.ndim == 2 else pixels(x).reshape(-1, x.shape[1])


def _like(rows: Array, x: Array) -> Array:
    """A matrix (M, C) in x's shape."""
    N, C, *size = x.shape
    return rows if not size else images(rows.reshape(N, *size, C))


class _Sweep:
    """How norm.cu goes over a matrix (M, C): grid and block of its passes, and the number of chunks of rows."""

    def __init__(self, rows: Array):
        self.M, self.C = rows.shape
        vectors = self.C * rows.itemsize // VECTOR_BYTES
        bx = min(32, 1 << (vectors - 1).bit_length())
        self.block = (bx, 256 // bx)
        across = -(-vectors // bx)
        # Eight blocks a processor keep the memory busy; none has fewer rows than threads.
        wanted = max(1, 8 * properties().processors // across)
        self.rows = max(-(-self.M // wanted), self.block[1])
        self.chunks = -(-self.M // self.rows)
        self.grid = (across, self.chunks)
        self.suffix = _suffix(rows)

    def run(self, name: str, *arguments: Any) -> None:
        """A pass over all rows."""
        sizes = (i64(self.M), i32(self.C), i64(self.rows))
        pointers = [a for a in arguments if not isinstance(a, np.generic)]
        flags = [a for a in arguments if isinstance(a, np.generic)]
        launch("norm.cu", f"{name}_{self.suffix}", self.grid, self.block, (*pointers, *sizes, *flags))

    def finish(self, name: str, *arguments: Any) -> None:
        """The pass that adds the chunks, 32 channels a block."""
        launch("norm.cu", name, (-(-self.C // 32),), (32, 32), arguments)


class BatchNorm(norm.BatchNorm):
    """norm.BatchNorm in two passes forward and two backward; see norm.cu."""

    relu = False

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        x, weight, bias, shortcut = (*arrays, None)[:4]
        statistics = (options["running_mean"], options["running_var"])
        return (
            x.ndim in (2, 4)
            and _supported(x, shortcut)
            and x.shape[1] * x.itemsize % VECTOR_BYTES == 0
            and all(a is None or (a.dtype == np.float32 and a.flags.c_contiguous) for a in (weight, bias, *statistics))
        )

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        shortcut: Array | None = None,
        *,
        running_mean: Array | None,
        running_var: Array | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Array:
        xp, rows = array_module(x), _rows(x)
        M, C = rows.shape
        sweep = _Sweep(rows)
        stats = xp.empty((4, C), np.float32)
        y = xp.empty_like(rows)
        if running_mean is None or running_var is None:  # the kernel updates what nobody keeps
            running_mean, running_var = xp.zeros(C, np.float32), xp.zeros(C, np.float32)
        known = handover.find(x, Sums) if training else None
        partial = xp.empty((sweep.chunks, 2, C), np.float32) if known is None else known.partial
        if training and known is None:
            sweep.run("bn_sums", rows, partial)
        sweep.finish(
            f"bn_finish_forward_{sweep.suffix}", rows if known is None else None, partial, weight, bias,
            running_mean, running_var, stats, i64(M), i32(C), i32(len(partial)), f32(momentum), f32(eps), i32(training),
        )  # fmt: skip
        added = None if shortcut is None else _rows(shortcut)
        sweep.run("bn_apply", rows, added, stats, y, i32(self.relu))
        if any(self.needs):
            # With a shortcut the mask cannot be recomputed from x; y, which the next layer keeps anyway, tells it.
            self.rows, self.stats, self.y = rows, stats, None if shortcut is None else y
            self.training = training
        return _like(y, x)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:  # type: ignore[override]
        xp, rows, upstream = array_module(dy), self.rows, _rows(dy)
        M, C = rows.shape
        sweep = _Sweep(rows)
        masked = self.y is not None
        dz = xp.empty_like(rows) if masked else None
        partial = xp.empty((sweep.chunks, 2, C), np.float32)
        dweight, dbias, coefficients = (xp.empty(shape, np.float32) for shape in (C, C, (3, C)))
        dx = xp.empty_like(rows)
        sweep.run("bn_backward_sums", upstream, rows, self.y, self.stats, dz, partial, i32(self.relu))
        sweep.finish(
            "bn_finish_backward", partial, self.stats, dweight, dbias, coefficients,
            i64(M), i32(C), i32(sweep.chunks), i32(self.training),
        )  # fmt: skip
        g = dz if masked else upstream
        sweep.run("bn_backward_apply", g, rows, self.stats, coefficients, dx, i32(self.relu), i32(masked))
        gradients = _like(dx, dy), dweight, dbias
        return gradients if len(self.needs) == 3 else (*gradients, None if dz is None else _like(dz, dy))


class BatchNormReLU(BatchNorm, norm.BatchNormReLU):  # type: ignore[misc]
    """norm.BatchNormReLU, in as many passes as the plain one."""

    relu = True


# *** convolution ***


class Conv2d(conv.Conv2d):
    """conv.Conv2d by one of three methods, which `_method` chooses; see the head of the file."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        return _supported(*arrays)

    def forward(
        self, x: Array, w: Array, bias: Array | None = None, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        rows = pixels(x)
        method = _method(rows, w, stride, padding, dilation, groups)
        y = method.forward(rows)
        if bias is not None:
            y += bias
        out = images(y)
        if any(self.needs):
            self.method, self.rows = method, rows
            if isinstance(method, TensorCores) and bias is None:
                handover.attach(out, Sums(method.sums))
        return out

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        upstream = pixels(dy)
        dx = images(self.method.input_gradient(upstream)) if self.needs[0] else None
        dw = self.method.weight_gradient(self.rows, upstream) if self.needs[1] else None
        dbias = total(upstream, (0, 1, 2)) if self.needs[2] else None
        return dx, dw, dbias


def _method(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> TensorCores | Products:
    """Choose how to compute the convolution of x (N, H, W, C) with w (O, c, KH, KW)."""
    packing = tiles.Packing.of(x.shape[3], w.shape[0], groups)
    regular = w.shape[2:] == (3, 3) and padding == (1, 1) and dilation == (1, 1) and stride in ((1, 1), (2, 2))
    if regular and packing is not None and _suffix(x) == "bfloat16":
        method = TensorCores(x.shape, w, stride[0], packing)
        if method.fits():
            return method
    return Products(x.shape, w, stride, padding, dilation, groups)


class TensorCores:
    """A grouped 3x3 convolution with padding 1 in bfloat16, without columns; see conv3x3.cu and tiles.py."""

    def __init__(self, shape: tiles.Shape, w: Array, stride: int, packing: tiles.Packing):
        self.shape, self.w, self.stride, self.packing = shape, w, stride, packing
        O = w.shape[0]
        # A stride of 2 quadruples the patch under a tile: half as many pixels then, to leave room for two patches.
        self.forward_launch = tiles.forward_launch(shape, O, stride, packing, 256 // stride)
        self.wgrad_launch = tiles.forward_launch(shape, O, stride, packing, tiles.WGRAD_PIXELS)
        self.dgrad_launches = tiles.input_gradient_launches(shape, O, stride, packing, 256)

    def fits(self) -> bool:
        """Whether the GPU has the shared memory for it."""
        needed = [launch.shared_bytes() for launch in (self.forward_launch, *self.dgrad_launches)]
        return max(*needed, self.wgrad_launch.wgrad_bytes()) <= properties().shared_bytes

    def forward(self, x: Array) -> Array:
        N, H, W, _ = self.shape
        xp, O = array_module(x), self.w.shape[0]
        y = xp.empty((N, *tiles.output_size(H, W, self.stride), O), x.dtype)
        self.sums = xp.empty((self.forward_launch.tiles, 2, O), np.float32)
        self._convolve(self.forward_launch, x, self._packed(False), y, self.sums)
        return y

    def input_gradient(self, dy: Array) -> Array:
        dx = array_module(dy).empty(self.shape, dy.dtype)
        packed = self._packed(True)
        for part in self.dgrad_launches:
            self._convolve(part, dy, packed, dx)
        return dx

    def weight_gradient(self, x: Array, dy: Array) -> Array:
        xp, plan, p = array_module(x), self.wgrad_launch, self.packing
        blocks = p.packs * (p.CO // tiles.ROW) * (p.CI // tiles.ROW)
        # One block a processor; each takes its share of the tiles, and the shares' sums are added afterwards.
        shares = max(1, min(plan.tiles, properties().processors // blocks))
        partial = xp.empty((shares, p.packs * p.CO, 9, p.CI), np.float32)
        launch(
            "conv3x3.cu", "conv3x3_wgrad", (shares * blocks,), (256,),
            [x, dy, partial, plan.struct, i32(plan.tiles), i32(shares)], plan.wgrad_bytes(),
        )  # fmt: skip
        return _add_shares(partial, self.w, p.CI, p.CO, p.o)

    def _packed(self, transposed: bool) -> Array:
        """The weights as the kernel reads them, (packs, CO, 9, CI); turned for the input gradient."""
        xp, p = array_module(self.w), self.packing
        q = p.turned() if transposed else p
        # Narrow groups leave zeros between them.
        packed = (xp.empty if p.c == p.CI else xp.zeros)((q.packs, q.CO, 9, q.CI), self.w.dtype)
        blocks = p.packs * (p.CO // p.o) * -(-p.o // 32) * -(-p.c // 32)
        arguments = [xp.ascontiguousarray(self.w), packed, *map(i32, (p.CO, p.CI, p.o, p.c, transposed))]
        launch("conv3x3.cu", "conv3x3_pack", (blocks,), (256,), arguments)
        return packed

    @staticmethod
    def _convolve(plan: tiles.Launch, x: Array, packed: Array, y: Array, sums: Array | None = None) -> None:
        name = f"conv3x3_{plan.pixels}x{plan.filters()}"
        launch("conv3x3.cu", name, plan.grid(), plan.block(), [x, packed, y, sums, plan.struct], plan.shared_bytes())


class Products:
    """A convolution as matrix products, one for each group, on columns (pixels, G KH KW c); see im2col.cu.

    The columns of a 1x1 convolution with stride 1 are the image itself. Others are built for a few images at a time,
    and again for the weight gradient. Products of the groups are slices of one strided-batched product:

        forward   y_g        (M, o) = columns_g (M, K) @ w_gᵀ (K, o)          K = KH KW c
        dgrad     dcolumns_g (M, K) = dy_g (M, o) @ w_g (o, K)
        wgrad     dw_g       (o, K) = dy_gᵀ (o, M) @ columns_g (M, K)         in float32, M cut into shares
    """

    def __init__(self, shape: tiles.Shape, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int):
        N, H, W, C = shape
        self.O, c, KH, KW = w.shape
        self.shape, self.kernel, self.G = shape, (KH, KW), groups
        self.OH, self.OW = conv.output_size((H, W), (KH, KW), stride, padding, dilation)
        self.plain = (KH, KW, stride, padding) == (1, 1, (1, 1), (0, 0))
        # Without groups the rows may be padded to whole vectors, with zeros that the weights have too (27 -> 32).
        vector = VECTOR_BYTES // w.itemsize
        self.K = c * KH * KW if groups > 1 or self.plain else -(-c * KH * KW // vector) * vector
        self.wide = c % vector == 0
        ld = C if self.plain else self.K * groups
        self.window = np.array(
            (N, H, W, C, groups, KH, KW, self.OH, self.OW, *stride, *padding, *dilation, ld), np.int32
        )
        self.ld, self.w = ld, w
        xp = array_module(w)
        filters = w.transpose(0, 2, 3, 1).reshape(self.O, KH * KW * c)  # (O, KH KW c): a filter's taps as in a column
        missing = self.K - filters.shape[1]
        if missing:
            filters = xp.pad(filters, ((0, 0), (0, missing)))
        self.filters = xp.ascontiguousarray(filters)

    def forward(self, x: Array) -> Array:
        y = array_module(x).empty((len(x), self.OH, self.OW, self.O), x.dtype)
        o, G = self.O // self.G, self.G
        w = self._matrix(self.filters, self.K, o * self.K, transposed=True)
        for some in self._chunks(len(x)):
            columns, part = self._columns(x[some]), y[some]
            M = part.size // self.O
            cublas.product(M, o, self.K, self._matrix(columns, self.ld, self.K), w, self._matrix(part, self.O, o), G)
        return y

    def input_gradient(self, dy: Array) -> Array:
        xp, o, G = array_module(dy), self.O // self.G, self.G
        dx = xp.empty(self.shape, dy.dtype)
        w = self._matrix(self.filters, self.K, o * self.K)
        for some in self._chunks(len(dy)):
            upstream, part = dy[some], dx[some]
            M = upstream.size // self.O
            columns = part if self.plain else xp.empty((M, self.ld), dy.dtype)
            result = self._matrix(columns, self.ld, self.K)
            cublas.product(M, self.K, o, self._matrix(upstream, self.O, o), w, result, G)
            if not self.plain:
                self._move("col2im", columns, part, part.shape[3], part.size // part.shape[3], len(part))
        return dx

    def weight_gradient(self, x: Array, dy: Array) -> Array:
        # Where one product has fewer squares (of about 128 x 128) than the GPU processors, several share the pixels.
        squares = -(-self.O // 128) * -(-self.K // 128)
        most = max(1, properties().processors // squares) if self.G == 1 else 1
        partial = None
        for some in self._chunks(len(x)):
            images = len(x[some])
            shares = max(n for n in range(1, images + 1) if images % n == 0 and n <= most)
            first = partial is None
            if first:  # later chunks add to it; the last one may be smaller, but must not have more shares
                partial, most = array_module(x).empty((shares, self.O, self.K), np.float32), shares
            self._weight_gradient(self._columns(x[some]), dy[some], partial, shares, accumulate=not first)
        return _add_shares(partial, self.w, self.w.shape[1], self.O, self.O)

    def _weight_gradient(self, columns: Array, dy: Array, partial: Array, shares: int, accumulate: bool) -> None:
        """Set `partial` (shares, O, K) to dyᵀ columns, or add it: the product's batch is the groups, or the shares."""
        o, rows = self.O // self.G, dy.size // self.O // shares
        strides = (o, self.K, o * self.K) if self.G > 1 else (rows * self.O, rows * self.ld, self.O * self.K)
        a = self._matrix(dy, self.O, strides[0], transposed=True)
        b = self._matrix(columns, self.ld, strides[1])
        c = self._matrix(partial, self.K, strides[2])
        cublas.product(o, self.K, rows, a, b, c, shares * self.G, accumulate)

    def _chunks(self, N: int) -> Iterator[slice]:
        """Slices of the batch whose columns are built together."""
        size = N
        if not self.plain:
            size = max(1, COLUMN_BYTES // (self.OH * self.OW * self.ld * self.filters.itemsize))
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
        down = min(-(-rows // by), 32 * properties().processors)
        arguments = [source, target, window.view(WINDOW), i32(self.wide)]
        launch("im2col.cu", f"{name}_{_suffix(target)}", (-(-pieces // bx), down), (bx, by), arguments)

    @staticmethod
    def _matrix(array: Array, ld: int, stride: int, transposed: bool = False) -> cublas.Matrix:
        return cublas.Matrix(address(array), array.dtype.name, ld, stride, transposed)


def _add_shares(partial: Array, w: Array, tap_length: int, CO: int, o: int) -> Array:
    """dw, of w's shape and dtype, from its sums over shares of the pixels, (shares, filters, row); see filters.cu."""
    filters, c, KH, KW = w.shape
    dw = array_module(w).empty(w.shape, w.dtype)
    shares = len(partial)
    sizes = (filters, c, KH * KW, tap_length, partial.size // (shares * filters), CO, o, shares)
    name = f"add_shares_{_suffix(dw)}"
    launch("filters.cu", name, (-(-dw.size // 256),), (256,), [partial, dw, *map(i32, sizes)])
    return dw


# *** linear layer ***


class MatMul(basic.MatMul):
    """basic.MatMul for two matrices, through cuBLAS: no copies, float32 sums, and allowed in a captured graph."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        a, b = arrays
        return a.ndim == b.ndim == 2 and _supported(a, b)

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return _product(a, b)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        da = _product(dy, self.b.T) if self.needs[0] else None
        db = _product(self.a.T, dy) if self.needs[1] else None
        return da, db


def _product(a: Array, b: Array) -> Array:
    """a (M, K) @ b (K, N) in a's dtype."""
    xp = array_module(a)
    a, b = (m if cublas.rows_or_columns(m) else xp.ascontiguousarray(m) for m in (a, b))
    out = xp.empty((a.shape[0], b.shape[1]), a.dtype)
    cublas.matmul(a, b, out)
    return out


# *** cross-entropy ***


class CrossEntropy(loss.CrossEntropy):
    """loss.CrossEntropy and its gradient in one launch; see loss.cu."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        (logits,) = arrays
        return logits.dtype == np.float32 and _supported(logits)

    def forward(self, logits: Array, *, labels: Array, label_smoothing: float) -> Array:
        xp, (N, K) = array_module(logits), logits.shape
        logits, labels = xp.ascontiguousarray(logits), xp.ascontiguousarray(labels.astype(np.int64, copy=False))
        self.gradient, mean = xp.empty_like(logits), xp.empty((), np.float32)
        arguments = [logits, labels, mean, self.gradient, i32(N), i32(K), f32(label_smoothing)]
        launch("loss.cu", "cross_entropy", (1,), (1024,), arguments)
        return mean

    def backward(self, dy: Array) -> Array:
        return self.gradient * dy


# *** gradients that meet ***


def add_gradients(a: Array, b: Array) -> Array:
    """a + b, as channels-last memory where both are images whose values fill whole vectors; see add.cu."""
    if a.ndim != 4 or not _supported(a, b) or a.nbytes % VECTOR_BYTES:
        return a + b
    a, b = pixels(a), pixels(b)
    out = array_module(a).empty_like(a)
    vectors = a.nbytes // VECTOR_BYTES
    blocks = min(-(-vectors // 256), 8 * properties().processors)
    launch("add.cu", f"add_{_suffix(a)}", (blocks,), (256,), [a, b, out, i64(vectors)])
    return images(out)


# *** SGD ***


def sgd_step(updates: Sequence[tuple[Array, Array, Array, float, float, bool]], lr: float | Array) -> None:
    """One step of optim.sgd_update on many parameters: (w, dw, velocity, momentum, weight decay, nesterov) each.

    `lr` is a number, or a float32 array with one element on the device, which a captured graph reads anew at each
    replay.
    """
    plain: list[tuple] = []
    ours: list[tuple] = []
    for w, dw, velocity, *options in updates:
        dw = array_module(dw).ascontiguousarray(dw)  # a linear layer's is its transpose
        fits = all(a.dtype == np.float32 and a.flags.c_contiguous for a in (w, dw, velocity))
        (ours if fits else plain).append((w, dw, velocity, *options))
    for w, dw, velocity, momentum, weight_decay, nesterov in plain:
        optim.sgd_update(w, dw, velocity, lr, momentum, weight_decay, nesterov)
    if not ours:
        return
    xp = array_module(ours[0][0])
    rate = lr if isinstance(lr, xp.ndarray) else xp.full(1, lr, np.float32)
    limit = PARAMETERS["list"].shape[0]
    for begin in range(0, len(ours), limit):
        some = ours[begin : begin + limit]
        table = np.zeros(1, PARAMETERS)
        for i, (w, dw, velocity, momentum, weight_decay, nesterov) in enumerate(some):
            pointers = address(w), address(dw), address(velocity) if momentum else 0
            table["list"][0, i] = (*pointers, w.size, momentum, weight_decay, nesterov, 0)
        launch("sgd.cu", "sgd", (properties().processors, len(some)), (256,), [table, rate])


OPERATIONS: dict[type[tensor.Function], type[tensor.Function]] = {
    conv.Conv2d: Conv2d,
    norm.BatchNorm: BatchNorm,
    norm.BatchNormReLU: BatchNormReLU,
    basic.MatMul: MatMul,
    loss.CrossEntropy: CrossEntropy,
}


def register() -> None:
    """Put the fast operations in the tape's table, in place of the book's, for arrays on a GPU."""
    tensor.faster.update({(book, "cuda"): fast for book, fast in OPERATIONS.items()})
    optim.faster_step["cuda"] = sgd_step
    tensor.faster_add["cuda"] = add_gradients
