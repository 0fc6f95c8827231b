"""The sum of two gradients that meet, as those of a residual block's two ways do, on a GPU; see kernels/add.cu."""

from __future__ import annotations

from ...backend import Array, array_module
from ...registry import accepting
from . import gpu
from .arrays import VECTOR_BYTES, i64, suffix, supported, to_nchw, to_nhwc


def whole_vectors(a: Array, b: Array) -> bool:
    """Whether both are images whose values fill whole vectors."""
    return a.ndim == 4 and supported(a, b) and a.nbytes % VECTOR_BYTES == 0


@accepting(whole_vectors)
def add_gradients(a: Array, b: Array) -> Array:
    """a + b, as channels-last memory; see add.cu."""
    a, b = to_nhwc(a), to_nhwc(b)
    out = array_module(a).empty_like(a)
    vectors = a.nbytes // VECTOR_BYTES
    blocks = min(-(-vectors // 256), 8 * gpu.properties().processors)
    gpu.launch("add.cu", f"add_{suffix(a)}", (blocks,), (256,), [a, b, out, i64(vectors)])
    return to_nchw(out)
