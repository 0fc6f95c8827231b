"""Scratch memory that a thread keeps for itself from one operation to the next."""

from __future__ import annotations

import threading
from math import prod

import numpy as np

_local = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return uninitialised memory that this thread keeps under `name`; the next call with that name reuses it.

    A buffer that stays the same stays in the cache; a fresh one would be cold and cost a page fault every 4 KB.
    """
    buffers: dict[str, np.ndarray] = _local.__dict__
    size = prod(shape) * dtype.itemsize
    buffer = buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = buffers[name] = np.empty(size, np.uint8)
    return buffer[:size].view(dtype).reshape(shape)
