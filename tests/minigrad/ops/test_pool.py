"""Max, average and global average pooling (minigrad/ops/pool.py)."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import distinct, pool_cases

import minigrad.functional as F
from minigrad import Tensor, gradcheck
from minigrad.backend import to_numpy


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@given(pool_cases())
def test_pooling_equals_the_oracle_and_its_gradient_finite_differences(device, name, case):
    window = (case.kernel, case.stride, case.padding)
    y = getattr(F, name)(Tensor(case.x, device=device), *window)
    assert_allclose(y.numpy(), getattr(oracles, name)(case.x, *window), rtol=1e-13, atol=1e-14)
    gradcheck(lambda t: getattr(F, name)(t, *window), [case.x])


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@given(pool_cases())
def test_the_stride_is_the_windows_size_unless_given(name, case):
    pool = getattr(F, name)
    assert_array_equal(
        pool(Tensor(case.x), case.kernel, None, case.padding).data,
        pool(Tensor(case.x), case.kernel, case.kernel, case.padding).data,
    )


@given(pool_cases())
def test_global_average_is_the_mean_of_every_channel(device, case):
    y = F.global_avg_pool2d(Tensor(case.x, device=device))
    assert y.shape == case.x.shape[:2]
    assert_allclose(y.numpy(), case.x.sum(axis=(2, 3)) / case.x[0, 0].size, rtol=1e-12, atol=1e-14)
    gradcheck(F.global_avg_pool2d, [case.x])


def test_by_hand():
    x = Tensor(np.array([[[[1.0, 5.0, 2.0], [4.0, 3.0, 6.0]]]]), requires_grad=True)
    y = F.max_pool2d(x, 2, stride=1)
    y.backward(np.array([[[[10.0, 1.0]]]]))
    assert_array_equal(y.data, [[[[5.0, 6.0]]]])
    assert_array_equal(x.grad, [[[[0, 10, 0], [0, 0, 1]]]])
    x.grad = None
    y = F.avg_pool2d(x, 2, stride=1)
    y.backward(np.array([[[[4.0, 8.0]]]]))
    assert_array_equal(y.data, [[[[3.25, 4.0]]]])
    assert_array_equal(x.grad, [[[[1, 3, 2], [1, 3, 2]]]])


def test_the_gradient_of_equal_values_goes_to_the_first():
    x = Tensor(np.ones((1, 1, 2, 4)), requires_grad=True)
    F.max_pool2d(x, 2).backward(np.array([[[[2.0, 3.0]]]]))
    assert_array_equal(x.grad, [[[[2, 0, 3, 0], [0, 0, 0, 0]]]])


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(("kernel", "padding"), [((5, 1), (2, 0)), ((1, 5), (0, 2))])
def test_windows_that_begin_far_outside_of_the_image(name, kernel, padding):
    x = distinct(0, 1, 2, 6, 6)
    window = (kernel, 1, padding)
    assert_allclose(getattr(F, name)(Tensor(x), *window).data, getattr(oracles, name)(x, kernel, (1, 1), padding))
    gradcheck(lambda t: getattr(F, name)(t, *window), [x])


def test_padding_never_wins_and_counts_as_zero_in_the_average():
    x = Tensor(np.full((1, 1, 2, 2), -3.0))
    assert_array_equal(F.max_pool2d(x, 2, 2, 1).data, np.full((1, 1, 2, 2), -3.0))
    assert_array_equal(F.avg_pool2d(x, 2, 2, 1).data, np.full((1, 1, 2, 2), -0.75))


def test_nan_is_not_hidden(device):
    """It is the largest number of its window, and takes the gradient; of several, the last."""
    pixels = np.zeros((1, 1, 2, 6))
    pixels[0, 0, 1, 0] = pixels[0, 0, 0, 2] = pixels[0, 0, 1, 2] = np.nan
    x = Tensor(pixels, requires_grad=True, device=device)
    y = F.max_pool2d(x, 2)
    assert_array_equal(y.numpy(), [[[[np.nan, np.nan, 0.0]]]])
    y.backward(np.ones(y.shape))
    assert_array_equal(to_numpy(x.grad), [[[[0, 0, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0]]]])


@given(pool_cases())
def test_max_pooling_commutes_with_a_rising_function(case):
    window = (case.kernel, case.stride, case.padding)
    assert_allclose(
        F.max_pool2d(Tensor(np.exp(case.x)), *window).data,
        np.exp(F.max_pool2d(Tensor(case.x), *window).data),
        rtol=1e-15,
    )


@pytest.mark.parametrize("value", [-np.inf, 0.0])
def test_a_window_that_sees_nothing_larger_than_the_border_keeps_its_gradient(value):
    """-∞ in the image wins against the border's: no gradient is lost, and the first pixel of a window gets it."""
    for case in ((2, 2, 1), (3, 1, 1), (3, 2, 1), ((3, 2), (2, 1), (1, 1)), (5, 2, 2)):
        x = Tensor(np.full((1, 2, 4, 5), value), requires_grad=True)
        y = F.max_pool2d(x, *case)
        y.backward(np.ones(y.shape))
        assert x.grad.sum() == y.size
        copy = Tensor(np.zeros((1, 2, 4, 5)), requires_grad=True)  # equal values: the first of a window wins
        F.max_pool2d(copy, *case).backward(np.ones(y.shape))
        assert_array_equal(x.grad, copy.grad)
