"""Stochastic gradient descent and its schedules (minigrad/optim.py)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import normal, seeds

from minigrad import Tensor, nn
from minigrad.backend import device_of, to_device
from minigrad.optim import SGD, cosine, linear, multi_step


def leaf(values, device="cpu", dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True, device=device)


def give_gradient(parameter, values):
    parameter.grad = Tensor(np.array(values, parameter.dtype), device=parameter.device).data


rates = st.sampled_from([0.0, 0.01, 0.1, 1.0])


@given(rates, st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 5e-4, 0.1]), st.booleans(), seeds)
def test_ten_steps_equal_pytorchs_rule(device, lr, momentum, weight_decay, nesterov, seed):
    nesterov = nesterov and momentum > 0
    start, gradients = normal(seed, 3), normal(seed + 1, 10, 3)
    p = leaf(start, device)
    optimizer = SGD([p], lr, momentum, weight_decay, nesterov)
    expected = oracles.sgd(start.tolist(), gradients.tolist(), lr, momentum, weight_decay, nesterov)
    for gradient, weights in zip(gradients, expected, strict=True):
        give_gradient(p, gradient)
        optimizer.step()
        assert_allclose(p.numpy(), weights, rtol=1e-13, atol=1e-13)


def test_by_hand():
    """w = 1, dw = 1, lr = 0.5, momentum = 0.5, decay = 1: d = 2, v = 2, w = 0; then d = 1, v = 2, w = -1."""
    p = leaf([1.0])
    optimizer = SGD([p], lr=0.5, momentum=0.5, weight_decay=1.0)
    for expected in (0.0, -1.0):
        give_gradient(p, [1.0])
        optimizer.step()
        assert p.data.tolist() == [expected]


def test_nesterov_by_hand():
    """w = 1, dw = 1, lr = 0.5, momentum = 0.5: v = 1, w = 1 - 0.75; then v = 1.5, w = 0.25 - 0.5 (1 + 0.75)."""
    p = leaf([1.0])
    optimizer = SGD([p], lr=0.5, momentum=0.5, nesterov=True)
    for expected in (0.25, -0.625):
        give_gradient(p, [1.0])
        optimizer.step()
        assert p.data.tolist() == [expected]


def test_groups_have_options_of_their_own():
    decayed, free, fast = (leaf([1.0]) for _ in range(3))
    optimizer = SGD(
        [{"params": [decayed]}, {"params": iter([free]), "weight_decay": 0.0}, {"params": [fast], "momentum": 0.5}],
        lr=0.1,
        weight_decay=1.0,
    )
    for _ in range(2):
        for p in (decayed, free, fast):
            give_gradient(p, [0.0])
        optimizer.step()
    assert decayed.item() == pytest.approx(0.9**2)
    assert free.item() == 1.0
    assert fast.item() == pytest.approx(0.9 - 0.1 * (0.5 * 1.0 + 0.9))


def test_the_learning_rate_may_change_before_every_step():
    p = leaf([0.0])
    optimizer = SGD([p], lr=1.0)
    for lr in (1.0, 0.1, 0.01):
        optimizer.lr = lr
        give_gradient(p, [-1.0])
        optimizer.step()
    assert p.item() == pytest.approx(1.11)


def test_parameters_without_a_gradient_stay_and_gradients_are_not_changed():
    first, second = leaf([1.0]), leaf([2.0])
    optimizer = SGD([first, second], lr=0.1, momentum=0.9, weight_decay=0.5)
    give_gradient(first, [1.0])
    gradient = first.grad
    optimizer.step()
    assert second.item() == 2.0
    assert gradient.tolist() == [1.0]
    optimizer.zero_grad()
    assert first.grad is None
    before = first.item()
    optimizer.step()
    assert first.item() == before


def test_frozen_parameters_stay_until_they_are_thawed():
    """`SGD(network.parameters(), ...)` after freezing a part of the network, as in PyTorch."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for p in net[0].parameters():
        p.requires_grad = False
    optimizer, begin = SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1), net.state_dict()

    def step():
        net(Tensor([[1.0, 2.0]])).sum().backward()
        optimizer.step()
        return [name for name, value in net.state_dict().items() if np.array_equal(value, begin[name])]

    assert step() == ["0.weight", "0.bias"]
    assert [v is None for v in optimizer.state_dict()["velocities"]] == [True, True, False, False]
    for p in net[0].parameters():
        p.requires_grad = True
    assert step() == []


def test_a_step_keeps_the_precision(device):
    p = leaf([1.0, 2.0], device, np.float32)
    optimizer = SGD([p], lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    give_gradient(p, [1.0, 1.0])
    optimizer.step()
    assert p.dtype == np.float32
    assert optimizer.velocities[0].dtype == np.float32


def test_a_state_dict_goes_on_bit_for_bit(device):
    gradients = normal(0, 6, 4)

    def run(optimizer, parameter, part):
        for gradient in part:
            give_gradient(parameter, gradient)
            optimizer.step()

    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    whole = leaf(np.ones(4), device)
    run(SGD([whole], **options), whole, gradients)

    first = leaf(np.ones(4), device)
    optimizer = SGD([first], **options)
    run(optimizer, first, gradients[:3])
    state = optimizer.state_dict()
    assert isinstance(state["velocities"][0], np.ndarray)
    run(optimizer, first, gradients[3:])  # must not change the saved state

    resumed = leaf(np.ones(4), device)
    run(SGD([resumed], **options), resumed, gradients[:3])
    optimizer = SGD([resumed], **{**options, "lr": 5.0})
    optimizer.load_state_dict(state)
    assert optimizer.lr == 0.1
    run(optimizer, resumed, gradients[3:])
    assert_array_equal(resumed.numpy(), whole.numpy())


def test_velocities_follow_a_network_that_moves(device):
    """To another device and another precision between two steps, as in a notebook: PyTorch's rule all the same."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = np.array([[1.0, 2.0]], np.float32)
    optimizer = SGD(layer.parameters(), lr=0.5, momentum=0.5)
    give_gradient(layer.weight, [[1.0, 3.0]])
    optimizer.step()
    layer.to(device, "float64")
    give_gradient(layer.weight, [[1.0, 1e-9]])
    optimizer.step()
    assert (optimizer.velocities[0].dtype, device_of(optimizer.velocities[0])) == (np.float64, device)
    assert_array_equal(layer.weight.numpy(), [[0.5 - 0.5 * 1.5, 0.5 - 0.5 * (1.5 + 1e-9)]])


@pytest.mark.parametrize("rows", [1, 3])
def test_weights_of_another_shape_start_without_velocity(device, rows):
    """After pruning or growing; the old velocity belongs to other weights."""
    w = leaf([[1.0, 2.0], [3.0, 4.0]], device)
    optimizer = SGD([w], lr=1.0, momentum=0.9)
    give_gradient(w, [[1.0, 2.0], [3.0, 4.0]])
    optimizer.step()
    w.data = to_device(np.zeros((rows, 2)), device)
    give_gradient(w, [[0.5, 0.25]] * rows)
    optimizer.step()
    assert_array_equal(w.numpy(), [[-0.5, -0.25]] * rows)


def test_a_state_before_the_first_step_has_no_velocities():
    optimizer = SGD([leaf([1.0])], lr=0.1)
    assert optimizer.state_dict() == {"lr": 0.1, "velocities": [None]}
    optimizer.load_state_dict({"lr": 0.2, "velocities": [None]})
    assert optimizer.lr == 0.2


def test_a_state_of_other_parameters_is_refused():
    optimizer = SGD([leaf([1.0])], lr=0.1)
    with pytest.raises(ValueError, match="velocities for 2 parameters, the optimizer has 1"):
        optimizer.load_state_dict({"lr": 0.5, "velocities": [None, None]})
    with pytest.raises(ValueError, match=r"velocity 0 has shape \(2,\) in the state, its parameter has \(1,\)"):
        optimizer.load_state_dict({"lr": 0.5, "velocities": [np.zeros(2)]})
    assert optimizer.lr == 0.1


SHARED = leaf([1.0])


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: SGD([], 0.1), ValueError, "SGD got no parameters"),
        (lambda: SGD([{"params": []}], 0.1), ValueError, "SGD got no parameters"),
        (lambda: SGD([leaf([1.0])], -0.1), ValueError, "lr must be a finite number that is not negative, got -0.1"),
        (lambda: SGD([leaf([1.0])], math.nan), ValueError, "lr must be a finite number .* got nan"),
        (lambda: SGD([leaf([1.0])], math.inf), ValueError, "lr must be a finite number .* got inf"),
        (lambda: SGD([leaf([1.0])], 0.1, -1), ValueError, "momentum must be .* got -1"),
        (lambda: SGD([leaf([1.0])], 0.1, 0.9, -1e-4), ValueError, "weight_decay must be .* got -0.0001"),
        (
            lambda: SGD([leaf([1.0])], 0.1, nesterov=True),
            ValueError,
            "Nesterov's rule needs a momentum above 0, got 0.0",
        ),
        (lambda: SGD([{"params": [leaf([1.0])], "momentum": -1}], 0.1), ValueError, "momentum must be .* got -1"),
        (lambda: SGD([{"params": [leaf([1.0])], "lr": 0.5}], 0.1), ValueError, "'lr' is not an option that a group"),
        (lambda: SGD([{"parms": [leaf([1.0])]}], 0.1), ValueError, "'parms' is not an option that a group"),
        (lambda: SGD([SHARED, SHARED], 0.1), ValueError, "SGD got the same parameter twice"),
        (lambda: SGD([leaf([1.0]), Tensor([1.0])], 0.1), TypeError, "requires_grad=True, parameter 1 is none: Tensor"),
        (lambda: SGD([leaf([1.0]) * 2], 0.1), TypeError, "leaf tensors with requires_grad=True, parameter 0 is none"),
        (lambda: SGD(leaf([1.0]), 0.1), TypeError, "leaf tensors with requires_grad=True, parameter 0 is none"),
        (lambda: SGD([np.ones(3)], 0.1), TypeError, "parameter 0 is none: ndarray"),
        (lambda: cosine(0.1, total=0), ValueError, "0 <= warmup < total, got warmup 0.0 and total 0"),
        (lambda: linear(0.1, total=5, warmup=5), ValueError, "0 <= warmup < total, got warmup 5 and total 5"),
        (
            lambda: linear(0.1, total=5, warmup=-1),
            ValueError,
            "warmup must be a finite number that is not negative, got -1",
        ),
    ],
)
def test_bad_options_get_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_it_finds_the_least_squares_solution():
    x, target = normal(0, 50, 3), np.array([[1.0, -2.0, 0.5]])
    layer = nn.Linear(3, 1).to(dtype="float64")
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(300):
        error = layer(Tensor(x)) - Tensor(x @ target.T + 3.0)
        optimizer.zero_grad()
        (error * error).mean().backward()
        optimizer.step()
    assert_allclose(layer.weight.data, target, atol=1e-6)
    assert_allclose(layer.bias.data, [3.0], atol=1e-6)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_multi_step_is_the_papers_schedule():
    schedule = multi_step(0.1, [150, 225])
    assert [schedule(t) for t in (0, 149.99, 150, 224, 225, 300)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert multi_step(1.0, [1, 2, 3], gamma=0.5)(10) == 0.125
    assert multi_step(0.3, [])(7) == 0.3


def test_cosine_falls_by_half_a_wave():
    schedule = cosine(0.2, total=10, final=0.1)
    assert [schedule(t) for t in (0, 5, 10, 12)] == pytest.approx([0.2, 0.15, 0.1, 0.1])
    assert cosine(1.0, total=3)(1) == pytest.approx(0.75)
    assert cosine(1.0, total=3)(2) == pytest.approx(0.25)


def test_linear_rises_and_falls():
    schedule = linear(1.0, total=10, warmup=2, final=0.2)
    assert [schedule(t) for t in (0, 1, 2, 6, 10, 11)] == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2])


@pytest.mark.parametrize("decay", [cosine, linear])
@given(st.floats(0.01, 1), st.integers(2, 100), st.data())
def test_a_decay_rises_to_the_peak_and_then_falls(decay, lr, total, data):
    warmup = data.draw(st.integers(0, total - 1))
    schedule = decay(lr, total, warmup)
    values = [schedule(t) for t in range(total + 1)]
    assert values[warmup] == pytest.approx(lr)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


def test_a_word_is_no_list_of_parameters():
    with pytest.raises(TypeError, match="a list of parameters is needed, got 'weights'"):
        SGD("weights", lr=0.1)


def test_numbers_of_narrow_kinds_make_a_schedule():
    """NumPy would compute lr - final in eight bits."""
    assert cosine(1000, 2, final=np.int8(3))(2.0) == 3.0
    assert linear(np.int8(100), 4, final=np.int8(0))(1) == 75.0
