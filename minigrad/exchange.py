"""What others see in a `Tensor`: NumPy's functions, copies and pickles, DLPack (PyTorch, JAX), CUDA's array interface.

np.exp(t), np.sum(t, axis=0), array + t          minigrad's own operations: the gradient is kept
np.isnan(t), np.argmax(t), np.allclose(t, u)     what has no gradient, of the values
np.clip(t, 0, 1), np.einsum("ij->j", t)          of the values alone, or a TypeError where it would lose a gradient
np.asarray(t), t.numpy(), np.from_dlpack(t)      the values, asked for by name, in the tensor's memory where possible
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ops
from .backend import check_dtype, cupy
from .ops.operators import OPERATORS
from .tensor import Tensor, wants_gradient

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
    np.less: OPERATORS["__lt__"],
    np.less_equal: OPERATORS["__le__"],
    np.greater: OPERATORS["__gt__"],
    np.greater_equal: OPERATORS["__ge__"],
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


# What to write in place of functions that are used often and are not there, for tensors t, a and b. A mask may be an
# array or a tensor of truth values, which are no numbers yet.
INSTEAD = {
    "np.absolute": "F.relu(t) + F.relu(-t)",
    "np.clip": "low + F.relu(t - low) - F.relu(t - high)",
    "np.dot": "a @ b",
    "np.linalg.norm": "(t * t).sum().sqrt()",
    "np.maximum": "b + F.relu(a - b)",
    "np.min": "-F.max(-t)",
    "np.minimum": "b - F.relu(b - a)",
    "np.ravel": "t.reshape(-1)",
    "np.repeat": "t[rows] with rows = np.repeat(np.arange(len(t)), 2)",
    "np.square": "t * t",
    "np.stack": "F.concat([a.reshape(1, *a.shape), b.reshape(1, *b.shape)])",
    "np.std": "((t - t.mean()) ** 2).mean().sqrt()",
    "np.var": "((t - t.mean()) ** 2).mean()",
    "np.vstack": "F.concat([a, b])",
    "np.where": "m * a + (1 - m) * b with m = Tensor(mask, dtype=a.dtype)",
}


WRITERS = {"at", "copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal"}  # into an array they are given


def values_of(inputs: Any) -> Any:
    """Return what NumPy gets in place of tensors, in lists too: their values."""
    if isinstance(inputs, tuple | list):
        return [values_of(i) for i in inputs] if isinstance(inputs, list) else tuple(values_of(i) for i in inputs)
    return np.asarray(inputs) if isinstance(inputs, Tensor) else inputs


def compute_on_values(name: str, function: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What NumPy's function returns for the values; TypeError where somebody could miss the gradient of that.

    Nobody can where no tensor requires one or nothing is recorded, nor that of integers, truth values, text and zeros.
    """
    lossy = wants_gradient([*inputs, *options.values()])
    if not lossy or not (options.get("out") or function.__name__ in WRITERS):
        result = function(*values_of(inputs), **{key: values_of(value) for key, value in options.items()})
        if not lossy or not has_floats(result) or function in (np.zeros_like, np.ones_like, np.empty_like):
            return result
    instead = (
        f"{name} without out, and n = n + t for n += t"
        if options.get("out")
        else INSTEAD.get(name, "it with the operations of minigrad.functional")
    )
    raise TypeError(f"{name} would lose the gradient: write {instead}, or {name}(t.numpy()) for the values alone")


def has_floats(result: Any) -> bool:
    """Whether there are floating-point or complex numbers in what a function returned."""
    if isinstance(result, tuple | list):
        return any(map(has_floats, result))
    return isinstance(result, np.ndarray | np.generic | float) and np.asarray(result).dtype.kind in "fc"


def array_ufunc(t: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
    """What NumPy calls for its element-wise functions, `np.exp(t)` and `array + t` among them."""
    if ufunc in CALLS and method == "__call__" and not options:
        return CALLS[ufunc](*inputs)
    name = f"np.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")
    return compute_on_values(name, getattr(ufunc, method), inputs, options)


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
    return compute_on_values(
        f"{function.__module__.replace('numpy', 'np', 1)}.{function.__name__}", function, inputs, options
    )


def state(t: Tensor) -> tuple[None, dict[str, Any]]:
    """What a copy or a pickle takes along: all but the notes. Only leaves have one."""
    if t.node is not None:
        raise TypeError(
            f"a tensor that was computed, of shape {t.shape}, cannot be copied or pickled: detach() it first"
        )
    return None, {
        **{name: getattr(t, name) for name in ("grad", "node", "requires_grad", "memory")},
        "_array": t.data,
        "_notes": None,
    }


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
    "__getstate__": state,
    "__array__": array,
    "__int__": lambda t: int(t.item()),
    "__index__": lambda t: t.data.__index__(),
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
    # The device's kind is kDLCUDA, 2, for memory on a GPU.
    return Tensor._of(check_dtype((cupy() if source.__dlpack_device__()[0] == 2 else np).from_dlpack(source)))
