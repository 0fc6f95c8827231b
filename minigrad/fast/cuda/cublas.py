"""Matrix products on row-major arrays through cuBLAS itself, by ctypes: what `a @ b` in CuPy cannot do.

CuPy multiplies half-precision arrays fast only in two dimensions, copies operands that are part of a larger array, and
refuses to call cuBLAS while a CUDA graph is captured. cuBLAS has none of these limits: it takes addresses, row lengths
and strides between the matrices of a batch, so the groups of a convolution are slices that nobody copies.

cuBLAS is column-major: it reads memory that holds the rows of a matrix as the matrix's transpose. So C = A B is asked
for as Cᵀ = Bᵀ Aᵀ: the operands change places, and no data moves. Products of bfloat16 accumulate in float32.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

from ... import backend
from ...diagnosis import GPUError
from . import gpu

WORKSPACE_BYTES = (
    32 << 20
)  # what NVIDIA recommends for Hopper; given explicitly, because a capture must not allocate one

# cuBLAS's numbers for types and modes (library_types.h, cublas_api.h).
TYPES = {"float32": 0, "float64": 1, "bfloat16": 14}
COMPUTE = {"float32": 68, "float64": 70, "bfloat16": 68}  # sums of bfloat16 products are float32
NORMAL, TRANSPOSED = 0, 1
NO_REDUCED_PRECISION_REDUCTION = 16  # a product split over K is added up in float32, not in bfloat16
DEFAULT_ALGORITHM = -1
STATUS = {1: "not initialised", 3: "out of memory", 7: "invalid value", 8: "unsupported GPU", 13: "execution failed"}


class CublasError(GPUError):
    """A cuBLAS function that failed; names the function and cuBLAS's status."""


class Matrix(NamedTuple):
    """A batch of row-major matrices: address, dtype's name, elements from row to row and from matrix to matrix.

    `transposed` says that memory holds the rows of the matrix's transpose.
    """

    pointer: int
    dtype: str
    ld: int
    stride: int = 0
    transposed: bool = False


def product_arguments(M: int, N: int, K: int, a: Matrix, b: Matrix, c: Matrix, batch: int, accumulate: bool) -> tuple:
    """Return cublasGemmStridedBatchedEx's arguments after the handle for C (M, N) = A (M, K) B (K, N) [+ C], row-major.

    alpha and beta appear as numbers. Pure, so that a test can check it against a column-major product without a GPU.
    """
    operations = (TRANSPOSED if b.transposed else NORMAL, TRANSPOSED if a.transposed else NORMAL)
    first = (b.pointer, TYPES[b.dtype], b.ld, b.stride)
    second = (a.pointer, TYPES[a.dtype], a.ld, a.stride)
    result = (c.pointer, TYPES[c.dtype], c.ld, c.stride)
    sizes = (N, M, K)
    beta = 1.0 if accumulate else 0.0
    return (*operations, *sizes, 1.0, *first, *second, beta, *result, batch, COMPUTE[a.dtype], DEFAULT_ALGORITHM)


def product(M: int, N: int, K: int, a: Matrix, b: Matrix, c: Matrix, batch: int = 1, accumulate: bool = False) -> None:
    """C = A B, or C += A B, for a batch of matrices, on the current stream; works during a capture, too.

    Raises CublasError with cuBLAS's reason.
    """
    arguments = list(product_arguments(M, N, K, a, b, c, batch, accumulate))
    number = ctypes.c_double if a.dtype == "float64" else ctypes.c_float
    for i in (5, 14):  # alpha and beta are read from host memory, in the type of the sums
        arguments[i] = ctypes.byref(number(arguments[i]))
    if batch == 1:  # the plain function, whose choice of kernels is the widest; it takes no strides and no batch
        arguments = [argument for i, argument in enumerate(arguments) if i not in (9, 13, 18, 19)]
    name = "cublasGemmEx" if batch == 1 else "cublasGemmStridedBatchedEx"
    _check(name, getattr(_library(), name)(_handle(), *arguments))


def matmul(a: Any, b: Any, out: Any) -> None:
    """out (M, N) = a (M, K) @ b (K, N) for CuPy arrays with contiguous rows or columns; see `rows_or_columns`."""
    (M, K), N = a.shape, b.shape[1]
    product(M, N, K, _matrix(a), _matrix(b), _matrix(out))


def rows_or_columns(a: Any) -> bool:
    """True if a two-dimensional array's rows, or its columns, are contiguous: what cuBLAS can read without a copy."""
    unit = a.itemsize
    rows, columns = a.strides
    return (columns == unit and rows >= a.shape[1] * unit) or (rows == unit and columns >= a.shape[0] * unit)


def _matrix(a: Any) -> Matrix:
    rows, columns = (n // a.itemsize for n in a.strides)
    transposed = columns != 1
    return Matrix(gpu.address(a), a.dtype.name, columns if transposed else rows, 0, transposed)


@cache
def _library() -> ctypes.CDLL:
    """The cuBLAS that CuPy itself uses, with the argument types of the two products declared."""
    from cuda import pathfinder  # a dependency of CuPy

    library = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    i, p, s = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
    library.cublasGemmEx.argtypes = [p, *[i] * 5, p, p, i, i, p, i, i, p, p, i, i, i, i]
    library.cublasGemmStridedBatchedEx.argtypes = [p, *[i] * 5, p, p, i, i, s, p, i, i, s, p, p, i, i, s, i, i, i]
    return library


def _handle() -> ctypes.c_void_p:
    cp = backend.cupy()
    return _handle_of(cp.cuda.runtime.getDevice(), cp.cuda.get_current_stream().ptr)[0]


@cache
def _handle_of(device: int, stream: int) -> tuple[ctypes.c_void_p, Any]:
    """A handle for each stream of each device, with a workspace of its own that lives as long.

    Separate workspaces keep streams from overwriting each other's, and a stream's results the same bits every time. The
    workspace is set after the stream, because setting the stream takes the workspace away.
    """
    library, handle = _library(), ctypes.c_void_p()
    workspace = backend.cupy().cuda.alloc(WORKSPACE_BYTES)
    _check("cublasCreate_v2", library.cublasCreate_v2(ctypes.byref(handle)))
    _check("cublasSetStream_v2", library.cublasSetStream_v2(handle, ctypes.c_void_p(stream)))
    size = ctypes.c_size_t(WORKSPACE_BYTES)
    _check("cublasSetWorkspace_v2", library.cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.ptr), size))
    _check("cublasSetMathMode", library.cublasSetMathMode(handle, NO_REDUCED_PRECISION_REDUCTION))
    return handle, workspace


def _check(function: str, status: int) -> None:
    if status:
        raise CublasError(f"{function} failed: {STATUS.get(status, 'error')} (cuBLAS status {status})")
