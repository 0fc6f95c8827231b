"""What a convolution's output is put through while it is still in the cache."""

from __future__ import annotations

import numpy as np

from ..layout import Moments, column_sums, relu, repeat_for, rows_of


class Finish:
    """Bias, shortcut and ReLU, or the statistics that a batch norm in training wants, a piece at a time.

    `watched` says whether to find out if all that goes by is finite, which the statistics tell anyway.
    """

    def __init__(
        self,
        y: np.ndarray,
        moments: Moments | None = None,
        bias: np.ndarray | None = None,
        shortcut: np.ndarray | None = None,
        rectified: bool = False,
        watched: bool = False,
    ):
        self.y = rows_of(y)
        self.moments, self.bias, self.rectified, self.watched = moments, bias, rectified, watched
        self.shortcut = None if shortcut is None else rows_of(shortcut)
        self.finite = True

    def rows(self, part: int, rows: slice, columns: slice = slice(None)) -> None:
        """Finish some rows of the output, which `part`, one thread's, has just written."""
        y = self.y[rows, columns]
        if self.moments is not None:
            self.moments.measure(y, part, columns.start or 0)
        if self.bias is not None:
            repeat = repeat_for(*y.shape) if y.flags.c_contiguous else 1
            wide = y.reshape(len(y) // repeat, -1) if repeat > 1 else y
            np.add(wide, np.tile(self.bias[columns], repeat), out=wide)
        if self.shortcut is not None:
            np.add(y, self.shortcut[rows, columns], out=y)
        if self.rectified:
            relu(y)
        if self.watched and not np.isfinite(column_sums(y, np.empty(y.shape[1], y.dtype))).all():
            self.finite = False

    def all_finite(self) -> bool:
        """Whether no NaN or infinity went by. (That -infinity became 0 is as it should be.)"""
        return self.finite if self.moments is None else bool(np.isfinite(self.moments.means()).all())
