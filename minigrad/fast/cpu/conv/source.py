"""How a convolution's work is cut up on a CPU: its sizes, its parts, where input comes from and where gradients go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np

from ....ops.conv import Pair, output_size
from ... import handover
from ..layout import blocks, pixels, relu, to_nchw, to_nhwc
from ..norm import Recipe, ReLUSums, masked_sums
from ..threads import Span, parts_for, pool, scratch, spans, steps

ROWS = 1024  # rows of a product: enough for BLAS, few enough for the cache
MERGED = 8  # narrow groups are merged up to so many channels
CHUNK = 4  # merged groups that narrow.py wants at a time: with fewer, NumPy's calls cost more than the copies they save


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution; c and o are the channels and filters of a merged group, G the number of those."""

    N: int
    C: int
    H: int
    W: int
    O: int
    KH: int
    KW: int
    OH: int
    OW: int
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    merge: int  # neighbouring groups in one product

    @property
    def G(self) -> int:
        return self.groups // self.merge

    @property
    def c(self) -> int:
        return self.C // self.G

    @property
    def o(self) -> int:
        return self.O // self.G

    @property
    def pointwise(self) -> bool:
        return (self.KH, self.KW, self.padding, self.groups) == (1, 1, (0, 0), 1)

    @property
    def plain(self) -> bool:
        return (self.KH, self.KW, self.stride, self.padding, self.dilation) == (3, 3, (1, 1), (1, 1), (1, 1))

    @property
    def winograd(self) -> bool:
        return self.plain and self.H % 2 == self.W % 2 == 0 and self.merge == 1 and min(self.c, self.o) >= 48

    @property
    def narrow(self) -> bool:
        return self.plain and max(self.c, self.o) <= MERGED and self.W >= 16 and self.G >= 2 * CHUNK

    @property
    def operations(self) -> int:
        return self.N * self.OH * self.OW * self.O * self.c * self.KH * self.KW

    def grid(self) -> list[tuple[int, Span, Span]]:
        """The parts of the work: (index, groups, images), one per thread; those of the same groups are neighbours."""
        parts = parts_for(self.operations)
        by_groups = gcd(self.G // CHUNK if self.narrow else self.G, parts)
        cells = [(g, n) for g in spans(self.G, by_groups) for n in spans(self.N, parts // by_groups)]
        return [(i, g, n) for i, (g, n) in enumerate(cells)]

    @staticmethod
    def rows(images: Span, band: Span, H: int, W: int) -> slice:
        """The rows, one per pixel, of a band of image rows; several images at once only with all of their rows."""
        return slice((images[0] * H + band[0]) * W, ((images[1] - 1) * H + band[1]) * W)

    def images(self, span: Span) -> list[Span]:
        """Walk over a span of images so many at a time that a product has about ROWS rows."""
        return list(steps(span, max(1, ROWS // (self.OH * self.OW))))

    def most(self, span: Span) -> int:
        """The most images that `images` takes at a time."""
        return max(stop - start for start, stop in self.images(span))


@lru_cache(maxsize=1024)
def geometry(x: tuple, w: tuple, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Geometry:
    (N, C, H, W), (O, _, KH, KW) = x, w
    narrow = max(C, O) // groups
    merge = max(m for m in range(1, groups + 1) if groups % m == 0 and (m == 1 or narrow * m <= MERGED))
    out = output_size((H, W), (KH, KW), stride, padding, dilation)
    return Geometry(N, C, H, W, O, KH, KW, *out, stride, padding, dilation, groups, merge)


class Source:
    """A convolution's input: an array, or a recipe by which a batch norm's output is made again piece by piece."""

    def __init__(self, x: np.ndarray, recipe: Recipe | None):
        self.x = to_nhwc(x) if recipe is None else recipe.x
        self.recipe = recipe

    def rows(self, start: int, stop: int, columns: slice = slice(None)) -> np.ndarray:
        """The activations (R, c) of some pixels; valid until the thread's next call."""
        x = pixels(self.x)[start:stop, columns]
        if self.recipe is None:
            return x
        a = scratch("activations", x.shape, x.dtype)
        for first, last in blocks(0, *x.shape):
            self.recipe.affine.apply(x[first:last], a[first:last], columns)
            relu(a[first:last])
        return a

    def images(self, span: Span, columns: slice) -> np.ndarray:
        """`rows` for whole images: activations (n, H, W, c)."""
        _, H, W, _ = self.x.shape
        if self.recipe is None:
            return self.x[span[0] : span[1], :, :, columns]
        return self.rows(span[0] * H * W, span[1] * H * W, columns).reshape(span[1] - span[0], H, W, -1)


class Gradient:
    """Where a convolution's input gradient goes: into an array, through the ReLU of the batch norm that made the input.

    With a `recipe` the ReLU's mask is applied while a block is in the cache, and the two sums that the batch norm's
    backward pass begins with are taken; one per part of the work, because parts share no channels or no images.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, recipe: Recipe | None, parts: int):
        self.dx = np.empty(shape, dtype)
        self.recipe = recipe
        self.sums = np.zeros((parts, 2, shape[-1]))

    def finish(self, part: int, rows: slice, a: np.ndarray, columns: slice) -> None:
        """Mask some rows of dx in place where the input a (R, c) was not positive, and add to the part's sums."""
        if self.recipe is None:
            return
        dx, x = pixels(self.dx)[rows, columns], pixels(self.recipe.x)[rows, columns]
        for start, stop in blocks(0, *dx.shape):
            masked_sums(dx[start:stop], a[start:stop], x[start:stop], self.sums[part, :, columns])

    def result(self) -> np.ndarray:
        """The gradient as (N, C, H, W), with a note for the batch norm where there is something to tell."""
        out = to_nchw(self.dx)
        if self.recipe is not None:
            handover.attach(out, ReLUSums(self.recipe.node, self.sums.sum(axis=0)))
        return out


def zero_parts(cells: list[tuple[int, Span, Span]], shape: tuple[int, ...], dw: np.ndarray | None) -> list[np.ndarray]:
    """Zeros (groups, *shape) for every cell of the grid to add its weight gradient to; none where dw is not wanted."""
    return [] if dw is None else [np.zeros((g[1] - g[0], *shape), dw.dtype) for _, g, _ in cells]


def add_weight_gradients(
    s: Geometry, parts: list[np.ndarray], dw: np.ndarray, arrange: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Add up the parts of dw, in order, and write them in the weights' layout (O, C/groups, KH, KW).

    `parts` belong to the cells of the grid; `arrange` turns one, (groups, ...), into (groups, KH, KW, c, o). Of the
    block-diagonal matrix of merged groups only the blocks on the diagonal are weights.
    """
    cells = s.grid()
    by_groups: dict[Span, list[int]] = {}
    for i, g, _ in cells:
        by_groups.setdefault(g, []).append(i)
    c, o = s.c // s.merge, s.o // s.merge
    filters = dw.reshape(s.G, s.merge, o, c, s.KH, s.KW)

    def work(groups: Span) -> None:
        total = parts[by_groups[groups][0]]
        for i in by_groups[groups][1:]:
            total += parts[i]
        full = arrange(total)
        for j in range(s.merge):
            block = full[:, :, :, j * c : (j + 1) * c, j * o : (j + 1) * o]
            np.copyto(filters[slice(*groups), j], block.transpose(0, 4, 3, 1, 2))

    pool().run(work, list(by_groups))
