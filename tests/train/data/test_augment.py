"""Augmentation held to loops over single pixels, and to what the recipe promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.augment import (
    alternating_flips,
    augmented,
    crop,
    cutout,
    draw,
    draw_boxes,
    normalise,
    random_resized_crop,
    resampling,
)

MEAN, STD = [125.3, 123.0, 113.9], [63.0, 62.1, 66.7]


class Replay:
    """Stands in for a Generator and gives the decisions that a test wants."""

    def __init__(self, *integers: object, coins: object = ()):
        self.answers = [np.array(i) for i in integers]
        self.coins = np.array(coins, np.float64)

    def integers(self, low: int, high: int, size: object) -> np.ndarray:
        answer = self.answers.pop(0)
        assert answer.shape == size
        assert answer.min() >= low
        assert answer.max() < high
        return answer

    def random(self, number: int) -> np.ndarray:
        assert self.coins.shape == (number,)
        return self.coins


def reflect(i: int, size: int) -> int:
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def crop_and_flip(batch, rng, padding=4, mode="zero", flips=None):  # type: ignore[no-untyped-def]
    """Crops and mirror images of a batch as chance decides."""
    _, down, right, mirrored, _, _ = draw(np.arange(len(batch)), batch.shape[2:], rng, padding, flips).T
    return crop(batch, down, right, mirrored != 0, padding, mode)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    padding=st.integers(0, 5),
    mode=st.sampled_from(["zero", "reflect"]),
    seed=st.integers(0, 99),
)
def test_crop_and_flip_is_the_formula_pixel_by_pixel(
    shape: tuple[int, int, int, int], padding: int, mode: str, seed: int
) -> None:
    N, _, H, W = shape
    if mode == "reflect":
        padding = min(padding, H - 1, W - 1)
    rng = np.random.default_rng(seed)
    batch = rng.standard_normal(shape)
    dy, dx = rng.integers(0, 2 * padding + 1, (2, N))
    flips = rng.random(N) < 0.5
    y = crop_and_flip(batch, Replay([dy, dx], coins=np.where(flips, 0.49, 0.5)), padding, mode)  # type: ignore[arg-type]
    expected = np.zeros(shape)
    for n, c, i, j in np.ndindex(*shape):
        row, column = i + dy[n] - padding, (W - 1 - j if flips[n] else j) + dx[n] - padding
        if mode == "reflect":
            row, column = reflect(row, H), reflect(column, W)
        if 0 <= row < H and 0 <= column < W:
            expected[n, c, i, j] = batch[n, c, row, column]
    np.testing.assert_array_equal(y, expected)


def test_crop_and_flip_leaves_its_input_alone_and_returns_contiguous_images() -> None:
    batch = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    before = batch.copy()
    batch.flags.writeable = False
    y = crop_and_flip(batch, np.random.default_rng(1))
    np.testing.assert_array_equal(batch, before)
    assert y.dtype == np.float32
    assert y.flags.c_contiguous
    assert not np.shares_memory(y, batch)
    strided = np.asfortranarray(batch)[:, ::-1]
    np.testing.assert_array_equal(crop_and_flip(strided, np.random.default_rng(1)), y[:, ::-1])


def test_the_same_generator_gives_the_same_crops() -> None:
    batch = np.random.default_rng(0).standard_normal((16, 3, 8, 8))
    a, b, c = (crop_and_flip(batch, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_every_place_and_both_mirror_images_come_up_equally_often() -> None:
    image = np.arange(1.0, 17).reshape(1, 1, 4, 4)
    y = crop_and_flip(np.repeat(image, 20_000, axis=0), np.random.default_rng(0), padding=1)
    kinds, counts = np.unique(y.reshape(len(y), -1), axis=0, return_counts=True)
    assert len(kinds) == 18  # 3 x 3 places, mirrored or not
    assert abs(counts / len(y) - 1 / 18).max() < 0.008  # five standard deviations


def test_given_flips_are_used() -> None:
    batch = np.random.default_rng(0).standard_normal((4, 1, 3, 3))
    flips = np.array([True, False, False, True])
    y = crop_and_flip(batch, np.random.default_rng(0), padding=0, flips=flips)
    np.testing.assert_array_equal(y[flips], batch[flips, :, :, ::-1])
    np.testing.assert_array_equal(y[~flips], batch[~flips])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "wrap"}, "the padding mode must be 'zero' or 'reflect', got 'wrap'"),
        ({"padding": -1}, "padding must be at least 0, got -1"),
        ({"padding": 3, "mode": "reflect"}, r"reflecting needs a padding below 3 for 3 x 5 images, got 3"),
        ({"flips": np.zeros(3, bool)}, r"flips must be bool of shape \(2,\), got bool of shape \(3,\)"),
        ({"flips": np.zeros(2)}, r"flips must be bool of shape \(2,\), got float64 of shape \(2,\)"),
    ],
)
def test_crop_and_flip_refuses(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        crop_and_flip(np.zeros((2, 3, 3, 5)), np.random.default_rng(0), **options)


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (2, 3, 4, 0)])
def test_a_batch_must_be_four_dimensional_and_hold_something(shape: tuple[int, ...]) -> None:
    for call in (
        lambda x: crop_and_flip(x, np.random.default_rng(0)),
        lambda x: cutout(x, 1, np.random.default_rng(0)),
        lambda x: normalise(x.astype(np.uint8), MEAN, STD),
    ):
        with pytest.raises(ValueError, match=r"must have shape \(N, C, H, W\) without an empty axis"):
            call(np.zeros(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_normalise_is_the_formula(dtype: type) -> None:
    images = np.arange(2 * 3 * 16 * 16).astype(np.uint8).reshape(2, 3, 16, 16)
    y = normalise(images, MEAN, STD, dtype)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    for c in range(3):
        expected = np.array([(float(x) - MEAN[c]) / STD[c] for x in images[:, c].ravel()])
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(y[:, c].ravel(), expected, rtol=4 * eps, atol=8 * eps)


@pytest.mark.parametrize(
    ("images", "mean", "std", "sentence"),
    [
        (np.zeros((1, 3, 2, 2)), MEAN, STD, "must be uint8, got float64"),
        (np.zeros((1, 1, 2, 2), np.uint8), MEAN, STD, r"shape \(1,\) for 1 channels, got \(3,\) and \(3,\)"),
        (np.zeros((1, 3, 2, 2), np.uint8), MEAN, [1, 0, 1], r"std must be positive, got \[1.0, 0.0, 1.0\]"),
    ],
)
def test_normalise_refuses(images: np.ndarray, mean: list, std: list, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        normalise(images, mean, std)


def test_padding_is_mean_coloured() -> None:
    grey = np.broadcast_to(np.array([125, 123, 114], np.uint8)[:, None, None], (4, 3, 8, 8))
    y = crop_and_flip(normalise(grey, MEAN, STD), np.random.default_rng(0))
    assert abs(y).max() < 0.006  # the border does not stand out from an image of the mean colour


def test_alternating_flips_show_both_sides_in_two_epochs() -> None:
    epochs = [alternating_flips(1000, epoch, seed=3) for epoch in range(4)]
    assert (epochs[0] ^ epochs[1]).all()
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[3])
    assert 400 < epochs[0].sum() < 600
    assert (epochs[0] != alternating_flips(1000, 0, seed=4)).any()


@given(size=st.integers(1, 5), top=st.integers(0, 5), left=st.integers(0, 6))
def test_cutout_is_the_formula_pixel_by_pixel(size: int, top: int, left: int) -> None:
    batch = np.ones((1, 2, 6, 7), np.float32)
    y = cutout(batch, size, Replay([top], [left]))  # type: ignore[arg-type]
    for c, i, j in np.ndindex(2, 6, 7):
        inside = top - size // 2 <= i < top - size // 2 + size and left - size // 2 <= j < left - size // 2 + size
        assert y[0, c, i, j] == (0 if inside else 1)
    assert y.dtype == np.float32
    assert (batch == 1).all()


@pytest.mark.parametrize("size", [0, 5])
def test_cutout_refuses(size: int) -> None:
    with pytest.raises(ValueError, match=rf"the cutout's size must lie in 1\.\.4 for 4 x 9 images, got {size}"):
        cutout(np.zeros((1, 1, 4, 9)), size, np.random.default_rng(0))


# ---- random resized crops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", [0.3, 2 / 3, 1.0, 1.5, 4.0])
def test_boxes_have_the_areas_and_shapes_that_are_promised(aspect: float) -> None:
    top, height, left, width = draw_boxes(np.full(4000, aspect), np.random.default_rng(0), 0.25)
    for start, extent in ((top, height), (left, width)):
        assert start.min() >= 0 and (start + extent).max() <= 1 + 1e-12
    area, shape = height * width, aspect * width / height
    assert area.max() <= 1
    if 0.5 < aspect < 2:  # of others, hardly a part of a large area and a usual shape fits
        assert area.min() >= 0.25 - 1e-9 and shape.min() >= 3 / 4 - 1e-9 and shape.max() <= 4 / 3 + 1e-9
        assert abs(np.log(shape).mean()) < 0.06  # large parts of a wide image are rather wide themselves
        assert top.std() > 0.05 and left.std() > 0.05


@pytest.mark.parametrize(("start", "extent", "size", "pixels"), [(0.0, 1.0, 4, 8), (0.25, 0.5, 4, 8), (0.1, 0.3, 6, 7)])
def test_resampling_is_interpolation(start: float, extent: float, size: int, pixels: int) -> None:
    R = resampling(np.array([start]), np.array([extent]), size, pixels)[0]
    np.testing.assert_allclose(R.sum(axis=1), 1, rtol=1e-6)
    ramp = np.arange(pixels) + 0.5  # a straight line stays one, away from the border
    x = pixels * (start + extent * (np.arange(size) + 0.5) / size)
    inside = (x >= 2) & (x <= pixels - 2)
    np.testing.assert_allclose((R @ ramp)[inside], x[inside], rtol=1e-5)
    same = resampling(np.zeros(1), np.ones(1), pixels, pixels)[0]
    np.testing.assert_allclose(same, np.eye(pixels), atol=1e-6)


def test_random_resized_crops_are_the_products_image_by_image() -> None:
    batch = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    aspects, flips = np.array([0.5, 1, 1.5, 2, 1]), np.array([True, False, True, False, False])
    y = random_resized_crop(batch, aspects, 8, np.random.default_rng(3), 0.25, flips)
    assert y.shape == (5, 3, 8, 8) and y.dtype == np.float32 and y.flags.c_contiguous
    top, height, left, width = draw_boxes(aspects, np.random.default_rng(3), 0.25)
    for n in range(5):
        (R,), (C,) = (resampling(a[n : n + 1], b[n : n + 1], 8, 12) for a, b in ((top, height), (left, width)))
        for c in range(3):
            expected = R.astype(float) @ batch[n, c] @ C.T.astype(float)
            np.testing.assert_allclose(y[n, c], expected[:, ::-1] if flips[n] else expected, atol=1e-5)
    again = random_resized_crop(batch, aspects, 8, np.random.default_rng(3), 0.25, flips)
    np.testing.assert_array_equal(y, again)
    assert (random_resized_crop(batch, aspects, 8, np.random.default_rng(4), 0.25, flips) != y).any()
    half = random_resized_crop(batch[:2].astype(np.float16), aspects[:2], 8, np.random.default_rng(3))
    assert half.dtype == np.float16
    for size, least in ((0, 0.25), (8, 0.0), (8, 1.1)):
        with pytest.raises(ValueError, match=r"at least one pixel|must lie in \(0, 1\]"):
            random_resized_crop(batch, aspects, size, np.random.default_rng(0), least)


@pytest.mark.cuda
def test_the_gpu_sees_the_same_images() -> None:
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
    for mode in ("zero", "reflect"):
        results = []
        for xp in (np, cupy):
            choices = draw(np.arange(16), (32, 32), np.random.default_rng(1), cutout=8)
            options = {"padding": 4, "mode": mode, "cutout": 8}
            batch = augmented(xp.asarray(images), xp.asarray(choices), MEAN, STD, np.float32, **options)
            results.append(batch if xp is np else cupy.asnumpy(batch))
        np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-6)
    crops = []
    for xp in (np, cupy):
        batch = normalise(xp.asarray(images), MEAN, STD)
        batch = random_resized_crop(batch, np.linspace(0.5, 2, 16), 24, np.random.default_rng(1))
        crops.append(batch if xp is np else cupy.asnumpy(batch))
    np.testing.assert_allclose(crops[0], crops[1], rtol=1e-3, atol=1e-4)
