"""Figures in the paper's form: error over the epochs of several runs, over the size of networks, system by system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator, MultipleLocator

from ..run.series import Result, mean_and_error
from .plots import drawing, new_figure, shortened, spread, wrapped, write_png
from .tables import in_words

# Apart in colour, in grey and, with the marker, in black and white.
STYLES = (("black", "o"), ("#0b5394", "s"), ("#c55a11", "^"), ("#38761d", "D"), ("#7f7f7f", "v"), ("#b07aa1", "P"))


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """An empty picture without the frame's upper and right side."""
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def entitle(figure: Any, title: str) -> None:
    """Write the title at the upper left, in as many lines as it takes."""
    figure.suptitle(wrapped(title, figure.get_figwidth()), x=0.01, ha="left")


def save(figure: Any, path: Path) -> None:
    """Write the picture, sharp enough for print, and say where it is."""
    write_png(figure, path, dpi=200)
    print(f"{path}\n{path.with_suffix('.md')}")


@drawing()
def draw_curves(series: Sequence[tuple[str, Sequence[Sequence[dict]]]], path: Path, title: str) -> None:
    """Figure 5's form: for each name the mean of its runs, training error dashed and test error solid.

    Where a name has several runs, a band shows the standard error of the mean. Names and errors stand at the end.
    """
    figure, axes = new_axes(8, 5)
    last = max(len(log) for _, logs in series for log in logs)
    lowest, highest, finals = 100.0, 0.0, []
    for (_, logs), (colour, marker) in zip(series, STYLES, strict=False):
        epochs = range(1, min(map(len, logs)) + 1)  # those that all runs have
        every = max(1, len(epochs) // 12)
        ends = {}
        for part, line, width in (("train_error", (0, (4, 2)), 1.0), ("test_error", "-", 1.8)):
            values = [mean_and_error([log[epoch - 1][part] for log in logs]) for epoch in epochs]
            means = [mean for mean, _ in values]
            lowest, highest = min(lowest, *means), max(highest, *means)
            ends[part] = values[-1]
            axes.plot(
                epochs, means, color=colour, linestyle=line, linewidth=width, marker=marker, markersize=4,
                markevery=every, markerfacecolor=colour if part == "test_error" else "white", clip_on=False,
            )  # fmt: skip
            if len(logs) > 1:
                low, high = ([mean + sign * error for mean, error in values] for sign in (-1, 1))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        finals.append((epochs[-1], ends))
    # One epoch stands in the middle of an axis of its own.
    left, right, gap = (1 - 0.04 * last, last, 0.01 * last) if last > 1 else (0.5, 1.5, 0.01)
    floor = 0.0 if lowest < 0.4 * highest else lowest - 0.2 * (highest - lowest)  # curves far from 0 get the height
    places = spread([ends["test_error"][0] for _, ends in finals], 0.1 * (highest - floor))
    lift = max(0.0, floor + 0.05 * (highest - floor) - min(places))  # no label below the axis
    for (name, _), (epoch, ends), y, (colour, _) in zip(series, finals, places, STYLES, strict=False):
        text = f"{shortened(name, 40)}\ntest {in_words(ends['test_error'])} %, train {in_words(ends['train_error'])} %"
        axes.text(right + 4 * gap, y + lift, text, color=colour, va="center", fontsize=9)
        xs, ys = (epoch, right + 3 * gap), (ends["test_error"][0], y + lift)
        axes.plot(xs, ys, color=colour, linewidth=0.6, clip_on=False)
    axes.plot([], [], color="black", linewidth=1.8, label="test")
    axes.plot([], [], color="black", linewidth=1.0, linestyle=(0, (4, 2)), label="training (augmented images)")
    axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel="epoch", ylabel="error (%)", xlim=(left, right), ylim=(floor, None))
    entitle(figure, title)
    axes.xaxis.set_major_locator(MultipleLocator(1) if last <= 16 else MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9")
    save(figure, path)


@drawing()
def draw_sweep(series: dict[str, list[tuple[str, float, Result]]], path: Path, title: str, xlabel: str) -> None:
    """Figure 7's form: curves of (label, x, result), test error with its standard error, every point labelled."""
    figure, axes = new_axes(7, 5)
    labels: dict[str, tuple[Any, int]] = {}  # and on which side of its point each stands
    for k, ((name, points), (colour, marker)) in enumerate(zip(series.items(), STYLES, strict=False)):
        xs = [x for _, x, _ in points]
        means = [r.test_error[0] for _, _, r in points]
        errors = [r.test_error[1] for _, _, r in points]
        bars = None if any(map(math.isnan, errors)) else errors
        axes.errorbar(
            xs, means, bars, color=colour, marker=marker, markersize=6, capsize=3, linewidth=1.5,
            linestyle=("-", (0, (5, 2)))[k % 2],
        )  # fmt: skip
        for (label, _, _), x, y, error in zip(points, xs, means, bars or [0.0] * len(points), strict=True):
            if label in labels:
                continue  # where the curves begin, they share a point
            side = 1 if k else -1  # labels of the first curve below it, of the second above
            left = (means[-1] > means[0]) == (side > 0)  # where the curve does not pass
            text = axes.annotate(
                label, (x, y + side * error), (1 if left else -1, side * 6), textcoords="offset points",
                ha="right" if left else "left", va="bottom" if k else "top", fontsize=9, color=colour,
            )  # fmt: skip
            labels[label] = text, side
        if len(series) > 1:
            axes.annotate(
                f"  {name}", (xs[-1], means[-1]), (8, 0), textcoords="offset points", color=colour, va="center",
                annotation_clip=False, fontweight="bold",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = sorted({x for points in series.values() for _, x, _ in points})
    named = ticks[:1]
    for x in ticks:  # where a number has room
        if math.log(x / named[-1]) > 0.09 * math.log(ticks[-1] / ticks[0]):
            named.append(x)
    axes.set_xticks(ticks, [f"{x:.3g}" if x in named else "" for x in ticks])
    axes.margins(x=0.1, y=0.2)
    axes.set(xlabel=xlabel, ylabel="test error (%)")
    entitle(figure, title)
    axes.grid(axis="y", color="0.9")
    part(figure, list(labels.values()))
    save(figure, path)


def part(figure: Any, labels: Sequence[tuple[Any, int]]) -> None:
    """Move labels away from their points, each to its own side (1: up, -1: down), until none covers another."""
    figure.draw_without_rendering()  # only now it is known where the axes are
    boxes: list[Any] = []
    for text, side in labels:
        while any(text.get_window_extent().overlaps(box) for box in boxes):
            text.xyann = (text.xyann[0], text.xyann[1] + 2 * side)
        boxes.append(text.get_window_extent())


@drawing()
def draw_road(results: Sequence[tuple[str, Result]], path: Path, title: str) -> None:
    """One row a system, the oldest on top: test error with its standard error, and what the system costs."""
    figure, axes = new_axes(8, 0.55 * len(results) + 1.6)
    ends = []
    for row, (_, r) in enumerate(results):
        mean, error = r.test_error
        axes.barh(row, mean, height=0.55, color="0.82" if row < len(results) - 1 else "#0b5394")
        axes.errorbar(mean, row, xerr=None if math.isnan(error) else error, color="black", capsize=3, linewidth=1)
        right = mean + (0 if math.isnan(error) else error)
        ends.append(right)
        millions = r.multiply_adds / 1e6
        cost = f"{r.parameters:,} parameters, {millions:.{0 if millions >= 10 else 2}f} M multiply-adds"
        for text, below, size, grey in ((f"{in_words(r.test_error)} %", -0.12, 9, "0"), (cost, 0.2, 7, "0.35")):
            axes.annotate(
                text, (right, row + below), (6, 0), textcoords="offset points", va="center", fontsize=size, color=grey
            )
    axes.set_yticks(range(len(results)), [label for label, _ in results])
    axes.invert_yaxis()
    entitle(figure, title)
    axes.set(xlabel="test error (%)", xlim=(0, 1.5 * max(ends)))
    axes.tick_params(axis="y", length=0)
    save(figure, path)
