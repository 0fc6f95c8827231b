"""The pictures that a run leaves: its curves and its confusion matrix."""

from __future__ import annotations

import io
import statistics
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from minigrad.weights import write_atomically

from ..options import printable

TRAIN, TEST = "#8a8a8a", "#0b5394"  # apart in grey too
CLASSES = 20  # the most classes whose confusion matrix is drawn; of more, the pairs that are confused most often are
PAIRS = 24  # so many of them


# ---- what all pictures share ----------------------------------------------------------------------------------------


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside with Matplotlib's own settings, not the user's, and show names as they are: a dollar is a dollar."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # its font has no Chinese, for example
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    It draws into a file and knows no other backend: pyplot would load the one that MPLBACKEND names, and Jupyter sets
    that to a module which not every environment has.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure to a file that appears whole or not at all: a viewer never sees half of one."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    write_atomically(path, buffer.getvalue())


def ceiling(values: Sequence[float]) -> tuple[float, str]:
    """How high an axis must reach for these values, which begin at 0, and what to say of those that lie above it.

    A few outliers must not press all the rest flat: values beyond eight times the upper quartile lie above the axis, if
    that is more than twice the first value, from which a run that goes well comes down.
    """
    fence = max(8 * float(np.quantile(values, 0.75)), 2 * values[0])
    most, inside = max(values), max((v for v in values if v <= fence), default=0.0)
    if most <= fence or not inside:
        return most, ""
    count = sum(v > fence for v in values)
    return inside, f"{count} value{'s lie' if count > 1 else ' lies'} above the axis: up to {most:,.4g}"


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbours are `gap` from each other, as little as that takes."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[int]] = []  # labels that touch move as one, around the mean of their positions
    for i in order:
        groups.append([i])
        while len(groups) > 1 and top(groups[-2], positions, gap) + gap > bottom(groups[-1], positions, gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [0.0] * len(positions)
    for group in groups:
        for step, i in enumerate(group):
            moved[i] = bottom(group, positions, gap) + step * gap
    return moved


def bottom(group: Sequence[int], positions: Sequence[float], gap: float) -> float:
    """Where the lowest label of a group goes."""
    return statistics.mean(positions[i] for i in group) - gap * (len(group) - 1) / 2


def top(group: Sequence[int], positions: Sequence[float], gap: float) -> float:
    """Where the highest label of a group goes."""
    return bottom(group, positions, gap) + gap * (len(group) - 1)


def duration(seconds: float) -> str:
    """Seconds in words: 48 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    for size, unit, below, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {smaller}"
    return f"{whole} s"


def confused_pairs(confusion: np.ndarray, classes: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The most frequent confusions: which class was taken for which, how often, and of how many images."""
    off = confusion - np.diag(np.diag(confusion))
    pairs = [divmod(int(flat), len(classes)) for flat in np.argsort(-off, axis=None, kind="stable")[:limit]]
    return [
        {"was": classes[i], "said": classes[j], "count": int(off[i, j]), "whole": int(confusion[i].sum())}
        for i, j in pairs
        if off[i, j]
    ]


# ---- the pictures of a run ------------------------------------------------------------------------------------------


@drawing()
def draw_curves(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw loss and error over the epochs, training and test, from the lines of metrics.jsonl."""
    epochs = [line["epoch"] for line in lines]
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for axis, quantity, unit in ((left, "loss", "loss (nats)"), (right, "error", "error (%)")):
        top, above = ceiling([line[f"{part}_{quantity}"] for line in lines for part in ("train", "test")])
        height = 1.05 * top or 1.0
        places = spread([min(lines[-1][f"{part}_{quantity}"], top) for part in ("train", "test")], 0.08 * height)
        lift = max(0.0, 0.05 * height - min(places))  # no label touches the axis below
        for part, colour, place in zip(("train", "test"), (TRAIN, TEST), places, strict=True):
            values = [line[f"{part}_{quantity}"] for line in lines]
            axis.plot(epochs, values, color=colour, marker="o", markersize=3 if len(epochs) < 40 else 0)
            label = (epochs[-1], place + lift)
            text = f"  {part} {values[-1]:.3g}{' %' * (quantity == 'error')}"
            axis.annotate(text, label, color=colour, va="center", annotation_clip=False)
        axis.set_xlabel(f"epoch\n{above}" if above else "epoch")
        axis.set_ylabel(unit)
        axis.set_ylim(0, height)
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.15 * (max(epochs) - min(epochs) + 1))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(wrapped(title, 10))
    write_png(figure, path)


@drawing()
def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: Path, title: str) -> None:
    """Draw how often class i (row) was taken for class j (column), in per cent of row i.

    Of more than CLASSES classes no name could be read in a matrix: the pairs that are confused most often are drawn.
    """
    names = [shortened(printable(name)) for name in classes]
    if len(classes) > CLASSES:
        draw_pairs(confused_pairs(confusion, names, PAIRS), path, title)
        return
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 0.5 * len(classes) + 1.5)
    figure = new_figure(side, side)
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_xticks(range(len(classes)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), names)
    for i, j in np.ndindex(share.shape):
        if share[i, j] >= 0.5:
            colour = "white" if share[i, j] > 50 else "black"
            axis.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", color=colour)
    figure.suptitle(wrapped(f"{title}\nper cent of each true class", side))
    write_png(figure, path)


def draw_pairs(pairs: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the pairs of classes that are confused most often, as bars in per cent of the true class's images."""
    figure = new_figure(8, 1.6 + 0.28 * max(len(pairs), 4))
    axis = figure.subplots()
    shares = [100 * pair["count"] / pair["whole"] for pair in pairs]
    axis.barh(range(len(pairs)), shares, color=TEST, height=0.7)
    axis.set_yticks(range(len(pairs)), [f"{pair['was']}, taken for {pair['said']}" for pair in pairs])
    for i, (pair, share) in enumerate(zip(pairs, shares, strict=True)):
        axis.annotate(f" {pair['count']} of {pair['whole']}", (share, i), va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("per cent of the true class's test images")
    axis.set_xlim(0, 1.2 * max(shares, default=1.0))
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= min(100, axis.get_xlim()[1])])
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(wrapped(f"{title}\nthe most frequent confusions", 8))
    write_png(figure, path)


def wrapped(title: str, width: float) -> str:
    """A title in as many lines as a picture of this width, in inches, needs; none is cut."""
    width_in_letters = max(20, int(9 * width))
    return "\n".join(textwrap.fill(printable(line), width_in_letters) for line in title.split("\n"))


def shortened(name: str, most: int = 28) -> str:
    """A name of which a picture has room for a part."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
