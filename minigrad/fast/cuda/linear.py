"""Matrix products on a GPU, through cuBLAS, and linear layers with few outputs; see kernels/linear.cu."""

from __future__ import annotations

from typing import Any

from ...backend import Array, array_module
from ...ops import matmul
from ...registry import accepting
from ...tensor import Tensor
from ..handover import Informed
from . import cublas, gpu
from .arrays import i32, suffix, supported

FEW = 128  # outputs: as many as linear.cu, which reads x and w again for each, should compute. Not measured yet


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


class Linear(Informed):
    """y = x wᵀ + bias (or None), one launch forward and one for all gradients; see linear.cu."""

    def forward(self, x: Array, w: Array, bias: Array | None) -> Array:
        xp, (N, I), O = array_module(x), x.shape, len(w)
        self.x, self.w = xp.ascontiguousarray(x), xp.ascontiguousarray(w)
        bias = None if bias is None else xp.ascontiguousarray(bias)
        y = xp.empty((N, O), x.dtype)
        gpu.launch("linear.cu", f"linear_{suffix(x)}", (N,), (32, 8), [self.x, self.w, bias, y, i32(I), i32(O)])
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        xp, (N, I), O = array_module(dy), self.x.shape, len(self.w)
        shapes = self.x.shape, self.w.shape, (O,)
        wanted = tuple(xp.empty(shape, dy.dtype) if n else None for shape, n in zip(shapes, self.needs, strict=True))
        arguments = [xp.ascontiguousarray(dy), self.x, self.w, *wanted, i32(N), i32(I), i32(O)]
        gpu.launch("linear.cu", f"linear_backward_{suffix(dy)}", (O + N, -(-I // 256)), (256,), arguments)
        return wanted


def few_outputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether it is a matrix of supported numbers, and the outputs are few."""
    return x.ndim == 2 and len(weight) <= FEW and supported(x, weight, bias)


@accepting(few_outputs)
def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias in one operation."""
    return Linear.apply(x, weight, bias)


def _product(a: Array, b: Array) -> Array:
    """a (M, K) @ b (K, N) in a's dtype."""
    xp = array_module(a)
    a, b = (m if cublas.rows_or_columns(m) else xp.ascontiguousarray(m) for m in (a, b))
    out = xp.empty((a.shape[0], b.shape[1]), a.dtype)
    cublas.matmul(a, b, out)
    return out
