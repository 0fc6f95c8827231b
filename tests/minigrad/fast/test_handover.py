"""Notes from one fast operation to the next: they hold only while nobody else can reach the array."""

import numpy as np
import pytest
from support.engine import only
from support.strategies import normal

from minigrad import Tensor
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.fast.cpu.norm import Remake
from minigrad.ops.norm import batch_norm_relu


@pytest.fixture(autouse=True)
def registered():
    with only(cpu.register):
        yield


def kinds(t):
    """The notes that a tensor's array has."""
    return None if t._notes is None else [type(note) for note in t._notes]


def relu_input(x, C):
    """A rectified batch norm's output with a note on how to make it again."""
    y = batch_norm_relu(x, Tensor(np.ones(C)), Tensor(np.zeros(C)), None, None, True)
    assert kinds(y) == [Remake]
    return y


def test_a_leaf_that_shares_the_array_gets_its_own_gradient():
    """The mask of the ReLU that made an array belongs to that ReLU, not to whoever else holds the array."""
    x = Tensor(normal(0, 2, 4, 6, 6), requires_grad=True)
    leaf = relu_input(x, 4).detach()
    leaf.requires_grad = True
    w = normal(1, 5, 4, 1, 1)
    y = F.conv2d(leaf, Tensor(w))
    dy = normal(2, *y.shape)
    y.backward(dy)
    np.testing.assert_allclose(leaf.grad, np.einsum("nohw,oc->nchw", dy, w[:, :, 0, 0]), atol=1e-12)
