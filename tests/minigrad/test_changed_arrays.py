"""Arrays that change between forward and backward are noticed; threads that share leaves lose nothing (tensor.py)."""

import contextlib
import copy
import pickle
import sys
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.engine import only
from support.strategies import normal

import minigrad.functional as F
from minigrad import Function, Parameter, Tensor, nn
from minigrad.fast import cpu
from minigrad.optim import SGD
from minigrad.registry import book_only


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


CHANGED = "needs an array for its backward pass that was changed in place after its forward pass"


def parameter():
    return Parameter(normal(0, 3, 3).astype(np.float32))


@pytest.mark.parametrize(
    "function",
    [
        lambda w: w * w,
        lambda w: Tensor(np.ones((2, 3), np.float32)) @ w,
        lambda w: F.linear(Tensor(np.ones((2, 3), np.float32)), w),  # through a transposed view
        lambda w: w.reshape(9)[2:5] ** 2.0,  # through two views
        lambda w: F.conv2d(Tensor(np.ones((1, 1, 5, 5), np.float32)), w.reshape(1, 1, 3, 3)),
        lambda w: F.batch_norm(Tensor(normal(1, 4, 3).astype(np.float32)), w[0], w[1], None, None, True),
        lambda w: w.exp() * w.detach(),
    ],
)
def test_a_step_between_forward_and_backward_is_noticed(function):
    w = parameter()
    x = Tensor(normal(5, 3, 3).astype(np.float32), requires_grad=True)
    loss = (function(w * 1.0) * function(w)).sum() + (x * 2.0).sum()
    w.grad = np.ones_like(w.data)
    SGD([w], 0.1).step()
    with pytest.raises(ValueError, match=CHANGED):
        loss.backward()
    assert x.grad is None, "nothing is half done"


@pytest.mark.parametrize("fast", [True, False])
def test_layers_notice_a_step(fast):
    """Also where the engine room computes, which keeps other arrays than the book."""
    with contextlib.nullcontext() if fast else book_only():
        for layer, x in (
            (nn.Conv2d(4, 4, 3, padding=1, groups=2), normal(0, 2, 4, 6, 6)),
            (nn.Conv2d(4, 4, 1), normal(0, 2, 4, 6, 6)),
            (nn.Linear(4, 2), normal(0, 3, 4)),
            (nn.BatchNorm2d(4), normal(0, 2, 4, 6, 6)),
        ):
            loss = layer(Tensor(x.astype(np.float32), requires_grad=True)).sum()
            for p in layer.parameters():
                p.grad = np.ones_like(p.data)
            SGD(layer.parameters(), 0.1).step()
            with pytest.raises(ValueError, match=CHANGED):
                loss.backward()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("source", ["grey leaf", "channels last", "another convolution", "channels first"])
def test_a_convolution_notices_that_its_input_changed(source, fast):
    """It keeps the array itself where that lies as it wants it, and a copy elsewhere."""
    with contextlib.nullcontext() if fast else book_only():
        channels = 1 if source == "grey leaf" else 3
        x = Tensor(normal(0, 2, channels, 6, 6).astype(np.float32))
        if source == "channels last":
            x = Tensor(np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
        elif source == "another convolution":
            x = nn.Conv2d(3, channels, 3, padding=1)(x)
        layer, before = nn.Conv2d(channels, 4, 3), x.numpy().copy()
        y = layer(x)
        x.data *= 0
        try:
            y.sum().backward()
        except ValueError as error:
            assert CHANGED in str(error)
        else:
            expected = nn.Conv2d(channels, 4, 3)
            expected(Tensor(before)).sum().backward()
            np.testing.assert_allclose(layer.weight.grad, expected.weight.grad, rtol=1e-4, atol=1e-4)
            assert fast and source == "channels first"


def test_a_convolution_that_trains_no_filters_needs_no_input():
    """In the engine room; the book keeps it all the same, and says so."""
    with only(cpu.register):
        layer, x = nn.Conv2d(1, 4, 3), Tensor(normal(0, 2, 1, 6, 6).astype(np.float32), requires_grad=True)
        layer.weight.requires_grad = False
        y = layer(x)
        x.data *= 0
        y.sum().backward()
    assert x.grad.any()


def test_a_shallow_copy_shares_what_is_known_of_the_array():
    x = leaf(1.0, 2.0)
    for copied, noticed in ((copy.copy(x), True), (copy.deepcopy(x), False), (pickle.loads(pickle.dumps(x)), False)):
        y = x * x
        copied.data += 10
        if noticed:
            with pytest.raises(ValueError, match=CHANGED):
                y.sum().backward()
            x.data -= 10
        else:
            y.sum().backward()
    one, other = copy.deepcopy([x, x.detach()])
    y = (one * one).sum()
    other.data += 1
    with pytest.raises(ValueError, match=CHANGED):
        y.backward()


@pytest.mark.parametrize(
    "kept",
    [lambda x: x, lambda x: (x, 2), lambda x: [x], lambda x: {"x": x}, lambda x: [(1, {"x": [x[1:]]})], lambda x: x.T],
    ids=["array", "tuple", "list", "dict", "nested", "view"],
)
def test_an_operation_may_keep_its_arrays_in_lists_and_dicts(kept):
    class Square(Function):
        def forward(self, x):
            self.kept = kept(x)
            self.x = x.copy()
            return x * x

        def backward(self, dy):
            return 2 * dy * self.x

    x = leaf(3.0, 4.0)
    y = Square.apply(x).sum()
    x.data *= 10
    with pytest.raises(ValueError, match=f"Square {CHANGED}"):
        y.backward()
    x = leaf(3.0, 4.0)
    Square.apply(x).sum().backward()
    assert_array_equal(x.grad, [6.0, 8.0])


@pytest.mark.parametrize("through", ["a list", "a dict"])
def test_what_an_operation_keeps_may_hold_itself(through):
    """The search for changed arrays ends there, too."""

    class Square(Function):
        def forward(self, x):
            self.cycle = [x] if through == "a list" else {"x": x}
            self.cycle.append([self.cycle]) if through == "a list" else self.cycle.update(again=[self.cycle])
            return x * x

        def backward(self, dy):
            return 2 * dy

    x, other = leaf(3.0, 4.0), leaf(5.0, 6.0)
    y = (Square.apply(x) + Square.apply(other)).sum()
    x.data *= 10
    with pytest.raises(ValueError, match=f"Square {CHANGED}"):
        y.backward()


def test_what_no_backward_pass_needs_may_change():
    w, b = parameter(), parameter()
    y = (w + b) - 3.0
    z = y.sum() + w[np.array([0, 0])].exp().sum()  # an index that copies
    w.data += 1.0
    y.data *= 2.0
    SGD([b], 0.1).step()
    z.backward()
    assert_array_equal(b.grad, np.ones((3, 3)))


@pytest.mark.parametrize("through", ["itself", "detached", "a view", "the result"])
def test_edits_through_data_are_noticed(through):
    x = leaf(1.0, 2.0)
    y = x.exp()
    z = (x * x).sum() + y.sum()
    target = {"itself": x, "detached": x.detach(), "a view": x[:1], "the result": y}[through]
    target.data += 1.0
    with pytest.raises(ValueError, match="Exp " + CHANGED if through == "the result" else "Multiply " + CHANGED):
        z.backward()


@pytest.mark.parametrize("fast", [True, False])
def test_running_statistics_that_move_are_noticed(fast):
    """Batch norm in training changes them in place: x · running_mean needs them for dx as they were."""
    with contextlib.nullcontext() if fast else book_only():
        bn = nn.BatchNorm2d(3)
        images = Tensor(normal(0, 2, 3, 4, 4).astype(np.float32), requires_grad=True)
        y = (images * bn.running_mean.reshape(3, 1, 1)).sum()
        bn.eval()
        bn(images)
        bn.train()
        z = bn(images)  # its own backward pass needs no running statistics
        with pytest.raises(ValueError, match=f"Multiply {CHANGED}"):
            y.backward()
        bn(images)
        z.sum().backward()


def test_replacing_the_array_leaves_the_kept_one_as_it_was():
    x = leaf(1.0, 2.0)
    z = (x * x).sum()
    x.data = np.array([5.0, 6.0])
    x.data += 1.0  # another array by now
    z.backward()
    assert_array_equal(x.grad, [2.0, 4.0])


def test_two_losses_and_a_step_after_each():
    w = leaf(1.0, 2.0)
    sgd = SGD([w], 0.5)
    for _ in range(2):
        sgd.zero_grad()
        (w * w).sum().backward()
        sgd.step()
    assert_array_equal(w.data, [0.0, 0.0])


def test_threads_add_to_one_leaf_without_losing_a_gradient():
    w = leaf(*np.ones(4))
    loops, before = 300, sys.getswitchinterval()

    def work():
        for _ in range(loops):
            (w * 1.0).backward(np.ones(4))

    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        sys.setswitchinterval(before)
    assert_array_equal(w.grad, np.full(4, 4.0 * loops))
