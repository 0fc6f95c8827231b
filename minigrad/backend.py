"""Where arrays live: NumPy arrays on the CPU, CuPy arrays on a CUDA device.

The rest of minigrad is written once, against the interface that the two libraries share: a function asks
`xp = array_module(x)` and computes with `xp`. This is the only file that imports CuPy, and it does so on first use, so
a machine without a GPU never notices.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from . import diagnosis

Array = Any  # an np.ndarray or a cupy.ndarray: the two share an interface but no base class


class DeviceError(ValueError):
    """A device that cannot be used here; the sentence says what is missing and what to install."""


def import_optional(package: str, needed_by: str, install: str) -> ModuleType:
    """Import and return a package that not everybody has, or raise `DeviceError` with what needs it and a remedy."""
    try:
        return import_module(package)
    except ImportError:
        raise DeviceError(f"{needed_by} needs {package}, which is not installed: pip install {install}") from None


def cupy() -> ModuleType:
    """Return the CuPy module, or raise `DeviceError` with what to install when there is no CuPy or no GPU."""
    cupy = import_optional("cupy", "device 'cuda'", "'cupy-cuda13x[ctk]' ml_dtypes (for CUDA 12: 'cupy-cuda12x[ctk]')")
    if cupy is not _usable.get("cupy") and (reason := diagnosis.unusable(cupy)):
        raise DeviceError(reason)
    _usable["cupy"] = cupy
    return cupy


_usable: dict[str, ModuleType] = {}  # CuPy, once it has been found to work: asked for at every launch


def array_module(*arrays: Array) -> ModuleType:
    """Return `cupy` if any of the arrays is a CuPy array, else `numpy`."""
    if all(isinstance(a, np.ndarray | np.generic) or a is None for a in arrays):
        return np
    # A CuPy array can only exist where CuPy has been imported.
    loaded = sys.modules.get("cupy")
    if loaded is not None and any(isinstance(a, loaded.ndarray) for a in arrays):
        return loaded
    return np


def is_array(value: Any) -> bool:
    """True for arrays (and scalars) of NumPy and arrays of CuPy."""
    return isinstance(value, np.ndarray | np.generic) or array_module(value) is not np


class Memory:
    """What tensors share that share their memory: how often it was changed in place, and as which array last."""

    changes, array = 0, None


def share_memory(a: Array, b: Array) -> bool:
    """Whether two arrays are views of one array, be it of parts that do not overlap."""
    return owner(a) is owner(b)


def owner(array: Array) -> Any:
    """The array whose memory this one shows a part of; itself if it is no view."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def device_of(array: Array) -> str:
    """Return the name of the array's device: "cpu", "cuda" (the first GPU) or "cuda:1", "cuda:2", ..."""
    if array_module(array) is np:
        return "cpu"
    return f"cuda:{array.device.id}" if array.device.id else "cuda"


def device_kind(device: str) -> str:
    """Return "cpu" or "cuda": a device's name without its index."""
    return device.partition(":")[0]


def device_index(device: str) -> int:
    """Return i of "cuda:i" (0 for plain "cuda"); raise `DeviceError` for a name that is no GPU's."""
    name, _, index = str(device).partition(":")
    if name != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise DeviceError(f"unknown device {diagnosis.shown(device)}: use 'cpu', 'cuda' or 'cuda:<index>'")
    return int(index or 0)


def check_device(device: str) -> int | None:
    """Raise `DeviceError` where a device cannot be used; return a GPU's index, None for the CPU.

    It only asks the driver: a process that looks and does not compute takes none of the GPU's memory.
    """
    if isinstance(device, str) and device == "cpu":
        return None
    index = device_index(device)
    if reason := diagnosis.not_here(cupy(), index):
        raise DeviceError(reason)
    return index


def to_device(array: Array, device: str) -> Array:
    """Return the array on the named device: the array itself if it is there already, else a copy.

    A GPU becomes the current one: kernels run on the current device, wherever their arrays are.
    """
    if (index := check_device(device)) is None:
        return to_numpy(array)
    cupy().cuda.Device(index).use()
    return array.copy() if array_module(array) is cupy() and array.device.id != index else cupy().asarray(array)


def to_numpy(array: Array) -> np.ndarray:
    """Return the array in the host's memory (a CuPy array is copied, after its pending kernels have finished)."""
    return np.asarray(array) if array_module(array) is np else array.get()


def synchronize(device: str) -> None:
    """Wait until everything that was launched on the device has run; nothing to wait for on the CPU."""
    if device != "cpu":
        cupy().cuda.Device(device_index(device)).synchronize()


def capturing(array: Array) -> bool:
    """True while the current stream of the array's device records a CUDA graph: no value can be read then."""
    xp = array_module(array)
    return xp is not np and bool(xp.cuda.get_current_stream().is_capturing())


def float_dtype(name: Any, device: str = "cpu") -> np.dtype:
    """Return the NumPy dtype of "float32", "float64" or, on CUDA only, "bfloat16"; raise ValueError otherwise."""
    if str(name) == "bfloat16":
        if str(device) == "cpu":
            raise ValueError("bfloat16 is computed on CUDA devices only: use float32 or float64 on the CPU")
        return np.dtype(import_optional("ml_dtypes", "bfloat16", "ml_dtypes").bfloat16)
    dtype = np.dtype(name)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype {dtype} is not one that minigrad computes in: use float32, float64 or bfloat16 (CUDA)")
    return dtype


def is_float(dtype: np.dtype) -> bool:
    """True for the dtypes that gradients are computed in: float32, float64 and bfloat16."""
    return dtype in (np.float32, np.float64) or dtype.name == "bfloat16"


def check_dtype(array: Array) -> Array:
    """Return the array; TypeError where its numbers are none that a tensor holds."""
    if array.dtype.kind not in "biu" and not is_float(array.dtype):
        kinds = "float32, float64, integers or booleans"
        raise TypeError(f"a Tensor holds {kinds}, not {array.dtype}: convert the data first")
    return array


def check_array(value: Any) -> Array:
    """Return an array that a tensor may hold; TypeError for what is none.

    A 0-d array times a number is a scalar in NumPy: it becomes an array again, which can be changed in place. A
    subclass becomes a plain array, because it may compute otherwise: to np.matrix, x * y is the matrix product.
    """
    if not is_array(value):
        raise TypeError(f"Tensor.data is an array of NumPy or CuPy, got {type(value).__name__}: Tensor(...) takes more")
    return check_dtype(np.asarray(value) if array_module(value) is np else value)


def check_gradient(gradient: Any, shape: tuple[int, ...], whose: str) -> None:
    """Raise TypeError or ValueError where `.grad`, which anybody may set, is no array of numbers of this shape."""
    if not is_array(gradient) or not (gradient.dtype.kind in "iu" or is_float(gradient.dtype)):
        kind = getattr(gradient, "dtype", type(gradient).__name__)
        raise TypeError(f"{whose} of shape {shape} has a gradient that is no array of numbers, but {kind}")
    if gradient.shape != shape:
        raise ValueError(f"{whose} of shape {shape} has a gradient of shape {gradient.shape}")


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b; half precision is multiplied in float32, because CuPy 14 has no batched product for bfloat16.

    A BLAS adds up a long inner axis in float32: 5 million products are off by 1 %. So it gets 4,096 at a time, and the
    results are added up in float64: the error is at most 4096 · 2⁻²⁴ Σ|ab|, however long the axis is.
    """
    dtype, a, b = a.dtype, widened(a), widened(b)
    pieces = [slice(start, start + 4096) for start in range(0, a.shape[-1], 4096)]
    if len(pieces) <= 1:
        return (a @ b).astype(dtype, copy=False)
    return sum((a[..., piece] @ b[..., piece, :]).astype(np.float64) for piece in pieces).astype(dtype)


def total(array: Array, axis: Any, keepdims: bool = False) -> Array:
    """Return the sum along `axis`, added up in float64.

    NumPy adds along most axes one number after the other: 5 million times 0.1 make 478,275 in float32, and a sum of
    ones stops at 256 in bfloat16. In float64 n numbers x are added with an error of at most n 2⁻⁵³ Σ|x|, so that the
    result is the exact sum, rounded once, wherever it is not tiny against Σ|x|.
    """
    return widened(array).sum(axis=axis, keepdims=keepdims, dtype=np.float64).astype(array.dtype, copy=False)


def widened(array: Array) -> Array:
    """Return the array, in float32 where it is in bfloat16, which CuPy turns into no other dtype."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def unbroadcast(dx: Array, shape: tuple[int, ...]) -> Array:
    """Sum `dx` over the axes along which an input of `shape` was repeated: the transpose of broadcasting."""
    lead = max(dx.ndim - len(shape), 0)
    repeated = tuple(i for i in range(dx.ndim) if i < lead or shape[i - lead] == 1)
    dx = total(dx, repeated, keepdims=True)
    return dx.reshape(dx.shape[lead:])


# Random numbers are drawn on the host, whatever the device: the same seed gives the same run on a CPU and on a GPU.
_generator = np.random.default_rng(0)


def manual_seed(seed: int) -> None:
    """Start the random numbers of initialisation and dropout anew from `seed`, a non-negative integer."""
    global _generator
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"a seed is an integer, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"a seed must not be negative, got {seed}")
    _generator = np.random.default_rng(seed)


def generator() -> np.random.Generator:
    """Return the generator that initialisation and dropout draw from (its `bit_generator.state` can be saved)."""
    return _generator
