"""What a run says while it goes: what it has read, how far it is, how long it will take, and what looks wrong.

Nothing here can end a run: whoever calls it does so inside a `Decoration` (options.py).
"""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..data import Dataset
from ..options import printable, say
from ..show.plots import duration

if TYPE_CHECKING:
    from .loop import Run

COLUMNS = 60  # what every line fits into that is written for people
FEW_STEPS, FEW_STEPS_AN_EPOCH = 200, 20  # below both, a run is too short for batch norm's averages and the schedule


def tell(text: str) -> None:
    """Print a sentence, broken into lines that fit a narrow terminal."""
    for line in textwrap.wrap(printable(text), COLUMNS, subsequent_indent="  ", break_on_hyphens=False):
        say(line)


def introduce(run: Run) -> None:
    """Say what was read and what will be trained."""
    H, W = run.train_set.shown
    K, recipe = len(run.train_set.classes), run.config.recipe
    tell(f"{run.config.model} on {run.train_set.name}: {K} classes, {W}x{H} pixels")
    tell(f"training: {counted(run.train_set)}")
    tell(f"test: {counted(run.test_set)}")
    if run.epoch < recipe.epochs:
        steps = math.ceil(len(run.train_set) / run.config.batch_size)
        images = min(run.config.batch_size, len(run.train_set))
        each = f"{steps:,} step{'s' if steps > 1 else ''} of {images} images"
        tell(f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''} of {each}, on {run.config.device}")


def counted(dataset: Dataset) -> str:
    """How many images there are of which classes: all where they are few, else the rarest and the most frequent."""
    counts, names = np.bincount(dataset.labels, minlength=len(dataset.classes)), dataset.classes
    if counts.min() == counts.max():
        return f"{len(dataset):,} images, {counts[0]:,} of each class"
    if len(names) <= 12:
        each = ", ".join(f"{name} {n:,}" for name, n in zip(names, counts, strict=True))
        return f"{len(dataset):,} images ({each})"
    low, high = int(counts.argmin()), int(counts.argmax())
    return (
        f"{len(dataset):,} images, from {counts[low]:,} ({names[low]}) to {counts[high]:,} ({names[high]}) of a class"
    )


def advise_on_steps(run: Run) -> None:
    """Say before the first step where a run has so few of them that it will learn little."""
    steps, epochs = math.ceil(len(run.train_set) / run.config.batch_size), run.config.recipe.epochs
    if steps >= FEW_STEPS_AN_EPOCH or steps * epochs >= FEW_STEPS or run.epoch:
        return
    smaller = max(8, len(run.train_set) // FEW_STEPS_AN_EPOCH)
    advice = [f"--batch-size {smaller}"] if smaller < run.config.batch_size else []
    advice += [f"--epochs {math.ceil(FEW_STEPS / max(steps, math.ceil(len(run.train_set) / smaller)))}"]
    tell(f"note: this run has {steps * epochs} steps, too few to learn much: try {' and '.join(advice)}")


def advise_on_answers(run: Run, confusion: np.ndarray) -> None:
    """Say where a network gives the same answer for every test image."""
    answers = np.flatnonzero(confusion.sum(axis=0))
    if len(answers) == 1 and (confusion.sum(axis=1) > 0).sum() > 1:
        name = run.test_set.classes[answers[0]]
        tell(
            f"note: every test image is taken for {name!r}: the network has not learnt to tell classes apart yet. If "
            f"that lasts, try a lower --lr than {run.config.recipe.lr:g}, a smaller --batch-size or more --epochs"
        )


def epoch_line(run: Run, line: dict[str, float]) -> str:
    """An epoch's figures in one line; a shorter one for a narrow terminal."""
    place = f"epoch {run.epoch:3d}/{run.config.recipe.epochs}"
    full = (
        f"{place}  lr {line['lr']:.4f}  train loss {line['train_loss']:.4f} error {line['train_error']:6.2f} %  "
        f"test loss {line['test_loss']:.4f} error {line['test_error']:6.2f} %  {line['images_per_second']:.0f} images/s"
    )
    if not (sys.stdout and sys.stdout.isatty()) or shutil.get_terminal_size().columns > len(full):
        return full
    parts = (f"{part} {line[f'{part}_loss']:.4g} {line[f'{part}_error']:.1f} %" for part in ("train", "test"))
    return f"{place}  {'  '.join(parts)}"


class Bar:
    """An epoch's bar on a terminal or in a notebook, with the time left for the epoch and for the whole run."""

    def __init__(self, run: Run, steps: int):
        self.run, self.steps, self.first = run, steps, run.step
        self.begin = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Bar:
        # No bar where standard error is no terminal (None), and none on other ranks. A notebook has its own.
        quiet = None if self.run.ranks.rank == 0 and sys.stderr else True
        with self.run.decoration("the progress bar"):
            self.bar = tqdm(
                total=self.steps,
                initial=self.first,
                desc=f"epoch {self.run.epoch + 1}/{self.run.config.recipe.epochs}",
                disable=quiet,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc}: {bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        return self

    def __exit__(self, *reason: object) -> None:
        with self.run.decoration("the progress bar"):
            if self.bar is not None:
                self.bar.close()

    def update(self) -> None:
        """Move on by a step."""
        if self.bar is None or self.bar.disable:
            return
        with self.run.decoration("the progress bar"):
            totals, columns = self.run.totals, self.bar.ncols or shutil.get_terminal_size().columns
            seen = totals["images"]
            if not seen:  # a GPU has not answered yet
                self.bar.update()
                return
            here, whole = self.time_left()
            parts = [
                f"{clock(here)} left, all {clock(whole)}, loss {totals['loss'] / seen:.3f}",
                f"error {100 * totals['errors'] / seen:.1f} %",
                f"{seen / totals['seconds']:.0f} images/s",
            ]
            room = columns - len(self.bar.desc) - 2 * len(str(self.steps)) - 12
            while len(parts) > 1 and len(", ".join(parts)) > room:
                parts.pop()
            self.bar.postfix = ", ".join(parts)
            self.bar.update()

    def time_left(self) -> tuple[float, float]:
        """Seconds to the end of this epoch's steps, and to the end of the run with its evaluations."""
        pace = (time.monotonic() - self.begin) / (self.run.step - self.first)
        here = pace * (self.steps - self.run.step)
        epochs = self.run.config.recipe.epochs - self.run.epoch
        # Before the first evaluation it is guessed: an image takes a third of its training step, the way forward alone.
        guess = pace * self.steps * len(self.run.test_set) / max(len(self.run.train_set), 1) / 3
        between = guess if self.run.between is None else self.run.between
        return here, here + (epochs - 1) * pace * self.steps + epochs * between


def clock(seconds: float) -> str:
    """A time as 0:48, 3:20 or 2:05:10."""
    minutes, s = divmod(math.ceil(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def farewell(run: Run, page: Any) -> None:
    """Say how the run ended, and on which page to look; None where it could not be written."""
    best = min(run.history, key=lambda line: line["test_error"])
    total = duration(run.saved_seconds)
    tell(f"best test error {best['test_error']:.2f} % after epoch {best['epoch']}; {total} in all")
    if page is not None:
        say(f"open {page}")
