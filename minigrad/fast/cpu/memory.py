"""Scratch memory that a thread keeps for itself from one operation to the next."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def other_scratch() -> Iterator[None]:
    """Inside, this thread's scratch is other memory: a signal's handler must not write into what it has interrupted."""
    buffers: dict[str, np.ndarray] = _local.__dict__
    own = buffers.copy()
    buffers.clear()
    try:
        yield
    finally:
        buffers.clear()
        buffers.update(own)
