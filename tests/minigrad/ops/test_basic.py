"""Arithmetic, reductions and operations that move data (minigrad/ops/basic.py)."""

import operator
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from support.strategies import axes_of, broadcastable, distinct, normal, positive, seeds, shapes

import minigrad.functional as F
from minigrad import Tensor, gradcheck
from minigrad.backend import to_numpy
from minigrad.ops.basic import Multiply


def leaf(array, device="cpu"):
    return Tensor(array, requires_grad=True, device=device)


BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]


@pytest.mark.parametrize("operation", BINARY)
@given(broadcastable(), seeds)
def test_binary_operations_broadcast_as_numpy_does(device, operation, shapes, seed):
    a, b = positive(seed, *shapes[0]), positive(seed + 1, *shapes[1])
    y = operation(Tensor(a, device=device), Tensor(b, device=device))
    assert_allclose(y.numpy(), operation(a, b), rtol=1e-15)


@pytest.mark.parametrize("operation", BINARY)
@given(broadcastable(), seeds)
def test_gradients_of_binary_operations_are_summed_over_broadcast_axes(operation, shapes, seed):
    gradcheck(operation, [positive(seed, *shapes[0]), positive(seed + 1, *shapes[1])])


@pytest.mark.parametrize("operation", BINARY)
def test_numbers_and_arrays_stand_on_both_sides(device, operation):
    x = np.array([0.5, 2.0, 3.0], np.float32)
    t = Tensor(x, device=device)
    assert_allclose(operation(t, 2).numpy(), operation(x, 2), rtol=1e-6)
    assert_allclose(operation(2, t).numpy(), operation(2, x), rtol=1e-6)
    assert_allclose(operation(t, 0.5).numpy(), operation(x, np.float32(0.5)), rtol=1e-6)
    assert_allclose(operation(t, x).numpy(), operation(x, x), rtol=1e-6)
    assert_allclose(operation(x, t).numpy(), operation(x, x), rtol=1e-6)
    for y in (operation(t, 2), operation(2.0, t), operation(x, t), operation(t, np.float64(2.0))):
        assert isinstance(y, Tensor)
        assert y.dtype == np.float32


def test_gradients_reach_a_tensor_from_the_right_side_of_every_operator():
    x = leaf(np.array([0.5, 2.0]))
    (3.0 - x).backward(np.ones(2))
    assert_array_equal(x.grad, [-1.0, -1.0])
    x.grad = None
    (3.0 / x).backward(np.ones(2))
    assert_array_equal(x.grad, [-12.0, -0.75])
    x.grad = None
    (2.0**x).backward(np.ones(2))
    assert_allclose(x.grad, np.log(2) * 2 ** np.array([0.5, 2.0]), rtol=1e-15)
    x.grad = None
    (np.array([[1.0, 2.0], [3.0, 4.0]]) @ x).backward(np.array([1.0, 10.0]))
    assert_array_equal(x.grad, [31.0, 42.0])


def test_power_at_the_edges_of_its_domain():
    x = leaf(np.array([0.0, 0.0, 0.0, -2.0, -2.0]))
    p = np.array([0.0, 1.0, 2.0, 2.0, 3.0])
    y = x**p
    y.backward(np.ones(5))
    assert_array_equal(y.data, [1, 0, 0, 4, -8])
    assert_array_equal(x.grad, [0, 1, 0, -4, 12])
    huge = leaf(np.array([np.inf, -np.inf, np.nan]))
    (huge**0).backward(np.ones(3))
    assert_array_equal(huge.grad, [0, 0, 0])  # its 0th power is 1 whatever it is
    base, exponent = leaf(np.array([0.0, 1.0, np.e])), leaf(np.array([2.0, 2.0, 2.0]))
    (base**exponent).backward(np.ones(3))
    assert_allclose(exponent.grad, [0, 0, np.e**2], rtol=1e-15)
    # 0 to a negative power is infinite, and less so the larger the power. PyTorch 2.13 has these values.
    exponent = leaf(np.array([-1.0, -0.5, 0.0, 0.5]))
    with np.errstate(divide="ignore"):
        (Tensor(np.zeros(1)) ** exponent).backward(np.ones(4))
    assert_array_equal(exponent.grad, [-np.inf, -np.inf, 0, 0])


@given(
    hnp.mutually_broadcastable_shapes(signature="(m?,k),(k,n?)->(m?,n?)", max_dims=2, max_side=3),
    seeds,
)
def test_matrix_product_follows_numpy_for_matrices_stacks_and_vectors(device, drawn, seed):
    a, b = (normal(seed + i, *shape) for i, shape in enumerate(drawn.input_shapes))
    y = Tensor(a, device=device) @ Tensor(b, device=device)
    assert y.shape == drawn.result_shape
    assert_allclose(y.numpy(), np.einsum(*einsum_of(a, b)), rtol=1e-12, atol=1e-12)


def einsum_of(a, b):
    """The product a @ b as arguments for einsum, the inner axis named 0, rows 1, columns 2."""
    rows = [1] if a.ndim > 1 else []
    columns = [2] if b.ndim > 1 else []
    return a, [..., *rows, 0], b, [..., 0, *columns], [..., *rows, *columns]


@given(
    hnp.mutually_broadcastable_shapes(signature="(m?,k),(k,n?)->(m?,n?)", max_dims=2, max_side=2),
    seeds,
)
def test_gradients_of_the_matrix_product(drawn, seed):
    gradcheck(operator.matmul, [normal(seed + i, *shape) for i, shape in enumerate(drawn.input_shapes)])


def test_matrix_product_by_hand():
    a, b = leaf(np.array([[1.0, 2.0], [3.0, 4.0]])), leaf(np.array([[5.0], [6.0]]))
    y = a @ b
    y.backward(np.array([[1.0], [10.0]]))
    assert_array_equal(y.data, [[17.0], [39.0]])
    assert_array_equal(a.grad, [[5.0, 6.0], [50.0, 60.0]])
    assert_array_equal(b.grad, [[31.0], [42.0]])


@pytest.mark.parametrize("name", ["exp", "log", "sqrt"])
@given(shapes, seeds)
def test_elementwise_functions(device, name, shape, seed):
    x = positive(seed, *shape)
    y = getattr(Tensor(x, device=device), name)()
    assert_allclose(y.numpy(), getattr(np, name)(x), rtol=1e-15)
    gradcheck(getattr(F, name), [x])


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@given(st.data(), shapes, st.booleans(), seeds)
def test_reductions(device, name, data, shape, keepdims, seed):
    axis = data.draw(axes_of(len(shape)), label="axis")
    x = distinct(seed, *shape)
    y = getattr(Tensor(x, device=device), name)(axis=axis, keepdims=keepdims)
    expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    assert y.shape == np.shape(expected)
    assert_allclose(y.numpy(), expected, rtol=1e-13, atol=1e-14)
    gradcheck(lambda t: getattr(F, name)(t, axis, keepdims), [x])


def test_the_gradient_of_max_is_shared_by_equal_values():
    x = leaf(np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]))
    x.max(axis=1).backward(np.array([6.0, 7.0]))
    assert_array_equal(x.grad, [[0, 3, 3], [7, 0, 0]])


@given(st.data(), shapes, seeds)
def test_reshape(device, data, shape, seed):
    x = normal(seed, *shape)
    wanted = data.draw(st.permutations(shape).map(tuple), label="shape")
    hole = data.draw(st.none() | st.integers(0, len(wanted) - 1) if wanted else st.none(), label="axis left open")
    asked = tuple(-1 if i == hole else n for i, n in enumerate(wanted))
    assert_array_equal(Tensor(x, device=device).reshape(asked).numpy(), x.reshape(wanted))
    assert_array_equal(Tensor(x, device=device).reshape(*asked).numpy(), x.reshape(wanted))
    gradcheck(lambda t: t.reshape(asked), [x])


@given(st.data(), shapes, seeds)
def test_transpose(device, data, shape, seed):
    x = normal(seed, *shape)
    order = data.draw(st.permutations(range(x.ndim)).map(tuple), label="axes")
    t = Tensor(x, device=device)
    assert_array_equal(t.transpose(order).numpy(), np.transpose(x, order))
    assert_array_equal(t.transpose(*order).numpy(), np.transpose(x, order or None))
    assert_array_equal(t.T.numpy(), x.T)
    assert_array_equal(t.transpose().numpy(), x.T)
    gradcheck(lambda t: t.transpose(order), [x])


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), seeds)
def test_indexing(data, shape, seed):
    x = normal(seed, *shape)
    index = data.draw(
        hnp.basic_indices(shape, allow_newaxis=True)
        | hnp.integer_array_indices(shape)
        | hnp.arrays(bool, shape)
        | st.integers(-shape[0], shape[0] - 1)
        | st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=5),
        label="index",
    )
    assert_array_equal(Tensor(x)[index].numpy(), x[index])
    if x[index].size:
        gradcheck(lambda t: t[index], [x])


def test_an_element_that_is_picked_twice_gets_both_gradients(device):
    x = leaf(np.array([1.0, 2.0, 3.0]), device)
    x[[0, 2, 0]].backward(np.array([1.0, 10.0, 100.0]))
    assert_array_equal(to_numpy(x.grad), [101.0, 0.0, 10.0])


def test_an_index_may_be_a_tensor():
    x = leaf(np.arange(6.0).reshape(2, 3))
    rows, columns = Tensor(np.array([1, 0])), Tensor(np.array([2, 2]))
    assert_array_equal(x[rows, columns].data, [5.0, 2.0])


def test_iterating_gives_the_rows_and_stops():
    rows = list(Tensor(np.arange(6.0).reshape(2, 3)))
    assert len(rows) == 2
    assert_array_equal(rows[1].data, [3.0, 4.0, 5.0])


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=3, max_side=3), st.integers(1, 3), seeds)
def test_concat(device, data, shape, count, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1), label="axis")
    xs = []
    for i in range(count):
        own = list(shape)
        own[axis] = data.draw(st.integers(1, 3), label="size")
        xs.append(normal(seed + i, *own))
    y = F.concat([Tensor(x, device=device) for x in xs], axis)
    assert_array_equal(y.numpy(), np.concatenate(xs, axis))
    gradcheck(lambda *ts: F.concat(ts, axis), xs)


@given(st.data(), shapes, seeds)
def test_pad(device, data, shape, seed):
    x = normal(seed, *shape)
    widths = [data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)), label="width") for _ in shape]
    y = F.pad(Tensor(x, device=device), widths).numpy()
    inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, shape, strict=True))
    assert y.shape == tuple(n + before + after for n, (before, after) in zip(shape, widths, strict=True))
    assert_array_equal(y[inside], x)
    assert np.abs(y).sum() == pytest.approx(np.abs(x).sum())
    gradcheck(lambda t: F.pad(t, widths), [x])


def test_to_changes_the_precision_and_the_gradient_comes_back_in_the_old_one():
    x = leaf(np.array([1.0, 2.0]))
    y = x.to(dtype="float32")
    assert y.dtype == np.float32
    (y * y).sum().backward()
    assert x.grad.dtype == np.float64
    assert_array_equal(x.grad, [2.0, 4.0])
    assert x.to() is x
    assert x.to("cpu", np.float64) is x


def test_to_makes_floating_point_values_of_integers():
    assert_array_equal(Tensor(np.array([0, 255], np.uint8)).to(dtype="float32").data, np.array([0, 255], np.float32))


def test_equality_is_element_by_element():
    t = Tensor(np.array([1.0, 2.0]))
    assert (t == Tensor(np.array([1.0, 3.0]))).numpy().tolist() == [True, False]
    assert (t != 1).numpy().tolist() == [False, True]
    assert (np.array([1.0, 3.0]) == t).numpy().tolist() == [True, False]
    assert (Tensor(np.array([1, 2])) == 2).numpy().tolist() == [False, True]
    assert not (t == t).requires_grad


def test_nothing_but_none_equals_none():
    t, other = Tensor(1.0), Tensor(2.0)
    assert (t == None, t != None) == (False, True)  # noqa: E711
    assert t in [None, t]  # Python asks None first, and None asks the tensor
    assert other not in (None, t)
    with pytest.raises(TypeError):
        np.equal(t, None)


def test_a_binary_operation_says_how_many_tensors_it_takes():
    t = Tensor(1.0)
    for tensors, sentence in (((t,), "got 1"), ((t, None), "got 1"), ((t, t, t), "got 3")):
        with pytest.raises(TypeError, match=f"Multiply takes two tensors, {sentence}"):
            Multiply.apply(*tensors)


def test_division_by_zero_is_infinite_as_in_numpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert (1.0 / Tensor(np.array([0.0]))).item() == np.inf
