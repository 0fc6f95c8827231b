"""Long float32 sums are exact to one rounding (`backend.total`), on tall, wide and square arrays."""

import ml_dtypes
import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.backend import matmul, total
from minigrad.ops.pool import AvgPool2d

EPS = np.finfo(np.float32).eps  # the distance from 1 to the next float32: one rounding is half of it
SHAPES = {"tall": (500_000, 2), "wide": (2, 500_000), "square": (1000, 1000), "deep": (40, 3, 100, 100)}
MANY = 300_000


def tenths(*shape, requires_grad=False):
    return Tensor(np.full(shape, 0.1, np.float32), requires_grad=requires_grad)


def check(actual, exact):
    assert np.abs(np.asarray(actual, np.float64) / exact - 1).max() <= EPS


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_sum_and_mean_are_rounded_once(shape, order):
    x = Tensor(np.asarray(np.full(shape, 0.1, np.float32), order=order))
    for axis in (None, *range(len(shape)), (0, len(shape) - 1)):
        count = x.size // F.sum(x, axis).size
        check(x.sum(axis).data, count * float(np.float32(0.1)))
        assert np.abs(x.mean(axis).numpy() - np.float32(0.1)).max() <= 2 * EPS * 0.1


def test_the_stated_bound_holds_for_signed_values():
    x = np.random.default_rng(0).standard_normal((100_000, 3)).astype(np.float32) * np.float32(1e4)
    exact = x.astype(np.longdouble).sum(axis=0)
    bound = len(x) * 2.0**-53 * np.abs(x).sum(axis=0, dtype=np.float64) + EPS / 2 * np.abs(exact)
    assert (np.abs(total(x, 0) - exact) <= bound).all()


def test_gradients_of_what_was_repeated():
    a, b = tenths(MANY, 2), tenths(2, requires_grad=True)
    (a * b).sum().backward()
    check(b.grad, MANY * float(np.float32(0.1)))
    x = tenths(2, requires_grad=True)
    x[np.zeros(MANY, int)].backward(np.full(MANY, 0.1, np.float32))
    check(x.grad[0], MANY * float(np.float32(0.1)))


def test_gradients_of_a_linear_layer_and_a_long_inner_axis():
    x, w, b = tenths(MANY, 3), tenths(2, 3, requires_grad=True), tenths(2, requires_grad=True)
    F.linear(x, w, b).backward(np.full((MANY, 2), 0.1, np.float32))
    check(b.grad, MANY * float(np.float32(0.1)))
    assert np.abs(w.grad / (MANY * float(np.float32(0.1)) ** 2) - 1).max() <= 4096 * EPS / 2  # however many
    ones = np.ones((1, 1 << 25), np.float32)
    assert matmul(ones, ones.T).item() == 1 << 25


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_average_pooling_of_large_windows(dtype):
    """The mean of equal numbers is that number, and so is the gradient of a pixel that all windows see."""
    tenth = np.array(0.1, dtype)
    window = {"kernel": (20, 30), "stride": (1, 1), "padding": (0, 0)}
    pool = AvgPool2d()
    y = pool.forward(np.full((1, 2, 39, 59), tenth), **window)
    dx = pool.backward(np.full_like(y, tenth))[:, :, 19, 29]
    for values in (y, dx):
        assert values.dtype == dtype
        assert abs(values.astype(np.float64) / float(tenth) - 1).max() <= EPS


def test_gradients_of_batch_norm_and_softmax():
    x = Tensor(np.random.default_rng(0).standard_normal((MANY, 2)).astype(np.float32), requires_grad=True)
    w, b = tenths(2, requires_grad=True), tenths(2, requires_grad=True)
    F.batch_norm(x, w, b, None, None, training=True).backward(np.full((MANY, 2), 0.1, np.float32))
    check(b.grad, MANY * float(np.float32(0.1)))
    assert abs(F.softmax(tenths(MANY, 2), axis=0).numpy().sum(axis=0, dtype=np.float64) - 1).max() <= 1e-6
    bias = tenths(2, requires_grad=True)
    F.conv2d(tenths(3, 1, 300, 400), tenths(2, 1, 1, 1), bias).sum().backward()
    assert np.abs(bias.grad / 360_000 - 1).max() <= 1e-5
