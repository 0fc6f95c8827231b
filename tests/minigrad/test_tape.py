"""The tape (minigrad/tensor.py): the backward walk, and what the engine checks on it."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from support.strategies import normal
from support.tape import leaf, operation

import minigrad.functional as F
from minigrad import Function, Tensor
from minigrad.ops.conv import Conv2d
from minigrad.ops.norm import BatchNormReLU
from minigrad.registry import book_only
from minigrad.tensor import unbroadcast

# --- the walk ---------------------------------------------------------------------------------------------------------


def test_the_chain_rule_by_hand():
    """z = (x + y)² x at x = 2, y = 3: z = 50, ∂z/∂x = 2 (x + y) x + (x + y)² = 45, ∂z/∂y = 20."""
    x, y = leaf(2.0), leaf(3.0)
    s = x + y
    z = s * s * x
    z.backward()
    assert (z.item(), x.grad.item(), y.grad.item()) == (50.0, 45.0, 20.0)


@pytest.mark.parametrize("fast", [True, False])
def test_a_last_input_may_be_left_out(fast):
    """A bias, a shortcut: as if it were None."""
    conv = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    norm = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.1, "eps": 1e-5}
    cases = [(Conv2d, [(2, 3, 4, 4), (5, 3, 1, 1)], conv), (BatchNormReLU, [(2, 3, 4, 4), (3,), (3,)], norm)]
    for function, shapes, options in cases:
        gradients = []
        for rest in ((), (None,)):
            inputs = [leaf(*normal(i, *shape)) for i, shape in enumerate(shapes)]
            with contextlib.nullcontext() if fast else book_only():
                y = function.apply(*inputs, *rest, **options)
            y.backward(normal(9, *y.shape))
            gradients.append([x.grad for x in inputs])
        assert_array_equal(gradients[0][0], gradients[1][0])
        assert_array_equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("length", [5_000, 50_000])
def test_a_long_chain_needs_no_recursion(length):
    x, one = leaf(1.0), leaf(1.0)
    y = x
    for _ in range(length):
        y = y + one
    y.backward()
    assert (x.grad.item(), one.grad.item()) == (1.0, length)


def test_a_long_chain_that_is_dropped_without_a_backward_pass_needs_no_recursion():
    y, zero = leaf(1.0), leaf(0.0)
    for _ in range(50_000):
        y = y + zero
    del y


def test_a_tall_diamond_takes_linear_time():
    """Every step uses the value twice, so there are 2^200 paths; the walk must pass each node once."""
    x = leaf(1.0)
    y = x
    for _ in range(200):
        y = (y + y) * 0.5
    y.backward()
    assert x.grad.item() == 1.0


def test_a_node_waits_for_all_gradients_whatever_the_lengths_of_the_paths():
    x = leaf(3.0)
    u = x * x
    long = u
    for _ in range(10):
        long = long * 1.0
    (u + long * u + x).backward()  # x² + x⁴ + x
    assert x.grad.item() == 2 * 3 + 4 * 27 + 1


def test_gradients_of_two_backward_passes_add_up():
    x = leaf(3.0)
    (x * x).backward()
    first = x.grad
    (x * 2).backward()
    assert x.grad.item() == 8.0
    assert first.item() == 6.0, "an array that was handed out must not change"
    x.grad = None
    (x * 2).backward()
    assert x.grad.item() == 2.0


def test_a_leaf_is_its_own_graph():
    x = leaf(1.0, 2.0)
    dy = np.array([3.0, 4.0])
    x.backward(dy)
    dy[0] = 0.0
    assert_array_equal(x.grad, [3.0, 4.0])


def test_the_gradient_may_be_given_as_tensor_array_or_numbers():
    for dy in (Tensor(np.array([1.0, 10.0])), np.array([1, 10]), [1.0, 10.0], np.array([1.0, 10.0], np.float32)):
        x = leaf(1.0, 2.0)
        (x * 2).backward(dy)
        assert_array_equal(x.grad, [2.0, 20.0])


def test_a_leaf_is_shown_as_soon_as_its_gradient_is_complete():
    """The last operation's first; one that two operations use after the second of them; each once."""
    leaves = {"a": leaf(2.0), "b": leaf(3.0), "c": leaf(5.0)}
    a, b, c = leaves.values()
    b.grad = np.array([100.0])  # of an earlier backward pass
    shown = []

    def after_leaf(x):
        shown.append(next((name, x.grad.item()) for name, t in leaves.items() if t is x))
        if x is c:
            assert a.grad is None and b.grad.item() == 100.0  # these are still to come

    ((a * b).relu() * c + b).sum().backward(after_leaf=after_leaf)
    assert shown[0] == ("c", 6.0)
    assert sorted(shown[1:]) == [("a", 15.0), ("b", 111.0)]


def test_only_leaves_that_ask_get_a_gradient():
    x, y, constant = leaf(1.0), leaf(2.0), Tensor(np.array([3.0]))
    z = x * y
    (z * constant + z.detach() * x).backward()
    assert (x.grad.item(), y.grad.item()) == (6.0 + 2.0, 3.0)
    assert constant.grad is None
    assert z.grad is None


def test_an_operation_on_constants_stays_off_the_tape():
    y = Tensor([1.0]) * Tensor([2.0])
    assert not y.requires_grad
    assert y.node is None


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            lambda: (leaf(1.0, 2.0) * 2).backward(),
            r"without a gradient needs .* one value, not shape \(2,\)",
        ),
        (lambda: Tensor([1.0]).backward(), "computed from one with requires_grad=True"),
        (lambda: leaf(1.0, 2.0).backward(np.ones(3)), r"gradient of shape \(3,\) for a tensor of shape \(2,\)"),
        (lambda: leaf(1.0, 2.0).backward(1.0), r"gradient of shape \(\) for a tensor of shape \(2,\)"),
    ],
)
def test_a_backward_pass_that_makes_no_sense_is_refused(run, sentence):
    with pytest.raises(ValueError, match=sentence):
        run()


@pytest.mark.parametrize("dy", ["a", [None], np.array([1j])])
def test_a_gradient_that_is_no_array_of_real_numbers_is_refused(dy):
    with pytest.raises(TypeError, match="a Tensor holds"):
        leaf(1.0).backward(dy)


def test_a_second_backward_pass_through_a_freed_graph_is_refused_and_changes_nothing():
    x, y = leaf(2.0), leaf(5.0)
    u = x * x
    z = u + y
    z.backward()
    for again in (z, u, u * y):
        with pytest.raises(ValueError, match=r"an earlier backward\(\) has already freed"):
            again.backward()
    assert (x.grad.item(), y.grad.item()) == (4.0, 1.0)


# --- what the engine checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broadcasts", [False, True])
@pytest.mark.parametrize(
    ("gradient", "sentence"),
    [
        (lambda dy: (dy, dy[0]), r"gradient of shape \(3,\) .* for input 1, which has shape \(2, 3\)"),
        (lambda dy: (dy.T, dy), r"gradient of shape \(3, 2\) .* for input 0, which has shape \(2, 3\)"),
        (lambda dy: (dy, dy.sum()), r"gradient of shape \(\) .* for input 1, which has shape \(2, 3\)"),
        (lambda dy: (dy, dy[None, None, :1]), r"for input 1, which has shape \(2, 3\)"),
        (lambda dy: (dy.astype(np.float32), dy), r"dtype float32 for input 0, .* dtype float64"),
        (lambda dy: (dy, None), "None for input 1, which wants a gradient"),
        (lambda dy: dy, "1 gradients, the operation has 2 inputs"),
        (lambda dy: (dy, dy, dy), "3 gradients, the operation has 2 inputs"),
    ],
)
def test_a_wrong_gradient_is_caught_and_the_operation_named(gradient, sentence, broadcasts):
    a, b = (Tensor(normal(i, 2, 3), requires_grad=True) for i in range(2))
    y = operation(gradient, broadcasts).apply(a, b)
    with pytest.raises(ValueError, match="Faulty.backward returned .*" + sentence):
        y.backward(np.ones((2, 3)))


def test_who_forgets_broadcasts_is_told():
    a, b = Tensor(normal(0, 2, 3), requires_grad=True), Tensor(normal(1, 3), requires_grad=True)
    sentence = r"input 1, which has shape \(3,\) and dtype float64; where inputs broadcast, the class says broadcasts ="
    with pytest.raises(ValueError, match=sentence):
        operation(lambda dy: (dy, dy), False).apply(a, b).backward(np.ones((2, 3)))
    # The hint is for repeated inputs alone: neither another shape nor another dtype gets it.
    for wrong in (lambda dy: (dy, dy[0, :2]), lambda dy: (dy.astype(np.float32), dy[0])):
        with pytest.raises(ValueError, match=r"has shape .* and dtype float64$"):
            operation(wrong, False).apply(a, b).backward(np.ones((2, 3)))


def test_a_gradient_that_nobody_wants_is_not_looked_at():
    a, b = Tensor(normal(0, 2, 3), requires_grad=True), Tensor(normal(1, 2, 3))
    operation(lambda dy: (dy, None)).apply(a, b).backward(np.ones((2, 3)))
    assert_array_equal(a.grad, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("value", "kind"), [(1.0, "float"), (None, "NoneType"), (Tensor(1.0), "Tensor"), ((np.ones(2),), "tuple")]
)
def test_a_forward_pass_that_returns_no_array_is_named(value, kind):
    faulty = type("Faulty", (Function,), {"forward": lambda self, x: value})
    with pytest.raises(TypeError, match=f"Faulty.forward must return an array, it returned a {kind}"):
        faulty.apply(Tensor(1.0))


def test_an_operation_without_a_method_or_a_tensor_is_named():
    with pytest.raises(NotImplementedError, match=r"Half defines no forward\(\)"):
        type("Half", (Function,), {}).apply(Tensor(1.0))
    half = type("Half", (Function,), {"forward": lambda self, x: 0.5 * x})
    with pytest.raises(NotImplementedError, match=r"Half defines no backward\(\)"):
        half.apply(Tensor(1.0, requires_grad=True)).backward()
    for arguments in ((), (None,)):
        with pytest.raises(TypeError, match="Half needs at least one tensor"):
            half.apply(*arguments)


def test_gradients_may_be_a_list():
    a, b = (Tensor(normal(i, 2, 3), requires_grad=True) for i in range(2))
    operation(lambda dy: [dy, 2 * dy]).apply(a, b).backward(np.ones((2, 3)))
    assert_array_equal(b.grad, 2 * a.grad)


def test_what_is_no_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match=r"ReLU takes tensors, got ndarray: wrap it in Tensor\(...\)"):
        F.relu(np.ones(3))
    with pytest.raises(TypeError, match="conv2d takes tensors, got ndarray for its weight"):
        F.conv2d(Tensor(np.ones((1, 1, 3, 3))), np.ones((1, 1, 2, 2)))


def test_dtypes_do_not_mix_by_accident():
    with pytest.raises(TypeError, match=r"Add got tensors of dtypes float64 and float32: convert one with .to\(\)"):
        leaf(1.0) + Tensor([1.0])
    advice = r"Multiply computes with floating-point tensors, got int64: convert it with .to\(\)"
    with pytest.raises(TypeError, match=advice):
        Tensor([1]) * Tensor([2])


@given(st.data())
def test_unbroadcast_is_the_transpose_of_broadcasting(data):
    """<broadcast(x), y> = <x, unbroadcast(y)> for every x and y."""
    shape = data.draw(st.lists(st.integers(1, 3), max_size=3).map(tuple), label="shape")
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2).map(tuple), label="axes in front")
    full = lead + tuple(data.draw(st.integers(1, 3)) if n == 1 else n for n in shape)
    x, y = normal(0, *shape), normal(1, *full)
    back = unbroadcast(y, shape)
    assert back.shape == shape
    assert np.vdot(np.broadcast_to(x, full), y) == pytest.approx(np.vdot(x, back))
