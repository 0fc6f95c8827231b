"""Notes from one fast operation to the next: they hold only while nobody else can reach the array."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from support.engine import only, results
from support.programs import Program, step, steps
from support.strategies import normal

from minigrad import Tensor, registry
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.fast.cpu.layout import Moments
from minigrad.fast.cpu.norm import Remake
from minigrad.ops.norm import batch_norm, batch_norm_relu


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


def test_an_output_that_was_taken_off_the_tape_gets_its_own_gradient():
    """It still has the note, but the batch norm that would mask the gradient is not behind it any more."""
    y = relu_input(Tensor(normal(0, 2, 4, 6, 6), requires_grad=True), 4)
    y.node, y.requires_grad = None, True
    w = normal(1, 5, 4, 3, 3)
    z = F.conv2d(y, Tensor(w))
    dy = normal(2, *z.shape)
    z.backward(dy)
    leaf = Tensor(y.data, requires_grad=True)
    F.conv2d(leaf, Tensor(w)).backward(dy)
    np.testing.assert_allclose(y.grad, leaf.grad, atol=1e-12)


def test_an_edit_between_a_convolution_and_its_batch_norm():
    """The sums that the convolution told are those of other values: the mean was 4.4 in place of 0."""
    x, w = Tensor(normal(0, 2, 8, 6, 6), requires_grad=True), Tensor(normal(1, 8, 8, 3, 3), requires_grad=True)
    y = F.conv2d(x, w, padding=1)
    assert kinds(y) == [Moments]
    y.data += 5
    assert kinds(y) is None
    z = batch_norm(y, Tensor(np.ones(8)), Tensor(np.zeros(8)), None, None, True)
    np.testing.assert_allclose(z.data.mean((0, 2, 3)), 0, atol=1e-12)


def test_an_edit_between_a_batch_norm_and_its_convolution():
    """The convolution kept how to make its input again, which is another one now: zeros had a gradient of 200."""
    x, w = Tensor(normal(0, 2, 8, 6, 6), requires_grad=True), Tensor(normal(1, 8, 8, 3, 3), requires_grad=True)
    a = batch_norm_relu(x, Tensor(np.ones(8)), Tensor(np.zeros(8)), None, None, True)
    a.data[:, :4] = 0
    F.conv2d(a, w).sum().backward()
    assert (w.grad[:, :4] == 0).all() and (w.grad[:, 4:] != 0).all()


def test_an_edit_of_what_a_batch_norm_has_read_or_written():
    """The formulas keep neither, so both may change before the backward pass; whoever keeps them takes copies."""

    def function(x, s, weight, bias):
        c = F.conv2d(x, Tensor(normal(5, 8, 8, 1, 1)))
        y = batch_norm_relu(c, weight, bias, None, None, True, shortcut=s)
        c.data[:] = 7
        y.data[:, ::2] = 0
        return y * Tensor(normal(6, *y.shape))

    shapes = [(2, 8, 6, 6), (2, 8, 6, 6), (8,), (8,)]
    arrays = [normal(i, *shape) for i, shape in enumerate(shapes)]
    fast = results(function, arrays)
    with registry.book_only():
        for a, b in zip(fast, results(function, arrays), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t.data, Tensor.numpy, np.asarray, Tensor.detach, Tensor.__dlpack__, copy.copy, copy.deepcopy,
        pickle.dumps, lambda t: t + 1, lambda t: t.reshape(-1), lambda t: t[0], Tensor,
    ],
    ids=[
        "data", "numpy", "asarray", "detach", "dlpack", "copy", "deepcopy", "pickle", "book", "view", "index", "Tensor",
    ],
)  # fmt: skip
def test_who_shows_the_array_ends_its_notes(look):
    y = relu_input(Tensor(normal(0, 2, 4, 6, 6), requires_grad=True), 4).detach()
    assert kinds(y) is None
    y = relu_input(Tensor(normal(0, 2, 4, 6, 6), requires_grad=True), 4)
    repr(y), y.shape, y.ndim, y.size, y.dtype, y.device, len(y), y.requires_grad
    assert kinds(y) == [Remake], "none of these shows the array"
    y.node = None  # to copy the tensor alone
    look(y)
    assert kinds(y) is None


def test_a_training_step_shows_nothing_on_its_way(monkeypatch):
    """Every convolution's sums and every rectified output's recipe arrive: the hot path reads no `.data`."""
    from minigrad.fast.cpu import norm
    from resnext import create

    told, asked = [], []
    original = norm._FastNorm.note_on

    def counted(self, i, kind):
        note = original(self, i, kind)
        asked.append(kind)
        told.append(note is not None)
        return note

    monkeypatch.setattr(norm._FastNorm, "note_on", counted)
    model = create("resnext20_2x16d")
    F.cross_entropy(model(Tensor(normal(0, 2, 3, 16, 16).astype(np.float32))), np.zeros(2, int)).backward()
    assert len(told) > 20 and all(told)


@settings(max_examples=max(100, settings().max_examples), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
@example([step("operation", "conv3x3"), step("edit", "zero"), step("operation", "norm")])
@example([step("operation", "norm relu"), step("edit", "zero"), step("operation", "conv3x3")])
@example([step("operation", "conv1x1"), step("operation", "norm"), step("edit", "zero", 1)])
@example([step("operation", "conv1x1"), step("copy", "look"), step("operation", "norm"), step("edit", "numpy", 1)])
@example([step("operation", "norm shortcut"), step("edit", "asarray")])
@example([step("operation", "norm relu"), step("copy", "copy"), step("edit", "zero"), step("operation", "conv3x3", 1)])
def test_random_edits_between_random_operations(program):
    fast = Program(np.float64).run(program)
    with registry.book_only():
        book = Program(np.float64).run(program)
    for a, b in zip(fast, book, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7 * max(1, np.abs(b).max()))
