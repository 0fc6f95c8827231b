"""Gradient descent on a CPU: every number passes through the cache once."""

from __future__ import annotations

import numpy as np

from ... import optim
from ...backend import Array
from .memory import scratch
from .threads import parts_for, spans, thread_pool

CHUNK = 1 << 16  # numbers at a time


def sgd_step(updates: list[tuple], lr: float) -> None:
    """`optim.sgd_step`, parameter by parameter; arrays with gaps are left to the book."""
    for w, dw, velocity, *options in updates:
        contiguous = w.flags.c_contiguous and dw.flags.c_contiguous and velocity.flags.c_contiguous
        (sgd_update if contiguous else optim.sgd_update)(w, dw, velocity, lr, *options)


def sgd_update(
    w: Array, dw: Array, velocity: Array, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    """`optim.sgd_update` block by block and in place: every array is read once, and nothing is allocated."""
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

    thread_pool().run(work, spans(w.size, parts_for(w.size), 16))
