"""Notes on a GPU, on the stand-in: they hold only while nobody else can reach the array. See ../test_handover.py."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from support.cuda_cases import BF16, F32
from support.cuda_shim import compiler
from support.engine import only
from support.programs import Program, step, steps
from support.strategies import normal

from minigrad import Function, Tensor, registry
from minigrad import functional as F
from minigrad.fast import cuda

pytestmark = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")


@pytest.fixture(autouse=True)
def on_the_stand_in(gpu):
    with only(lambda: cuda.register("cpu")):
        yield


def test_an_edit_between_a_tensor_core_convolution_and_its_batch_norm(gpu):
    x, w = (Tensor._of(normal(i, *shape).astype(BF16)) for i, shape in enumerate([(2, 64, 6, 6), (64, 8, 3, 3)]))
    w.requires_grad = True
    y = F.conv2d(x, w, padding=1, groups=8)
    y.data[:, :32] = 3
    z = F.batch_norm(y, Tensor._of(np.ones(64, F32)), Tensor._of(np.zeros(64, F32)), None, None, True)
    assert "bn_sums_bfloat16" in gpu, "measured anew"
    assert np.abs(z.data[:, :32].astype(F32)).max() < 1e-2
    np.testing.assert_allclose(z.data.astype(F32).mean((0, 2, 3)), 0, atol=1e-2)


class Watching(Function):
    """Returns its input, and keeps the gradient that it passes on."""

    def forward(self, x):
        return x.copy()

    def backward(self, dy):
        Watching.found = dy, dy.copy()
        return dy


def block(way):
    """The gradients of a batch norm's input and weight, whose output goes two ways that meet as in a residual block."""
    x, w = Tensor._of(normal(5, 2, 16, 4, 4).astype(F32)), Tensor._of((normal(6, 16, 16, 1, 1) / 4).astype(F32))
    one, zero = Tensor._of(np.ones(16, F32)), Tensor._of(np.zeros(16, F32))
    x.requires_grad = one.requires_grad = True
    y = F.batch_norm(x, one, zero, None, None, True)
    z = F.batch_norm_relu(F.conv2d(y, w), one, zero, None, None, True, shortcut=way(y))
    z.backward(normal(7, *z.shape))
    return x.grad, one.grad


WAYS = {  # what the shortcut does, and how many additions of images that leaves
    "as it is": (lambda y: y, 0),
    "through another's operation": (lambda y: Watching.apply(y), 1),
    "two more ways": (lambda y: y + F.relu(y), 2),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_product_adds_to_the_gradient_that_it_meets_where_nobody_else_has_it(gpu, name):
    """Another's operation may keep the gradient that it returns: nothing is written into it."""
    way, additions = WAYS[name]
    Watching.found = None
    mine = block(way)
    assert gpu.count("add_float32") == additions
    if Watching.found:
        kept, before = Watching.found
        np.testing.assert_array_equal(kept, before)
    with registry.book_only():
        book = block(way)
    for a, b in zip(mine, book, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
@example([step("operation", "conv1x1"), step("operation", "norm"), step("edit", "zero", 1)])
@example([step("operation", "conv1x1"), step("copy", "look"), step("operation", "norm"), step("edit", "numpy", 1)])
@example([step("operation", "norm shortcut"), step("edit", "asarray")])
def test_random_edits_between_random_operations(program):
    fast = Program(np.float32).run(program)
    with registry.book_only():
        book = Program(np.float64).run(program)
    for a, b in zip(fast, book, strict=True):
        # A value within rounding of ReLU's kink may fall on the other side of it, so arrays are compared as a whole.
        assert np.linalg.norm(a - b) <= 1e-2 * max(1, np.linalg.norm(b))
