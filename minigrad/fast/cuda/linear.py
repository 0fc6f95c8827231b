"""Matrix products on a GPU, as a linear layer makes them, through cuBLAS."""

from __future__ import annotations

from typing import Any

from ...backend import Array, array_module
from ...ops import matmul
from . import cublas
from .arrays import supported


class MatMul(matmul.MatMul):
    """matmul.MatMul for two matrices, through cuBLAS: no copies, float32 sums, and allowed in a captured graph."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        a, b = arrays
        return a.ndim == b.ndim == 2 and supported(a, b)

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
