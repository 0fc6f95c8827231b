"""The pictures of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.show import plots


@pytest.mark.parametrize(("train", "test"), [(0.3, 0.31), (0.31, 0.3), (0.3, 0.3), (0.0, 0.0), (0.001, 4.0)])
def test_labels_of_curves_overlap_neither_each_other_nor_the_axis(
    train: float, test: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "write_png", lambda figure, path: figures.append(figure))
    ends = [{"train_loss": 4.0, "test_loss": 3.0, "train_error": 90.0, "test_error": 80.0}]
    ends.append({"train_loss": train, "test_loss": test, "train_error": 30 * train, "test_error": 30 * test})
    plots.draw_curves([{"epoch": i, **line} for i, line in enumerate(ends, start=1)], tmp_path / "curves.png", "run")
    (figure,) = figures
    figure.canvas.draw()
    for axis in figure.axes:
        first, second = (text.get_window_extent().shrunk(0.98, 0.98) for text in axis.texts)  # they may touch
        assert not first.overlaps(second)
        assert min(first.y0, second.y0) > axis.bbox.y0


NAMES = ["$\\frac$", "cost$_$", "a\udcffb", "two\nlines", "图", "x" * 200]


def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn from now on."""
    figures: list[Any] = []
    write = plots.write_png
    monkeypatch.setattr(plots, "write_png", lambda figure, path: figures.append(figure) or write(figure, path))
    return figures


def test_names_are_drawn_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = written(monkeypatch)
    plots.draw_confusion(np.eye(len(NAMES)), NAMES, tmp_path / "confusion.png", "on cost$_$, after epoch 3")
    (figure,) = figures
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:5] == ["$\\frac$", "cost$_$", "a\\udcffb", "two\\nlines", "图"]
    assert labels[5].endswith("…") and len(labels[5]) < 40
    assert "cost$_$, after epoch 3" in figure.get_suptitle()


@pytest.mark.parametrize("classes", [2, 10, 20, 100])
def test_no_title_and_no_name_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    figures = written(monkeypatch)
    names = [f"class number {k}" for k in range(classes)]
    confusion = np.random.default_rng(0).integers(0, 9, (classes, classes))
    title = "resnext29_8x64d on photographs of the summer holidays, after epoch 300: 12.34 % test error"
    plots.draw_confusion(confusion, names, tmp_path / "confusion.png", title)
    (figure,) = figures
    figure.canvas.draw()
    axis = figure.axes[0]
    columns = axis.get_xticklabels() if classes <= plots.CLASSES else []  # else they are numbers
    for text in [figure._suptitle, *axis.get_yticklabels(), *columns]:
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()


def test_of_many_classes_the_pairs_that_are_confused_most_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = written(monkeypatch)
    confusion = 10 * np.eye(21, dtype=int)
    confusion[3, 7], confusion[5, 2] = 4, 9
    plots.draw_confusion(confusion, [f"c{k}" for k in range(21)], tmp_path / "confusion.png", "title")
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert labels == ["c5, taken for c2", "c3, taken for c7"]


def test_outliers_do_not_flatten_an_axis() -> None:
    assert plots.ceiling([2.3, 2.4, 1.2, 1.3, 0.8, 6772.0, 0.5, 0.6]) == (
        2.4,
        "1 value lies above the axis: up to 6,772",
    )
    assert plots.ceiling([2.3, 2.5, 0.1, 0.2, 0.01, 0.05]) == (2.5, "")
    assert plots.ceiling([0.0, 0.0]) == (0.0, "")
