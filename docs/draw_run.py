"""Draw the README's picture of a run: `python docs/draw_run.py RUN` writes docs/images/first_run.png.

On the left the error over the epochs, on the right test images with what the network says of them: the first of each
class that it got right, and below them its most confident mistakes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw into a file; there may be no screen
import matplotlib.pyplot as plt
import numpy as np

from train.data import load
from train.run import checkpoint
from train.run.predictor import load_predictor, predict

TARGET = Path(__file__).resolve().parent / "images" / "first_run.png"
TRAIN, TEST, RIGHT, WRONG = "#8a8a8a", "#1f65b7", "#2c8a4b", "#c2410c"


def main(run: Path) -> None:
    """Draw the picture of one run."""
    _, state = checkpoint.read(run / checkpoint.LAST)
    config, lines = state["config"], state["history"]
    limits = {"limit_train": config["limit_train"], "limit_test": config["limit_test"]}
    _, test_set = load(config["data"], Path("data"), seed=config["seed"], progress=False, **limits)
    predictor = load_predictor(run / checkpoint.LAST, None, None, "cpu")
    predictions = predict(predictor, test_set, "cpu")
    right = np.flatnonzero(predictions.said == predictions.labels)
    first = [i for k in range(len(test_set.classes)) for i in right[predictions.labels[right] == k][:2]]
    shown = [*first[:20], *predictions.mistakes()[:10]]

    figure = plt.figure(figsize=(12, 3.8), layout="constrained", facecolor="#fcfbf8")
    left, images = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    for part in (left, images):
        part.set_facecolor("#fcfbf8")
    axis = left.subplots()
    axis.set_facecolor("none")
    epochs = [line["epoch"] for line in lines]
    higher = max(("train", "test"), key=lambda part: lines[-1][f"{part}_error"])
    for part, colour in (("train", TRAIN), ("test", TEST)):
        side = "bottom" if part == higher else "top"
        values = [line[f"{part}_error"] for line in lines]
        axis.plot(epochs, values, color=colour, marker="o", markersize=4)
        axis.annotate(f"  {part} {values[-1]:.1f} %", (epochs[-1], values[-1]), color=colour, va=side)
    axis.set(xlabel="epoch", ylim=(0, None), xlim=(epochs[0] - 0.3, epochs[-1] + 0.45 * len(epochs)))
    axis.set_xticks(epochs[:: max(1, len(epochs) // 8)])
    axis.set_title(f"{config['model']}: error (%)", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    cells = images.subplots(3, 10).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, i in zip(cells, shown, strict=False):
        said, was = predictions.said[i], predictions.labels[i]
        cell.imshow(test_set.images[i].transpose(1, 2, 0))
        cell.set_title(test_set.classes[said], fontsize=9.5, color=RIGHT if said == was else WRONG, pad=3)
    images.suptitle("test images, with the network's answer: right, and its most confident mistakes", fontsize=11)
    figure.savefig(TARGET, dpi=130)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/draw_run.py RUN")
    main(Path(sys.argv[1]))
