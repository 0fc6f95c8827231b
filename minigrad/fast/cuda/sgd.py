"""Gradient descent on a GPU: all parameters in one launch; see kernels/sgd.cu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ... import optim
from ...backend import Array, array_module
from . import gpu


def sgd_step(updates: Sequence[tuple[Array, Array, Array, float, float, bool]], lr: float | Array) -> None:
    """One step of optim.sgd_update on many parameters: (w, dw, velocity, momentum, weight decay, nesterov) each.

    `lr` is a number, or a float32 array with one element on the device, which a captured graph reads anew at each
    replay.
    """
    plain: list[tuple] = []
    ours: list[tuple] = []
    for w, dw, velocity, *options in updates:
        dw = array_module(dw).ascontiguousarray(dw)  # a linear layer's is its transpose
        fits = all(a.dtype == np.float32 and a.flags.c_contiguous for a in (w, dw, velocity))
        (ours if fits else plain).append((w, dw, velocity, *options))
    for w, dw, velocity, momentum, weight_decay, nesterov in plain:
        optim.sgd_update(w, dw, velocity, lr, momentum, weight_decay, nesterov)
    if not ours:
        return
    xp = array_module(ours[0][0])
    rate = lr if isinstance(lr, xp.ndarray) else xp.full(1, lr, np.float32)
    limit = gpu.PARAMETERS["list"].shape[0]
    for begin in range(0, len(ours), limit):
        some = ours[begin : begin + limit]
        table = np.zeros(1, gpu.PARAMETERS)
        for i, (w, dw, velocity, momentum, weight_decay, nesterov) in enumerate(some):
            pointers = gpu.address(w), gpu.address(dw), gpu.address(velocity) if momentum else 0
            table["list"][0, i] = (*pointers, w.size, momentum, weight_decay, nesterov, 0)
        gpu.launch("sgd.cu", "sgd", (gpu.properties().processors, len(some)), (256,), [table, rate])
