"""A GPU made of the CPU: the Python of minigrad/fast/cuda on NumPy arrays, its kernels in the host shim.

`install` replaces what reaches for a GPU: launching a kernel, asking for the device's properties, an array's address,
and cuBLAS's product, which becomes a column-major product on raw memory, written from cuBLAS's documentation.
Everything else, shapes, strides, argument orders and launch sizes, is the code that runs on a GPU.
"""

import ctypes
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from numpy.lib.array_utils import byte_bounds

from minigrad.fast.cuda import cublas, gpu
from support.cuda_shim import compile_host

TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 14: np.dtype(ml_dtypes.bfloat16)}
HOPPER = gpu.Properties(processors=4, shared_bytes=227 << 10, compute=90)


def column_major(pointer: int, dtype: np.dtype, rows: int, columns: int, ld: int) -> np.ndarray:
    """The matrix whose element (i, j) lies at pointer + i + j ld, in elements."""
    assert ld >= rows, "cuBLAS refuses a leading dimension below the number of rows"
    length = (columns - 1) * ld + rows
    flat = np.frombuffer((ctypes.c_char * (length * dtype.itemsize)).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, ld * dtype.itemsize))


def within(memory: Sequence[np.ndarray], matrix: np.ndarray) -> bool:
    """Whether all of the matrix lies in one of the arrays."""
    low, high = byte_bounds(matrix)
    return any(begin <= low and high <= end for begin, end in map(byte_bounds, memory))


def gemm_strided_batched(
    opa, opb, m, n, k, alpha, A, a_type, lda, a_stride, B, b_type, ldb, b_stride, beta, C, c_type, ldc, c_stride, batch,
    *_, memory=None
):  # fmt: skip
    """cublasGemmStridedBatchedEx as documented: C = alpha op(A) op(B) + beta C, column-major, for each of a batch.

    All matrices must lie in the arrays of `memory`, if given.
    """
    a_type, b_type, c_type = TYPES[a_type], TYPES[b_type], TYPES[c_type]
    for i in range(batch):
        a = column_major(A + i * a_stride * a_type.itemsize, a_type, *((k, m) if opa else (m, k)), lda).astype(
            np.float64
        )
        b = column_major(B + i * b_stride * b_type.itemsize, b_type, *((n, k) if opb else (k, n)), ldb).astype(
            np.float64
        )
        c = column_major(C + i * c_stride * c_type.itemsize, c_type, m, n, ldc)
        if memory is not None:
            assert within(memory, c), f"matrix {i} of {batch} lies outside of its array"
        result = alpha * (a.T if opa else a) @ (b.T if opb else b)
        c[...] = (result if beta == 0 else result + beta * c.astype(np.float64)).astype(c_type)


def install(monkeypatch) -> list[str]:
    """Put the CPU in the GPU's place; returns the list in which launches are noted."""
    launches: list[str] = []
    addressed: list[np.ndarray] = []  # whose address was asked for since the last launch: for a struct, it may be

    def address(a):
        addressed.append(a)
        return a.ctypes.data

    def launch(file, name, grid, block, arguments, shared=0):
        launches.append(name)
        for a in arguments:
            assert a is None or isinstance(a, np.generic) or a.flags.c_contiguous, (
                f"{name} was given an array with gaps"
            )
        compile_host(file).launch(name, grid, block, arguments, shared=shared, memory=addressed)
        addressed.clear()

    def product(M, N, K, a, b, c, batch=1, accumulate=False):
        launches.append("cublas")
        gemm_strided_batched(*cublas.product_arguments(M, N, K, a, b, c, batch, accumulate), memory=addressed)
        addressed.clear()

    for module, name, value in (
        (gpu, "launch", launch),
        (gpu, "properties", lambda: HOPPER),
        (gpu, "address", address),
        (cublas, "product", product),
    ):
        monkeypatch.setattr(module, name, value)
    return launches
