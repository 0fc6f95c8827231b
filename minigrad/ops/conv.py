"""Convolution with groups: its definition as loops, then as matrix products.

The axes, always in this order:

    x   (N, C, H, W)          N images of C channels, H rows, W columns
    w   (O, C/G, KH, KW)      O filters; each sees the C/G channels of its group through a KH x KW window
    y   (N, O, OH, OW)        one number per image, filter and position of the window

The window moves by `stride` (SH, SW), over an image with `padding` (PH, PW) zeros around it, and its taps lie
`dilation` (DH, DW) apart. The G groups split the channels: each has c = C/G channels and o = O/G filters. Filter f
belongs to group g = f // o and sees channels g·c ... (g+1)·c - 1, no others. With G = 1 every filter sees every
channel; with G = C each sees one ("depthwise").
"""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module, matmul, total
from ..tensor import Function, Tensor
from .arguments import Pair, as_pair, check_filters, check_window


def conv2d_loops(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    """The definition, one multiplication at a time; far too slow for anything but reading and testing.

    y[n, f, oh, ow] = Σ_i Σ_kh Σ_kw  w[f, i, kh, kw] · x[n, g·c + i, oh SH + kh DH - PH, ow SW + kw DW - PW]

    with g = f // o, and x = 0 outside the image.
    """
    (N, _, H, W), (O, c, KH, KW) = x.shape, w.shape
    OH, OW = output_size((H, W), (KH, KW), stride, padding, dilation)
    y = np.zeros((N, O, OH, OW), x.dtype)
    for n in range(N):
        for f in range(O):
            g = f // (O // groups)
            for oh in range(OH):
                for ow in range(OW):
                    for i in range(c):
                        for kh in range(KH):
                            for kw in range(KW):
                                row = oh * stride[0] + kh * dilation[0] - padding[0]
                                col = ow * stride[1] + kw * dilation[1] - padding[1]
                                if 0 <= row < H and 0 <= col < W:
                                    y[n, f, oh, ow] += w[f, i, kh, kw] * x[n, g * c + i, row, col]
    return y


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """The window's positions (OH, OW): (size + 2 padding - dilation (kernel - 1) - 1) // stride + 1 along each axis."""
    OH, OW = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return OH, OW


def tap(kh: int, kw: int, positions: Pair, stride: Pair, dilation: Pair) -> tuple[slice, slice]:
    """The rows and columns of the padded image that tap (kh, kw) meets while the window moves: OH x OW pixels."""
    (OH, OW), (SH, SW), row, col = positions, stride, kh * dilation[0], kw * dilation[1]
    return slice(row, row + OH * SH, SH), slice(col, col + OW * SW, SW)


def pad_image(x: Array, padding: Pair, value: float = 0.0) -> Array:
    """Put a border of PH rows and PW columns of `value` around every image."""
    if padding == (0, 0):
        return x
    return array_module(x).pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=value)


def im2col(x: Array, kernel: Pair, positions: Pair, stride: Pair, dilation: Pair) -> Array:
    """Lay the windows of the padded images x (N, C, H', W') side by side: (N, C, KH, KW, OH, OW).

    columns[n, i, kh, kw, oh, ow] = x[n, i, oh SH + kh DH, ow SW + kw DW]

    A pixel is copied once for every window that it lies in, at most KH KW times.
    """
    columns = array_module(x).empty((*x.shape[:2], *kernel, *positions), x.dtype)
    for kh in range(kernel[0]):
        for kw in range(kernel[1]):
            rows, cols = tap(kh, kw, positions, stride, dilation)
            columns[:, :, kh, kw] = x[:, :, rows, cols]
    return columns


def col2im(columns: Array, shape: tuple[int, ...], stride: Pair, dilation: Pair) -> Array:
    """Add the windows (N, C, KH, KW, OH, OW) back into images of `shape` (N, C, H', W'): the transpose of im2col.

    im2col copies pixel p into several places, and changing p changes all its copies. So the gradient of p is the sum of
    theirs: where im2col reads `x[slice]`, col2im adds to `x[slice]`. The slices of different taps overlap, but one tap
    meets every pixel at most once, so each tap is a plain addition.
    """
    _, _, KH, KW, OH, OW = columns.shape
    x = array_module(columns).zeros(shape, columns.dtype)
    for kh in range(KH):
        for kw in range(KW):
            rows, cols = tap(kh, kw, (OH, OW), stride, dilation)
            x[:, :, rows, cols] += columns[:, :, kh, kw]
    return x


class Conv2d(Function):
    """The convolution of `conv2d_loops`, plus a bias per filter, as one matrix product per group.

    With the windows as columns, group g is  y_g = w_g · columns_g:

        (G, o, N·OH·OW) = (G, o, c·KH·KW) @ (G, c·KH·KW, N·OH·OW)

    one row per filter, one column per output pixel. A product's gradients are products: dw_g = dy_g · columns_gᵀ and
    dcolumns_g = w_gᵀ · dy_g, and col2im takes dcolumns back to dx.
    """

    inputs_at_most, mixed = 3, True

    def forward(
        self, x: Array, w: Array, bias: Array | None = None, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        (N, _, H, W), (O, _, KH, KW) = x.shape, w.shape
        self.x, self.w = x, w.astype(x.dtype, copy=False)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        OH, OW = self.positions = output_size((H, W), (KH, KW), stride, padding, dilation)

        y = matmul(self.filters(), self.columns())  # (G, o, c·KH·KW) @ (G, c·KH·KW, N·OH·OW) = (G, o, N·OH·OW)
        y = y.reshape(O, N, OH, OW).transpose(1, 0, 2, 3)  # filters of group 0, of group 1, ...: (N, O, OH, OW)
        return y if bias is None else y + bias[:, None, None].astype(x.dtype)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        (N, C, H, W), (O, c, KH, KW) = self.x.shape, self.w.shape
        G, (OH, OW), (PH, PW) = self.groups, self.positions, self.padding
        dx = dw = None

        dy_rows = dy.transpose(1, 0, 2, 3).reshape(G, O // G, N * OH * OW)
        if self.needs[1]:
            # (G, o, N·OH·OW) @ (G, N·OH·OW, c·KH·KW) = (G, o, c·KH·KW)
            dw = matmul(dy_rows, self.columns().transpose(0, 2, 1)).reshape(O, c, KH, KW)
        if self.needs[0]:
            # (G, c·KH·KW, o) @ (G, o, N·OH·OW) = (G, c·KH·KW, N·OH·OW)
            dcolumns = matmul(self.filters().transpose(0, 2, 1), dy_rows)
            dcolumns = dcolumns.reshape(C, KH, KW, N, OH, OW).transpose(3, 0, 1, 2, 4, 5)  # (N, C, KH, KW, OH, OW)
            dpadded = col2im(dcolumns, (N, C, H + 2 * PH, W + 2 * PW), self.stride, self.dilation)
            dx = dpadded[:, :, PH : PH + H, PW : PW + W]
        return dx, dw, total(dy, (0, 2, 3)) if self.needs[2] else None

    def filters(self) -> Array:
        """The weights as one matrix per group: (O, c, KH, KW) -> (G, o, c·KH·KW)."""
        O, c, KH, KW = self.w.shape
        return self.w.reshape(self.groups, O // self.groups, c * KH * KW)

    def columns(self) -> Array:
        """The windows as one matrix per group: (N, C, KH, KW, OH, OW) -> (G, c·KH·KW, N·OH·OW).

        Built for the forward pass and built again for the backward pass: kept in between, the columns of a 3x3
        convolution would take nine times the memory of its input.
        """
        (N, *_), (_, c, KH, KW), (OH, OW) = self.x.shape, self.w.shape, self.positions
        windows = im2col(pad_image(self.x, self.padding), (KH, KW), self.positions, self.stride, self.dilation)
        return windows.transpose(1, 2, 3, 0, 4, 5).reshape(self.groups, c * KH * KW, N * OH * OW)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve images x (N, C, H, W) with filters (O, C/groups, KH, KW); add a bias (O,): y (N, O, OH, OW).

    y[n, f, oh, ow] = bias[f] +
        Σ_i Σ_kh Σ_kw weight[f, i, kh, kw] · x[n, g·c + i, oh SH + kh DH - PH, ow SW + kw DW - PW]

    with c = C/groups and g the group of filter f; as everywhere in the field, a cross-correlation: the filter is not
    flipped. `stride`, `padding` and `dilation` are integers or pairs (rows, columns). Grouped convolution is from
    Krizhevsky et al. (NIPS 2012); ResNeXt uses it for the aggregated transformations (Xie et al. 2017, Figure 3c).

    Raises ValueError where shapes, groups or sizes do not fit, naming the numbers, and TypeError for integer images.
    """
    check_filters(x, weight, bias, groups)
    options = {
        "stride": as_pair(stride, "stride", 1),
        "padding": as_pair(padding, "padding", 0),
        "dilation": as_pair(dilation, "dilation", 1),
    }
    check_window(x, (weight.shape[2], weight.shape[3]), **options, operation="conv2d")
    return Conv2d.apply(x, weight, bias, **options, groups=int(groups))
