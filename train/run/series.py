"""Runs of many networks with many seeds, and what they come to: mean errors and their standard error.

A run that is done is not done again, and one that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from resnext import counts, create

from . import checkpoint
from .config import Config, configure, parser


class Stopped(Exception):
    """A run did not get to its end; its command has said why."""

    def __init__(self, code: int):
        self.code = code


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, one an epoch. Raises FileNotFoundError or ValueError for a folder that is no run."""
    log = run / "metrics.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"{run} is no run: it has no metrics.jsonl")
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if not all(map(checkpoint.has_numbers("epoch", "train_error", "test_error", "images_per_second"), lines)):
            raise ValueError
    except (ValueError, RecursionError):  # ValueError: no JSON, no text, a number of thousands of digits
        raise ValueError(f"{log} is no log of a run: an epoch's line is damaged") from None
    if not lines:
        raise ValueError(f"{run} has not finished an epoch yet")
    return lines


@dataclass(frozen=True)
class System:
    """A network of a comparison, under its name there, and options of `train.cifar` that only this one needs."""

    label: str
    model: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a series: a network, a seed, the run's folder, its command line, and what that line means."""

    model: str
    seed: int
    out: Path
    command: tuple[str, ...]
    config: Config

    def __str__(self) -> str:
        return f"{self.model}, seed {self.seed}"

    def epochs(self) -> int:
        """How many of its epochs the folder holds."""
        try:
            return len(read_metrics(self.out)) if is_begun(self.out, self.config) else 0
        except (OSError, ValueError):
            return 0

    def is_done(self) -> bool:
        """Whether the folder holds a run of just this configuration with all its epochs."""
        return self.epochs() == self.config.recipe.epochs


def plan(systems: Sequence[System], seeds: int, folder: Path, options: Sequence[str]) -> list[Cell]:
    """The runs of every system with every seed, all systems with one seed before the next seed.

    `options` are for all, and override a system's own. Raises ValueError for options that do not work.
    """
    cells = []
    for seed in range(seeds):
        for model, own in {system.model: system.options for system in systems}.items():
            out = folder / f"{model}-seed{seed}"
            command = (*own, *options, "--model", model, "--seed", str(seed), "--out", str(out), "--resume")
            config = configure(parser().parse_args(command))
            # Said explicitly, so that `quick` does not adapt itself: all networks train alike.
            same = ("--epochs", config.recipe.epochs, "--batch-size", config.batch_size, "--lr", config.recipe.lr)
            cells.append(Cell(model, seed, out, (*command, *map(str, same)), config))
    return cells


def train_in_turn(cells: Sequence[Cell], run: Callable[[Sequence[str]], int], ended: Callable[[Cell], object]) -> None:
    """Train the runs that are not done, one after the other in this process, and call `ended` after each.

    `run` is the command that trains one, `train.cifar.main`: it takes a command line and returns an exit code. Raises
    Stopped where a run does not end well, and ValueError where a folder holds a run with other options.
    """
    for i, cell in enumerate(cells, start=1):
        title = f"[{i}/{len(cells)}] {cell}"
        if cell.is_done():
            print(f"{title}: done")
            continue
        print(title, flush=True)
        code = run(cell.command)
        if code:
            raise Stopped(code)
        if not cell.is_done():  # --resume keeps the options of a run that was begun with others
            raise ValueError(f"{cell.out} holds a run with other options: choose another folder with --runs")
        ended(cell)


def is_begun(out: Path, config: Config) -> bool:
    """Whether a folder holds a run of just this configuration, begun by this version or by an earlier one."""
    try:
        return Config.stored(json.loads((out / "config.json").read_text()), out) == config
    except (OSError, ValueError, TypeError, LookupError):
        return False


@dataclass(frozen=True)
class Result:
    """A network's size, and its errors in per cent over several seeds: mean and standard error (nan for one seed)."""

    model: str
    parameters: int
    multiply_adds: int
    seeds: int
    train_error: tuple[float, float]  # in the last epoch, on augmented images, while the weights still moved
    test_error: tuple[float, float]  # after the last epoch
    best_error: tuple[float, float]  # after each run's best epoch, which is chosen on the test images
    images_per_second: float  # in training


def summarise(model: str, runs: Sequence[Path]) -> Result:
    """Put a network's runs together. Where only logs were kept, the network is taken to have its usual classes."""
    classes, config = None, json.loads((runs[0] / "config.json").read_text())
    if (runs[0] / checkpoint.LAST).exists():
        with safe_open(runs[0] / checkpoint.LAST, "numpy") as weights:
            classes = weights.get_slice("fc.weight").get_shape()[0]
    with counts.outlines():
        network = create(model, num_classes=classes)
    logs = [read_metrics(run) for run in runs]
    return Result(
        model,
        counts.parameters(network),
        counts.multiply_adds(network, config.get("image_size")),
        len(logs),
        mean_and_error([log[-1]["train_error"] for log in logs]),
        mean_and_error([log[-1]["test_error"] for log in logs]),
        mean_and_error([min(line["test_error"] for line in log) for log in logs]),
        statistics.median(line["images_per_second"] for log in logs for line in log),
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error s / √n, with s² = Σ (v - mean)² / (n - 1); nan for a single value."""
    n = len(values)
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
