"""Modules, layers and state dicts (minigrad/nn.py)."""

from copy import deepcopy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import distinct, normal

import minigrad
import minigrad.functional as F
from minigrad import Module, Parameter, Tensor, gradcheck, nn


def images(*shape, seed=0):
    return Tensor(normal(seed, *shape).astype(np.float32))


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.MaxPool2d(2), nn.Identity()),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 3, bias=False),
    )


KEYS = [
    "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "6.weight",
]  # fmt: skip


# --- what a module is -------------------------------------------------------------------------------------------------


def test_names_are_pytorchs_and_in_the_order_of_definition():
    net = network()
    assert list(net.state_dict()) == KEYS
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias", "6.weight"]
    assert [p.shape for p in net.parameters()] == [(4, 1, 3, 3), (4,), (4,), (4,), (3, 16)]
    assert [type(m).__name__ for m in net.modules()][:5] == [
        "Sequential",
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Sequential",
    ]


def test_an_attributes_type_decides_its_role():
    class Scale(Module):
        def __init__(self):
            self.factor = Parameter(np.ones(3))
            self.count = Tensor(np.zeros((), np.int64))
            self.inner = nn.Linear(3, 3)
            self.note = "neither"

        def forward(self, x, *, shift=0.0):
            return self.inner(x) * self.factor + shift

    module = Scale().to(dtype="float64")
    assert list(module.state_dict()) == ["factor", "count", "inner.weight", "inner.bias"]
    assert [n for n, _ in module.named_parameters()] == ["factor", "inner.weight", "inner.bias"]
    x = Tensor(normal(0, 2, 3))
    assert_allclose(module(x, shift=1.0).data, module(x).data + 1.0)


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module defines no forward\(\)"):
        Module()(1)


def test_train_and_eval_reach_every_module():
    net = network()
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    assert net.train() is net
    assert all(m.training for m in net.modules())


def test_sequential_runs_in_order_and_can_be_indexed():
    net = network()
    assert len(net) == 7
    assert isinstance(net[-1], nn.Linear)
    x = images(3, 2, 4, 4)
    net.eval()
    expected = x
    for i in range(len(net)):
        expected = net[i](expected)
    assert_array_equal(net(x).data, expected.data)
    assert len(list(nn.Sequential(*(nn.Identity() for _ in range(12))).children())) == 12


def test_zero_grad_forgets_all_gradients():
    net = network()
    net(images(3, 2, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_to_changes_the_precision_of_all_but_the_counters():
    net = network()
    net(images(3, 2, 4, 4)).sum().backward()
    assert net.to(dtype="float64") is net
    assert {n: a.dtype for n, a in net.state_dict().items() if a.dtype != np.float64} == {
        "1.num_batches_tracked": np.dtype(np.int64)
    }
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match="dtype float16"):
        net.to(dtype="float16")


def test_to_moves_to_a_device(device):
    net = network().to(device).eval()
    assert {p.device for p in net.parameters()} == {device}
    x = images(3, 2, 4, 4)
    assert_allclose(net(x.to(device)).numpy(), deepcopy(net).to("cpu")(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_copy_is_independent():
    net = network()
    copy = deepcopy(net)
    copy[0].weight.data += 1.0
    assert (copy[0].weight.data != net[0].weight.data).all()


# --- state dicts ------------------------------------------------------------------------------------------------------


def test_a_state_dict_holds_copies():
    net = network()
    state = net.state_dict()
    state["0.weight"][:] = 7.0
    assert not (net[0].weight.data == 7.0).any()
    net.load_state_dict(state)
    state["0.weight"][:] = 8.0
    assert (net[0].weight.data == 7.0).all()


def test_loading_a_state_dict_makes_two_networks_equal():
    first, second = network(), network()
    first(images(3, 2, 4, 4))
    assert second.load_state_dict(first.state_dict()) == ([], [])
    x = images(3, 2, 4, 4, seed=1)
    assert_array_equal(first.eval()(x).data, second.eval()(x).data)


def test_a_prefix_of_data_parallel_training_is_dropped():
    net = network()
    state = {f"module.{name}": value for name, value in network().state_dict().items()}
    net.load_state_dict(state)
    assert_array_equal(net[0].weight.data, state["module.0.weight"])


def test_a_child_called_module_is_no_prefix():
    class Wrapped(nn.Module):
        def __init__(self):
            self.module = nn.Linear(2, 2)

    first, second = Wrapped(), Wrapped()
    for strict in (True, False):
        assert second.load_state_dict(first.state_dict(), strict) == ([], [])
    assert_array_equal(second.module.weight.data, first.module.weight.data)
    data_parallel = {f"module.{name}": value + 1 for name, value in first.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: module\.weight"):
        second.load_state_dict(data_parallel)


def test_values_may_be_tensors_lists_or_of_another_precision():
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": [[1.0, 2.0]], "bias": Tensor(np.array([3.0]))})
    assert_array_equal(layer(Tensor([[10.0, 100.0]])).data, [[213.0]])
    assert layer.weight.dtype == layer.bias.dtype == np.float32


def changed(**changes):
    """The state of a network with some entries replaced, or taken out where the new value is None."""
    state = {**network().state_dict(), **{name.replace("_", ".", 1): value for name, value in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "error", "sentence"),
    [
        (changed(**{"0_weight": None}), ValueError, r"do not fit the Sequential: missing: 0\.weight$"),
        (changed(**{"9_weight": np.ones(3)}), ValueError, r"unexpected: 9\.weight$"),
        (
            changed(**{"6_weight": None, "9_weight": np.ones(3)}),
            ValueError,
            r"missing: 6\.weight; unexpected: 9\.weight",
        ),
        ({}, ValueError, r"missing: 0\.weight, 0\.bias, .* and 1 more"),
        (
            changed(**{"6_weight": np.ones((16, 3))}),
            ValueError,
            r"6\.weight has shape \(16, 3\) in the weights and \(3, 16\)",
        ),
        (changed(**{"0_bias": np.ones(4, int)}), TypeError, r"0\.bias has dtype int64 in the weights and float32"),
        (changed(**{"0_bias": np.ones(4) * 1j}), TypeError, r"0\.bias has dtype complex128"),
        (changed(**{"0_bias": np.array([None] * 4)}), TypeError, r"0\.bias has dtype object"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state, error, sentence):
    net = network()
    before = net.state_dict()
    with pytest.raises(error, match=sentence):
        net.load_state_dict(state)
    for name, value in net.state_dict().items():
        assert_array_equal(value, before[name])


def test_not_strict_loads_what_fits_and_tells_the_rest():
    net = network()
    state = changed(**{"0_bias": None, "9_weight": np.ones(3), "6_weight": np.ones((3, 16))})
    assert net.load_state_dict(state, strict=False) == (["0.bias"], ["9.weight"])
    assert (net[6].weight.data == 1).all()
    with pytest.raises(ValueError, match="has shape"):
        net.load_state_dict(changed(**{"6_weight": np.ones(3)}), strict=False)


def test_a_state_without_step_counters_is_complete():
    net = network()
    net(images(3, 2, 4, 4))
    assert net.load_state_dict(changed(**{"1_num_batches_tracked": None})) == ([], [])
    assert net[1].num_batches_tracked.item() == 1


# --- layers -----------------------------------------------------------------------------------------------------------


def test_conv2d_is_the_convolution_with_its_weights(device):
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2).to(device, "float64")
    x = normal(0, 2, 4, 5, 6)
    y = layer(Tensor(x, device=device))
    expected = oracles.conv2d(
        x, layer.weight.numpy(), layer.bias.numpy(), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2
    )
    assert_allclose(y.numpy(), expected, rtol=1e-11, atol=1e-12)
    assert nn.Conv2d(4, 6, 3, bias=False).bias is None


def test_batch_norm_trains_and_evaluates(device):
    layer = nn.BatchNorm2d(3, eps=1e-3, momentum=0.2).to(device, "float64")
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = normal(step, 4, 3, 2, 5) * 2 + 1
        expected, mean, var = oracles.batch_norm(x, np.ones(3), np.zeros(3), mean, var, True, 0.2, 1e-3)
        assert_allclose(layer(Tensor(x, device=device)).numpy(), expected, rtol=1e-10, atol=1e-12)
    assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    assert_allclose(layer.running_var.numpy(), var, rtol=1e-12)
    assert layer.num_batches_tracked.item() == 3
    layer.eval()
    expected, _, _ = oracles.batch_norm(x, np.ones(3), np.zeros(3), mean, var, False, 0.2, 1e-3)
    assert_allclose(layer(Tensor(x, device=device)).numpy(), expected, rtol=1e-10, atol=1e-12)
    assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    assert layer.num_batches_tracked.item() == 3


def test_batch_norm_with_shortcut_and_relu():
    x, shortcut = Tensor(normal(0, 4, 3, 2, 2)), Tensor(normal(1, 4, 3, 2, 2))
    apart, together = (nn.BatchNorm2d(3).to(dtype="float64") for _ in range(2))
    assert_allclose(
        together(x, relu=True, shortcut=shortcut).data, F.relu(apart(x) + shortcut).data, rtol=1e-12, atol=1e-13
    )
    assert_allclose(together(x, relu=True).data, F.relu(apart(x)).data, rtol=1e-12, atol=1e-13)
    assert_allclose(together.running_var.data, apart.running_var.data)


def test_linear_is_the_product_with_its_weights():
    layer = nn.Linear(3, 2).to(dtype="float64")
    x = normal(0, 4, 3)
    assert_allclose(layer(Tensor(x)).data, x @ layer.weight.data.T + layer.bias.data, rtol=1e-13)
    assert nn.Linear(3, 2, bias=False)(Tensor(x)).shape == (4, 2)


def test_layers_without_weights():
    x = Tensor(distinct(0, 2, 3, 4, 6))
    for layer, expected in [
        (nn.ReLU(), F.relu(x)),
        (nn.MaxPool2d(2), F.max_pool2d(x, 2)),
        (nn.MaxPool2d(3, 2, 1), F.max_pool2d(x, 3, 2, 1)),
        (nn.AvgPool2d((2, 3)), F.avg_pool2d(x, (2, 3))),
        (nn.AvgPool2d(3, 1, 1), F.avg_pool2d(x, 3, 1, 1)),
        (nn.GlobalAvgPool2d(), F.global_avg_pool2d(x)),
        (nn.Flatten(), x.reshape(2, 72)),
    ]:
        assert_array_equal(layer(x).data, expected.data)
        assert list(layer.parameters()) == []
    assert nn.Identity()(x) is x


def test_dropout_acts_in_training_only():
    x, layer = Tensor(np.ones(1000)), nn.Dropout(0.5)
    assert set(np.unique(layer(x).data)) == {0.0, 2.0}
    assert layer.eval()(x) is x


def test_gradients_reach_every_parameter_of_a_network():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    net.to(dtype="float64")
    x = Tensor(normal(0, 3, 2, 4, 4), requires_grad=True)
    gradcheck(lambda *_: F.cross_entropy(net(x), [0, 1, 2], 0.1), [x, *net.parameters()], max_entries=10)


# --- initial values ---------------------------------------------------------------------------------------------------


def test_convolutions_start_from_he_initialisation():
    """Variance 2 / (KH KW O), within five standard deviations of the estimate, √(2/n) relative."""
    weight = nn.Conv2d(64, 128, 3, groups=2).weight.data
    assert weight.dtype == np.float32
    assert weight.var() == pytest.approx(2 / (9 * 128), rel=5 * np.sqrt(2 / weight.size))
    assert abs(weight.mean()) < 5 * np.sqrt(2 / (9 * 128) / weight.size)


def test_linear_layers_and_biases_start_uniform():
    layer = nn.Linear(100, 200)
    for values in (layer.weight.data, layer.bias.data, nn.Conv2d(25, 300, 2).bias.data):
        assert 0.095 < np.abs(values).max() <= 0.1
        assert values.dtype == np.float32


def test_the_same_seed_gives_the_same_network():
    minigrad.manual_seed(3)
    first = network().state_dict()
    minigrad.manual_seed(3)
    second, third = network().state_dict(), network().state_dict()
    assert_array_equal(first["0.weight"], second["0.weight"])
    assert (first["0.weight"] != third["0.weight"]).any()


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda: nn.Conv2d(3, 4, 3, groups=2),
            ValueError,
            "3 input and 4 output channels must be divisible by 2 groups",
        ),
        (
            lambda: nn.Conv2d(4, 3, 3, groups=2),
            ValueError,
            "4 input and 3 output channels must be divisible by 2 groups",
        ),
        (lambda: nn.Conv2d(0, 4, 3), ValueError, "in_channels must be a positive integer, got 0"),
        (lambda: nn.Conv2d(3, 4.0, 3), ValueError, "out_channels must be a positive integer, got 4.0"),
        (lambda: nn.Conv2d(3, 4, 3, groups=True), ValueError, "groups must be a positive integer, got True"),
        (lambda: nn.Conv2d(3, 4, (3, 0)), ValueError, r"kernel_size must be at least 1, got \(3, 0\)"),
        (lambda: nn.Conv2d(3, 4, "3"), TypeError, "kernel_size is an integer or a pair of integers, got '3'"),
        (lambda: nn.Linear(-1, 4), ValueError, "in_features must be a positive integer, got -1"),
        (lambda: nn.BatchNorm2d(0), ValueError, "num_features must be a positive integer, got 0"),
        (lambda: nn.Dropout(1.0), ValueError, "0 <= p < 1, got 1.0"),
        (lambda: nn.BatchNorm2d(3)(images(2, 3)), ValueError, r"expects images of shape \(N, C, H, W\), got \(2, 3\)"),
        (
            lambda: nn.BatchNorm2d(3)(images(2, 4, 2, 2)),
            ValueError,
            r"4 channels need a weight of shape \(4,\), got \(3,\)",
        ),
        (
            lambda: nn.BatchNorm2d(2)(images(2, 2, 2, 2), shortcut=images(2, 2, 2, 2)),
            ValueError,
            "a shortcut only in front of a ReLU",
        ),
        (lambda: nn.Conv2d(3, 4, 3)(images(2, 2, 4, 4)), ValueError, "need 3 input channels, the images have 2"),
        (lambda: nn.Linear(3, 4)(images(2, 2)), ValueError, r"features of shape \(2, 2\) do not fit .* \(4, 3\)"),
        (
            lambda: nn.Conv2d(1, 1, 1)(Tensor(np.zeros((1, 1, 2, 2), np.uint8))),
            TypeError,
            "floating-point images, got uint8",
        ),
        (lambda: nn.Linear(1, 1)(Tensor([[1]])), TypeError, "floating-point tensors, got int64"),
        (lambda: minigrad.manual_seed(-1), ValueError, "a seed must not be negative, got -1"),
        (lambda: minigrad.manual_seed(1.5), TypeError, "a seed is an integer, got float"),
    ],
)
def test_bad_sizes_get_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_refused_batch_is_not_counted():
    layer = nn.BatchNorm2d(2)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(images(1, 2, 1, 1))
    assert layer.num_batches_tracked.item() == 0
    assert layer.running_mean.data.tolist() == [0, 0]
