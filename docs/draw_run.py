"""Draw the README's picture of a run: `python docs/draw_run.py RUN NAME` writes docs/images/NAME.png and its dark twin.

Above the error over the epochs, below it test images with what the network says of them: one of each class that it got
right, and its most confident mistakes with the true class. Letters are large enough for a picture 390 pixels wide.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnext.zoo import CIFAR_NAME
from train.data import load
from train.run import checkpoint
from train.run.predictor import load_predictor, predict

IMAGES = Path(__file__).resolve().parent / "images"
COLUMNS, LETTERS = 5, 15  # images in a row; points
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "drawn shapes"}


class Colours(NamedTuple):
    """A theme."""

    paper: str
    ink: str
    train: str
    test: str
    right: str
    wrong: str


THEMES = {
    "": Colours("#fcfbf8", "#222222", "#6e6e6e", "#1f65b7", "#1d7a3d", "#b93a08"),
    "_dark": Colours("#0d1117", "#e6edf3", "#9aa4ae", "#6cb2ff", "#5fd68a", "#ff9a66"),
}


def main(run: Path, name: str) -> None:
    """Draw the picture of one run, in both themes."""
    _, state = checkpoint.read(run / checkpoint.LAST)
    config, lines = state["config"], state["history"]
    limits = {"limit_train": config["limit_train"], "limit_test": config["limit_test"]}
    _, test_set = load(config["data"], Path("data"), seed=config["seed"], progress=False, **limits)
    predictor = load_predictor(run / checkpoint.LAST, None, None, "cpu")
    predictions = predict(predictor, test_set, "cpu")
    right = np.flatnonzero(predictions.predicted == predictions.labels)
    first = [i for k in range(len(test_set.classes)) for i in right[predictions.labels[right] == k][:1]][: 2 * COLUMNS]
    wrong = list(predictions.mistakes()[: 2 * COLUMNS])
    for theme, colours in THEMES.items():
        figure = Figure(figsize=(7.8, 10.6), dpi=100, layout="constrained", facecolor=colours.paper)
        FigureCanvasAgg(figure)
        above, below = figure.subfigures(2, 1, height_ratios=(1, 2.3))
        for part in (above, below):
            part.set_facecolor(colours.paper)
        draw_errors(above.subplots(), heading(config["model"], test_set.name), lines, colours)
        below.suptitle("test images and the network's answer", fontsize=LETTERS + 2, color=colours.ink)
        for cell, i in zip(below.subplots(4, COLUMNS).ravel(), [*first, *wrong], strict=False):
            draw_image(
                cell, test_set.images[i], test_set.classes, predictions.predicted[i], predictions.labels[i], colours
            )
        figure.savefig(IMAGES / f"{name}{theme}.png", facecolor=colours.paper)


def heading(model: str, data: str) -> str:
    """What was trained on what, in words: "ResNeXt-20, 4x32d, on CIFAR-10"."""
    name = CIFAR_NAME.fullmatch(model)
    return f"{'ResNeXt-{}, {}x{}d'.format(*name.groups()) if name else model}, on {DATA.get(data, data)}"


def draw_errors(axis: Any, title: str, lines: list[dict[str, float]], colours: Colours) -> None:
    """Training and test error over the epochs, with their last values written beside them."""
    epochs = [line["epoch"] for line in lines]
    higher = max(("train", "test"), key=lambda part: lines[-1][f"{part}_error"])
    highest = max(line[f"{part}_error"] for line in lines for part in ("train", "test"))
    for part, colour, marker in (("train", colours.train, "o"), ("test", colours.test, "s")):
        values = [line[f"{part}_error"] for line in lines]
        axis.plot(epochs, values, color=colour, marker=marker, markersize=7, linewidth=2.5)
        place = (epochs[-1], values[-1] + (0.06 if part == higher else -0.02) * highest)
        axis.annotate(
            f"   {part} {values[-1]:.1f} %",
            place,
            color=colour,
            fontsize=LETTERS,
            va="bottom" if part == higher else "center",
        )
    axis.set_facecolor("none")
    left, right = epochs[0] - 0.2, epochs[-1] + 0.4 * len(epochs)
    axis.set(ylim=(-0.05 * highest, 1.05 * highest), xlim=(left, right))
    axis.spines["bottom"].set_bounds(left, epochs[-1])  # what is right of it is room for words, no epochs
    axis.set_xticks(epochs[:: max(1, len(epochs) // 8)])
    middle = ((epochs[0] + epochs[-1]) / 2 - left) / (right - left)
    axis.set_xlabel("epoch", x=middle, fontsize=LETTERS, color=colours.ink)
    axis.set_ylabel("error, %", fontsize=LETTERS, color=colours.ink)
    axis.set_title(title, fontsize=LETTERS + 2, color=colours.ink)
    axis.tick_params(labelsize=LETTERS, colors=colours.ink)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(colours.ink)


def draw_image(cell: Any, image: np.ndarray, classes: Any, said: int, was: int, colours: Colours) -> None:
    """A test image and the answer: a tick where it is right, else a cross and the true class below."""
    cell.imshow(image.transpose(1, 2, 0))
    cell.axis("off")
    if said == was:
        cell.set_title(f"\u2713 {classes[said]}", fontsize=LETTERS, color=colours.right, pad=4)
    else:
        cell.set_title(f"\u2717 {classes[said]}", fontsize=LETTERS, color=colours.wrong, pad=4)
        cell.text(0.5, -0.06, f"is {classes[was]}", transform=cell.transAxes, ha="center", va="top",
                  fontsize=LETTERS - 1, color=colours.ink)  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/draw_run.py RUN NAME")
    main(Path(sys.argv[1]), sys.argv[2])
