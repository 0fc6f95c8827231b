"""Where a convolution's input comes from on a CPU, and where its gradients go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..layout import blocks, column_sums, relu, rows_of, to_nchw, to_nhwc
from ..memory import scratch
from ..norm import Remake, masked_sums
from ..threads import Span, thread_pool
from .geometry import Cell, Geometry


class Source:
    """A convolution's input: an array, or a batch norm's word on how to make it again, piece by piece."""

    def __init__(self, x: np.ndarray, remake: Remake | None):
        self.given = to_nhwc(x) if remake is None else None
        self.remake = remake

    @property
    def x(self) -> np.ndarray:
        """The memory (N, H, W, C): the input itself or, with `remake`, the batch norm's input."""
        return self.given if self.remake is None else self.remake.x.array  # type: ignore[return-value]

    def rows(self, start: int, stop: int, columns: slice = slice(None)) -> np.ndarray:
        """The activations (R, c) of some pixels; valid until the thread's next call."""
        x = rows_of(self.x)[start:stop, columns]
        if self.remake is None:
            return x
        a = scratch("activations", x.shape, x.dtype)
        for first, last in blocks(0, *x.shape):
            self.remake.affine.apply(x[first:last], a[first:last], columns)
            relu(a[first:last])
        return a

    def images(self, span: Span, columns: slice) -> np.ndarray:
        """`rows` for whole images: activations (n, H, W, c)."""
        _, H, W, _ = self.x.shape
        if self.remake is None:
            return self.x[span[0] : span[1], :, :, columns]
        return self.rows(span[0] * H * W, span[1] * H * W, columns).reshape(span[1] - span[0], H, W, -1)


class Gradient:
    """Where a convolution's input gradient goes: into an array, through the ReLU of the batch norm that made the input.

    With a `remake` the ReLU's mask is applied while a block is in the cache, and the two sums that the batch norm's
    backward pass begins with are taken; one per part of the work, because parts share no channels or no images.
    Without one, the first of them is taken where it is `watched` whether all that goes by is finite. Before any of it
    the gradient of an `other` operation is added, which has read the same input.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        remake: Remake | None,
        parts: int,
        watched: bool,
        other: np.ndarray | None = None,
    ):
        self.dx, self.other = np.empty(shape, dtype), other
        self.remake, self.watched = remake, watched
        self.sums = np.zeros((parts, 2, shape[-1]))

    def finish(self, part: int, rows: slice, a: np.ndarray, columns: slice) -> None:
        """Mask some rows of dx in place where the input a (R, c) was not positive, and add to the part's sums."""
        dx = rows_of(self.dx)[rows, columns]
        if self.other is not None:
            np.add(dx, rows_of(self.other)[rows, columns], out=dx)
        if self.remake is None:
            if self.watched:
                for start, stop in blocks(0, *dx.shape):
                    self.sums[part, 0, columns] += column_sums(dx[start:stop], np.empty(dx.shape[1], dx.dtype))
            return
        centre = None if self.remake.affine.centre is None else self.remake.affine.centre[columns]
        x = rows_of(self.remake.x.array)[rows, columns]
        for start, stop in blocks(0, *dx.shape):
            masked_sums(
                dx[start:stop], a[start:stop], dx[start:stop], x[start:stop], self.sums[part, :, columns], centre
            )

    def all_finite(self) -> bool:
        """Whether no NaN or infinity went by."""
        return bool(np.isfinite(self.sums[:, 0]).all())

    def result(self) -> np.ndarray:
        """The gradient as (N, C, H, W), handed over to the batch norm where there is one."""
        out = to_nchw(self.dx)
        if self.remake is not None:
            self.remake.node.received = out, self.sums.sum(axis=0)
        return out


def zero_parts(cells: list[Cell], shape: tuple[int, ...], dw: np.ndarray | None) -> list[np.ndarray]:
    """Zeros (packs, *shape) for every cell of the grid to add its weight gradient to; none where dw is not wanted."""
    return [] if dw is None else [np.zeros((g[1] - g[0], *shape), dw.dtype) for _, g, _ in cells]


def add_weight_gradients(
    s: Geometry, cells: list[Cell], parts: list[np.ndarray], dw: np.ndarray, arrange: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Add up the parts of dw, in order, and write them in the weights' layout (O, C/groups, KH, KW).

    `parts` belong to the cells of the grid; `arrange` turns one, (packs, ...), into (packs, KH, KW, CI, CO). Of the
    block-diagonal matrix of merged groups only the blocks on the diagonal are weights.
    """
    by_packs: dict[Span, list[int]] = {}
    for i, g, _ in cells:
        by_packs.setdefault(g, []).append(i)
    c, o = s.CI // s.merge, s.CO // s.merge
    filters = dw.reshape(s.packs, s.merge, o, c, s.KH, s.KW)

    def work(packs: Span) -> None:
        total = parts[by_packs[packs][0]]
        for i in by_packs[packs][1:]:
            total += parts[i]
        full = arrange(total)
        for j in range(s.merge):
            block = full[:, :, :, j * c : (j + 1) * c, j * o : (j + 1) * o]
            np.copyto(filters[slice(*packs), j], block.transpose(0, 4, 3, 1, 2))

    thread_pool().run(work, list(by_packs))
