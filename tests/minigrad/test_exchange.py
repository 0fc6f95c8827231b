"""Tensors under NumPy's functions (minigrad/exchange.py)."""

import pickle
import re
from copy import copy as shallow_copy
from copy import deepcopy
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad.functional as F
from minigrad import Tensor, gradcheck, no_grad
from minigrad.exchange import CALLS, INSTEAD
from minigrad.nn import BatchNorm2d, Conv2d, Flatten, Linear, ReLU, Sequential
from minigrad.optim import SGD

A, B = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]]), np.array([0.5, 2.0, 3.0])
ARGUMENTS = {
    np.reshape: ((3, 2),),
    np.concatenate: (),
    np.pad: (((1, 0), (0, 2)),),
    np.matmul: (A.T,),
    **dict.fromkeys((np.add, np.subtract, np.multiply, np.divide, np.power), (B,)),
}


COMPARISONS = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)


@pytest.mark.parametrize("function", [f for f in CALLS if f not in COMPARISONS], ids=lambda f: f.__name__)
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


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda f: f.__name__)
def test_comparisons_are_those_of_the_values(compare):
    """Tensors of truth values, whichever side an array or a number stands on; they choose what is counted."""
    x = Tensor(B, requires_grad=True)
    for a, b in ((x, 2.0), (2.0, x), (x, B[::-1]), (B[::-1].copy(), x), (x, x)):
        y = compare(a, b)
        assert type(y) is Tensor and not y.requires_grad
        assert_array_equal(y.data, compare(np.asarray(a), np.asarray(b)))
    x[compare(x, 2.0)].sum().backward()
    assert_array_equal(x.grad, compare(B, 2.0).astype(float))
    assert (x > 2.0).data.tolist() == [v > 2.0 for v in B]
    assert max(x.sum(), x.mean()).item() == B.sum()


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


LOSSY: dict[str, Any] = {
    "np.clip": lambda x: np.clip(x, 0, 1),
    "np.dot": lambda x: np.dot(B, x.T),
    "np.einsum": lambda x: np.einsum("ij->i", x),
    "np.stack": lambda x: np.stack([A, x]),
    "np.block": lambda x: np.block([[A, x], [x, A]]),
    "np.where": lambda x: np.where(A > 2, x, 0),
    "np.interp": lambda x: np.interp(B, xp=[0.0, 1.0], fp=x[0, :2]),
    "np.linalg.norm": lambda x: np.linalg.norm(x),
    "np.fft.fft": lambda x: np.fft.fft(x),
    "np.split": lambda x: np.split(x, 3, axis=1),
    "np.median": np.median,
    "np.std": np.std,
    "np.maximum": lambda x: np.maximum(x, 0),
    "np.absolute": np.abs,
    "np.prod": np.prod,
    "np.multiply.reduce": np.multiply.reduce,
    "np.modf": np.modf,
    "np.add": lambda x: np.add(x, 1, out=np.zeros((2, 3))),
    "np.add.at": lambda x: np.add.at(np.zeros(3), [0, 0, 1], x[0]),
    "np.copyto": lambda x: np.copyto(np.zeros((2, 3)), x),
    "np.put": lambda x: np.put(np.zeros(3), [0, 1, 2], x),
    "np.put_along_axis": lambda x: np.put_along_axis(np.zeros((2, 3)), np.zeros((2, 1), int), x[:, :1], 1),
}


@pytest.mark.parametrize("name", LOSSY)
def test_what_would_lose_the_gradient_says_what_to_write(name):
    """As PyTorch refuses it; where there is no gradient to lose, NumPy computes."""
    words = re.escape(name) + " would lose the gradient: write "
    with pytest.raises(TypeError, match=words + r".*\(t.numpy\(\)\) for the values alone"):
        LOSSY[name](Tensor(A, requires_grad=True))
    expected = LOSSY[name](A)
    for actual in (LOSSY[name](Tensor(A)), no_grad()(LOSSY[name])(Tensor(A, requires_grad=True))):
        assert type(actual) is type(expected)
        assert_array_equal(actual, expected)


def test_an_array_keeps_its_values_where_adding_to_it_would_lose_the_gradient():
    n = np.zeros((2, 3))
    with pytest.raises(TypeError, match=r"write np.add without out, and n = n \+ t for n \+= t"):
        n += Tensor(A, requires_grad=True)
    assert_array_equal(n, 0)


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_written_in_their_place_keeps_the_gradient(name, kind):
    """What the refusal says to write is written, as it stands there: it gives NumPy's values, and a gradient."""
    values = [[1.0, -2.0], [4.0, 5.0]], [[0.5, 3.0], [-3.0, 7.0]], (A - 3.2).tolist()
    a, b, t = (Tensor(x, requires_grad=True) for x in values)
    mask, low, high = (a == 4.0, Tensor(-1.5), Tensor(1.5)) if kind == "tensor" else (a.numpy() == 4, -1.5, 1.5)
    arguments = {
        "np.clip": (t, low, high),
        "np.where": (mask, a, b),
        "np.repeat": (t, 2, 0),
        **dict.fromkeys(("np.stack", "np.vstack"), ([a, b],)),
        **dict.fromkeys(("np.dot", "np.maximum", "np.minimum"), (a, b)),
    }.get(name, (t,))
    function = attrgetter(name.removeprefix("np."))(np)
    with pytest.raises(TypeError) as refused:
        function(*arguments)
    advice = str(refused.value).partition(": write ")[2].partition(", or np.")[0]
    expression, _, binding = advice.partition(" with ")
    scope = {"F": F, "np": np, "Tensor": Tensor, "a": a, "b": b, "t": t, "mask": mask, "low": low, "high": high}
    exec(binding, scope)
    y = eval(expression, scope)
    with no_grad():
        assert_allclose(y.numpy(), function(*arguments), rtol=1e-6)
    y.sum().backward()
    assert all(x.grad is not None for x in arguments if isinstance(x, Tensor) and x.requires_grad)


def test_a_list_of_tensors_is_no_tensor_where_that_would_lose_the_gradient():
    x = Tensor(A, requires_grad=True)
    for call in (lambda: Tensor([x[0], x[1]]), lambda: Tensor([[x[0, 0], 1.0], [2.0, 3.0]]), lambda: x * [x[0], x[1]]):
        with pytest.raises(TypeError, match="would lose the gradient of the tensors in the list"):
            call()
    with no_grad():
        assert_array_equal(Tensor([x[0], x[1]]).data, A)
    assert_array_equal(Tensor([Tensor(A)]).data, [A])


def test_what_has_no_gradient_gives_values(tmp_path):
    x = Tensor(A, requires_grad=True)
    assert_array_equal(np.isnan(x), np.zeros((2, 3), bool))
    assert_array_equal(x <= A, np.ones((2, 3), bool))
    assert np.allclose(x, A)
    assert np.argmax(x) == 5
    assert_array_equal(np.nonzero(x), np.nonzero(A))
    assert np.shape(x) == (2, 3)
    assert_array_equal(np.zeros_like(x), np.zeros((2, 3)))
    assert np.array2string(x) == np.array2string(A)
    np.save(tmp_path / "x.npy", x)
    assert_array_equal(np.load(tmp_path / "x.npy"), A)


def test_what_asks_for_the_values_by_name_gets_them():
    x = Tensor(A, requires_grad=True)
    for values in (np.asarray(x), np.array(x), x.numpy(), np.from_dlpack(x), np.float64(x[0, 0])):
        assert_array_equal(values, A if np.ndim(values) else A[0, 0])


def test_a_single_integer_is_one_wherever_python_wants_one():
    three, values = Tensor(3), Tensor(A)
    assert list(range(three)) == [0, 1, 2] and int(three) == 3 and int(Tensor(2.5)) == 2
    assert_array_equal(values[: Tensor(1)].numpy(), A[:1])
    assert_array_equal(Tensor([Tensor(1), Tensor(2)]).numpy(), [1, 2])
    logits = Tensor(A)
    assert F.cross_entropy(logits, [Tensor(0), Tensor(1)]).item() == F.cross_entropy(logits, [0, 1]).item()
    for wrong in (Tensor(2.0), Tensor([1, 2])):
        with pytest.raises(TypeError):
            range(wrong)


def test_a_tensor_that_was_computed_is_not_copied_with_its_graph():
    """As in PyTorch; a long graph would be deeper than Python's recursion."""
    leaf = Tensor(A, requires_grad=True)
    y = leaf
    for _ in range(20_000):
        y = -y
    for copy in (deepcopy, shallow_copy, pickle.dumps):
        with pytest.raises(
            TypeError, match=r"was computed, of shape \(2, 3\), cannot be copied or pickled: detach\(\)"
        ):
            copy(y)
        copy(y.detach())
        copy(leaf)


def step(network, optimizer):
    optimizer.zero_grad()
    loss = F.cross_entropy(network(Tensor(np.ones((2, 3, 3, 3), np.float32))), [0, 1])
    loss.backward()
    optimizer.step()


def test_a_network_and_its_optimizer_are_pickled_between_steps():
    network = Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU(), Flatten(), Linear(4, 2))
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    step(network, optimizer)
    copies = [pickle.loads(pickle.dumps((network, optimizer))), deepcopy((network, optimizer))]
    step(network, optimizer)
    for other, its in copies:
        step(other, its)
        for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
            assert_array_equal(a, b, name)
