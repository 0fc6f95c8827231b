"""What keeps a GPU from being used, in one sentence, for whoever would otherwise meet CUDA's own messages.

And how a wrong value is quoted in a sentence of any kind.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

CUPY = 14  # the oldest CuPy that computes with bfloat16
OLDEST = {12: 60, 13: 75}  # the oldest compute capability that a CUDA version's kernels run on here: 75 is 7.5
DRIVER = {12: "525", 13: "580"}  # the oldest driver for a CUDA version (CUDA Toolkit release notes, table 3)


def shown(value: Any) -> str:
    """A value as it appears in a sentence: in one line, and of a long one the beginning."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # an integer of 5,000 digits, an object's own mistake
        text = f"a value of type {type(value).__name__} that cannot be printed ({type(error).__name__})"
    return text if len(text) <= 80 else text[:77] + "..."


class GPUError(RuntimeError):
    """The GPU, its driver or a library on it failed while it computed."""


def unusable(cupy: ModuleType) -> str | None:
    """Return why this CuPy cannot compute on this machine, and what helps; None where it can."""
    if int(cupy.__version__.split(".")[0]) < CUPY:
        return (
            f"device 'cuda' needs CuPy {CUPY} or later, {cupy.__version__} is installed: upgrade its package with pip"
        )
    runtime = cupy.cuda.runtime
    built, driver = runtime.runtimeGetVersion() // 1000, runtime.driverGetVersion() // 1000
    if driver == 0:
        return "device 'cuda' needs an NVIDIA GPU with its driver, and CuPy finds none on this machine"
    if driver < built:
        other = f" or replace CuPy: pip install 'cupy-cuda{driver}x[ctk]'" if driver in OLDEST else ""
        return (
            f"this machine's NVIDIA driver is for CUDA {driver}, and CuPy is for CUDA {built}: update the driver to "
            f"{DRIVER.get(built, 'a later one')} or later{other}"
        )
    try:
        count = runtime.getDeviceCount()
    except RuntimeError as error:
        return f"device 'cuda' cannot be used: {in_words(error)}"
    return None if count else "CuPy finds no NVIDIA GPU: is CUDA_VISIBLE_DEVICES empty?"


def not_here(cupy: ModuleType, index: int) -> str | None:
    """Return why there is no GPU `index`, or why it is too old for this CuPy and what helps; None where it is fine."""
    count = cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        return f"device 'cuda:{index}' does not exist: this machine has {count} GPU(s)"
    built = cupy.cuda.runtime.runtimeGetVersion() // 1000
    capability = int(cupy.cuda.Device(index).compute_capability)
    if capability >= OLDEST.get(built, 0):
        return None
    older = [version for version, oldest in OLDEST.items() if oldest <= capability]
    advice = f"pip install 'cupy-cuda{max(older)}x[ctk]' in its place" if older else "no CUDA version serves here"
    return (
        f"GPU {index} has compute capability {capability / 10}, and CuPy's CUDA {built} compiles for "
        f"{OLDEST[built] / 10} and later: {advice}"
    )


def errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that say: the GPU, its driver, a library on it or the compiler of its kernels failed."""
    # A module that is not loaded has raised nothing, and cannot be loaded everywhere: CuPy comes without its libraries.
    places = {
        "cupy.cuda.compiler": "CompileException",
        "cupy_backends.cuda.api.driver": "CUDADriverError",
        "cupy_backends.cuda.api.runtime": "CUDARuntimeError",
        "cupy_backends.cuda.libs.cublas": "CUBLASError",
        "cupy_backends.cuda.libs.nccl": "NcclError",
        "cupy_backends.cuda.libs.nvrtc": "NVRTCError",
    }
    return GPUError, *(getattr(sys.modules[place], name) for place, name in places.items() if place in sys.modules)


def in_words(error: Exception) -> str:
    """Return what such an error says in one line: a compiler's messages are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower()]
    return (wrong or lines or [type(error).__name__])[0].rstrip(".")
