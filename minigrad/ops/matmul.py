"""Matrix products, and the linear layer that is one."""

from __future__ import annotations

from typing import Any

from ..backend import Array, matmul
from ..registry import choose
from ..tensor import Tensor
from .arguments import as_tensors, check_linear, check_product
from .basic import Broadcasting


class MatMul(Broadcasting):
    """y = a b over the last two axes,  da = dy bᵀ,  db = aᵀ dy. Leading axes broadcast."""

    inner = 2

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return matmul(a, b)  # (..., M, K) @ (..., K, N) = (..., M, N)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        return (
            matmul(dy, self.b.swapaxes(-1, -2)) if self.needs[0] else None,  # (..., M, N) @ (..., N, K) = (..., M, K)
            matmul(self.a.swapaxes(-1, -2), dy) if self.needs[1] else None,  # (..., K, M) @ (..., M, N) = (..., K, N)
        )


def matrix_product(a: Any, b: Any) -> Tensor:
    """The matrix product a @ b with NumPy's rules: vectors are allowed, leading axes broadcast.

    Raises ValueError where the inner sizes differ or an operand has no axis.
    """
    a, b = as_tensors("matrix_product", a, b)
    check_product(a, b)
    if a.ndim > 1 and b.ndim > 1:
        return MatMul.apply(a, b)
    row = a.reshape(1, -1) if a.ndim == 1 else a
    column = b.reshape(-1, 1) if b.ndim == 1 else b
    y = MatMul.apply(row, column)
    kept = y.shape[:-2] + (y.shape[-2:-1] if a.ndim > 1 else ()) + (y.shape[-1:] if b.ndim > 1 else ())
    return y.reshape(kept)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x weightᵀ + bias:  (N, I) @ (I, O) + (O,) = (N, O), with weights (O, I) as PyTorch keeps them.

    Raises ValueError where the number of features differs.
    """
    check_linear(x, weight, bias)
    return choose(affine, x.device, x, weight, bias)(x, weight, bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias by the operations that there are: their gradients are dy weight, dyᵀ x and Σ dy."""
    y = x @ weight.transpose()
    return y if bias is None else y + bias
