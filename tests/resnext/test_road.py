"""The systems before ResNeXt: their shapes and sizes, what sets each apart, and that each one learns."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from minigrad import Tensor, gradcheck, optim
from minigrad import functional as F
from minigrad.nn import Conv2d
from resnext import counts, create
from resnext.hog import BINS, gradients, histograms, hog
from resnext.inception import Mixed
from resnext.resnet import BasicBlock, BasicResNet
from resnext.vgg import VGG

SMALL = ("hog_linear", "vgg11_w8", "inception_w8", "plain20_w4", "resnet20_w4", "resnext11_2x4d")


def build(name, **options):
    with counts.outlines():
        return create(name, **options)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("vgg16", 14_724_042),  # 13 convolutions without bias, batch norm, 512 x 10 + 10
        ("resnet20", 269_722),  # He et al., Table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("hog_linear", 7 * 7 * 4 * 9 * 10 + 10),
    ],
)
def test_sizes(name, parameters):
    assert counts.parameters(build(name)) == parameters


def test_depth_counts_the_layers_with_weights():
    for name, layers in (("vgg16", 13 + 1), ("resnet20", 20), ("plain56", 56), ("resnet29", 29 + 3)):
        kinds = [layer.kind for layer in counts.trace(build(name))]
        assert sum(kind.startswith(("conv", "linear")) for kind in kinds) == layers, name  # resnet29: 3 projections


def test_vgg_is_made_of_3x3_convolutions_only():
    kernels = {m.weight.shape[2:] for m in build("vgg19").modules() if isinstance(m, Conv2d)}
    assert kernels == {(3, 3)}


@pytest.mark.parametrize("name", SMALL)
def test_each_one_learns_to_tell_two_images_apart(name):
    network = create(name, num_classes=2).train()
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 3, 32, 32)).astype(np.float32), np.arange(8) % 2
    optimizer = optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(Tensor(x)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_plain_and_residual_differ_by_nothing_but_the_shortcuts():
    plain, residual = create("plain20_w4").eval(), create("resnet20_w4").eval()
    residual.load_state_dict(plain.state_dict())
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32))
    assert np.abs(plain(x).numpy() - residual(x).numpy()).max() > 1e-3
    for network in (plain, residual):
        for module in network.modules():
            if isinstance(module, BasicBlock):
                module.bn2.weight.data[:] = 0
    spread = [np.ptp(network(x).numpy(), axis=0).max() for network in (plain, residual)]
    assert spread[0] == 0 and spread[1] > 1e-3


def test_a_shortcut_of_type_a_takes_every_other_pixel_and_adds_zeros():
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 8))
    y = BasicBlock(3, 5, 2, True).shortcut(Tensor(x)).numpy()
    assert y.shape == (2, 5, 3, 4)
    assert np.array_equal(y[:, :3], x[:, :, ::2, ::2]) and not y[:, 3:].any()


def test_gradients_of_a_basic_block_with_a_shortcut_of_type_a():
    block = BasicBlock(2, 4, 2, True).to(dtype="float64").eval()
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
    assert gradcheck(block, [x])


def test_an_inception_module_has_the_originals_first_modules_shapes():
    """GoogLeNet's table: module 3a turns 192 channels into 64 + 128 + 32 + 32, through 96 and 16."""
    with counts.outlines():
        module = Mixed(192, 256)
    shapes = [m.weight.shape for m in module.modules() if isinstance(m, Conv2d)]
    assert shapes == [
        (64, 192, 1, 1),
        (96, 192, 1, 1),
        (128, 96, 3, 3),
        (16, 192, 1, 1),
        (32, 16, 5, 5),
        (32, 192, 1, 1),
    ]


def test_hog_of_a_ramp_is_one_direction():
    """A plane that rises at 30 degrees: slope 1 everywhere, all of it between the bins at 20 and 40 degrees."""
    rows, cols = np.mgrid[:16, :16].astype(float)
    angle = math.radians(30)
    image = np.zeros((1, 3, 16, 16))
    image[0, 1] = math.cos(angle) * cols + math.sin(angle) * rows
    length, direction = gradients(image)
    assert_allclose(length, 1)
    assert_allclose(direction, angle)
    cells = histograms(length, direction)
    assert cells.shape == (1, 4, 4, BINS)
    expected = np.zeros(BINS)
    expected[1] = expected[2] = 16 / 2  # pixels of a cell, shared equally
    assert_allclose(cells, np.broadcast_to(expected, cells.shape), atol=1e-12)


def test_hog_against_loops():
    """The descriptor written again, pixel by pixel."""
    image = np.random.default_rng(0).standard_normal((2, 3, 12, 8))
    N, C, H, W = image.shape

    def slope(line, i):
        a, b = max(i - 1, 0), min(i + 1, len(line) - 1)
        return (line[b] - line[a]) / (b - a)

    cells = np.zeros((N, H // 4, W // 4, 9))
    for n, i, j in np.ndindex(N, H, W):
        slopes = [(slope(image[n, c, i], j), slope(image[n, c, :, j], i)) for c in range(C)]
        gx, gy = max(slopes, key=lambda s: math.hypot(*s))
        t = math.degrees(math.atan2(gy, gx)) % 180 / 20
        low = int(t) % 9
        cells[n, i // 4, j // 4, low] += math.hypot(gx, gy) * (1 - t % 1)
        cells[n, i // 4, j // 4, (low + 1) % 9] += math.hypot(gx, gy) * (t % 1)
    for n in range(N):
        descriptor = []
        for i, j in np.ndindex(H // 4 - 1, W // 4 - 1):
            block = np.concatenate([cells[n, i + a, j + b] for a in (0, 1) for b in (0, 1)])
            block = np.minimum(block / math.sqrt((block**2).sum() + 1e-6), 0.2)
            descriptor.append(block / math.sqrt((block**2).sum() + 1e-6))
        assert_allclose(hog(image)[n], np.concatenate(descriptor), rtol=1e-9)


def test_hog_does_not_see_the_lighting():
    """Twice the contrast and another brightness leave the descriptor as it is."""
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)) * 10
    assert_allclose(hog(2 * image + 5), hog(image), atol=1e-6)


def test_only_the_last_layer_of_the_hog_system_learns():
    network = create("hog_linear")
    assert [name for name, _ in network.named_parameters()] == ["fc.weight", "fc.bias"]
    with pytest.raises(ValueError, match=r"images of shape \(N, 3, 32, 32\), got \(1, 3, 28, 28\)"):
        network(Tensor(np.zeros((1, 3, 28, 28), np.float32)))


def test_sizes_that_do_not_work_are_refused():
    with pytest.raises(ValueError, match="multiple of 16, got 24"):
        create("inception_w12")
    with pytest.raises(ValueError, match=r"depth 6n \+ 2 .*, got 21"):
        BasicResNet(21)
    with pytest.raises(ValueError, match="depth 11, 13, 16, 19, got 12"):
        VGG(12)
