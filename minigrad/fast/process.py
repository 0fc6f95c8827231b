"""Everything here that concerns the whole process, not one operation: BLAS, the heap, Python's turns, NumPy's buffer.

For good, and only when a program asks: `prepare()`, as the commands of `train` do when they start. It chooses BLAS's
kernels and lets the heap keep its memory. Importing minigrad changes none of it: whoever uses it beside other code
keeps the process as it was.

For as long as a parallel section runs: `parallel_section`. BLAS is held to one thread, because the section has threads
of its own; a thread that waits for Python's lock gets it soon; NumPy computes where the numbers lie. All of it is put
back, whatever ends the section, a signal's exception included.
"""

from __future__ import annotations

import contextvars
import ctypes
import itertools
import operator
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

SWITCH_INTERVAL = 1e-4  # seconds; Python's own is 5e-3
BUFFER = 512  # numbers; NumPy's own is 8,192

_libraries: list[Any] | None = None
_blas_threads: list[tuple[Callable[[], int], Callable[[int], Any]]] | None = None
_outside: tuple[float, list[int]] | None = None  # while a section runs: the switch interval and BLAS's threads before


def prepare() -> list[str]:
    """Make this process fast where that takes more than its arrays; return what was switched, a sentence each.

    For a program that is minigrad's own, before it starts threads. Called again, it changes nothing.
    """
    return [*choose_kernels(), *keep_heap()]


def libraries() -> list[Any]:
    """The BLAS libraries that this process has loaded."""
    global _libraries
    if _libraries is None:
        from threadpoolctl import ThreadpoolController

        _libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return _libraries


def is_zen4(text: str) -> bool:
    """Whether the text of /proc/cpuinfo describes AMD's Zen 4: family 25, as Zen 3, but with AVX-512."""
    return bool(re.search(r"^cpu family\s*: 25$", text, re.M) and re.search(r"^flags\s*:.* avx512f ", text, re.M))


def choose_kernels(cpuinfo: str = "/proc/cpuinfo") -> list[str]:
    """Let OpenBLAS run its AVX2 kernels on Zen 4, which it gives its AVX-512 kernels by itself; say so if it was done.

    Zen 4 computes 512 bits in two halves, so AVX-512 has no more arithmetic to offer there, and the AVX2 kernels are
    faster (docs/cpu.md). OpenBLAS calls the former SkylakeX, the latter Zen or Haswell. It chooses when it is loaded,
    by the processor or `OPENBLAS_CORETYPE`; here it is asked to choose again. The user's own choice is left alone, and
    so is everything where another thread might be in a product.
    """
    switched: list[str] = []
    try:
        with open(cpuinfo) as file:
            wanted = is_zen4(file.read())
    except OSError:  # not Linux
        return switched
    if not wanted or "OPENBLAS_CORETYPE" in os.environ or threading.active_count() > 1:
        return switched
    for library in libraries():
        if library.internal_api == "openblas" and library.architecture == "SkylakeX":
            handle = ctypes.CDLL(library.filepath)
            if hasattr(handle, "gotoblas_dynamic_init") and hasattr(handle, "gotoblas_corename"):
                os.environ["OPENBLAS_CORETYPE"] = "Zen"
                handle.gotoblas_dynamic_quit()
                handle.gotoblas_dynamic_init()
                del os.environ["OPENBLAS_CORETYPE"]
                handle.gotoblas_corename.restype = ctypes.c_char_p
                before, library.architecture = library.architecture, handle.gotoblas_corename().decode()
                switched.append(f"OpenBLAS's kernels from {before} to {library.architecture}")
    return switched


def keep_heap() -> list[str]:
    """Tell glibc to keep freed memory instead of returning it to the kernel; say so if it was done.

    A training step frees and allocates the same sizes over and over. By default every large block is mapped anew and
    each of its pages is faulted in and zeroed again, which costs more than many an operation on it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; Windows has no library without a name
        return []
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, 64 << 20)
    return ["glibc's heap to keep freed memory"]


def blas_threads() -> list[tuple[Callable[[], int], Callable[[int], Any]]]:
    """For every BLAS library, how to ask for its number of threads and how to set it.

    OpenBLAS's own functions where it can be: threadpoolctl's heed one Python thread only.
    """
    global _blas_threads
    if _blas_threads is None:
        _blas_threads = []
        for library in libraries():
            pair = library.get_num_threads, library.set_num_threads
            if library.internal_api == "openblas" and getattr(library, "threading_layer", "") != "openmp":
                for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
                    names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
                    if all(hasattr(library.dynlib, name) for name in names):
                        pair = getattr(library.dynlib, names[0]), getattr(library.dynlib, names[1])
            _blas_threads.append(pair)
    return _blas_threads


def parallel_section(work: Callable[[], None]) -> None:
    """Call `work` while BLAS has one thread, and Python's turns and NumPy's buffer are short; then put all back.

    A signal's handler may raise between any two steps of Python. So what is put back is put back by single calls of C,
    and NumPy's buffer, which belongs to the context (as `errstate` does), is changed in a copy that is thrown away.

    Turns: between two calls of NumPy a worker holds Python's lock for some microseconds, and one that asks for it while
    another takes it again and again may be overlooked until the interval is over. Buffer: the rows of a slice are not
    one run of memory; where they are shorter than NumPy's buffer, it copies them there, computes, and copies back.
    """
    global _outside
    setters = [setter for _, setter in blas_threads()]
    counts = [count() for count, _ in blas_threads()]
    interval = sys.getswitchinterval()
    put_back = map(operator.call, setters, counts)  # lazy: nothing is called before `list(put_back)`

    def section() -> None:
        np.setbufsize(BUFFER)
        work()

    try:
        _outside = interval, counts
        list(map(operator.call, setters, [1] * len(counts)))
        try:
            sys.setswitchinterval(SWITCH_INTERVAL)
            contextvars.copy_context().run(section)
        finally:
            sys.setswitchinterval(interval)
    finally:
        list(put_back)
        _outside = None


def put_back_after_fork() -> None:
    """In a child that was forked while another thread was in a section: put back what that thread cannot."""
    global _outside
    if _outside is not None:
        interval, counts = _outside
        sys.setswitchinterval(interval)
        list(map(operator.call, [setter for _, setter in blas_threads()], counts))
        _outside = None
