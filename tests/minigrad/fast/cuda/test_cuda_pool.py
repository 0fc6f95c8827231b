"""Sums over images and max pooling on a GPU: kernels/pool.cu on the CPU, and where there is a GPU on it."""

import numpy as np
import pytest
from support.cuda_cases import BF16, F32, close, exact, run
from support.cuda_shim import compiler

from minigrad import registry
from minigrad.fast.cuda.pool import ImageSum, MaxPool2d
from minigrad.ops import basic, pool

needs_compiler = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")
WINDOWS = {  # x's shape, kernel, stride, padding
    "3x3, stride 2": ((3, 16, 9, 12), (3, 3), (2, 2), (1, 1)),
    "2x2": ((2, 8, 5, 6), (2, 2), (2, 2), (0, 0)),
    "uneven": ((2, 8, 7, 6), (2, 3), (3, 1), (1, 0)),
    "larger than a block": ((5, 264, 6, 7), (3, 3), (1, 1), (1, 1)),
}


def images(shape, dtype, seed=0):
    """Random images of channels-last memory."""
    N, C, H, W = shape
    values = np.random.default_rng(seed).standard_normal((N, H, W, C)).astype(dtype)
    return values.transpose(0, 3, 1, 2)


@needs_compiler
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_over_images_are_the_books(gpu, dtype, keepdims):
    x = images((3, 264, 5, 7), dtype)
    options = {"axes": (2, 3), "keepdims": keepdims}
    assert registry.choose(basic.Sum, "cuda", x, **options) is ImageSum
    dy = images((3, 264, 1, 1), dtype, seed=1)
    dy = dy if keepdims else dy.reshape(3, 264)
    y_book, (dx_book,) = run(basic.Sum, exact([x]), dy.astype(np.float64), **options)
    y, (dx,) = run(ImageSum, [x], dy, **options)
    assert (y.dtype, y.shape, dx.dtype) == (dtype, y_book.shape, dtype) and dx.transpose(0, 2, 3, 1).flags.c_contiguous
    close(y, y_book, dtype)
    close(dx, dx_book, dtype)
    assert gpu == [f"image_sums_{dtype.name}_{dtype.name}", f"image_spread_{dtype.name}_{dtype.name}"]


@needs_compiler
@pytest.mark.parametrize(("dtype", "wide"), [(F32, F32), (BF16, BF16), (BF16, F32)], ids=str)
def test_means_over_images_are_the_books(gpu, dtype, wide):
    """The mean of bfloat16 images may be float32: then it is rounded nowhere."""
    x, dy = images((3, 40, 5, 7), dtype), images((3, 40, 1, 1), wide, seed=1).reshape(3, 40)
    options = {"axes": (2, 3), "keepdims": False, "scale": 1 / 35, "dtype": np.dtype(wide)}
    assert registry.choose(basic.Sum, "cuda", x, **options) is ImageSum
    y_book, (dx_book,) = run(basic.Sum, exact([x]), dy.astype(np.float64), **{**options, "dtype": None})
    y, (dx,) = run(ImageSum, [x], dy, **options)
    assert (y.dtype, dx.dtype) == (wide, dtype)
    close(y, y_book, wide)
    close(dx, dx_book, dtype)
    assert gpu == [f"image_sums_{dtype.name}_{wide.name}", f"image_spread_{dtype.name}_{wide.name}"]


@needs_compiler
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_max_pooling_is_the_books(gpu, dtype, name):
    """Equal values, whole windows of -infinity and NaN included: the same one wins."""
    shape, kernel, stride, padding = WINDOWS[name]
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    x = images(shape, dtype)
    x[0, :3] = np.round(x[0, :3].astype(F32)).astype(dtype)
    x[1, 0], x[1, 1, 2, 3], x[1, 2, :, :3] = -np.inf, np.nan, -np.inf
    assert registry.choose(pool.MaxPool2d, "cuda", x, **options) is MaxPool2d
    y_book = pool.MaxPool2d().forward(x.astype(F32), **options)
    dy = images(y_book.shape, dtype, seed=1)
    _, (dx_book,) = run(pool.MaxPool2d, [x.astype(F32)], dy.astype(F32), **options)
    y, (dx,) = run(MaxPool2d, [x], dy, **options)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y.astype(F32), y_book)
    close(dx, dx_book, dtype)


def test_other_sums_and_channels_are_left_to_the_book(gpu):
    x = np.ones((2, 8, 3, 3), F32)
    for axes in ((0, 2, 3), (1,), (2,)):
        assert not ImageSum.accepts(x, axes=axes, keepdims=False)
    assert not ImageSum.accepts(x[0], axes=(2, 3), keepdims=False)
    assert not ImageSum.accepts(np.ones((2, 6, 3, 3), F32), axes=(2, 3), keepdims=False)
    assert not ImageSum.accepts(x, axes=(2, 3), keepdims=False, dtype=np.dtype(np.float64))
    assert not MaxPool2d.accepts(x.astype(np.float64), kernel=(2, 2), stride=(2, 2), padding=(0, 0))
    assert not MaxPool2d.accepts(x, kernel=(17, 17), stride=(2, 2), padding=(0, 0)), "a byte holds 256 taps"
