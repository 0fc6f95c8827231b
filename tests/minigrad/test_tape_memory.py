"""The memory of the tape (minigrad/tensor.py): what is freed when, and what shares memory with what."""

import gc
import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.strategies import normal
from support.tape import leaf, operation

import minigrad.functional as F
from minigrad import Function, Tensor

# --- memory -----------------------------------------------------------------------------------------------------------


class Watched(np.ndarray):
    """An array that can be counted: it takes weak references and is told apart by identity."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Double(Function):
    """y = 2x, keeping an array for the backward pass that `alive` counts."""

    alive: "weakref.WeakSet[Watched]"

    def forward(self, x):
        self.kept = np.array(x).view(Watched)
        Double.alive.add(self.kept)
        return x * 2

    def backward(self, dy):
        Double.seen.append(len(Double.alive))
        return dy * 2


@pytest.fixture
def without_collector():
    """No garbage collection: only what reference counting frees is freed."""
    gc.collect()
    gc.disable()
    Double.alive, Double.seen = weakref.WeakSet(), []
    yield
    gc.enable()


def test_the_walk_frees_the_graph_as_it_goes(without_collector):
    x = leaf(1.0)
    y = x
    for _ in range(20):
        y = Double.apply(y)
    assert len(Double.alive) == 20
    y.backward()
    assert Double.seen == list(range(20, 0, -1))
    assert len(Double.alive) == 0
    assert x.grad.item() == 2.0**20


def test_a_graph_without_a_backward_pass_holds_no_cycle(without_collector):
    x = leaf(1.0)
    y = Double.apply(Double.apply(x)) + x
    nodes = weakref.WeakSet([y.node])
    tensors = weakref.WeakSet([y])
    del y
    assert (len(Double.alive), len(nodes), len(tensors)) == (0, 0, 0)


def test_values_that_no_backward_pass_needs_are_freed_in_the_forward_pass(without_collector):
    x = leaf(1.0)
    u = x + 1.0
    reference = weakref.ref(u)
    y = u + 1.0  # addition keeps neither input
    del u
    assert reference() is None
    y.backward()
    assert x.grad.item() == 1.0


def test_a_network_leaves_no_cycles_behind(without_collector):
    from minigrad import nn

    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    for _ in range(2):
        loss = F.cross_entropy(net(Tensor(normal(0, 3, 2, 4, 5).astype(np.float32))), [0, 1, 2])
        loss.backward()
        net.zero_grad()
        del loss
        found = gc.collect()  # the first step also makes what is made once: thread pool, handles of libraries
    assert found == 0


# --- memory that is shared and memory that is not ---------------------------------------------------------------------


def test_gradients_of_leaves_share_memory_with_nothing():
    a, b, c = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0)
    dy = np.ones(2)
    (a + b - c.reshape(2, 1).reshape(2)).backward(dy)
    arrays = [a.grad, b.grad, c.grad, dy, a.data, b.data, c.data]
    for i, first in enumerate(arrays):
        for second in arrays[i + 1 :]:
            assert not np.shares_memory(first, second)


def test_a_gradient_that_an_operation_keeps_is_copied():
    """The gradient of a·b may be b itself. Whoever then scales a.grad in place, to clip it, must not change b."""

    class Dot(Function):
        def forward(self, a, b):
            self.a, self.b = a, b
            return np.asarray((a * b).sum())

        def backward(self, dy):
            return (self.b, self.a) if dy == 1 else (dy * self.b, dy * self.a)

    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    Dot.apply(a, b).backward()
    a.grad *= 0.5
    b.grad *= 0.5
    assert_array_equal([a.data, b.data], [[1, 2], [3, 4]])
    assert_array_equal([a.grad, b.grad], [[1.5, 2], [0.5, 1]])


def test_leaves_that_get_one_and_the_same_gradient_get_an_array_each():
    a, b, c = leaf(1.0), leaf(2.0), leaf(3.0)
    (c + (a + b)).backward()  # dy goes to c, and through the inner sum to a and b
    assert not any(np.shares_memory(s.grad, t.grad) for s, t in ((a, b), (b, c), (a, c)))
    d, e = leaf(1.0), leaf(2.0)
    operation(lambda dy: (2 * dy,) * 2).apply(d, e).backward()  # one new array for both
    assert (d.grad.item(), e.grad.item()) == (2.0, 2.0)
    assert not np.shares_memory(d.grad, e.grad)


def test_only_operations_that_broadcast_get_their_gradients_summed():
    a, b = (Tensor(normal(i, 2, 3), requires_grad=True) for i in range(2))
    with pytest.raises(ValueError, match=r"gradient of shape \(1, 2, 3\) .* for input 1, which has shape \(2, 3\)"):
        operation(lambda dy: (dy, dy[None])).apply(a, b).backward(np.ones((2, 3)))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum(),
        lambda x: x.mean(axis=0).sum(),
        lambda x: x.reshape(6).sum(axis=0),
        lambda x: x.T[1].sum(),
        lambda x: F.concat([x, x]).sum(),
        lambda x: F.pad(x, [(1, 1), (0, 2)]).sum(),
        lambda x: x[:, :2].sum(),
        lambda x: x + x,
        lambda x: x,
    ],
)
def test_the_gradient_of_a_leaf_can_be_written_to(fn):
    x = Tensor(normal(0, 2, 3), requires_grad=True)
    y = fn(x)
    y.backward(np.ones(y.shape))
    assert x.grad.flags.writeable
    assert x.grad.base is None
    assert x.grad.strides == x.data.strides


def test_changing_an_index_or_label_array_after_the_forward_pass_does_no_harm():
    x = Tensor(normal(0, 3, 2), requires_grad=True)
    index, labels = np.array([0, 2]), np.array([0, 1])
    loss = F.cross_entropy(x[index], labels)
    index[:], labels[:] = 1, 0
    loss.backward()
    expected = Tensor(x.data, requires_grad=True)
    F.cross_entropy(expected[[0, 2]], [0, 1]).backward()
    assert_array_equal(x.grad, expected.grad)
