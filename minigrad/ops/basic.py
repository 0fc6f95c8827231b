"""Arithmetic, reductions and operations that move data: formula and gradient of each on a few lines.

Every gradient rule has the same form: y = f(a, b), and `backward` returns dy multiplied by ∂y/∂a and ∂y/∂b. Where
inputs broadcast, the rule is written as if they had y's shape; the engine sums the gradient back (`unbroadcast`).
Below the classes stand the functions of tensors that a program calls; operators.py gives them to `Tensor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from ..backend import Array, array_module, device_of, float_dtype, to_device, total, widened
from ..diagnosis import shown
from ..tensor import Function, Tensor
from .arguments import as_axes, as_pair, as_shape, check_broadcast, check_concat, check_tensors, check_two, filled_axes


class Broadcasting(Function):
    """A binary operation on shapes that broadcast as in NumPy."""

    broadcasts = True
    inner = 0  # how many of the last axes do not take part

    @classmethod
    def _check(cls, arrays: tuple[Array | None, ...]) -> str:
        check_two(cls.__name__, arrays)
        a, b = (x.shape for x in arrays)  # type: ignore[union-attr]
        check_broadcast(cls.__name__, a, b, cls.inner)
        return super()._check(arrays)


class Add(Broadcasting):
    """y = a + b,  da = dy,  db = dy."""

    def forward(self, a: Array, b: Array) -> Array:
        return a + b

    def backward(self, dy: Array) -> tuple[Array, Array]:
        return dy, dy


class Subtract(Broadcasting):
    """y = a - b,  da = dy,  db = -dy."""

    def forward(self, a: Array, b: Array) -> Array:
        return a - b

    def backward(self, dy: Array) -> tuple[Array, Array]:
        return dy, -dy


class Multiply(Broadcasting):
    """y = a b,  da = dy b,  db = dy a."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return a * b

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        return dy * self.b if self.needs[0] else None, dy * self.a if self.needs[1] else None


class Divide(Broadcasting):
    """y = a / b,  da = dy / b,  db = -dy a / b²."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return a / b

    def backward(self, dy: Array) -> tuple[Array, Array | None]:
        da = dy / self.b
        return da, -da * self.a / self.b if self.needs[1] else None


class Power(Broadcasting):
    """y = aᵖ,  da = dy p aᵖ⁻¹ (0 where p = 0),  dp = dy y log a (0 where a = 0 and p ≥ 0)."""

    def forward(self, a: Array, p: Array) -> Array:
        self.a, self.p = a, p
        y = a**p
        self.y = y if self.needs[1] else None
        return y

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        a, p, xp = self.a, self.p, array_module(dy)
        one = a.dtype.type(1)
        # CuPy's `where` turns bfloat16 into float32.
        da = dy * p * a ** xp.where(p == 0, p, p - 1).astype(a.dtype, copy=False) if self.needs[0] else None
        log_a = xp.log(xp.where((a == 0) & (p >= 0), one, a).astype(a.dtype, copy=False)) if self.needs[1] else None
        return da, dy * self.y * log_a if self.needs[1] else None


class Negate(Function):
    """y = -x,  dx = -dy."""

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, dy: Array) -> Array:
        return -dy


class Exp(Function):
    """y = eˣ,  dx = dy y."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).exp(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * self.y


class Log(Function):
    """y = log x (natural),  dx = dy / x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).log(x)

    def backward(self, dy: Array) -> Array:
        return dy / self.x


class Sqrt(Function):
    """y = √x,  dx = dy / (2 y)."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).sqrt(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy / (2 * self.y)


class Sum(Function):
    """y = s Σ x over `axes`, in `dtype`,  dx = s dy repeated along them. The scale s of a mean is 1/n, of a sum 1."""

    def forward(
        self, x: Array, *, axes: tuple[int, ...], keepdims: bool, scale: float = 1.0, dtype: np.dtype | None = None
    ) -> Array:
        self.axes, self.shape, self.scale, self.dtype = axes, x.shape, scale, x.dtype
        return (scale * total(x.astype(dtype or x.dtype, copy=False), axes, keepdims)).astype(dtype or x.dtype)

    def backward(self, dy: Array) -> Array:
        kept = tuple(1 if i in self.axes else n for i, n in enumerate(self.shape))
        return array_module(dy).broadcast_to((self.scale * dy).astype(self.dtype).reshape(kept), self.shape)


class Max(Function):
    """y = max x over `axes`,  dx = dy where x is the largest, in equal shares where several are."""

    def forward(self, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        y = x.max(axis=axes, keepdims=True)
        largest = (x == y) | (x != x)  # NaN is passed on, not hidden
        self.share = largest / largest.sum(axis=axes, keepdims=True).astype(x.dtype)
        self.kept = y.shape
        return y if keepdims else y.reshape(tuple(n for i, n in enumerate(x.shape) if i not in axes))

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.kept) * self.share


class Moving(Function):
    """An operation that computes no values, it only moves them: it takes integers and booleans too."""

    any_dtype = True


class Reshape(Moving):
    """The same values in another shape; dx is dy in the old one."""

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)


class Transpose(Moving):
    """Axis i of y is axis `axes[i]` of x; dx is dy with the axes put back."""

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        self.inverse = tuple(int(i) for i in np.argsort(axes))
        return x.transpose(axes)

    def backward(self, dy: Array) -> Array:
        return dy.transpose(self.inverse)


class Index(Moving):
    """y = x[index],  dx = zeros with dy added at the same index: an element that was picked twice gets both."""

    def forward(self, x: Array, *, index: Any) -> Array:
        self.index, self.shape = deepcopy(index), x.shape  # the caller may go on to change an index array
        return x[index]

    def backward(self, dy: Array) -> Array:
        xp = array_module(dy)
        # Where many entries meet at one index their sum would be rounded at every step.
        dx = xp.zeros(self.shape, np.float64)
        xp.add.at(dx, self.index, widened(dy))
        return dx.astype(dy.dtype, copy=False)


class Concat(Moving):
    """Tensors joined along `axis`; each gets its slice of dy."""

    def forward(self, *xs: Array, axis: int) -> Array:
        self.axis, self.ends = axis, np.cumsum([x.shape[axis] for x in xs])[:-1].tolist()
        return array_module(*xs).concatenate(xs, axis=axis)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        return tuple(array_module(dy).split(dy, self.ends, axis=self.axis))


class Pad(Moving):
    """Zeros before and after every axis; dx is the part of dy between them."""

    def forward(self, x: Array, *, widths: tuple[tuple[int, int], ...]) -> Array:
        self.inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
        return array_module(x).pad(x, widths)

    def backward(self, dy: Array) -> Array:
        return dy[self.inside]


class To(Moving):
    """The same values on another device or in another precision; dx travels back."""

    def forward(self, x: Array, *, device: str, dtype: np.dtype) -> Array:
        self.device, self.dtype = device_of(x), x.dtype
        return to_device(x, device).astype(dtype)

    def backward(self, dy: Array) -> Array:
        return to_device(dy, self.device).astype(self.dtype)


def exp(x: Tensor) -> Tensor:
    """eˣ, element by element."""
    return Exp.apply(x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm, element by element."""
    return Log.apply(x)


def sqrt(x: Tensor) -> Tensor:
    """√x, element by element."""
    return Sqrt.apply(x)


def sum(x: Tensor, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Σ x over one axis, several, or all (None)."""
    return Sum.apply(x, axes=as_axes("sum", axis, x), keepdims=bool(keepdims))


def mean(x: Tensor, axis: int | Sequence[int] | None = None, keepdims: bool = False, dtype: Any = None) -> Tensor:
    """The mean over one axis, several, or all (None). Raises ValueError where there is nothing to average.

    It is computed and returned in `dtype`, x's unless given: what follows may want more digits than bfloat16 has.
    """
    axes, dtype = filled_axes("mean", axis, x), x.dtype if dtype is None else float_dtype(dtype, x.device)
    return Sum.apply(
        x, axes=axes, keepdims=bool(keepdims), scale=1.0 / math.prod(x.shape[a] for a in axes), dtype=dtype
    )


def max(x: Tensor, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The largest value over one axis, several, or all (None). Raises ValueError where there is nothing to compare."""
    return Max.apply(x, axes=filled_axes("max", axis, x), keepdims=bool(keepdims))


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same values, in row-major order, in another shape; one size may be -1. ValueError if it does not fit."""
    return Reshape.apply(x, shape=as_shape(shape, x))


def transpose(x: Tensor, *axes: Any) -> Tensor:
    """The axes in another order (reversed if none is given). Raises ValueError if they are no permutation."""
    given = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
    order = as_axes("transpose", given, x) or tuple(range(x.ndim))[::-1]
    if len(order) != x.ndim:
        raise ValueError(f"transpose needs each of the {x.ndim} axes once, got {order}")
    return Transpose.apply(x, axes=order)


def index(x: Tensor, index: Any) -> Tensor:
    """x[index] with NumPy's rules. Raises IndexError, as NumPy does, where the index does not fit."""
    parts = index if isinstance(index, tuple) else (index,)
    return Index.apply(x, index=tuple(p.data if isinstance(p, Tensor) else p for p in parts))


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join tensors along an axis; all other sizes must be equal, or ValueError names the shapes."""
    return Concat.apply(*tensors, axis=check_concat(tensors, axis))


def pad(x: Tensor, widths: Sequence[tuple[int, int]]) -> Tensor:
    """Put `widths[i] = (before, after)` zeros around axis i. Raises ValueError for negative or missing widths."""
    check_tensors("pad", x=x)
    widths = widths.tolist() if isinstance(widths, np.ndarray) else widths
    if not isinstance(widths, tuple | list) or len(widths) != x.ndim:
        raise ValueError(f"pad needs a pair (before, after) for each of the {x.ndim} axes, got {shown(widths)}")
    pairs = tuple(as_pair(pair, "a width of pad", 0) for pair in widths)
    return Pad.apply(x, widths=pairs) if pairs else x


def to(x: Tensor, device: str | None = None, dtype: Any = None) -> Tensor:
    """The tensor on another device or in another precision, itself if it is so already; gradients travel back."""
    check_tensors("to", x=x)
    device = x.device if device is None else str(device)
    dtype = x.dtype if dtype is None else float_dtype(dtype, device)
    return x if (device, dtype) == (x.device, x.dtype) else To.apply(x, device=device, dtype=dtype)
