"""Runs of many networks with many seeds, and what they come to: mean errors and their standard error.

A run that is done is not done again, and one that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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


def train(
    models: Sequence[str], seeds: int, folder: Path, options: Sequence[str], run: Callable[[Sequence[str]], int]
) -> dict[str, list[Path]]:
    """Train every network with every seed, unless that is done; return the folders of each network's runs.

    `run` is the command that trains one, `train.cifar.main`: it takes a command line and returns an exit code. Raises
    Stopped where a run does not end well, and ValueError for options that do not work.
    """
    cells = [(model, seed) for seed in range(seeds) for model in dict.fromkeys(models)]
    runs: dict[str, list[Path]] = {model: [] for model in models}
    for i, (model, seed) in enumerate(cells, start=1):
        out = folder / f"{model}-seed{seed}"
        command = [*options, "--model", model, "--seed", str(seed), "--out", str(out), "--resume"]
        config = configure(parser().parse_args(command))
        title = f"[{i}/{len(cells)}] {model}, seed {seed}"
        if is_done(out, config):
            print(f"{title}: done")
        else:
            print(title, flush=True)
            code = run(command)
            if code:
                raise Stopped(code)
            if not is_done(out, config):  # --resume keeps the options of a run that was begun with others
                raise ValueError(f"{out} holds a run with other options: choose another folder with --runs")
        runs[model].append(out)
    return runs


def is_done(out: Path, config: Config) -> bool:
    """Whether a folder holds a run of just this configuration with all its epochs."""
    try:
        same = json.loads((out / "config.json").read_text()) == json.loads(json.dumps(asdict(config)))
        return same and len(read_metrics(out)) == config.recipe.epochs
    except (OSError, ValueError):
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
    """Put a network's runs together."""
    with safe_open(runs[0] / "last.safetensors", "numpy") as weights:
        classes = weights.get_slice("fc.weight").get_shape()[0]
    with counts.outlines():
        network = create(model, num_classes=classes)
    logs = [read_metrics(run) for run in runs]
    return Result(
        model,
        counts.parameters(network),
        counts.multiply_adds(network),
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
