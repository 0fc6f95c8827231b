"""The linear layer and the cross-entropy (minigrad/ops/loss.py)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import normal, seeds, sizes

import minigrad.functional as F
from minigrad import Tensor, gradcheck


@given(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), sizes, sizes, st.booleans(), seeds)
def test_linear(device, batch, features, outputs, has_bias, seed):
    arrays = [normal(seed, *batch, features), normal(seed + 1, outputs, features)]
    arrays += [normal(seed + 2, outputs)] if has_bias else []
    y = F.linear(*(Tensor(a, device=device) for a in arrays))
    expected = np.zeros((*batch, outputs))
    for index in np.ndindex(*batch, outputs):
        expected[index] = math.fsum(arrays[0][index[:-1]] * arrays[1][index[-1]]) + (
            arrays[2][index[-1]] if has_bias else 0
        )
    assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-13)
    gradcheck(F.linear, arrays)


@given(st.data(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.5, 1.0]), seeds)
def test_cross_entropy(device, data, N, K, smoothing, seed):
    labels = data.draw(st.lists(st.integers(0, K - 1), min_size=N, max_size=N), label="labels")
    logits = normal(seed, N, K) * 3
    loss = F.cross_entropy(Tensor(logits, device=device), np.array(labels), smoothing)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(oracles.cross_entropy(logits, labels, smoothing), rel=1e-12, abs=1e-12)
    gradcheck(lambda t: F.cross_entropy(t, labels, smoothing), [logits])


def test_cross_entropy_by_hand():
    """Logits log 1, log 2, log 5 have probabilities 1/8, 2/8, 5/8."""
    logits = Tensor(np.log([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0]]), requires_grad=True)
    loss = F.cross_entropy(logits, [2, 1])
    assert loss.item() == pytest.approx((math.log(8 / 5) + math.log(8 / 2)) / 2)
    loss.backward()
    assert_allclose(logits.grad, np.array([[1, 2, 5 - 8], [5, 2 - 8, 1]]) / 8 / 2, rtol=1e-14)


def test_a_guess_among_ten_classes_costs_log_10():
    assert F.cross_entropy(Tensor(np.zeros((4, 10))), [0, 3, 5, 9]).item() == pytest.approx(math.log(10))


def test_smoothing_mixes_with_the_uniform_distribution():
    logits = Tensor(normal(0, 3, 4))
    plain = F.cross_entropy(logits, [0, 1, 2]).item()
    uniform = -F.log_softmax(logits).data.mean()
    assert F.cross_entropy(logits, [0, 1, 2], 0.3).item() == pytest.approx(0.7 * plain + 0.3 * uniform)


def test_the_gradient_of_a_sample_sums_to_zero():
    logits = Tensor(normal(0, 5, 7), requires_grad=True)
    F.cross_entropy(logits, [0, 1, 2, 3, 6], 0.1).backward()
    assert_allclose(logits.grad.sum(axis=1), 0, atol=1e-16)


@pytest.mark.parametrize(
    "labels",
    [[1, 0], (1, 0), np.array([1, 0], np.uint8), np.array([9, 1, 9, 0])[1::2], Tensor(np.array([1, 0]))],
    ids=["list", "tuple", "uint8", "strided", "Tensor"],
)
def test_labels_may_come_in_any_form_of_integers(labels):
    logits = normal(0, 2, 3)
    assert F.cross_entropy(Tensor(logits), labels).item() == pytest.approx(oracles.cross_entropy(logits, [1, 0], 0.0))


def test_large_logits_give_a_finite_loss(device):
    logits = Tensor(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32), requires_grad=True, device=device)
    loss = F.cross_entropy(logits, [1, 1])
    assert loss.item() == pytest.approx(5e3)
    loss.backward()
    assert_array_equal(np.array(logits.grad.tolist()), [[0.5, -0.5], [0, 0]])
