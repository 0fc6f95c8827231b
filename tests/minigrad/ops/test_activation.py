"""ReLU, sigmoid, tanh, softmax and dropout (minigrad/ops/activation.py)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import distinct, normal, seeds, shapes

import minigrad
import minigrad.functional as F
from minigrad import Tensor, gradcheck

FORMULAS = {
    "relu": lambda x: x if x > 0 else 0.0,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": lambda x: (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(shapes, seeds)
def test_elementwise_functions(device, name, shape, seed):
    x = distinct(seed, *shape)
    x = x / np.abs(x).max()  # from -1 to 1, away from 0
    expected = np.reshape([FORMULAS[name](v) for v in x.flat], shape)
    for y in (getattr(F, name)(Tensor(x, device=device)), getattr(Tensor(x, device=device), name)()):
        assert_allclose(y.numpy(), expected, rtol=1e-12)
    gradcheck(getattr(F, name), [x])


def test_relu_at_the_kink_and_beyond_has_gradient_zero():
    x = Tensor(np.array([-1.0, 0.0, -0.0, 2.0]), requires_grad=True)
    x.relu().backward(np.full(4, 3.0))
    assert_array_equal(x.grad, [0.0, 0.0, 0.0, 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_probabilities_keep_their_digits(device, dtype):
    x = np.array([-80.0, -40.0, -20.0, -5.0], dtype)
    exact = [1 / (1 + math.exp(-v)) for v in x]
    t = Tensor(x, device=device, requires_grad=True)
    y = t.sigmoid()
    y.sum().backward()
    assert_allclose(y.numpy(), exact, rtol=8 * np.finfo(dtype).eps)
    assert_allclose(minigrad.backend.to_numpy(t.grad), [p * (1 - p) for p in exact], rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_value_overflows(device, dtype):
    x = Tensor(np.array([-1e4, -100.0, 0.0, 100.0, 1e4], dtype), device=device)
    assert_allclose(x.sigmoid().numpy(), [0, 0, 0.5, 1, 1], atol=1e-7)
    assert_array_equal(x.tanh().numpy(), [-1, -1, 0, 1, 1])
    assert_array_equal(F.softmax(x).numpy(), [0, 0, 0, 0, 1])
    assert_array_equal(F.log_softmax(x).numpy(), np.array([-2e4, -10100, -1e4, -9900, 0], dtype))


def rows(shape):
    """An axis of an array of `shape`, counted from the front or from the back."""
    return st.integers(-len(shape), len(shape) - 1)


@given(st.data(), hnp.array_shapes(max_dims=3, max_side=4), seeds)
def test_softmax_and_its_logarithm(device, data, shape, seed):
    axis = data.draw(rows(shape), label="axis")
    x = normal(seed, *shape)
    expected = np.apply_along_axis(lambda row: oracles.softmax(row.tolist()), axis, x)
    assert_allclose(F.softmax(Tensor(x, device=device), axis).numpy(), expected, rtol=1e-13)
    assert_allclose(F.log_softmax(Tensor(x, device=device), axis).numpy(), np.log(expected), rtol=1e-12, atol=1e-14)
    gradcheck(lambda t: F.softmax(t, axis), [x])
    gradcheck(lambda t: F.log_softmax(t, axis), [x])


def test_softmax_does_not_feel_a_shift():
    x = Tensor(normal(0, 3, 5), requires_grad=True)
    assert_allclose(F.softmax(x + 7.0).data, F.softmax(x).data, rtol=1e-14)
    F.softmax(x).backward(normal(1, 3, 5))
    assert_allclose(x.grad.sum(axis=1), 0, atol=1e-15)


def test_dropout_zeroes_a_fraction_p_and_keeps_the_mean():
    x = Tensor(np.ones((200, 200)), requires_grad=True)
    y = F.dropout(x, p=0.3)
    assert set(np.unique(y.data)) == {0.0, 1 / 0.7}
    # Over 40,000 values the fraction's standard deviation is 0.0023 and the mean's is 0.0033: five of them.
    assert (y.data == 0).mean() == pytest.approx(0.3, abs=0.0115)
    assert y.data.mean() == pytest.approx(1.0, abs=0.0165)
    y.backward(np.full(x.shape, 2.0))
    assert_array_equal(x.grad, 2 * y.data)


def test_dropout_passes_everything_in_evaluation_and_at_p_0():
    x = Tensor(normal(0, 3, 4))
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x


def test_dropout_draws_anew_each_time_and_the_same_again_from_a_seed():
    x = Tensor(np.ones(1000))
    first, second = F.dropout(x).data, F.dropout(x).data
    assert (first != second).any()
    minigrad.manual_seed(0)
    assert_array_equal(F.dropout(x).data, first)


def test_gradient_of_dropout():
    def fn(x):
        minigrad.manual_seed(5)
        return F.dropout(x, 0.4)

    gradcheck(fn, [normal(0, 4, 5)])
