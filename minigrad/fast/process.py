"""BLAS: one thread for each product while the pool works, and the kernels that suit the processor."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_libraries: list[Any] | None = None


def libraries() -> list[Any]:
    """The BLAS libraries that this process has loaded."""
    global _libraries
    if _libraries is None:
        from threadpoolctl import ThreadpoolController

        _libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return _libraries


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS library in the process to one thread, and put it back afterwards; about two microseconds."""
    before = [library.get_num_threads() for library in libraries()]
    for library in libraries():
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, count in zip(libraries(), before, strict=True):
            library.set_num_threads(count)


def is_zen4(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo describes AMD's Zen 4: family 25, as Zen 3, but with AVX-512."""
    return bool(re.search(r"^cpu family\s*: 25$", cpuinfo, re.M) and re.search(r"^flags\s*:.* avx512f ", cpuinfo, re.M))


def choose_kernels(cpuinfo: str = "/proc/cpuinfo") -> None:
    """Let OpenBLAS run its AVX2 kernels on Zen 4, which it gives its AVX-512 kernels by itself.

    Zen 4 computes 512 bits in two halves, so AVX-512 has no more arithmetic to offer there, and the AVX2 kernels are
    faster (docs/cpu.md). OpenBLAS chooses when it is loaded, by the processor or `OPENBLAS_CORETYPE`; here it is asked
    to choose again. The user's own choice is left alone, and so is everything where another thread might be in a
    product.
    """
    try:
        with open(cpuinfo) as file:
            wanted = is_zen4(file.read())
    except OSError:  # not Linux
        return
    if not wanted or "OPENBLAS_CORETYPE" in os.environ or threading.active_count() > 1:
        return
    for library in libraries():
        if library.internal_api == "openblas" and library.architecture == "SkylakeX":
            handle = ctypes.CDLL(library.filepath)
            if hasattr(handle, "gotoblas_dynamic_init") and hasattr(handle, "gotoblas_corename"):
                os.environ["OPENBLAS_CORETYPE"] = "Zen"
                handle.gotoblas_dynamic_quit()
                handle.gotoblas_dynamic_init()
                del os.environ["OPENBLAS_CORETYPE"]
                handle.gotoblas_corename.restype = ctypes.c_char_p
                library.architecture = handle.gotoblas_corename().decode()
