"""What other libraries see in a `Tensor`: NumPy's functions, DLPack (PyTorch, JAX), CUDA's array interface (CuPy).

np.exp(t), np.sum(t, axis=0), array + t         minigrad's own operations: the gradient is kept
np.asarray(t), np.median(t), np.from_dlpack(t)  the values, in the tensor's memory where possible: no gradient
np.maximum(t, 0)                                a TypeError that says what to write: it could not keep the gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ops
from .backend import check_dtype, cupy
from .ops.operators import OPERATORS
from .tensor import Tensor

# NumPy's functions that are operations of minigrad.
CALLS: dict[Any, Callable[..., Any]] = {
    np.add: OPERATORS["__add__"],
    np.subtract: OPERATORS["__sub__"],
    np.multiply: OPERATORS["__mul__"],
    np.divide: OPERATORS["__truediv__"],
    np.power: OPERATORS["__pow__"],
    np.matmul: OPERATORS["__matmul__"],
    np.negative: OPERATORS["__neg__"],
    np.equal: OPERATORS["__eq__"],
    np.not_equal: OPERATORS["__ne__"],
    np.exp: ops.exp,
    np.log: ops.log,
    np.sqrt: ops.sqrt,
    np.tanh: ops.tanh,
    np.sum: ops.sum,
    np.mean: ops.mean,
    np.max: ops.max,
    np.reshape: ops.reshape,
    np.transpose: ops.transpose,
    np.concatenate: ops.concat,
    np.pad: ops.pad,
}


SECOND = ("axis", "axes", "shape", "pad_width")  # what NumPy calls the second argument of these functions


def array_ufunc(t: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
    """What NumPy calls for its element-wise functions, `np.exp(t)` and `array + t` among them."""
    if {"d->?", "dd->?"} & set(ufunc.types) and ufunc not in CALLS:  # from floats to true or false, such as np.isnan
        return getattr(ufunc, method)(*(i.numpy() if isinstance(i, Tensor) else i for i in inputs), **options)
    if ufunc not in CALLS or method != "__call__" or options:
        name = ufunc.__name__ + ("" if method == "__call__" else f".{method}")
        raise TypeError(
            f"np.{name} is no operation of minigrad's, and would lose the gradient: compose it of those in "
            f"minigrad.functional, or write np.{name}(t.numpy()) for the values alone"
        )
    return CALLS[ufunc](*inputs)


class ArrayUfunc:
    """`Tensor.__array_ufunc__`. NumPy asks the class and gets the function above.

    CuPy asks the tensor: None tells it to leave `array + t` to `Tensor.__radd__`, which keeps the gradient.
    """

    def __get__(self, t: Tensor | None, cls: Any = None) -> Callable[..., Any] | None:
        return array_ufunc if t is None or t.device == "cpu" else None


def array_function(t: Tensor, function: Any, types: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What NumPy calls for all its other functions: ours where there is one, else its own on the values.

    Ours take the array and one thing more (axis, shape or widths) in their places, and keepdims by name; at NumPy's
    third place stand a dtype, an order or a mode, which they do not know.
    """
    if function in CALLS:
        named = [options.pop(name) for name in SECOND if name in options]
        if len(inputs) + len(named) > 2 or options.keys() - {"keepdims"}:
            unknown = ", ".join(sorted(options.keys() - {"keepdims"})) or "a third argument in its place"
            raise TypeError(
                f"np.{function.__name__} of a tensor does not take {unknown}: give it to np.{function.__name__} of "
                "t.numpy(), for the values alone"
            )
        return CALLS[function](*inputs, *named, **options)
    return np.ndarray.__array_function__(np.empty(0), function, (), inputs, options)


def array(t: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """What NumPy calls for `np.asarray(t)`."""
    if t.device != "cpu":
        raise TypeError(f"NumPy cannot read a tensor on {t.device}: call .numpy() to copy it to the host")
    return np.array(t.data, dtype=dtype, copy=copy)


def cuda_array_interface(t: Tensor) -> dict:
    """How CuPy, Numba and others read a tensor on a GPU."""
    if t.device == "cpu":
        raise AttributeError("a tensor on the CPU has no __cuda_array_interface__")
    return t.data.__cuda_array_interface__


PROTOCOLS = {
    "__array__": array,
    "__array_ufunc__": ArrayUfunc(),
    "__array_function__": array_function,
    "__cuda_array_interface__": property(cuda_array_interface),
    "__dlpack__": lambda t, **options: t.data.__dlpack__(**options),
    "__dlpack_device__": lambda t: t.data.__dlpack_device__(),
}
for name, protocol in PROTOCOLS.items():
    setattr(Tensor, name, protocol)


def from_dlpack(source: Any) -> Tensor:
    """Wrap the memory of another library's array (PyTorch, JAX, CuPy, NumPy, ...) without a copy, through DLPack.

    Raises TypeError for what has no such protocol, and for arrays of numbers that a tensor cannot hold.
    """
    if not hasattr(source, "__dlpack_device__"):
        raise TypeError(f"from_dlpack needs an array that knows DLPack, got {type(source).__name__}: try Tensor(...)")
    on_gpu = source.__dlpack_device__()[0] == 2  # kDLCUDA
    return Tensor._of(check_dtype((cupy() if on_gpu else np).from_dlpack(source)))
