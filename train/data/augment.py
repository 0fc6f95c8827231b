"""Augmentation of a whole batch at once, on the device where the batch lives.

The paper's recipe for CIFAR (Xie et al. 2017, appendix A) is a random 32x32 crop of the zero-padded 40x40 image or of
its mirror image, nothing else. The order follows the authors' code: normalise, flip, pad, crop. Padding after
normalisation makes the border zero, which is the mean colour; padding raw pixels would frame the images in black.

Axes: N images, C channels, H rows, W columns. Batches are (N, C, H, W), C-contiguous. Random decisions are drawn on the
host from a `numpy.random.Generator`, so that the CPU and the GPU see the same crops.
"""

from functools import lru_cache
from typing import Any

import numpy as np

import minigrad
from minigrad import registry
from minigrad.backend import array_module

Array = Any  # an np.ndarray or a cupy.ndarray


def check_batch(batch: Array) -> None:
    """Raise ValueError unless the batch is (N, C, H, W) and holds something."""
    if batch.ndim != 4 or batch.size == 0:
        raise ValueError(f"a batch must have shape (N, C, H, W) without an empty axis, got {batch.shape}")


def normalise(images: Array, mean: Array, std: Array, dtype: Any = np.float32) -> Array:
    """Bring each channel to mean zero and deviation one: y = (x - mean) / std.

    `images` (N, C, H, W) uint8; `mean` and `std` (C,), in the 0..255 scale of the pixels, `std` positive. Computed in
    float32, or in float64 for that `dtype`, and rounded to `dtype` at the end. Raises ValueError for other types and
    shapes.
    """
    check_batch(images)
    channels = images.shape[1]
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"mean and std must have shape ({channels},) for {channels} channels, got {mean.shape} and {std.shape}"
        )
    if not (std > 0).all():
        raise ValueError(f"std must be positive, got {std.tolist()}")
    xp = array_module(images)
    y = images.astype(np.float64 if dtype == np.float64 else np.float32)
    y -= xp.asarray(mean, y.dtype)[:, None, None]
    y /= xp.asarray(std, y.dtype)[:, None, None]
    return y.astype(dtype, copy=False)


def draw(
    indices: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    padding: int = 4,
    flips: np.ndarray | None = None,
    cutout: int = 0,
) -> np.ndarray:
    """What chance decides about a batch of images of `size` H x W: choices (N, 6), int32.

    Of each image: its index in the data set; how far its crop lies down and to the right, uniform on 0..2 padding;
    whether it is mirrored, with probability 1/2 unless `flips` (N,) bool says so; and the top and left end of a square
    of `cutout` pixels whose centre is uniform over the image, so that parts of it may lie outside (DeVries & Taylor
    2017). Raises ValueError for a padding that is negative and a cutout that is larger than the image.
    """
    N = len(indices)
    if padding < 0:
        raise ValueError(f"padding must be at least 0, got {padding}")
    down, right = rng.integers(0, 2 * padding + 1, (2, N))
    if flips is None:
        flips = rng.random(N) < 0.5
    elif flips.shape != (N,) or flips.dtype != np.bool_:
        raise ValueError(f"flips must be bool of shape ({N},), got {flips.dtype} of shape {flips.shape}")
    top, left = draw_squares(N, size, rng, cutout) if cutout else np.zeros((2, N), int)
    return np.stack([indices, down, right, flips, top, left], axis=1).astype(np.int32)


def draw_squares(
    images: int, size: tuple[int, int], rng: np.random.Generator, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where squares begin, top and left, (images,) each: their centres are uniform over images of `size` H x W.

    Raises ValueError unless 1 <= side <= min(H, W).
    """
    H, W = size
    if not 1 <= side <= min(H, W):
        raise ValueError(f"the cutout's size must lie in 1..{min(H, W)} for {H} x {W} images, got {side}")
    return rng.integers(0, H, (images,)) - side // 2, rng.integers(0, W, (images,)) - side // 2


def augmented(
    images: Array,
    choices: Array,
    mean: np.ndarray,
    std: np.ndarray,
    dtype: Any,
    *,
    padding: int = 4,
    mode: str = "zero",
    cutout: int = 0,
) -> Array:
    """The batch (N, C, H, W) that `choices` (see `draw`) make of a data set's images (M, C, H, W) uint8.

    Normalised with `mean` and `std` (C,), which are on the host, then cropped, mirrored and blanked, on the images'
    device.
    """
    image, down, right, flips, top, left = choices.T
    batch = normalise(images[image], mean, std, dtype)
    batch = crop(batch, down, right, flips != 0, padding, mode)
    return blank(batch, top, left, cutout) if cutout else batch


def crop(batch: Array, down: Array, right: Array, flips: Array, padding: int, mode: str) -> Array:
    """Pad images by `padding` pixels on each side, cut H x W out, and mirror some left to right: a new (N, C, H, W).

    y[n, c, i, j] = padded[n, c, i + down_n, j + right_n], with W - 1 - j in the place of j where image n is mirrored.
    `mode` "zero" pads with zeros (the mean colour of a normalised batch), "reflect" mirrors the image at its border
    pixels. Raises ValueError for a padding that is too wide to reflect, and for an unknown mode.
    """
    check_batch(batch)
    N, C, H, W = batch.shape
    if mode not in ("zero", "reflect"):
        raise ValueError(f"the padding mode must be 'zero' or 'reflect', got {mode!r}")
    if mode == "reflect" and padding >= min(H, W):
        raise ValueError(f"reflecting needs a padding below {min(H, W)} for {H} x {W} images, got {padding}")
    xp = array_module(batch)
    border = (padding, padding)
    padded = xp.pad(batch, ((0, 0), (0, 0), border, border), mode="constant" if mode == "zero" else "reflect")
    # Every crop of every image as a view that copies nothing; one gather then takes a single crop per image. A crop of
    # the mirrored image is the mirror image of a crop, so the flip can come last, where it has fewer pixels to move.
    sn, sc, sh, sw = padded.strides
    places = 2 * padding + 1
    crops = xp.lib.stride_tricks.as_strided(padded, (N, places, places, C, H, W), (sn, sh, sw, sc, sh, sw))
    y = crops[xp.arange(N), down, right]  # (N, C, H, W)
    y[flips] = y[flips][..., ::-1]
    return y


def blank(batch: Array, top: Array, left: Array, size: int) -> Array:
    """Set a square of `size` x `size` pixels to zero in each image, at rows `top` and columns `left`, (N,) each.

    Parts of it may lie outside. Returns a new (N, C, H, W) array.
    """
    check_batch(batch)
    xp, (_, _, H, W) = array_module(batch), batch.shape
    rows, columns = xp.arange(H) - top[:, None], xp.arange(W) - left[:, None]  # (N, H) and (N, W), in the square
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]  # (N, H, W)
    return batch * ~inside[:, None]


def draw_boxes(
    aspects: np.ndarray, rng: np.random.Generator, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a part of each image: (top, height, left, width), (N,) float64 each, as shares of its height and its width.

    `aspects` (N,) are the images' widths over their heights. A part has a share of its image's area that is uniform on
    [least, 1], and is between 3/4 and 4/3 as wide as high, uniform on a logarithmic scale (Szegedy et al. 2015, as in
    the paper's section 5). The first of ten draws that fits into the image is taken, else the last, cut off.
    """
    N = len(aspects)
    a = aspects[:, None]
    area = rng.uniform(least, 1, (N, 10)) * a  # in squares of the image's height
    shape = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (N, 10)))
    heights, widths = np.sqrt(area / shape), np.sqrt(area * shape) / a  # shares of the image's height and width
    fits = (heights <= 1) & (widths <= 1)
    chosen = np.where(fits.any(axis=1), fits.argmax(axis=1), 9)
    height, width = (np.minimum(x[np.arange(N), chosen], 1) for x in (heights, widths))
    places = rng.random((2, N))
    return places[0] * (1 - height), height, places[1] * (1 - width), width


def resampling(start: np.ndarray, extent: np.ndarray, size: int, pixels: int) -> np.ndarray:
    """The matrices that scale a part of a row of `pixels` pixels to `size` pixels: (N, size, pixels) float32.

    Pixel i of the result lies at x_i = pixels (start + extent (i + 1/2) / size), pixel j of the row at j + 1/2, and

        R[i, j] = max(0, 1 - |x_i - (j + 1/2)| / s) / (the row's sum),    s = max(1, pixels extent / size)

    which is linear interpolation, over wider triangles where the part shrinks.
    """
    x = pixels * (start[:, None] + extent[:, None] * (np.arange(size) + 0.5) / size)  # (N, size)
    s = np.maximum(1, pixels * extent / size)[:, None, None]
    R = np.maximum(0, 1 - np.abs(x[:, :, None] - (np.arange(pixels) + 0.5)) / s)
    return (R / R.sum(axis=2, keepdims=True)).astype(np.float32)


def random_resized_crop(
    batch: Array,
    aspects: np.ndarray,
    size: int,
    rng: np.random.Generator,
    least: float = 0.25,
    flips: np.ndarray | None = None,
) -> Array:
    """Cut a random part out of each image and scale it to `size` x `size`: a new (N, C, size, size) array.

    The images of `batch` (N, C, H, W) may have been squeezed into one shape: `aspects` (N,) says how wide each one was
    for its height, and parts are drawn from it as it was (`draw_boxes`). y_n = R_n x_n C_n^T with the matrices of
    `resampling` for rows and columns. `flips` is that of `draw`. Raises ValueError for a size below 1 or a
    `least` outside (0, 1].
    """
    check_batch(batch)
    N, _, H, W = batch.shape
    if size < 1:
        raise ValueError(f"a crop needs at least one pixel, got a size of {size}")
    if not 0 < least <= 1:
        raise ValueError(f"the smallest share of an image's area must lie in (0, 1], got {least}")
    top, height, left, width = draw_boxes(aspects, rng, least)
    if flips is None:
        flips = rng.random(N) < 0.5
    rows, columns = resampling(top, height, size, H), resampling(left, width, size, W)
    columns[flips] = columns[flips][:, ::-1]  # the mirror image: its pixels in reverse order
    xp = array_module(batch)
    y = xp.matmul(xp.matmul(xp.asarray(rows)[:, None], batch), xp.asarray(columns.transpose(0, 2, 1))[:, None])
    return xp.ascontiguousarray(y).astype(batch.dtype, copy=False)


@lru_cache(maxsize=1)
def alternating_flips(images: int, epoch: int, seed: int) -> np.ndarray:
    """Which of a data set's images are mirrored in `epoch`, (images,) bool: each one every other time.

    The first epoch decides at random, and every later epoch mirrors what the one before did not: two epochs show each
    image both ways, where independent coins show one image in two twice the same way (Jordan 2024, "94% on CIFAR-10 in
    3.29 seconds on a single GPU", section 3.6).
    """
    flips = (np.random.default_rng(seed).random(images) < 0.5) ^ (epoch % 2 == 1)
    flips.flags.writeable = False  # all steps of an epoch look at the same array
    return flips


def cutout(batch: Array, size: int, rng: np.random.Generator) -> Array:
    """Set a square of `size` x `size` pixels to zero in each image, at a place that is drawn: see `draw`, `blank`."""
    check_batch(batch)
    xp, (N, _, H, W) = array_module(batch), batch.shape
    top, left = draw_squares(N, (H, W), rng, size)
    return blank(batch, xp.asarray(top), xp.asarray(left), size)


if registry.fast("cuda"):
    registry.register(augmented, "cuda", minigrad.fast.cuda.augment.augmented)
    registry.register(normalise, "cuda", minigrad.fast.cuda.augment.normalise)
