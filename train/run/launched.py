"""Steps that were handed to the device, whose results come later: a GPU works on while the host goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from minigrad.backend import Array, array_module, cupy, to_numpy


@dataclass(frozen=True)
class Launched:
    """A step that was handed to the device, and whose results have not been looked at."""

    results: Callable[[], tuple[Array, Array]]  # waits for its mean loss and its logits
    labels: np.ndarray  # of this rank's part of the batch
    mine: int  # how many images that part has
    images: int  # how many the whole batch has
    step: int
    lr: float


def fetch(loss: Array, logits: Array) -> Callable[[], tuple[Array, Array]]:
    """Start to copy a step's results into the host's memory; the function that is returned waits for them.

    A GPU copies them as soon as everything that was launched before has run. The host may go on and launch more, which
    may overwrite the arrays: it comes after the copies. On the CPU the arrays themselves are returned.
    """
    if array_module(loss) is np:
        return lambda: (loss, logits)
    # Only memory that the system cannot move can be written to while the host does something else.
    empty_pinned = import_module("cupyx").empty_pinned
    copies = empty_pinned(loss.shape, loss.dtype), empty_pinned(logits.shape, logits.dtype)
    loss.get(out=copies[0], blocking=False)
    logits.get(out=copies[1], blocking=False)
    copied = cupy().cuda.get_current_stream().record()

    def wait() -> tuple[Array, Array]:
        copied.synchronize()
        return copies

    return wait


def outcome(loss: Array, logits: Array, labels: np.ndarray) -> tuple[float, int]:
    """A step's mean loss and how many images it took for another class; waits for results that are on a GPU."""
    return float(loss), int((to_numpy(logits).argmax(axis=1) != labels).sum())
