"""A run's report: one HTML page that needs no network.

Curves, images per class, confusion matrix, the most confident mistakes as images, the first layer's filters, where the
time goes, configuration, versions, commit, and the command that repeats the run. What the page says of the network is
measured when it is written, with the weights after the last epoch. Here is what it says; report.html says how it looks.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.ticker import MaxNLocator
from PIL import Image

from minigrad import Module, Tensor
from minigrad import functional as F
from minigrad.backend import to_device, to_numpy
from minigrad.weights import write_atomically

from ..data import Dataset, augment, load
from ..measure.environment import commit, versions
from ..measure.layers import REST, Times, summed, times_of_step
from ..options import printable
from ..run import checkpoint
from ..run.config import Config
from ..run.evaluation import on_this_machine
from ..run.loop import checksum_of_data
from ..run.predictor import Predictions, Predictor, load_predictor, predict
from ..run.repeat import command
from .plots import CLASSES, ceiling, confused_pairs, duration

MISTAKES = 24  # images shown
TIMED_IMAGES, TIMED_STEPS = 32, 3
PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

Sets = tuple[Dataset, Dataset]  # training and test images


# ---- drawings -------------------------------------------------------------------------------------------------------


def picture(pixels: np.ndarray) -> str:
    """An image (3, H, W) uint8 as an address that carries its PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


LEFT, TOP, WIDTH, HEIGHT = 62, 14, 318, 226  # the frame of a curve, in a drawing of 520 x 292


def curve(lines: Sequence[dict[str, Any]], quantity: str, unit: str) -> dict[str, Any]:
    """Where the lines, marks and labels of a training and a test curve over the epochs go."""
    epochs = [line["epoch"] for line in lines]
    first, last = min(epochs), max(epochs)
    top, above = ceiling([line[f"{part}_{quantity}"] for line in lines for part in ("train", "test")])
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(0, top or 1)]
    places = [int(tick) for tick in MaxNLocator(6, integer=True).tick_values(first, last) if first <= tick <= last]

    def x(epoch: float) -> float:
        return round(LEFT + WIDTH * (epoch - first) / max(last - first, 1), 1)

    def y(value: float) -> float:
        return round(TOP + HEIGHT * (1 - min(value, ticks[-1]) / ticks[-1]), 1)

    ends = {part: y(lines[-1][f"{part}_{quantity}"]) for part in ("train", "test")}
    if abs(ends["train"] - ends["test"]) < 20:  # keep the two labels apart
        lower = max(ends, key=lambda part: ends[part])
        middle = min(sum(ends.values()) / 2, TOP + HEIGHT - 10)  # and above the epochs
        ends = {part: middle + (10 if part == lower else -10) for part in ends}
    series = []
    for part in ("train", "test"):
        values = [line[f"{part}_{quantity}"] for line in lines]
        points = [
            {"x": x(e), "y": y(v), "says": f"epoch {e:g}: {part} {quantity} {v:.4g}{unit}"}
            for e, v in zip(epochs, values, strict=True)
        ]
        label = {
            "x": x(last) + 9,
            "y": ends[part] + 4,
            "text": f"{part} {values[-1]:.2f} %" if unit == " %" else f"{part} {values[-1]:.3g}",
        }
        series.append({"part": part, "points": points, "label": label})
    return {
        "quantity": quantity,
        "title": f"{quantity} ({unit.strip()})",
        "left": LEFT,
        "right": LEFT + WIDTH,
        "bottom": TOP + HEIGHT,
        "rows": [{"y": y(tick), "text": f"{tick:g}"} for tick in ticks],
        "columns": [{"x": x(tick), "text": f"{tick}"} for tick in places],
        "series": series,
        "radius": 3 if len(epochs) <= 60 else 1.5,
        "above": above,
    }


def filters(model: Module) -> list[str]:
    """The first convolution's filters as small colour images; empty where it does not see three channels."""
    weights = next((p.data for p in model.parameters() if p.ndim == 4), None)
    if weights is None or weights.shape[1] != 3 or weights.shape[2] < 2:
        return []
    images = []
    for w in to_numpy(weights).astype(np.float64):
        span = np.abs(w).max() or 1.0
        images.append(picture(np.rint(127.5 + 127.5 * w / span).astype(np.uint8)))
    return images


# ---- the parts of the page ------------------------------------------------------------------------------------------


def figures(config: Config, state: checkpoint.State, parameters: int, images: int | None) -> dict[str, str]:
    """The run in a few numbers, by what they are."""
    history, epochs = state["history"], f"{state['epoch']} of {config.recipe.epochs}"
    if not history:
        return {"parameters": f"{parameters:,}", "epochs": epochs}
    best = min(history, key=lambda line: line["test_error"])
    numbers = {
        f"test error, last epoch ({history[-1]['epoch']:g})": f"{history[-1]['test_error']:.2f} %",
        f"test error, best (epoch {best['epoch']:g})": f"{best['test_error']:.2f} %",
        "training error, last epoch": f"{history[-1]['train_error']:.2f} %",
        "images/s in training": f"{np.median([line['images_per_second'] for line in history]):,.0f}",
        "parameters": f"{parameters:,}",
        "epochs": epochs,
    }
    if state.get("seconds"):
        numbers["total time"] = duration(state["seconds"])
    elif images:
        seconds = sum(images / line["images_per_second"] for line in history if line["images_per_second"] > 0)
        numbers["time in training steps"] = duration(seconds)
    return numbers


def image_counts(sets: Sets) -> list[dict[str, Any]]:
    """How many images each class has, in training and in test."""
    counts = [np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist() for dataset in sets]
    names = map(printable, sets[0].classes)
    return [{"name": name, "train": a, "test": b} for name, a, b in zip(names, *counts, strict=True)]


def confusion_rows(confusion: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """How often class i (row) was taken for class j (column), in per cent of the row."""
    rows = []
    for i, name in enumerate(classes):
        whole = int(confusion[i].sum())
        cells = [
            {"count": int(n), "whole": whole, "share": 100 * n / max(whole, 1), "name": classes[j], "right": i == j}
            for j, n in enumerate(confusion[i])
        ]
        rows.append({"name": name, "cells": cells})
    return rows


def mistakes(predictions: Predictions, test_set: Dataset) -> dict[str, Any]:
    """The images that were wrong with most confidence, and how many were wrong altogether."""
    wrong = predictions.mistakes()
    items = []
    for i in wrong[:MISTAKES]:
        said, was = (printable(test_set.classes[k]) for k in (predictions.predicted[i], predictions.labels[i]))
        share = 100 * float(predictions.probabilities[i, predictions.predicted[i]])
        image = picture(to_numpy(test_set.images[i]))
        items.append({"image": image, "alt": f"test image {i}, a {was}", "said": said, "was": was, "share": share})
    return {"number": len(wrong), "images": len(test_set), "shown": items}


def bars(times: Times) -> list[dict[str, Any]]:
    """Bars of forward and backward milliseconds, in per cent of the longest."""
    most = max(sum(pair) for pair in times.values()) or 1.0
    return [
        {
            "name": name,
            "forward": 100 * forward / most,
            "backward": 100 * backward / most,
            "ms": 1000 * (forward + backward),
        }
        for name, (forward, backward) in times.items()
    ]


def step_times(predictor: Predictor, images: np.ndarray, labels: np.ndarray, device: str) -> tuple[Times, Times]:
    """Seconds of one training step by module and by kind of operation, the mean of a few after one that warms up."""
    model = predictor.model.train()
    batch = augment.normalise(to_device(images, device), predictor.mean, predictor.std)

    def step() -> None:
        F.cross_entropy(model(Tensor._of(batch)), labels).backward()
        model.zero_grad()

    by_module, by_kind, _ = times_of_step(step, model, device, TIMED_STEPS)
    return by_module, by_kind


def where_the_time_goes(predictor: Predictor, test_set: Dataset, device: str) -> dict[str, Any]:
    """A training step's time by block and by kind of operation."""
    images, labels = test_set.images[:TIMED_IMAGES], test_set.labels[:TIMED_IMAGES]
    by_module, by_kind = step_times(predictor, to_numpy(images), labels, device)
    depth = 2 if len(summed(by_module, 2)) <= CLASSES else 1
    total = sum(sum(pair) for pair in by_kind.values())
    kinds: Times = {}
    for kind, pair in sorted(by_kind.items(), key=lambda item: -sum(item[1])):
        sums = kinds.setdefault(kind if sum(pair) > 0.01 * total else REST, [0.0, 0.0])
        sums[:] = [a + b for a, b in zip(sums, pair, strict=True)]
    return {
        "images": len(labels),
        "ms": 1000 * total,
        "device": device,
        "steps": TIMED_STEPS,
        "by_module": bars(summed(by_module, depth)),
        "by_kind": bars(kinds),
    }


def settings(config: dict[str, Any]) -> dict[str, str]:
    """The configuration in words: no None and no True."""
    words = {
        "limit_train": "all training images",
        "limit_test": "all test images",
        "image_size": "as the images are",
        "validate": "no share of the training images",
    }
    flat = {name: value for name, value in config.items() if name != "recipe"} | config["recipe"]
    rows = {}
    for name, value in flat.items():
        said = (
            ("yes" if value else "no")
            if isinstance(value, bool)
            else words.get(name, "none")
            if value is None
            else value
        )
        rows[name.replace("_", " ")] = printable(str(said))
    return rows


# ---- the page -------------------------------------------------------------------------------------------------------


def render(
    out: Path, config: Config, state: checkpoint.State, predictor: Predictor, sets: Sets | None, absent: str
) -> str:
    """The page's text; without images, `absent` says why there are none. `config` is where and how it is measured."""
    history = state["history"]
    again = command(state["config"], out).split(" --")
    facts: dict[str, Any] = {
        "model": config.model,
        "data": printable(sets[0].name if sets else config.data),
        "run": printable(out.resolve().name),
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "epoch": state["epoch"],
        "step": state["step"],
        "figures": figures(
            config, state, sum(p.size for p in predictor.model.parameters()), len(sets[0]) if sets else None
        ),
        "curves": [curve(history, "error", " %"), curve(history, "loss", " nats")] if history else [],
        "absent": printable(absent),
        "filters": filters(predictor.model),
        "command": [printable(part) for part in (again[0], *(f"--{option}" for option in again[1:]))],
        "settings": settings(state["config"]),
        "versions": ({"commit": revision} if (revision := commit()) else {}) | versions(),
        "images": None,
    }
    if sets is not None:
        test_set = sets[1]
        predictions = predict(predictor, test_set, config.device)
        confusion, classes = predictions.confusion(), [printable(name) for name in test_set.classes]
        facts |= {
            "images": image_counts(sets),
            "confusion": confusion_rows(confusion, classes) if len(classes) <= CLASSES else [],
            "pairs": confused_pairs(confusion, classes, 8 if len(classes) <= CLASSES else 24),
            "mistakes": mistakes(predictions, test_set),
            "time": where_the_time_goes(predictor, test_set, config.device),
        }
    return PAGE.get_template("report.html").render(facts)


def write_report(out: Path, data_root: Path = Path("data"), sets: Sets | None = None) -> Path:
    """Write `report.html` into the run folder `out`; return its path.

    The images are loaded anew, as the run's configuration says, unless they are given. Raises FileNotFoundError for a
    folder without a run and ValueError for a damaged one.
    """
    _, state = checkpoint.read(out / checkpoint.LAST)
    if not state:
        raise ValueError(f"{out / checkpoint.LAST} holds weights but no run")
    config, absent = on_this_machine(Config.stored(state["config"], out / checkpoint.LAST)), ""
    predictor = load_predictor(out / checkpoint.LAST, None, None, config.device)
    if sets is None:
        try:
            names = ("limit_test", "limit_train", "image_size", "validate")
            options = {name: getattr(config, name) for name in names}
            sets = load(config.data, data_root, seed=config.seed, progress=False, **options)
        except (ValueError, OSError) as error:
            absent = str(error)
        if sets and (sets[0].classes, checksum_of_data(sets[0])) != (state["classes"], state["images"]):
            sets, absent = None, f"the images of {config.data} are others than those of the run"
    write_atomically(out / "report.html", render(out, config, state, predictor, sets, absent).encode())
    return out / "report.html"
