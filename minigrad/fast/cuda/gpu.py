"""The CUDA kernels of this folder: their source text, the structs they take by value, and how they are launched.

CuPy compiles a .cu file with NVRTC when one of its kernels is first launched, and keeps the machine code on disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import backend

FOLDER = Path(__file__).parent / "kernels"
OPTIONS = ("-std=c++17",)

# The structs that kernels take by value, field by field as in the .cu files (Conv, of conv3x3.cu, is in tiles.py).
PARAMETER = np.dtype("u8, u8, u8, i8, f4, f4, i4, i4")  # w, dw, velocity; size; momentum, weight decay; nesterov, gap
PARAMETERS = np.dtype([("list", PARAMETER, 64)])  # sgd.cu
POOL = np.dtype(", ".join(["i4"] * 12))  # pool.cu: N H W C OH OW KH KW SH SW PH PW
# augment.cu: N C H W P reflect S; mean and std, a number a channel
AUGMENT = np.dtype([("sizes", "i4", 7), ("mean", "f4", 4), ("std", "f4", 4)])
WINDOW = np.dtype(", ".join(["i4"] * 16))  # im2col.cu: N H W C G KH KW OH OW SH SW PH PW DH DW ld


def kernel_source(name: str, first: Path | None = None) -> str:
    """Return the text of a .cu file with its headers pasted in; a header in the folder `first` takes precedence.

    Pasted, because CuPy's cache of compiled kernels looks at the text alone: it would not see that a header changed.
    """

    def paste(match: re.Match[str]) -> str:
        folder = first if first is not None and (first / match[1]).exists() else FOLDER
        return (folder / match[1]).read_text()

    return re.sub(r'^#include "(\w+\.cuh)"$', paste, (FOLDER / name).read_text(), flags=re.MULTILINE)


@cache
def _kernel(device: int, file: str, name: str, much_shared: bool) -> Any:
    """The kernel, compiled for the current device.

    One that needs more than the usual 48 KiB of shared memory may take all that there is.
    """
    kernel = _module(file).get_function(name)
    if much_shared:
        kernel.max_dynamic_shared_size_bytes = properties().shared_bytes - kernel.shared_size_bytes
    return kernel


@cache
def _module(file: str) -> Any:
    return backend.cupy().RawModule(code=kernel_source(file), options=OPTIONS)


def launch(
    file: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int = 0
) -> None:
    """Launch a kernel on the current stream.

    Arguments are CuPy arrays (their addresses are passed), NumPy scalars of exactly the parameter's type, structured
    arrays with one element (passed by value) and None for a null pointer.
    """
    _kernel(backend.cupy().cuda.runtime.getDevice(), file, name, shared > 48 << 10)(
        grid, block, tuple(np.uint64(0) if a is None else a for a in arguments), shared_mem=shared
    )


class Properties(NamedTuple):
    """What the kernels need to know of a GPU."""

    processors: int  # streaming multiprocessors
    shared_bytes: int  # the most dynamic shared memory a block may ask for
    compute: int  # compute capability: 80 for Ampere, 90 for Hopper


def properties() -> Properties:
    """The current device's properties."""
    return _properties(backend.cupy().cuda.runtime.getDevice())


@cache
def _properties(index: int) -> Properties:
    device = backend.cupy().cuda.Device(index)
    attributes = device.attributes
    return Properties(
        attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"], int(device.compute_capability)
    )


def address(array: Any) -> int:
    """Where a CuPy array's first element lies in the GPU's memory."""
    return array.data.ptr
