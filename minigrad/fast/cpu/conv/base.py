"""Convolution on a CPU: what its methods share. Each makes matrix products of it, on channels-last memory.

    Pointwise   pointwise.py   1x1: the image already is the matrix; rows (N·OH·OW, C) @ (C, O)
    Winograd    winograd.py    3x3, stride 1, wide groups: 2.25 times fewer multiplications
    Runs        runs.py        3x3, stride 1, narrow groups: several outputs from one window
    Phases      phases.py      3x3, stride 2: forward as Columns, backward by windows of the output's gradient
    Columns     columns.py     everything else: im2col into a buffer that stays in the cache, then a product per group

Narrow groups are merged first: a product 4 columns wide runs at a few per cent of a core's speed, so neighbouring
groups become one pack, one product with a block-diagonal matrix. Its zeros are multiplied too, and it is still far
faster. But 0 times NaN or infinity is NaN, in the outputs of groups that never saw it. Winograd's differences make NaN
of infinities, a window that serves several outputs meets zeros in their filters, and who takes windows of dy multiplies
a pixel at the edge with the zeros beyond it. So where the sums of what came out are not finite, it is computed once
more as the definition says: with windows of x and each group apart.

The work is cut over threads by packs where their number allows (then every thread owns its part of dw), and by images
otherwise (then the parts' dw are added in order). A thread walks over its images a few at a time, so that a product has
several hundred rows and everything it touches fits in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....backend import Array
from ....ops.conv import Conv2d, Pair
from ....tensor import recording
from ...handover import Informed
from ..layout import Moments, channel_sums, rows_of, to_nchw, to_nhwc
from ..norm import Remake
from ..threads import parts_for
from .finish import Finish
from .geometry import Geometry, geometry
from .source import Gradient, Source


class FastConv2d(Informed, Conv2d):
    """Conv2d, fast: a method says in `suits` what it is for, and defines `convolve` and `pull_back`."""

    other: np.ndarray | None = None  # a gradient that meets this one's at x, (N, H, W, C)
    as_defined = True  # no number of one group is combined with others than the definition's

    @classmethod
    def accepts(cls, *arrays: Array | None, relu: bool = False, **options: Any) -> bool:
        x, w = arrays[:2]
        if (relu or len(arrays) == 4) and recording():
            return False  # ReLU and shortcut are for a call without a tape
        known = x.dtype == w.dtype and x.dtype in (np.float32, np.float64)  # type: ignore[union-attr]
        return known and cls.suits(geometry(x.shape, w.shape, **options))  # type: ignore[union-attr]

    @staticmethod
    def suits(s: Geometry) -> bool:
        """Whether this is the way to compute a convolution of these sizes."""
        raise NotImplementedError

    def convolve(self, s: Geometry, x: Source, w: np.ndarray, y: np.ndarray, finish: Finish) -> None:
        """Write the convolution into y (N, OH, OW, O), a piece at a time, each finished while it is in the cache."""
        raise NotImplementedError

    def pull_back(
        self, s: Geometry, x: Source, w: np.ndarray, dy: np.ndarray, grad: Gradient | None, dw: np.ndarray | None
    ) -> None:
        """From dy (N, OH, OW, O) write what is wanted of the gradients: into `grad`, and into dw."""
        raise NotImplementedError

    def forward(
        self,
        x: Array,
        w: Array,
        bias: Array | None = None,
        shortcut: Array | None = None,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        relu: bool = False,
    ) -> Array:
        s = geometry(x.shape, w.shape, stride, padding, dilation, groups)
        y = np.empty((s.N, s.OH, s.OW, s.O), x.dtype)
        source = Source(x, None)
        # A batch norm that trains will want the statistics; without a tape there is nobody to want them.
        wanted = bias is None and any(self.needs)
        added = None if shortcut is None else to_nhwc(shortcut)
        watched = s.merge > 1 or not self.as_defined

        def convolve(method: FastConv2d, s: Geometry) -> Finish:
            finish = Finish(y, Moments(s.O) if wanted else None, bias, added, relu, watched and not wanted)
            method.convolve(s, source, w, y, finish)
            return finish

        with np.errstate(invalid="ignore", over="ignore"):  # zeros between groups and sums on the side warn nobody
            finish = convolve(self, s)
            if watched and not finish.all_finite():
                s = s.apart()
                finish = convolve(by_definition(), s)
        self.geometry, self.w = s, w
        if finish.moments is not None:
            self.pin(finish.moments)
        if any(self.needs):
            remake = self.remake()
            self.x = source if remake is None else Source(x, remake)
            self.rows = self.x.given if self.needs[1] else None  # where `check_unchanged` sees it
        return to_nchw(y)

    def remake(self) -> Remake | None:
        """The note of the batch norm that made x: where there is one, x need not be kept."""
        return self.note_on(0, Remake)

    def gradient(self, s: Geometry, dtype: np.dtype) -> Gradient:
        """Where the input gradient is to go."""
        remake = self.x.remake
        # Only the batch norm itself may be handed a masked gradient, not a leaf that shares its array.
        direct = remake is not None and self.parents is not None and self.parents[0] is remake.node
        shape = s.N, s.H, s.W, s.C
        return Gradient(shape, dtype, remake if direct else None, parts_for(s.operations), not s.one_tap, self.other)

    def take_other(self) -> np.ndarray | None:
        """Take x's gradient from another operation off the tape, to be added to this one's while that is in the cache.

        It is read, not written, so whoever else holds it does not mind.
        """
        parent = self.parents[0] if self.parents else None
        other = self.pending.get(parent) if self.pending else None
        if other is None or other.dtype != self.w.dtype or not other.transpose(0, 2, 3, 1).flags.c_contiguous:
            return None
        return to_nhwc(self.pending.pop(parent))

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        s, dy = self.geometry, to_nhwc(dy)
        dw = np.empty(self.w.shape, self.w.dtype) if self.needs[1] else None
        self.other = self.take_other() if self.needs[0] else None

        def pull_back(way: Callable[..., None], s: Geometry) -> Gradient | None:
            grad = self.gradient(s, dy.dtype) if self.needs[0] else None
            way(s, self.x, self.w, dy, grad, dw)
            return grad

        grad = None
        if self.needs[0] or self.needs[1]:
            with np.errstate(invalid="ignore", over="ignore"):
                grad = pull_back(self.pull_back, s)
                finite = (grad is None or grad.all_finite()) and (dw is None or np.isfinite(dw).all())
                if not s.one_tap and not finite:
                    grad = pull_back(by_definition().backward_from_x, s.apart())
        dbias = channel_sums(rows_of(dy)).astype(dy.dtype) if self.needs[2] else None
        return (None if grad is None else grad.result()), dw, dbias


def by_definition() -> Any:
    """The method that combines the very numbers which the definition combines, given groups that are not merged."""
    from .columns import Columns  # which stands on this file

    return Columns()
