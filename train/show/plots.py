"""The pictures that a run leaves: its curves and its confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draw into files; there may be no screen
import matplotlib.pyplot as plt
import numpy as np

TRAIN, TEST = "#8a8a8a", "#0b5394"  # apart in grey too


def draw_curves(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw loss and error over the epochs, training and test, from the lines of metrics.jsonl."""
    epochs = [line["epoch"] for line in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, quantity, unit in ((left, "loss", "loss (nats)"), (right, "error", "error (%)")):
        higher = max(("test", "train"), key=lambda part: lines[-1][f"{part}_{quantity}"])
        for part, colour in (("train", TRAIN), ("test", TEST)):
            values = [line[f"{part}_{quantity}"] for line in lines]
            axis.plot(epochs, values, color=colour, marker="o", markersize=3 if len(epochs) < 40 else 0)
            axis.annotate(
                f" {part} {values[-1]:.3g}",
                (epochs[-1], values[-1]),
                color=colour,
                va="bottom" if part == higher else "top",  # labels of curves that end together do not overlap
                annotation_clip=False,
            )
        axis.set_xlabel("epoch")
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.15 * (max(epochs) - min(epochs) + 1))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    _save(figure, path)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: Path, title: str) -> None:
    """Draw how often class i (row) was taken for class j (column), in per cent of row i."""
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.5 * len(classes) + 1.5) if len(classes) <= 20 else 10
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title)
    if len(classes) <= 20:
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axis.set_yticks(range(len(classes)), classes)
        for i, j in np.ndindex(share.shape):
            if share[i, j] >= 0.5:
                axis.text(
                    j, i, f"{share[i, j]:.0f}", ha="center", va="center", color="white" if share[i, j] > 50 else "black"
                )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Write the picture beside its target and rename it, so that a viewer never sees half of one."""
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    part.replace(path)
