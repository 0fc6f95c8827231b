"""What stands behind `a + b`, `x[0]` and `x.sum()`: the operators and methods of `Tensor`, in one table."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from ..tensor import Function, Tensor, recording
from .activation import relu, sigmoid, tanh
from .arguments import as_tensors, check_broadcast
from .basic import (
    Add,
    Divide,
    Multiply,
    Negate,
    Power,
    Subtract,
    exp,
    index,
    log,
    max,
    mean,
    reshape,
    sqrt,
    sum,
    to,
    transpose,
)
from .matmul import matrix_product


def binary(operation: type[Function]) -> Callable[[Any, Any], Tensor]:
    """The operation on two tensors, or on a tensor and a number or array on either side."""
    return lambda a, b: operation.apply(*as_tensors(operation.__name__, a, b))


def comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Tensor]:
    """A comparison of the values, element by element: a boolean tensor."""

    def compared(a: Any, b: Any) -> Tensor:
        if a is None or b is None:  # left to Python, for which nothing but None equals None
            return NotImplemented
        a, b = as_tensors(compare.__name__, a, b)
        check_broadcast(compare.__name__, a.shape, b.shape)
        return Tensor._of(compare(a.data, b.data))

    return compared


def refuse_in_place(w: Tensor, change: Any) -> Any:
    """`w -= lr * dw` of a parameter, or inside no_grad(): Python would make a new tensor w, the leaf would stay."""
    if w.node is None and (type(w) is not Tensor or (w.requires_grad and not recording())):
        raise TypeError("w -= change would make a new tensor and leave w as it is: write w.data -= change, an array")
    return NotImplemented  # elsewhere w = w - change is what is meant


TWO_SIDED = {
    "add": binary(Add),
    "sub": binary(Subtract),
    "mul": binary(Multiply),
    "truediv": binary(Divide),
    "pow": binary(Power),
    "matmul": matrix_product,
}
OPERATORS: dict[str, Any] = {
    **{f"__{name}__": function for name, function in TWO_SIDED.items()},
    **{f"__r{name}__": lambda b, a, function=function: function(a, b) for name, function in TWO_SIDED.items()},
    **dict.fromkeys((f"__i{name}__" for name in TWO_SIDED), refuse_in_place),
    "__neg__": lambda x: Negate.apply(x),
    "__getitem__": index,
    **{f"__{name}__": comparison(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "T": property(transpose),
    **{f.__name__: f for f in (exp, log, sqrt, relu, sigmoid, tanh, sum, mean, max, reshape, transpose, to)},
}
for name, function in OPERATORS.items():
    setattr(Tensor, name, function)
