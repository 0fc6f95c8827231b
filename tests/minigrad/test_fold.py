"""Batch norm folded into convolutions (minigrad/fold.py): the same numbers as in evaluation, by the book and fast."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.engine import only, thread_count
from support.strategies import normal, seeds

import resnext
from minigrad import Tensor, gradcheck, no_grad, registry
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.fold import ConvReLU, FoldedConv2d, fold
from minigrad.nn import BatchNorm2d, Conv2d, Module, ReLU, Sequential

BOOK = ()
FAST = (cpu.register,)


def with_statistics(network, seed):
    """Draw what batch norm has learnt: scales of both signs, means, and variances that may be 0."""
    rng = np.random.default_rng(seed)
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            C = module.weight.size
            module.weight.data[:] = rng.uniform(-1.5, 1.5, C)
            module.bias.data[:], module.running_mean.data[:] = rng.standard_normal((2, C))
            module.running_var.data[:] = rng.choice([0.0, 0.5, 2.0], C, p=[0.1, 0.5, 0.4])
            module.eps = 0.1  # so that a variance of 0 does not drown everything else
    return network.eval()


def assert_folded(network, x, tolerance, rooms=FAST):
    """The folded network computes what the network computes; compared by the book and with the engine room."""
    with no_grad():
        with only():
            expected = network(Tensor(x)).numpy()
        with only(*rooms):
            found = fold(network)(Tensor(x)).numpy()
    assert found.dtype == expected.dtype and found.flags.writeable
    assert_allclose(found, expected, rtol=0, atol=tolerance * max(1e-3, np.abs(expected).max()))


class Piece(Module):
    """A convolution, its batch norm, and whether ReLU and a shortcut follow."""

    def __init__(self, layer, relu, shortcut=None):
        self.conv, self.bn, self.relu, self.shortcut = layer, BatchNorm2d(len(layer.weight)), relu, shortcut

    def forward(self, x):
        return self.bn(self.conv(x), relu=self.relu, shortcut=self.shortcut)


@st.composite
def cases(draw):
    """One convolution of any kind of the engine room's, with its batch norm."""
    groups, c, o = draw(st.sampled_from([(1, 3, 4), (1, 5, 7), (2, 48, 48), (8, 4, 4), (9, 7, 5), (3, 2, 4)]))
    kernel, seed = draw(st.sampled_from([1, 3])), draw(seeds)
    options = {"stride": draw(st.sampled_from([1, 1, 2])), "padding": draw(st.sampled_from([kernel // 2, 0]))}
    layer = Conv2d(groups * c, groups * o, kernel, **options, groups=groups, bias=draw(st.booleans()))
    x = normal(seed, draw(st.integers(1, 4)), groups * c, draw(st.integers(3, 8)), draw(st.sampled_from([3, 8, 17])))
    piece = Piece(layer, relu=draw(st.booleans()))
    if piece.relu and draw(st.booleans()):
        piece.shortcut = Tensor(normal(seed + 1, *layer(Tensor(x)).shape))
    return with_statistics(piece, seed), x


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("rooms", [BOOK, FAST], ids=["book", "fast"])
def test_a_convolution_and_its_batch_norm(rooms, dtype, tolerance, threads):
    @given(cases())
    def check(case):
        piece, x = case
        with thread_count(threads):
            assert_folded(piece.to(dtype=dtype), x.astype(dtype), tolerance, rooms)

    check()


NETWORKS = {
    **{f"resnext11_2x4d_w8, form {form}": ("resnext11_2x4d_w8", {"form": form}, 16) for form in "abc"},
    "without shortcuts": ("resnext11_2x4d_w8_noresidual", {}, 16),
    "narrow groups": ("resnext11_8x4d_w8", {}, 32),
    "two-layer blocks": ("resnet20_w4", {}, 12),
    "VGG": ("vgg11_w4", {}, 17),
    "Inception": ("inception_w16", {}, 8),
    "HOG": ("hog_linear", {}, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name):
    model, options, side = NETWORKS[name]
    check_network(resnext.create(model, num_classes=5, **options), side)


def test_imagenet_networks():
    check_network(resnext.ResNeXt([1, 1, 1, 1], 2, 4, imagenet=True, stem=8), 33)


def check_network(network, side):
    network = with_statistics(network, 1)
    x = normal(2, 2, 3, side, side).astype(np.float32)
    before = network.state_dict()
    assert_folded(network, x, 1e-4)
    assert_folded(network, x, 1e-4, BOOK)
    for key, array in network.state_dict().items():
        assert_array_equal(array, before[key])


def test_all_batch_norms_are_folded_but_those_after_a_sum():
    count = lambda network: sum(isinstance(m, BatchNorm2d) for m in fold(network).modules())  # noqa: E731
    assert count(resnext.create("resnext11_2x4d_w8")) == 0
    assert count(resnext.create("resnext11_2x4d_w8", form="b")) == 0
    assert count(resnext.create("resnext11_2x4d_w8", form="a")) == 3  # of Σ Tᵢ(x), one a block
    assert count(resnext.create("vgg11_w4")) == count(resnext.create("inception_w16")) == 0


def test_a_folded_network_stays_as_it_is_when_the_network_changes():
    network = with_statistics(resnext.create("resnext11_2x4d_w8"), 0)
    x = Tensor(normal(0, 2, 3, 8, 8).astype(np.float32))
    with no_grad():
        folded = fold(network)
        before = folded(x).numpy().copy()
        for _, t in network.named_tensors():
            t.data += 1
        assert_array_equal(folded(x).numpy(), before)
        folded.to(dtype="float64")
        assert network.fc.weight.dtype == np.float32
        assert_allclose(deepcopy(folded)(Tensor(x, dtype="float64")).numpy(), before, rtol=1e-3, atol=1e-5)


def test_a_network_that_calls_something_in_between_is_refused():
    layers = Sequential(Conv2d(3, 4, 1), BatchNorm2d(4), ReLU()).eval()
    x = Tensor(normal(0, 2, 3, 5, 5).astype(np.float32))
    assert_allclose(fold(layers)(x).numpy(), layers(x).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="takes what the convolution before it returns"):
        fold(layers)[1](x)
    one, other = (fold(Sequential(Conv2d(3, 4, 1), BatchNorm2d(4))) for _ in range(2))
    with pytest.raises(TypeError, match="takes what the convolution before it returns"):
        other[1](one[0](x))
    with pytest.raises(TypeError):
        F.relu(one[0](x))
    with pytest.raises(TypeError, match="fold takes a network"):
        fold(3)


class Between(Module):
    """A convolution and a batch norm that something happens between."""

    def __init__(self, between):
        self.conv, self.norm, self.between = Conv2d(3, 4, 1), BatchNorm2d(4), between

    def forward(self, x):
        return self.between(self.conv(x), self.norm)


@pytest.mark.parametrize(
    "between", [lambda h, bn: bn(h.relu()), lambda h, bn: h.mean(), lambda h, bn: bn(h).shape + h.shape]
)
def test_what_is_asked_of_a_folded_convolutions_output_is_named(between):
    network = fold(Between(between))
    with pytest.raises(TypeError, match=r"goes into the batch norm alone, but .(relu|mean|shape) of it was asked for"):
        network(Tensor(normal(0, 2, 3, 5, 5).astype(np.float32)))


@pytest.mark.parametrize("replaced", ["conv", "norm"])
def test_a_layer_whose_forward_was_replaced_is_left_alone(replaced):
    network = with_statistics(Between(lambda h, norm: norm(h)), 0)
    layer = getattr(network, replaced)
    layer.forward = lambda x, forward=layer.forward: forward(x) * 2
    x = Tensor(normal(0, 2, 3, 5, 5).astype(np.float32))
    assert_array_equal(fold(network)(x).numpy(), network(x).numpy())


def test_layers_of_ones_own_are_left_alone():
    class Mine(Conv2d):
        def forward(self, x):
            return -super().forward(x)

    layers = with_statistics(Sequential(Mine(3, 4, 1), BatchNorm2d(4), Conv2d(4, 2, 1), BatchNorm2d(2)), 0)
    x = normal(0, 2, 3, 5, 5).astype(np.float32)
    assert_folded(layers, x, 1e-5)
    assert [isinstance(m, FoldedConv2d) for _, m in fold(layers).children()] == [False, False, True, False]


@pytest.mark.parametrize("relu", [True, False])
def test_its_gradient(relu):
    """With a tape it is the book's, which has one: what does an image have to do with its class?"""
    options = {"relu": relu, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
    arrays = [normal(0, 2, 4, 5, 4), normal(1, 6, 2, 3, 3), normal(2, 6), normal(3, 2, 6, 5, 4)]
    assert gradcheck(lambda x, w, b, s: ConvReLU.apply(x, w, b, s, **options), arrays)
    assert gradcheck(lambda x, w, b: ConvReLU.apply(x, w, b, None, **options), arrays[:3])
    with only(cpu.register):
        assert registry.choose(ConvReLU, "cpu", *arrays, **options) is ConvReLU
        with no_grad():
            assert registry.choose(ConvReLU, "cpu", *arrays, **options) is not ConvReLU


def test_infinite_pixels_reach_their_own_group_alone():
    """Merged groups multiply zeros, and 0 times infinity is NaN: then each group is computed apart, as always."""
    piece = with_statistics(Piece(Conv2d(32, 32, 3, padding=1, groups=32), relu=True), 0)
    x = normal(0, 1, 32, 8, 16).astype(np.float32)
    x[0, 3, 2, 2], x[0, 9, 1, 1] = np.inf, np.nan
    with no_grad(), np.errstate(invalid="ignore"):
        with only():
            expected = piece(Tensor(x)).numpy()
        with only(cpu.register):
            found = fold(piece)(Tensor(x)).numpy()
    assert np.isfinite(expected).all(axis=(2, 3)).sum() >= 30
    assert_array_equal(np.isfinite(found).all(axis=(0, 2, 3)), np.isfinite(expected).all(axis=(0, 2, 3)))
