"""Nonlinear functions of one tensor: ReLU, sigmoid, tanh, softmax, and dropout."""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module, generator, total
from ..tensor import Function, Tensor
from .arguments import as_probability, check_tensors, one_axis


class ReLU(Function):
    """y = max(x, 0),  dx = dy where x > 0 and 0 elsewhere (at the kink x = 0 too, by convention)."""

    def forward(self, x: Array) -> Array:
        # x > 0 exactly where y > 0. So backward can ask y, which the next operation often keeps too, and x can go.
        self.y = array_module(x).maximum(x, 0)
        return self.y

    def backward(self, dy: Array) -> Array:
        # `where` would take many times as long on a CPU. (But an infinite dy leaves NaN where it meets a 0.)
        return dy * (self.y > 0)


class Sigmoid(Function):
    """y = 1 / (1 + e⁻ˣ),  dx = dy y (1 - y)."""

    def forward(self, x: Array) -> Array:
        with np.errstate(over="ignore"):  # far below 0 e⁻ˣ is infinite, and 1/∞ = 0 is right
            self.y = 1 / (1 + array_module(x).exp(-x))
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * self.y * (1 - self.y)


class Tanh(Function):
    """y = tanh x,  dx = dy (1 - y²)."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).tanh(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (1 - self.y * self.y)


def log_softmax_array(x: Array, axis: int) -> Array:
    """x - log Σ eˣ along `axis`; the largest x is subtracted first, so that no exponential overflows."""
    shifted = x - x.max(axis=axis, keepdims=True)
    xp = array_module(x)
    return shifted - xp.log(total(xp.exp(shifted), axis, keepdims=True))


class Softmax(Function):
    """yᵢ = e^xᵢ / Σⱼ e^xⱼ along `axis`,  dx = y (dy - Σⱼ dyⱼ yⱼ)."""

    def forward(self, x: Array, *, axis: int) -> Array:
        self.axis = axis
        self.y = array_module(x).exp(log_softmax_array(x, axis))
        return self.y

    def backward(self, dy: Array) -> Array:
        return self.y * (dy - total(dy * self.y, self.axis, keepdims=True))


class LogSoftmax(Function):
    """yᵢ = xᵢ - log Σⱼ e^xⱼ along `axis`,  dx = dy - softmax(x) Σⱼ dyⱼ."""

    def forward(self, x: Array, *, axis: int) -> Array:
        self.axis, self.y = axis, log_softmax_array(x, axis)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy - array_module(dy).exp(self.y) * total(dy, self.axis, keepdims=True)


class Dropout(Function):
    """y = x m / (1 - p) with m drawn 0 with probability p, else 1;  dx = dy m / (1 - p)."""

    def forward(self, x: Array, *, p: float) -> Array:
        kept = generator().random(x.shape) >= p
        self.scale = array_module(x).asarray(kept).astype(x.dtype) * x.dtype.type(1 / (1 - p))
        return x * self.scale

    def backward(self, dy: Array) -> Array:
        return dy * self.scale


def relu(x: Tensor) -> Tensor:
    """max(x, 0), element by element (Nair & Hinton, ICML 2010)."""
    return ReLU.apply(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e⁻ˣ), element by element."""
    return Sigmoid.apply(x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, element by element."""
    return Tanh.apply(x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """e^xᵢ / Σⱼ e^xⱼ: positive numbers along `axis` that sum to 1."""
    return Softmax.apply(x, axis=one_axis("softmax", axis, x))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """xᵢ - log Σⱼ e^xⱼ: the logarithm of the softmax, exact where the softmax itself would round to 0."""
    return LogSoftmax.apply(x, axis=one_axis("log_softmax", axis, x))


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each value with probability p and scale the others by 1 / (1 - p); nothing when not training.

    The mean of y is x (Srivastava et al., JMLR 2014, in its inverted form). Raises ValueError unless 0 <= p < 1.
    """
    check_tensors("dropout", x=x)
    p = as_probability(p, "dropout")
    return Dropout.apply(x, p=p) if training and p > 0 else x
