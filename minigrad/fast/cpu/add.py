"""The CPU's fast operations: what is registered with the tape, and how many threads they use.

- conv/: convolution
- norm.py: batch norm with ReLU and shortcut
- pooling.py: pooling; of a whole image, and of the loss, the book's formulas take no time worth saving
- layout.py: channels-last memory, sums per channel; ../handover.py: what one operation tells the next
- threads.py: threads, scratch memory, heap; ../process.py: BLAS's threads and kernels
"""

from __future__ import annotations

import numpy as np

from ... import optim, tensor
from ...backend import Array
from ...ops.conv import Conv2d
from ...ops.norm import BatchNorm, BatchNormReLU
from ...ops.pool import AvgPool2d, MaxPool2d
from ..process import choose_kernels
from .conv.base import FastConv2d
from .layout import to_nchw, to_nhwc
from .norm import FastBatchNorm, FastBatchNormReLU
from .pooling import FastAvgPool2d, FastMaxPool2d
from .threads import parts_for, pool, scratch, set_threads, spans, threads

__all__ = ["register", "set_threads", "threads"]

CHUNK = 1 << 16


def sgd_update(
    w: Array, dw: Array, velocity: Array, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    """`optim.sgd_update` block by block and in place: every array is read once, and nothing is allocated."""
    if not (w.flags.c_contiguous and dw.flags.c_contiguous and velocity.flags.c_contiguous):
        optim.sgd_update(w, dw, velocity, lr, momentum, weight_decay, nesterov)
        return
    flat = w.reshape(-1), dw.reshape(-1), velocity.reshape(-1)

    def work(span: tuple[int, int]) -> None:
        for start in range(*span, CHUNK):
            w, dw, v = (a[start : min(start + CHUNK, span[1])] for a in flat)
            d = scratch("d", w.shape, w.dtype)
            if weight_decay:
                np.multiply(w, weight_decay, out=d)
                d += dw
            else:
                np.copyto(d, dw)
            if momentum:
                v *= momentum
                v += d
                if nesterov:
                    d += np.multiply(v, momentum, out=scratch("ahead", w.shape, w.dtype))
                else:
                    np.copyto(d, v)
            d *= lr
            w -= d

    pool().run(work, spans(w.size, parts_for(w.size), 16))


def add_gradients(a: Array, b: Array) -> Array:
    """a + b with all threads, where both are channels-last images of a size that is worth it."""
    if a.ndim != 4 or a.strides != b.strides or a.dtype != b.dtype or not a.transpose(0, 2, 3, 1).flags.c_contiguous:
        return a + b
    total = np.empty_like(to_nhwc(a))
    flat = [to_nhwc(x).reshape(-1) for x in (a, b, to_nchw(total))]

    def work(span: tuple[int, int]) -> None:
        x, y, out = (v[slice(*span)] for v in flat)
        np.add(x, y, out=out)

    pool().run(work, spans(a.size, parts_for(a.size), 16))
    return to_nchw(total)


def register() -> None:
    """Put the fast operations in the tape's table, in place of the book's, for arrays on the CPU."""
    choose_kernels()
    tensor.faster[Conv2d, "cpu"] = FastConv2d
    tensor.faster[BatchNorm, "cpu"] = FastBatchNorm
    tensor.faster[BatchNormReLU, "cpu"] = FastBatchNormReLU
    tensor.faster[MaxPool2d, "cpu"] = FastMaxPool2d
    tensor.faster[AvgPool2d, "cpu"] = FastAvgPool2d
    optim.faster_update["cpu"] = sgd_update
    tensor.faster_add["cpu"] = add_gradients
