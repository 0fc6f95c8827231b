"""A cuBLAS of matrix products only: NumPy multiplies, in float32 or float64, and rounds once when it stores.

Matrices are column-major, as in cuBLAS's documentation: element (i, j) lies at i + j * ld.
"""

import ctypes
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from . import runtime
from .calls import FLOAT, FUNCTIONS, CudaError, I, P, imitates, put
from .counters import COUNTERS
from .device import CACHE, compile_library
from .redirect import wanted

LL, DOUBLE = ctypes.c_longlong, ctypes.c_double
NOT_INITIALISED, INVALID_VALUE, NOT_SUPPORTED = 1, 7, 15
SUMS_IN_DOUBLE = {70, 71}  # cublasComputeType_t
HANDLES = count(0x10, 16)
STREAMS: dict[int, int] = {}  # of each handle
KEPT: list[ctypes.CDLL] = []
CODE = """
void *functions[{n}];
__asm__(".text\\n"
{jumps});
"""
JUMP = '".globl {name}\\n.type {name}, @function\\n{name}: mov functions@GOTPCREL(%rip), %r11\\njmp *{at}(%r11)\\n"'


def install(binding: Path) -> None:
    """Load a library that is called libcublas.so.13, whose functions are these; `binding` is CuPy's, which uses it."""
    # Whoever loads CUDA's cuBLAS asks for its second library first; nothing here calls it.
    companion = compile_library("int nothing;", "-O1", "-Wl,-soname,libcublasLt.so.13")
    KEPT.append(ctypes.CDLL(str(companion), mode=ctypes.RTLD_GLOBAL))
    imitated = {name: f for name, f in FUNCTIONS.items() if name.startswith("cublas")}
    names = sorted(imitated.keys() | set(wanted(binding, "cublas")))
    jumps = "\n".join(JUMP.format(name=name, at=8 * i) for i, name in enumerate(names))
    versions = CACHE / "cublas.versions"  # CuPy's binding asks for each function in this version
    versions.write_text("libcublas.so.13 { global: *; };\n")
    options = ("-Wl,-soname,libcublas.so.13", f"-Wl,--version-script={versions}")
    path = compile_library(CODE.format(n=len(names), jumps=jumps), "-O1", *options)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    table = (ctypes.c_void_p * len(names)).in_dll(library, "functions")
    for i, name in enumerate(names):
        table[i] = ctypes.cast(imitated.get(name, _not_supported), ctypes.c_void_p)


@ctypes.CFUNCTYPE(I)
def _not_supported() -> int:
    return NOT_SUPPORTED


def _dtype(number: int) -> np.dtype:
    """The NumPy dtype of a cudaDataType_t."""
    import ml_dtypes

    types = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}
    if number not in types:
        raise CudaError(NOT_SUPPORTED)
    return np.dtype(types[number])


def _matrices(address: int, kind: int, rows: int, columns: int, ld: int, stride: int, batch: int) -> np.ndarray:
    """The (batch, rows, columns) array that lies at an address."""
    if ld < max(rows, 1):
        raise CudaError(INVALID_VALUE)
    dtype = _dtype(kind)
    size = ((batch - 1) * stride + (columns - 1) * ld + rows) * dtype.itemsize
    memory = (ctypes.c_char * size).from_address(address)
    strides = tuple(n * dtype.itemsize for n in (stride, 1, ld))
    return np.ndarray((batch, rows, columns), dtype, memory, 0, strides)


def _gemm(handle, ta, tb, m, n, k, alpha, a, b, beta, c, batch=1, double=False):
    """C = alpha op(A) op(B) + beta C; a, b and c are (address, type, ld, stride)."""
    if handle not in STREAMS:
        raise CudaError(NOT_INITIALISED)
    if not m * n * batch:
        return
    number = DOUBLE if double else FLOAT
    alpha, beta = number.from_address(alpha).value, number.from_address(beta).value
    (pa, ka, la, sa), (pb, kb, lb, sb), (pc, kc, lc, sc) = a, b, c
    left = _matrices(pa, ka, *((k, m) if ta else (m, k)), la, sa, batch)
    right = _matrices(pb, kb, *((n, k) if tb else (k, n)), lb, sb, batch)
    result = _matrices(pc, kc, m, n, lc, sc, batch)
    sums = np.float64 if double else np.float32

    def multiply() -> None:
        COUNTERS.product(_dtype(ka).name, m, n, k, batch)
        if COUNTERS.blank:
            return
        x, y = left.astype(sums, copy=False), right.astype(sums, copy=False)
        x, y = x.transpose(0, 2, 1) if ta else x, y.transpose(0, 2, 1) if tb else y
        # A GPU goes on silently where a sum overflows.
        with np.errstate(all="ignore"):
            value = np.matmul(x, y) * sums(alpha)
            if beta:
                value += sums(beta) * result.astype(sums, copy=False)
            result[...] = value

    runtime.submit(STREAMS[handle], "product", multiply)


@imitates("cublasCreate_v2", P)
def create(out):
    handle = next(HANDLES)
    STREAMS[handle] = 0
    put(out, handle, P)


@imitates("cublasDestroy_v2", P)
def destroy(handle):
    STREAMS.pop(handle, None)


@imitates("cublasSetStream_v2", P, P)
def set_stream(handle, stream):
    STREAMS[handle] = stream or 0


@imitates("cublasGetStream_v2", P, P)
def get_stream(handle, out):
    put(out, STREAMS[handle], P)


@imitates("cublasSetWorkspace_v2", P, P, ctypes.c_size_t)
def set_workspace(handle, address, size):
    if address % 256:
        raise CudaError(INVALID_VALUE)


@imitates("cublasGetMathMode", P, P)
def get_math_mode(handle, out):
    put(out, 0, I)


@imitates("cublasSetMathMode", P, I)
def set_math_mode(handle, mode):
    pass


@imitates("cublasSetPointerMode_v2", P, I)
def set_pointer_mode(handle, mode):
    if mode:
        raise CudaError(NOT_SUPPORTED)


@imitates("cublasGetPointerMode_v2", P, P)
def get_pointer_mode(handle, out):
    put(out, 0, I)


@imitates("cublasGetVersion_v2", P, P)
def get_version(handle, out):
    put(out, 130000, I)


@imitates("cublasGemmEx", P, *[I] * 5, P, P, I, I, P, I, I, P, P, I, I, I, I)
def gemm_ex(handle, ta, tb, m, n, k, alpha, a, ka, la, b, kb, lb, beta, c, kc, lc, compute, algorithm):
    operands = (a, ka, la, 0), (b, kb, lb, 0), beta, (c, kc, lc, 0)
    _gemm(handle, ta, tb, m, n, k, alpha, *operands, 1, compute in SUMS_IN_DOUBLE)


@imitates("cublasGemmStridedBatchedEx", P, *[I] * 5, P, P, I, I, LL, P, I, I, LL, P, P, I, I, LL, I, I, I)
def gemm_batched(
    handle, ta, tb, m, n, k, alpha, a, ka, la, sa, b, kb, lb, sb, beta, c, kc, lc, sc, batch, compute, algorithm
):
    operands = (a, ka, la, sa), (b, kb, lb, sb), beta, (c, kc, lc, sc)
    _gemm(handle, ta, tb, m, n, k, alpha, *operands, batch, compute in SUMS_IN_DOUBLE)


@imitates("cublasSgemmEx", P, *[I] * 5, P, P, I, I, P, I, I, P, P, I, I)
def sgemm_ex(handle, ta, tb, m, n, k, alpha, a, ka, la, b, kb, lb, beta, c, kc, lc):
    _gemm(handle, ta, tb, m, n, k, alpha, (a, ka, la, 0), (b, kb, lb, 0), beta, (c, kc, lc, 0))


def _plain(kind: int) -> Any:
    def gemm(handle, ta, tb, m, n, k, alpha, a, la, b, lb, beta, c, lc):
        operands = (a, kind, la, 0), (b, kind, lb, 0), beta, (c, kind, lc, 0)
        _gemm(handle, ta, tb, m, n, k, alpha, *operands, 1, kind == 1)

    return gemm


def _batched(kind: int) -> Any:
    def gemm(handle, ta, tb, m, n, k, alpha, a, la, b, lb, beta, c, lc, batch):
        for pa, pb, pc in zip(*((ctypes.c_size_t * batch).from_address(x) for x in (a, b, c)), strict=True):
            _plain(kind)(handle, ta, tb, m, n, k, alpha, pa, la, pb, lb, beta, pc, lc)

    return gemm


for letter, kind in (("S", 0), ("D", 1)):
    imitates(f"cublas{letter}gemm_v2", P, *[I] * 5, P, P, I, P, I, P, P, I)(_plain(kind))
    imitates(f"cublas{letter}gemmBatched", P, *[I] * 5, P, P, I, P, I, P, P, I, I)(_batched(kind))
