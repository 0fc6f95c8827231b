"""The block's three forms (Figure 3) give the same numbers, forward and backward; two-layer blocks have none."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from minigrad import Tensor
from minigrad import functional as F
from minigrad.nn import BatchNorm2d, Conv2d
from resnext import Bottleneck, convert, convert_network, create
from resnext.blocks import FORMS, batch_norms, join, split

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
BLOCKS = [  # in_channels, out_channels, C, d, stride, residual
    (8, 8, 1, 3, 1, True),
    (8, 8, 4, 2, 1, True),
    (6, 12, 3, 5, 1, True),
    (6, 12, 2, 4, 2, True),
    (12, 12, 8, 1, 2, True),
    (8, 8, 5, 3, 1, False),
]


def randomise(module, rng):
    """Give every parameter and statistic a value that is neither zero nor one, and that differs between channels."""
    for name, t in module.named_tensors():
        if t.dtype.kind == "f":
            spread = rng.uniform(0.5, 1.5, t.shape)
            t.data = spread if name.endswith("running_var") else spread * rng.choice([-1, 1], t.shape)
    return module


def run(block, x, dy):
    """Output, input gradient and weight gradients of one pass."""
    x = Tensor(x, requires_grad=True)
    y = block(x)
    y.backward(dy)
    return y.numpy(), x.grad, {name: p.grad for name, p in block.named_parameters()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", BLOCKS, ids=lambda b: "in{}-out{}-{}x{}d-stride{}-residual{}".format(*b))
def test_the_three_forms_agree_in_output_statistics_and_every_gradient(shape, training):
    in_channels, out_channels, C, _, stride, residual = shape
    rng = np.random.default_rng(3)
    block = randomise(Bottleneck(*shape[:5], form="c", residual=residual).to(dtype="float64"), rng).train(training)
    others = [convert(block, form) for form in "ab"]
    before = block.state_dict()
    x = rng.standard_normal((3, in_channels, 7, 6))
    dy = rng.standard_normal((3, out_channels, -(-7 // stride), -(-6 // stride)))
    y, dx, dw = run(block, x, dy)
    after = block.state_dict()
    assert min(np.abs(array).max() for array in (y, dx, *dw.values())) > 1e-3
    assert np.array_equal(before["bn2.running_var"], after["bn2.running_var"]) != training
    for other in others:
        other_y, other_dx, other_dw = run(other, x, dy)
        assert_allclose(other_y, y, **TOLERANCE)
        assert_allclose(other_dx, dx, **TOLERANCE)
        # Gradients are laid out like their weights: what joins the one joins the other.
        for ours, theirs in ((dw, join(other_dw, C)), (after, join(other.state_dict(), C))):
            assert theirs.keys() == ours.keys()
            for name, array in ours.items():
                assert_allclose(theirs[name], array, **TOLERANCE, err_msg=f"{name} in form {other.form}")


@pytest.mark.parametrize("form", FORMS)
def test_converting_there_and_back_changes_no_bit(form):
    block = randomise(Bottleneck(8, 16, 4, 3, 2), np.random.default_rng(0))
    there = convert(block, form)
    assert there.form == form and set(there.state_dict()) == set(split(block.state_dict(), 4, form))
    back = convert(there, "c").state_dict()
    assert list(back) == list(block.state_dict())
    assert all(np.array_equal(back[name], array) for name, array in block.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("origin", FORMS)
def test_what_is_no_weight_is_converted_too(origin, form):
    """eps, momentum and mode of every batch norm, and what is frozen."""
    block = randomise(Bottleneck(8, 16, 4, 3, 2, origin), np.random.default_rng(0)).to(dtype="float64")
    for i, (name, norm) in enumerate(batch_norms(block)):
        number = int(name[2]) if name.startswith("bn") else i
        norm.eps, norm.momentum, norm.training = 0.1 * number, 0.01 * number, name == "bn2"
    for name, p in block.named_parameters():
        p.requires_grad = "conv2" in name
    other = convert(block, form)
    x = Tensor(np.random.default_rng(1).standard_normal((3, 8, 6, 6)))
    assert_allclose(other(x).numpy(), block(x).numpy(), **TOLERANCE)
    settings = [{n: (m.eps, m.momentum, m.training) for n, m in batch_norms(b)} for b in (block, other)]
    assert settings[0] == settings[1]
    assert {name.split(".")[-2] for name, p in other.named_parameters() if p.requires_grad} == {"conv2"}


@pytest.mark.parametrize("form", "ab")
def test_a_whole_network_converts(form):
    network = randomise(create("resnext11_3x2d"), np.random.default_rng(0)).to(dtype="float64").eval()
    x = Tensor(np.random.default_rng(1).standard_normal((2, 3, 8, 8)))
    y = network(x).numpy()
    parameters = sum(p.size for p in network.parameters())
    assert convert_network(network, form) is network
    assert {block.form for block in network.bottlenecks()} == {form}
    assert sum(p.size for p in network.parameters()) == parameters
    assert_allclose(network(x).numpy(), y, rtol=1e-10)


def test_a_network_is_built_in_any_form_by_name():
    sizes = {form: sorted(p.size for p in create("resnext11_2x8d", form=form).parameters()) for form in FORMS}
    assert sum(sizes["a"]) == sum(sizes["b"]) == sum(sizes["c"])
    assert len(sizes["a"]) > len(sizes["b"]) > len(sizes["c"])


def test_paths_of_two_layers_are_one_dense_convolution_after_the_other():
    """Section 3.3, Figure 4: with depth 2 there is nothing for groups to do; splitting needs a layer in the middle.

    C paths of 3x3 to d channels, batch norm, ReLU and 3x3 back, summed, against two dense convolutions C d wide.
    """
    C, d, channels = 3, 2, 4
    rng = np.random.default_rng(5)
    paths = [
        [Conv2d(channels, d, 3, padding=1, bias=False), BatchNorm2d(d), Conv2d(d, channels, 3, padding=1, bias=False)]
        for _ in range(C)
    ]
    for layer in (layer for path in paths for layer in path):
        randomise(layer.to(dtype="float64"), rng)
    first = Conv2d(channels, C * d, 3, padding=1, bias=False).to(dtype="float64")
    norm = BatchNorm2d(C * d).to(dtype="float64")
    last = Conv2d(C * d, channels, 3, padding=1, bias=False).to(dtype="float64")
    assert first.groups == last.groups == 1
    first.weight.data = np.concatenate([path[0].weight.data for path in paths], axis=0)
    norm.weight.data, norm.bias.data = (
        np.concatenate([getattr(path[1], name).data for path in paths]) for name in ("weight", "bias")
    )
    last.weight.data = np.concatenate([path[2].weight.data for path in paths], axis=1)

    def split_and_summed(x):
        y = [conv2(F.relu(bn(conv1(x)))) for conv1, bn, conv2 in paths]
        return y[0] + y[1] + y[2]

    x, dy = rng.standard_normal((2, 2, channels, 5, 6))
    results = []
    for function in (split_and_summed, lambda x: last(F.relu(norm(first(x))))):
        x_in = Tensor(x, requires_grad=True)
        y = function(x_in)
        y.backward(dy)
        results.append((y.numpy(), x_in.grad))
    for split_up, dense in zip(*results, strict=True):
        assert_allclose(split_up, dense, **TOLERANCE)
    for dense, axis, part in ((first.weight, 0, 0), (norm.weight, 0, 1), (norm.bias, 0, 1), (last.weight, 1, 2)):
        name = "bias" if dense is norm.bias else "weight"
        pieces = [getattr(path[part], name).grad for path in paths]
        assert_allclose(np.concatenate(pieces, axis), dense.grad, **TOLERANCE)


def test_a_block_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="form 'a', 'b' or 'c', got 'd'"):
        Bottleneck(8, 8, form="d")
    with pytest.raises(ValueError, match="cardinality must be a positive integer, got 0"):
        Bottleneck(8, 8, 0, 4)
