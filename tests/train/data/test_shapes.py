"""The drawn data set: the same bytes for the same seed, and only the shape tells the class."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from train.data.shapes import CLASSES, MEAN, OUTLINES, STD, draw_shapes


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return draw_shapes(2000, seed=0)


def digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def test_shapes_types_and_balance(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    assert images.shape == (2000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert labels.shape == (2000,)
    assert labels.dtype == np.int64
    assert (np.sort(labels.reshape(-1, 10), axis=1) == np.arange(10)).all()
    assert sorted(CLASSES) == CLASSES
    assert len(set(CLASSES)) == 10


def test_another_process_draws_the_same_bytes(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    code = (
        "import hashlib; from train.data.shapes import draw_shapes\n"
        "print(hashlib.sha256(draw_shapes(30, 0)[0].tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == digest(drawn[0][:30])


def test_fewer_images_are_the_first_of_more(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = draw_shapes(707, seed=0)
    np.testing.assert_array_equal(images, drawn[0][:707])
    np.testing.assert_array_equal(labels, drawn[1][:707])


def test_seeds_and_splits_draw_different_images(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    first = drawn[0][:10]
    others = [draw_shapes(10, 1)[0], draw_shapes(10, 0, split=1)[0]]
    assert len({digest(x) for x in [first, *others]}) == 3
    assert len({digest(x) for x in drawn[0]}) == 2000


@pytest.mark.parametrize(
    ("number", "seed", "sentence"), [(0, 0, "must be positive, got 0"), (1, -1, "negative, got -1")]
)
def test_refuses(number: int, seed: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw_shapes(number, seed)


@pytest.mark.parametrize("name", CLASSES)
def test_an_outline_is_centred_and_has_an_area_of_one(name: str) -> None:
    scale, side = 400, 1600
    canvas = Image.new("1", (side, side))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in OUTLINES[name] * scale + side / 2], fill=1)
    rows, columns = np.nonzero(np.asarray(canvas))
    assert len(rows) / scale**2 == pytest.approx(1, abs=0.02)  # counted in pixels, not by the shoelace formula
    assert rows.mean() == pytest.approx(side / 2, abs=3)
    assert columns.mean() == pytest.approx(side / 2, abs=3)


def test_the_stated_statistics_hold(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    channels = drawn[0].transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(channels.mean(axis=1), MEAN, atol=4)
    np.testing.assert_allclose(channels.std(axis=1), STD, atol=4)


def test_colour_and_brightness_tell_nothing_of_the_class(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    features = np.concatenate([images.mean(axis=(2, 3)), images.std(axis=(2, 3))], axis=1)  # (N, 6)
    spread = features.std(axis=0)
    for label in range(10):
        shift = (features[labels == label].mean(axis=0) - features.mean(axis=0)) / spread
        assert abs(shift).max() < 0.35  # five standard errors of a mean over 200 images


def test_a_linear_classifier_fails(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    x = (images.reshape(2000, -1).astype(np.float32) - 127.5) / 61
    targets = np.eye(10, dtype=np.float32)[labels]
    train, test = slice(0, 1500), slice(1500, 2000)
    best = 0.0
    for ridge in (1e2, 1e4, 1e5):  # least squares on the pixels, w = x' (x x' + ridge)^-1 y
        kernel = x[train] @ x[train].T + ridge * np.eye(1500, dtype=np.float32)
        w = x[train].T @ np.linalg.solve(kernel, targets[train])
        best = max(best, float(((x[test] @ w).argmax(axis=1) == labels[test]).mean()))
    assert best < 0.45
