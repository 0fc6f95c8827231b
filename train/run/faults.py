"""What can go wrong in the middle of a run, and what is done about it.

| fault | what happens |
| --- | --- |
| SIGINT, SIGTERM | the step is finished, the run saved; signals.py catches them |
| kill -9, power cut | files appear whole or not at all; parts of files are removed at the next start |
| full disk | the old checkpoint stays; the run stops and says so |
| NaN or infinity | the run stops before anything is saved |
| two processes in one folder | the second is refused |
| a new run in the folder of an old one | the old one is put aside |
| not enough memory | the sentence says how much there was and what to try |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import diagnosis
from minigrad.backend import cupy
from minigrad.check import leave_out_what_fails

from ..measure.memory import USABLE, largest_batch
from ..options import warn
from . import checkpoint
from .config import Config
from .parallel import ALONE, Ranks
from .signals import Interrupted, Signals


class TrainingError(RuntimeError):
    """A run that cannot go on; the sentence says why."""


class Guard:
    """Watches over a run: saves it when that is due, and ends it when a signal came.

    `guard.after_step(run)` is called after every step, `guard.check()` wherever else time passes. Where several ranks
    train together, they decide together: all save after the same step, and all stop after the same step.
    """

    def __init__(
        self,
        save: Callable[[], None],
        every_steps: int | None = None,
        every_seconds: float | None = None,
        ranks: Ranks = ALONE,
        signals: Signals | None = None,
    ):
        self.save, self.every_steps, self.every_seconds, self.ranks = save, every_steps, every_seconds, ranks
        self.signals = signals or Signals()
        self.steps = 0
        self.saved_at = time.monotonic()

    def after_step(self, run: Any) -> None:
        """Save the run if that is due. Raises Interrupted if a signal came."""
        self.steps += 1
        late = self.every_seconds is not None and time.monotonic() - self.saved_at >= self.every_seconds
        number, any_late = self.ranks.maximum(self.signals.number, int(late))
        if number:
            raise Interrupted(number)
        if any_late or (self.every_steps is not None and self.steps % self.every_steps == 0):
            self.save()
            self.saved_at = time.monotonic()

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        (number,) = self.ranks.maximum(self.signals.number)
        if number:
            raise Interrupted(number)


# ---- numbers and memory ---------------------------------------------------------------------------------------------


def check_finite(arrays: dict[str, np.ndarray]) -> None:
    """Raise TrainingError for a state that must not replace a good one: one with NaN or infinity in it."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TrainingError(f"{name} is no longer finite and is not saved: try a smaller --lr")


def out_of_memory(error: MemoryError, device: str, advice: str = "") -> str:
    """What to tell a user whose device or computer ran out of memory: how much there was, and what to try."""
    detail = str(error).rstrip(".") or "no memory is left"
    if device != "cpu":
        # Not what CuPy's pool holds: a captured step has a pool of its own, and the GPU may have other users.
        free, total = cupy().cuda.runtime.memGetInfo()
        detail += f"; {(total - free) / 2**30:.2f} of the GPU's {total / 2**30:.2f} GiB are taken"
    return f"out of memory on {device} ({detail})" + (advice and f": {advice}")


def smaller_step(config: Config, ranks: Ranks = ALONE, resumed: bool = False) -> str:
    """What makes a run's step fit: on GPUs, the largest batch that does, dealt to all ranks."""
    size, model = config.batch_size, config.model
    smaller = f"try a --batch-size below {size}" if size > ranks.size else "try a smaller --model"
    if config.device != "cpu":
        usable = int(USABLE * cupy().cuda.runtime.memGetInfo()[1])
        average = config.recipe.average > 0
        fits = ranks.size * largest_batch(model, usable, config.dtype, config.image_size, average)
        shared = f" on {ranks.size} GPUs" if ranks.size > 1 else ""
        if 0 < fits < size:
            smaller = f"a --batch-size of {fits} should fit{shared}, by `python -m train.memory --model {model}`"
        elif fits == 0:
            smaller = "try a smaller --model, of which one image fits"
    if resumed:
        return f"a run that is resumed keeps its --batch-size {size}; in one that starts from its --weights, {smaller}"
    return smaller


@contextmanager
def memory_for(config: Config, advice: Callable[[], str] = str) -> Iterator[None]:
    """Inside, a MemoryError becomes a TrainingError that says how much memory there was, and what to try."""
    try:
        yield
    except MemoryError as error:
        raise TrainingError(out_of_memory(error, config.device, advice())) from error


def gpu_failed(error: Exception, out: Path) -> str:
    """What to tell a user whose GPU, driver or kernel compiler failed in the middle of a run."""
    kept = f"; {out} holds the run's last saved state" if (out / checkpoint.LAST).exists() else ""
    return f"the GPU failed: {diagnosis.in_words(error)}{kept}; `python -m minigrad.check --device cuda` tests it"


def leave_out_kernels(device: str, ranks: Ranks) -> None:
    """Do without the kernels that compute wrong on this GPU; the first rank checks, the others read its answer."""
    ranks.in_turn(lambda: leave_out_what_fails(device, warn if ranks.rank == 0 else lambda sentence: None))
