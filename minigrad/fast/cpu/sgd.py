"""Gradient descent on a CPU: all parameters in one parallel section, every number once through the cache."""

from __future__ import annotations

import numpy as np

from ... import optim
from .memory import scratch
from .threads import parts_for, spans, thread_pool

CHUNK = 1 << 16  # numbers at a time


def sgd_step(updates: list[tuple], lr: float) -> None:
    """`optim.sgd_step` with all threads; arrays with gaps are left to the book."""
    whole = [all(a.flags.c_contiguous for a in update[:3]) for update in updates]
    flat = [(*(a.reshape(-1) for a in u[:3]), *u[3:]) for u, w in zip(updates, whole, strict=True) if w]
    parts = parts_for(sum(update[0].size for update in flat))
    shares = [spans(update[0].size, parts, 16) for update in flat]

    def work(part: int) -> None:
        for (w, dw, velocity, *options), share in zip(flat, shares, strict=True):
            for start in range(*share[part], CHUNK) if part < len(share) else ():
                chunk = slice(start, min(start + CHUNK, share[part][1]))
                descend(w[chunk], dw[chunk], velocity[chunk], lr, *options)

    thread_pool().run(work, list(range(parts)))
    for (w, dw, velocity, *options), contiguous in zip(updates, whole, strict=True):
        if not contiguous:
            optim.sgd_update(w, dw, velocity, lr, *options)


def descend(
    w: np.ndarray, dw: np.ndarray, v: np.ndarray, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    """`optim.sgd_update` of a piece that fits in the cache, in place; nothing is allocated."""
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
