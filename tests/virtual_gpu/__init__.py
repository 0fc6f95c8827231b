"""A GPU that is not there: CuPy, NVRTC and the kernels are real, driver and device are imitated on the CPU.

`install()` before CuPy is imported; docs/virtual-gpu.md says what this shows and what it cannot.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# CuPy makes PTX instead of machine code, and its own kernels instead of the compiled ones of CUB.
SETTINGS = {"CUPY_COMPILE_WITH_PTX": "1", "CUPY_ACCELERATORS": ""}


def no_compiler() -> str | None:
    """Say why this machine cannot run translated kernels, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the virtual GPU needs Linux on x86-64"
    return None if shutil.which("cc") else "the virtual GPU needs a C compiler"


def missing() -> str | None:
    """Say what the virtual GPU lacks on this machine, or None."""
    if reason := no_compiler():
        return reason
    for module in ("cupy", "nvidia.cu13", "ml_dtypes"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"the virtual GPU needs {module}, in a checkout: pip install -e '.[virtual-gpu]'"
    return None


def install() -> None:
    """Put the virtual GPU in the driver's place for this process; CuPy must not have been imported yet."""
    if "cupy" in sys.modules:
        raise RuntimeError("the virtual GPU must be installed before CuPy is imported")
    from . import (  # noqa: F401 (imported, the driver's functions are there)
        calls,
        cublas,
        device,
        driver,
        nccl,
        redirect,
    )

    os.environ.update(SETTINGS)
    os.environ.setdefault("CUPY_CACHE_DIR", str(device.CACHE / "cupy"))
    addresses = {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in calls.FUNCTIONS.items()}
    spec = importlib.util.find_spec("cupy")
    assert spec is not None and spec.origin is not None
    backends = Path(spec.origin).parents[1] / "cupy_backends/cuda"
    (library,), (binding,) = backends.glob("api/runtime.*.so"), backends.glob("libs/cublas.*.so")
    unknown = redirect.redirect(library, {n: a for n, a in addresses.items() if n.startswith("cuda")})
    if unknown:
        raise RuntimeError(f"this CuPy's CUDA runtime has no {', '.join(unknown)}: the virtual GPU knows CuPy 14")
    cublas.install(binding)
    _answer_for_the_driver(calls.FUNCTIONS)
    nccl.install()


def _answer_for_the_driver(functions: dict[str, Any]) -> None:
    """CuPy opens the driver by name, through ctypes, and asks it for functions: give it ours."""
    versions = {f"{name}_v2": function for name, function in functions.items()}
    driver = SimpleNamespace(**versions, **functions)
    opened = ctypes.CDLL

    class CDLL(opened):  # type: ignore[misc, valid-type]
        def __new__(cls, name: Any = None, *arguments: Any, **options: Any) -> Any:
            return driver if name == "libcuda.so.1" else opened(name, *arguments, **options)

    ctypes.CDLL = CDLL  # type: ignore[misc]
