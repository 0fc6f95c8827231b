"""Batch normalisation, alone and with shortcut and ReLU (minigrad/ops/norm.py)."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import normal, positive, seeds, sizes

import minigrad.functional as F
from minigrad import Tensor, gradcheck
from minigrad.ops import arguments


@dataclass
class NormCase:
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    training: bool
    momentum: float
    eps: float

    def __repr__(self):
        return f"NormCase(x {self.x.shape}, training={self.training}, momentum={self.momentum}, eps={self.eps})"

    def statistics(self):
        return self.mean.copy(), self.var.copy()

    @property
    def options(self):
        return {"training": self.training, "momentum": self.momentum, "eps": self.eps}


@st.composite
def norm_cases(draw):
    """Batches of at least two values per channel, as images (N, C, H, W) or as features (N, C)."""
    C, seed = draw(sizes), draw(seeds)
    images = draw(st.booleans())
    N = draw(st.integers(2, 4))
    shape = (N, C, draw(sizes), draw(sizes)) if images else (N, C)
    x = normal(seed, *shape) * 2 + 3
    return NormCase(
        x, normal(seed + 1, C), normal(seed + 2, C), normal(seed + 3, C), positive(seed + 4, C),
        draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 1.0])), draw(st.sampled_from([1e-5, 1e-3])),
    )  # fmt: skip


def run(operation, case, device="cpu", **more):
    """Return y and the running statistics after it."""
    state = [Tensor(a, device=device) for a in case.statistics()]
    tensors = [Tensor(a, device=device) for a in (case.x, case.weight, case.bias)]
    y = operation(*tensors, *state, **case.options, **more)
    return y.numpy(), *(t.numpy() for t in state)


@given(norm_cases())
def test_output_and_running_statistics_equal_the_oracle(device, case):
    y, mean, var = run(F.batch_norm, case, device)
    expected = oracles.batch_norm(case.x, case.weight, case.bias, case.mean, case.var, **case.options)
    for actual, wanted in zip((y, mean, var), expected, strict=True):
        assert_allclose(actual, wanted, rtol=1e-11, atol=1e-11)
    if not case.training:
        assert_array_equal(mean, case.mean)
        assert_array_equal(var, case.var)


@given(norm_cases())
def test_gradients_equal_finite_differences(case):
    gradcheck(
        lambda x, w, b: F.batch_norm(x, w, b, *case.statistics(), **case.options),
        [case.x, case.weight, case.bias],
        atol=1e-6,
    )


@given(norm_cases(), st.booleans(), seeds)
def test_with_shortcut_and_relu_it_equals_the_three_operations(device, case, has_shortcut, seed):
    tensors = [Tensor(a, requires_grad=True, device=device) for a in (case.x, case.weight, case.bias)]
    shortcut = Tensor(normal(seed, *case.x.shape), requires_grad=True, device=device) if has_shortcut else None
    results = []
    for fused in (False, True):
        state = [Tensor(a, device=device) for a in case.statistics()]
        if fused:
            y = F.batch_norm_relu(*tensors, *state, **case.options, shortcut=shortcut)
        else:
            z = F.batch_norm(*tensors, *state, **case.options)
            y = F.relu(z if shortcut is None else z + shortcut)
        y.backward(normal(seed + 1, *y.shape))
        leaves = tensors + ([shortcut] if has_shortcut else [])
        results.append([y.numpy(), *(Tensor(t.grad).numpy() for t in leaves), *(t.numpy() for t in state)])
        for t in leaves:
            t.grad = None
    for apart, together in zip(*results, strict=True):
        assert_allclose(together, apart, rtol=1e-11, atol=1e-11)


def test_by_hand():
    """Values 1 and 3: mean 2, biased variance 1, unbiased variance 2; with eps = 3 the divisor is 2."""
    x = Tensor(np.array([[1.0], [3.0]]), requires_grad=True)
    weight, bias = Tensor(np.array([4.0]), requires_grad=True), Tensor(np.array([10.0]), requires_grad=True)
    mean, var = np.array([0.0]), np.array([1.0])
    y = F.batch_norm(x, weight, bias, mean, var, True, momentum=0.25, eps=3.0)
    assert_array_equal(y.data, [[8.0], [12.0]])
    assert_array_equal(mean, [0.5])
    assert_array_equal(var, [1.25])
    y.backward(np.array([[1.0], [0.0]]))
    assert_array_equal(bias.grad, [1.0])
    assert_array_equal(weight.grad, [-0.5])
    # dy - mean(dy) - x̂ mean(dy x̂) = [1, 0] - 1/2 - [-1/2, 1/2] (-1/4) = [3/8, -3/8]; times weight / 2
    assert_array_equal(x.grad, [[0.75], [-0.75]])


@given(norm_cases())
def test_in_training_channels_have_mean_0_and_variance_1(case):
    case.training, case.eps = True, 0.0
    case.weight, case.bias = np.ones_like(case.weight), np.zeros_like(case.bias)
    y, _, _ = run(F.batch_norm, case)
    channels = y.swapaxes(0, 1).reshape(y.shape[1], -1)
    assert_allclose(channels.mean(axis=1), 0, atol=1e-9)
    assert_allclose(channels.var(axis=1), 1, rtol=1e-9)


@given(norm_cases(), st.floats(0.5, 3), st.floats(-3, 3))
def test_in_training_the_output_feels_neither_shift_nor_scale_of_the_input(case, scale, shift):
    case.training, case.eps = True, 0.0
    y, _, _ = run(F.batch_norm, case)
    case.x = scale * case.x + shift
    assert_allclose(run(F.batch_norm, case)[0], y, rtol=1e-6, atol=1e-6)


@given(norm_cases())
def test_evaluation_treats_every_sample_alone(case):
    case.training = False
    y, _, _ = run(F.batch_norm, case)
    whole, case.x = case.x, case.x[:1]
    assert_array_equal(run(F.batch_norm, case)[0], y[:1])
    assert len(whole) == len(y)


def test_running_statistics_may_be_left_out_in_training():
    x, ones = Tensor(normal(0, 4, 2)), Tensor(np.ones(2))
    y = F.batch_norm(x, ones, ones, None, None, True)
    mean, var, alone_mean, alone_var = np.zeros(2), np.ones(2), np.zeros(2), np.ones(2)
    assert_array_equal(y.data, F.batch_norm(x, ones, ones, mean, var, True).data)
    F.batch_norm(x, ones, ones, alone_mean, None, True)
    F.batch_norm(x, ones, ones, None, alone_var, True)
    assert_array_equal([alone_mean, alone_var], [mean, var], "each may be left out by itself")


def test_running_statistics_of_another_precision_do_not_change_the_outputs_dtype():
    x, ones = (
        Tensor(normal(0, 4, 2).astype(np.float32), requires_grad=True),
        Tensor(np.ones(2, np.float32), requires_grad=True),
    )
    for training in (True, False):
        y = F.batch_norm(x, ones, ones, np.zeros(2), np.ones(2), training)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == ones.grad.dtype == np.float32


def test_a_large_mean_does_not_spoil_the_variance_in_float32(device):
    """E[x²] - E[x]² would lose every digit here; the mean of (x - μ)² does not."""
    x = normal(0, 64, 1, 8, 8) + 1e4
    ones = np.ones(1, np.float32)
    arrays = [Tensor(a.astype(np.float32), device=device) for a in (x, ones, ones - 1)]
    y = F.batch_norm(*arrays, None, None, True).numpy()
    exact, _, _ = oracles.batch_norm(x.astype(np.float32).astype(float), ones, ones - 1, [0.0], [1.0], True, 0.1, 1e-5)
    assert abs(y - exact).max() < 2e-2


@pytest.mark.parametrize("operation", [F.batch_norm, F.batch_norm_relu])
def test_momentum_0_keeps_and_momentum_1_replaces_the_running_statistics(operation):
    x, ones = Tensor(normal(0, 8, 2)), Tensor(np.ones(2))
    mean, var = np.zeros(2), np.ones(2)
    operation(x, ones, ones, mean, var, True, momentum=0.0)
    assert mean.tolist() == [0, 0]
    assert var.tolist() == [1, 1]
    operation(x, ones, ones, mean, var, True, momentum=1.0)
    assert_allclose(mean, x.data.mean(axis=0), rtol=1e-13)
    assert_allclose(var, x.data.var(axis=0, ddof=1), rtol=1e-13)


@pytest.mark.parametrize("operation", [F.batch_norm, F.batch_norm_relu])
def test_running_statistics_on_another_device_are_refused(operation, monkeypatch):
    """They are changed in place, so a copy on the input's device would not do."""
    x, ones = Tensor(normal(0, 8, 2)), Tensor(np.ones(2))
    mean, var = np.zeros(2), np.ones(2)
    monkeypatch.setattr(arguments, "device_of", lambda array: "cuda" if array is var else "cpu")
    with pytest.raises(ValueError, match="the input is on cpu, running_var on cuda: move one"):
        operation(x, ones, ones, mean, var, True)
