"""The pictures of a run."""

from pathlib import Path
from typing import Any

import pytest

from train.show import plots


@pytest.mark.parametrize(("train", "test"), [(0.3, 0.31), (0.31, 0.3), (0.3, 0.3)])
def test_labels_of_curves_that_end_together_do_not_overlap(
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
