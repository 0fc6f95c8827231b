"""Notes on a GPU, on the stand-in: they hold only while nobody else can reach the array. See ../test_handover.py."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from support.cuda_cases import BF16, F32
from support.cuda_shim import compiler
from support.engine import only
from support.programs import Program, step, steps
from support.strategies import normal

from minigrad import Tensor, registry
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
