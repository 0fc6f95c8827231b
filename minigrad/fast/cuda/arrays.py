"""What the GPU's fast operations share: which arrays they take, and how images lie in memory.

Images keep their public shape (N, C, H, W), but every result is stored channels last, as (N, H, W, C): strides tell, no
flag is needed. `to_nhwc` gives that memory back, without a copy if it was stored so already.
"""

from __future__ import annotations

import numpy as np

from ...backend import Array, array_module
from . import gpu

VECTOR_BYTES = 16  # what a thread of norm.cu and im2col.cu moves at once
OLDEST = {"float32": 60, "bfloat16": 80}  # compute capability: before 8.0 no tensor core multiplies bfloat16
i32, i64, f32 = np.int32, np.int64, np.float32


def suffix(array: Array) -> str:
    """How the kernels of the array's dtype are called: "float32" or "bfloat16"."""
    return array.dtype.name


def supported(*arrays: Array | None) -> bool:
    """True for arrays of one dtype that has kernels, none of them empty, on a GPU that has the instructions.

    The float32 kernels run on every GPU that CuPy compiles for: compute capability 7.5 with CUDA 13, 6.0 with CUDA 12.
    """
    given = [a for a in arrays if a is not None]
    names = {a.dtype.name for a in given}
    oldest = OLDEST.get(names.pop()) if len(names) == 1 else None
    return oldest is not None and all(a.size for a in given) and gpu.properties().compute >= oldest


def aligned(x: Array) -> Array:
    """x in contiguous memory that starts at a multiple of 16 bytes; a copy only if it is not so already."""
    x = array_module(x).ascontiguousarray(x)
    return x.copy() if gpu.address(x) % VECTOR_BYTES else x


def to_nhwc(x: Array) -> Array:
    """x (N, C, H, W) as its channels-last memory (N, H, W, C); a copy only if it is stored otherwise."""
    return aligned(x.transpose(0, 2, 3, 1))


def to_nchw(y: Array) -> Array:
    """Channels-last memory (N, H, W, C) in its public shape (N, C, H, W)."""
    return y.transpose(0, 3, 1, 2)
