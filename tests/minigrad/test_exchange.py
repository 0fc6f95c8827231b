"""Tensors under NumPy's functions (minigrad/exchange.py)."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minigrad import Tensor, gradcheck
from minigrad.exchange import CALLS

A, B = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]]), np.array([0.5, 2.0, 3.0])
ARGUMENTS = {
    np.reshape: ((3, 2),),
    np.concatenate: (),
    np.pad: (((1, 0), (0, 2)),),
    np.matmul: (A.T,),
    **dict.fromkeys((np.add, np.subtract, np.multiply, np.divide, np.power), (B,)),
}


@pytest.mark.parametrize("function", [f for f in CALLS if f not in (np.equal, np.not_equal)], ids=lambda f: f.__name__)
def test_numpys_functions_keep_the_gradient(function):
    def call(x):
        return function((x, x), 1) if function is np.concatenate else function(x, *ARGUMENTS.get(function, ()))

    y = call(Tensor(A, requires_grad=True))
    assert isinstance(y, Tensor)
    assert y.requires_grad
    assert_allclose(y.numpy(), call(A))
    assert gradcheck(call, [A])


def test_an_array_on_the_left_leaves_the_operation_to_the_tensor():
    x = Tensor(B, requires_grad=True)
    for y in (A + x, A - x, A * x, A / x, A**x, A @ x, np.float64(2) * x, np.float32(2) * x):
        assert isinstance(y, Tensor)
        assert y.requires_grad
    assert_array_equal((x == B).data, [True, True, True])


def test_options_are_those_of_the_operations():
    x = Tensor(A, requires_grad=True)
    assert np.sum(x, axis=0, keepdims=True).shape == (1, 3)
    assert np.max(x, axis=1).shape == (2,)
    assert np.transpose(x, (1, 0)).shape == np.transpose(x, axes=(1, 0)).shape == np.reshape(x, shape=(3, 2)).shape
    assert np.pad(x, pad_width=((1, 0), (0, 2))).shape == (3, 5)
    assert np.concatenate([x, x], axis=1).shape == (2, 6)


@pytest.mark.parametrize(
    ("call", "name", "option"),
    [
        (lambda x: np.sum(x, 0, np.float64), "sum", "a third argument in its place"),
        (lambda x: np.mean(x, axis=0, dtype=np.float32), "mean", "dtype"),
        (lambda x: np.max(x, 0, None, True), "max", "a third argument in its place"),
        (lambda x: np.max(x, initial=0.0, where=A > 1), "max", "initial, where"),
        (lambda x: np.reshape(x, (3, 2), order="F"), "reshape", "order"),
        (lambda x: np.pad(x, ((1, 0), (0, 2)), "edge"), "pad", "a third argument in its place"),
        (lambda x: np.pad(x, ((1, 0), (0, 2)), constant_values=7.0), "pad", "constant_values"),
    ],
)
def test_options_that_only_numpy_has_are_refused_by_name(call, name, option):
    """At its third place NumPy has a dtype where ours have keepdims."""
    with pytest.raises(TypeError, match=rf"np\.{name} of a tensor does not take {option}: give it to np\.{name} of"):
        call(Tensor(A))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: np.maximum(x, 0), "np.maximum"),
        (lambda x: np.abs(x), "np.absolute"),
        (lambda x: np.prod(x), "np.multiply.reduce"),
        (lambda x: np.add(x, 1, out=np.zeros((2, 3))), "np.add"),
    ],
)
def test_what_would_lose_the_gradient_says_what_to_write(call, name):
    with pytest.raises(TypeError, match=rf"{name} is no operation of minigrad's.* write {name}\(t.numpy\(\)\)"):
        call(Tensor(A, requires_grad=True))


def test_what_has_no_gradient_gives_values():
    x = Tensor(A, requires_grad=True)
    assert_array_equal(np.isnan(x), np.zeros((2, 3), bool))
    assert_array_equal(x <= A, np.ones((2, 3), bool))
    assert np.allclose(x, A)
    assert np.median(x) == 3.5
    assert isinstance(np.stack([x, x]), np.ndarray)
    assert_array_equal(np.where(A > 2, x, 0), np.where(A > 2, A, 0))
