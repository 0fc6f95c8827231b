"""Winograd's convolution F(2x2, 3x3): 16 multiplications where the definition takes 36 (Lavin & Gray, CVPR 2016).

A tile of 2x2 outputs depends on a patch d of 4x4 inputs, which overlaps its neighbours by two. With the filter g (3x3),

    Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A          ⊙: element by element

         1  0 -1  0          1   0   0          1  0
    Bᵀ = 0  1  1  0     G =  ½   ½   ½     A =  1  1
         0 -1  1  0          ½  -½   ½          1 -1
         0 -1  0  1          0   0   1          0  1

Summed over channels, the element-by-element product becomes one matrix product for each of the 16 places (j, i), with
a row for every tile: V[j, i] (T, c) @ U[j, i] (c, o) = M[j, i] (T, o). Everything is linear, so the backward pass runs
the transposed maps in the opposite order: dM = A dY Aᵀ, dV = dM Uᵀ, dU = Vᵀ dM, dx = B dV Bᵀ, dw = Gᵀ dU G.

The padded image is kept as four images, of its even and odd rows and columns. Row k of a patch is then row t or t + 1
of one of them, for all tiles t at once, and every transform is a handful of additions over long contiguous runs. Padded
row 2k is image row 2k - 1 and padded row 2k + 1 is image row 2k: the image's odd rows are the padded image's even rows.

    even, odd   (n, th + 1, tw + 1, c)    th = H/2, tw = W/2 tiles
    V, M        (4 j, 4 i, n, th, tw, c)  i runs over rows and j over columns of the patch
"""

from __future__ import annotations

import numpy as np

from ..memory import scratch
from ..threads import Span, thread_pool
from .base import FastConv2d
from .finish import Finish
from .geometry import Cell, Geometry
from .source import Gradient, Source, add_weight_gradients, zero_parts

FILTER_SIDE = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
# U[j, i] = Σ G[i, kh] G[j, kw] w[kh, kw]: one product with a 16 x 9 matrix.
FILTER = np.einsum("ik,jl->jikl", FILTER_SIDE, FILTER_SIDE).reshape(16, 9)


def input_transform(x: np.ndarray) -> np.ndarray:
    """V = Bᵀ d B for images x (n, H, W, c)."""
    (n, H, W, c), dtype = x.shape, x.dtype
    th, tw = H // 2, W // 2
    quarters = scratch("quarters", (2, 2, n, th + 1, tw + 1, c), dtype)  # parity of the padded row, of the column
    quarters[0, :, :, 0] = quarters[1, :, :, th] = 0
    quarters[:, 0, :, :, 0] = quarters[:, 1, :, :, tw] = 0
    for p, h in ((0, 1), (1, 0)):
        for q, w in ((0, 1), (1, 0)):
            np.copyto(quarters[p, q, :, h : h + th, w : w + tw], x[:, 1 - p :: 2, 1 - q :: 2])

    rows = scratch("rows", (4, 2, n, th, tw + 1, c), dtype)
    even, odd = quarters
    four_taps(even[:, :, :th], even[:, :, 1:], odd[:, :, :th], odd[:, :, 1:], rows)
    v = scratch("v", (4, 4, n, th, tw, c), dtype)
    even, odd = rows[:, 0], rows[:, 1]
    four_taps(even[:, :, :, :tw], even[:, :, :, 1:], odd[:, :, :, :tw], odd[:, :, :, 1:], v)
    return v


def four_taps(even0: np.ndarray, even1: np.ndarray, odd0: np.ndarray, odd1: np.ndarray, out: np.ndarray) -> None:
    """out = Bᵀ (even0, odd0, even1, odd1): the patch's four rows (or columns) of every tile at once."""
    np.subtract(even0, even1, out=out[0])
    np.add(odd0, even1, out=out[1])
    np.subtract(even1, odd0, out=out[2])
    np.subtract(odd1, odd0, out=out[3])


def output_transform(m: np.ndarray, y: np.ndarray) -> None:
    """y = Aᵀ M A into images y (n, H, W, o), which may be a slice of channels. Overwrites M."""
    for q, half in enumerate(two_outputs(m)):
        for p, quarter in enumerate(two_outputs(half)):
            np.copyto(y[:, p::2, q::2], quarter)


def two_outputs(m: np.ndarray) -> np.ndarray:
    """Aᵀ m = m0 + m1 + m2, m1 - m2 + m3, in place of m0 and m1. Overwrites m."""
    np.add(m[0], m[1], out=m[0])
    np.add(m[0], m[2], out=m[0])
    np.subtract(m[1], m[2], out=m[1])
    np.add(m[1], m[3], out=m[1])
    return m[:2]


def output_transposed(dy: np.ndarray) -> np.ndarray:
    """dM = A dY Aᵀ for images dy (n, H, W, o), the transpose of `output_transform`."""
    n, H, W, o = dy.shape
    dm = scratch("dm", (4, 4, n, H // 2, W // 2, o), dy.dtype)
    for q, j in ((0, 0), (1, 3)):
        np.copyto(dm[j, 0], dy[:, 0::2, q::2])
        np.copyto(dm[j, 3], dy[:, 1::2, q::2])
        np.add(dm[j, 0], dm[j, 3], out=dm[j, 1])
        np.subtract(dm[j, 0], dm[j, 3], out=dm[j, 2])
    np.add(dm[0], dm[3], out=dm[1])
    np.subtract(dm[0], dm[3], out=dm[2])
    return dm


def input_transposed(dv: np.ndarray, dx: np.ndarray) -> None:
    """dx = B dV Bᵀ into images dx (n, H, W, c), the transpose of `input_transform`. Overwrites dV."""
    for q, half in enumerate(overlap(dv, 3, "columns overlap")):
        even_rows, odd_rows = overlap(half, 1, "rows overlap")
        np.copyto(dx[:, 0::2, q::2], even_rows)
        np.copyto(dx[:, 1::2, q::2], odd_rows)


def overlap(dv: np.ndarray, axis: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return B dv, the image's even and odd rows (or columns), from the four taps; tiles lie along `axis` of dv[0].

    An odd image row is tap e1 of one tile and e0 of the next, an even one is o0 of one and o1 of the one before.
    Overwrites dv[1], which becomes the even rows.
    """
    but_first = (slice(None),) * axis + (slice(1, None),)
    but_last = (slice(None),) * axis + (slice(None, -1),)
    odd = np.add(dv[1], dv[2], out=scratch(name, dv.shape[1:], dv.dtype))
    odd -= dv[0]
    odd[but_last] += dv[0][but_first]
    even = np.subtract(dv[1], dv[2], out=dv[1])
    even -= dv[3]
    even[but_first] += dv[3][but_last]
    return even, odd


def transformed_filters(s: Geometry, w: np.ndarray, groups: Span, transposed: bool = False) -> np.ndarray:
    """U = G g Gᵀ for a span of groups: (groups, 16, c, o), or `transposed`, (groups, 16, o, c)."""
    filters = w.reshape(s.packs, s.CO, s.CI, 9)[slice(*groups)]
    taps = np.ascontiguousarray(filters.transpose(0, 3, 1, 2) if transposed else filters.transpose(0, 3, 2, 1))
    count, _, *matrix = taps.shape
    return np.matmul(FILTER.astype(w.dtype), taps.reshape(count, 9, -1)).reshape(count, 16, *matrix)


class Winograd(FastConv2d):
    """3x3 convolution, stride 1, padding 1, images of even height and width."""

    as_defined = False  # the difference of two infinities, or of an infinity's two shares, is NaN

    @staticmethod
    def suits(s: Geometry) -> bool:
        return s.plain3x3 and s.H % 2 == s.W % 2 == 0 and s.merge == 1 and min(s.CI, s.CO) >= 48

    def convolve(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, finish: Finish) -> None:
        def work(cell: Cell) -> None:
            i, groups, images = cell
            u = transformed_filters(s, w, groups)
            for n in s.images(images):
                for g in range(*groups):
                    v = input_transform(x.x[slice(*n), :, :, g * s.CI : (g + 1) * s.CI])
                    m = scratch("m", (*v.shape[:5], s.CO), v.dtype)
                    np.matmul(v.reshape(16, -1, s.CI), u[g - groups[0]], out=m.reshape(16, -1, s.CO))
                    output_transform(m, y[slice(*n), :, :, g * s.CO : (g + 1) * s.CO])
                finish.rows(i, s.rows(n, (0, s.H), s.H, s.W), slice(groups[0] * s.CO, groups[1] * s.CO))

        thread_pool().run(work, s.grid())

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        cells = s.grid()
        parts = zero_parts(cells, (16, s.CI, s.CO), dw)

        def work(cell: Cell) -> None:
            i, groups, images = cell
            u = transformed_filters(s, w, groups, transposed=True) if grad is not None else None
            mine = slice(groups[0] * s.CI, groups[1] * s.CI)
            for n in s.images(images):
                a = x.images(n, mine)
                for g in range(*groups):
                    j = g - groups[0]
                    dm = output_transposed(dy[slice(*n), :, :, g * s.CO : (g + 1) * s.CO]).reshape(16, -1, s.CO)
                    if dw is not None:
                        v = input_transform(a[..., j * s.CI : (j + 1) * s.CI]).reshape(16, -1, s.CI)
                        parts[i][j] += np.matmul(v.transpose(0, 2, 1), dm, out=scratch("du", (16, s.CI, s.CO), w.dtype))
                    if grad is not None and u is not None:
                        # V has done its work: dV may take its place.
                        dv = scratch("v", (4, 4, n[1] - n[0], s.H // 2, s.W // 2, s.CI), dy.dtype)
                        np.matmul(dm, u[j], out=dv.reshape(16, -1, s.CI))
                        input_transposed(dv, grad.dx[slice(*n), :, :, g * s.CI : (g + 1) * s.CI])
                if grad is not None:
                    grad.finish(i, s.rows(n, (0, s.H), s.H, s.W), a.reshape(-1, a.shape[-1]), mine)

        thread_pool().run(work, cells)
        if dw is not None:
            add_weight_gradients(s, cells, parts, dw, filter_gradients)


def filter_gradients(du: np.ndarray) -> np.ndarray:
    """dw = Gᵀ dU G: (groups, 16, c, o) -> (groups, KH, KW, c, o)."""
    count, _, c, o = du.shape
    taps = np.matmul(FILTER.T.astype(du.dtype), du.reshape(count, 16, c * o))
    return taps.reshape(count, 3, 3, c, o)
