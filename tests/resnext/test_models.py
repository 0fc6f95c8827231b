"""The networks: their stages, their keys (torchvision's), and weights from files."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import save_file

from minigrad import Tensor, load_weights, no_grad, save_weights
from minigrad.fold import fold
from minigrad.nn import BatchNorm2d, Conv2d, Identity, Module, Sequential
from resnext import create
from resnext.counts import outlines, trace

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_keys(blocks):
    """The state dict of torchvision's and timm's bottleneck networks, in their order; `blocks` per stage."""
    keys = ["conv1.weight", *(f"bn1.{n}" for n in NORM)]
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            for conv in (1, 2, 3):
                keys += [f"layer{stage}.{i}.conv{conv}.weight", *(f"layer{stage}.{i}.bn{conv}.{n}" for n in NORM)]
            if i == 0:
                keys += [f"layer{stage}.0.downsample.0.weight", *(f"layer{stage}.0.downsample.1.{n}" for n in NORM)]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    "name, blocks",
    [
        ("resnet50", (3, 4, 6, 3)),
        ("resnet101", (3, 4, 23, 3)),
        ("resnext50_32x4d", (3, 4, 6, 3)),
        ("resnext101_64x4d", (3, 4, 23, 3)),
        ("resnext29_8x64d", (3, 3, 3)),
    ],
)
def test_keys_are_torchvisions(name, blocks):
    with outlines():
        keys = [name for name, _ in create(name).named_tensors()]
    assert sorted(keys) == sorted(torchvision_keys(blocks))


def test_shapes_are_torchvisions():
    with outlines():
        shapes = {name: t.shape for name, t in create("resnext50_32x4d").named_tensors()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv2.weight"] == (128, 4, 3, 3)
    assert shapes["layer4.2.conv2.weight"] == (1024, 32, 3, 3)
    assert shapes["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)


def test_table_1_sizes_of_the_maps():
    """56, 28, 14 and 7 pixels; the stride sits in the 3x3 of a stage's first block."""
    with outlines():
        layers = {layer.name: layer for layer in trace(create("resnext50_32x4d"))}
    assert layers["conv1"].output == (64, 112, 112)
    for stage, channels, side in ((1, 256, 56), (2, 512, 28), (3, 1024, 14), (4, 2048, 7)):
        assert layers[f"layer{stage}.0.conv3"].output == (channels, side, side)
    assert layers["layer2.0.conv1"].output == (256, 56, 56)
    assert layers["layer2.0.conv2"].output == (256, 28, 28)
    assert layers["layer2.0.conv2"].kind == "conv 3x3, 256 -> 256, 32 groups, /2"


def torchvision_file(path, name, rng, dtype=np.float32, prefix="", leave_out=()):
    """A file of random weights for `name` as PyTorch users save it; returns the weights."""
    with outlines():
        shapes = {key: (t.shape, t.dtype) for key, t in create(name).named_tensors()}
    weights = {}
    for key, (shape, kind) in shapes.items():
        if any(key.endswith(end) for end in leave_out):
            continue
        value = rng.uniform(0.5, 1.5, shape) if key.endswith("running_var") else rng.standard_normal(shape, np.float32)
        weights[key] = np.array(7, np.int64) if kind.kind == "i" else value.astype(dtype)
    save_file({prefix + key: value for key, value in weights.items()}, path)
    return weights


@pytest.mark.parametrize(
    "options",
    [{}, {"prefix": "module."}, {"dtype": np.float16}, {"leave_out": ("num_batches_tracked",)}],
    ids=["plain", "module.", "half", "without counts"],
)
def test_a_file_saved_by_pytorch_users_loads_as_it_is(tmp_path, options):
    path = tmp_path / "weights.safetensors"
    weights = torchvision_file(path, "resnet50", np.random.default_rng(0), **options)
    with outlines():
        network = create("resnet50")
    assert load_weights(network, path) == ([], [])
    state = network.state_dict()
    for key, value in weights.items():
        assert state[key].dtype == (np.int64 if key.endswith("tracked") else np.float32)
        assert np.array_equal(state[key], value.astype(state[key].dtype)), key


def test_missing_and_unexpected_keys_are_named_and_change_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = torchvision_file(path, "resnext11_2x4d", np.random.default_rng(0), leave_out=("layer2.0.conv2.weight",))
    save_file({**weights, "layer9.weight": np.ones(1, np.float32)}, path)
    network = create("resnext11_2x4d")
    before = network.state_dict()
    with pytest.raises(ValueError, match=r"missing: layer2\.0\.conv2\.weight; unexpected: layer9\.weight"):
        load_weights(network, path)
    assert all(np.array_equal(before[key], value) for key, value in network.state_dict().items())
    assert load_weights(network, path, strict=False) == (["layer2.0.conv2.weight"], ["layer9.weight"])


def test_weights_of_another_network_are_refused_with_both_shapes(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(create("resnext11_2x4d"), path)
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(8, 64, 1, 1\).*and \(16, 64, 1, 1\)"):
        load_weights(create("resnext11_4x4d"), path)


def test_a_cifar_network_takes_any_size_of_image_and_any_number_of_classes():
    network = create("resnext11_2x4d", num_classes=7).eval()
    assert network(Tensor(np.zeros((2, 3, 12, 20), np.float32))).shape == (2, 7)


def test_first_and_last_layer_may_be_replaced():
    """A network as the front of another: `fc` becomes Identity, grey images get a first layer of their own."""
    net = create("resnext11_2x4d_w8", num_classes=7)
    net.fc, net.conv1 = Identity(), Conv2d(1, 8, 3, padding=1, bias=False)
    assert net(Tensor(np.ones((2, 1, 8, 8), np.float32))).shape == (2, 128)
    with pytest.raises(ValueError, match=r"1 channels \(N, 1, H, W\), got shape \(2, 3, 8, 8\)"):
        net(Tensor(np.ones((2, 3, 8, 8), np.float32)))


def test_other_layers_may_take_the_place_of_the_first():
    """Two convolutions, one with groups, and none at all."""
    net = create("resnext11_2x4d_w8", num_classes=7).eval()
    for first, channels in [
        (Sequential(Conv2d(3, 4, 3, padding=1), Conv2d(4, 8, 3, padding=1)), 3),
        (Conv2d(4, 8, 3, padding=1, groups=2), 4),
        (Identity(), 8),
    ]:
        net.conv1 = first
        images = Tensor(np.ones((2, channels, 8, 8), np.float32))
        assert net(images).shape == (2, 7)
        assert np.allclose(fold(net)(images).data, net(images).data, atol=1e-5)
        with pytest.raises(ValueError, match="channels"):
            net(Tensor(np.ones((2, 5, 8, 8), np.float32)))


def test_what_a_new_first_layer_keeps_does_not_choose_the_dtype():
    class Counted(Module):
        def __init__(self):
            self.calls, self.scale = Tensor(np.zeros((), np.int64)), Tensor(np.ones((), np.float64))
            self.conv = Conv2d(3, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    net = create("resnext11_2x4d_w8", num_classes=7)
    net.conv1 = Counted()
    assert net(Tensor(np.ones((2, 3, 8, 8), np.float32))).dtype == np.float32


def test_an_imagenet_network_computes_its_trace():
    """The shapes that the trace tells are those that the arithmetic gives."""
    network = create("resnext50_2x40d", num_classes=5).eval()
    seen = []
    for name, module in [(n, m) for n, m in walk(network) if isinstance(m, BatchNorm2d)]:
        forward = module.forward

        def record(x, name=name, forward=forward, **options):
            seen.append((name, x.shape[1:]))
            return forward(x, **options)

        vars(module)["forward"] = record
    with no_grad():
        assert network(Tensor(np.ones((1, 3, 64, 64), np.float32))).shape == (1, 5)
    with outlines():
        layers = trace(create("resnext50_2x40d", num_classes=5), 64)
    assert seen == [(layer.name, layer.output) for layer in layers if layer.kind == "batch norm"]
    assert len(seen) == 53


def walk(module, prefix=""):
    for name, child in module.children():
        yield prefix + name, child
        yield from walk(child, f"{prefix}{name}.")


def test_without_residual_nothing_of_the_input_passes_by():
    """With the last scale of every block at zero a residual network still sees its input, a plain one does not."""
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for name, sees in (("resnext11_2x4d", True), ("resnext11_2x4d_noresidual", False)):
        network = create(name).eval()
        for block in network.bottlenecks():
            block.bn3.weight.data[:] = 0
        logits = network(Tensor(x)).numpy()
        assert (np.abs(logits[0] - logits[1]).max() > 1e-6) == sees


def test_initialisation_keeps_the_scale_of_activations():
    """He initialisation: logits of fresh networks neither vanish nor explode with depth."""
    x = Tensor(np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    for name in ("resnext11_4x4d", "resnext56_4x4d"):
        spread = create(name).train()(x).numpy().std()
        assert 0.01 < spread < 10, name


def test_networks_refuse_images_and_sizes_that_do_not_fit():
    network = create("resnext11_2x4d")
    with pytest.raises(ValueError, match=r"3 channels \(N, 3, H, W\), got shape \(2, 1, 8, 8\)"):
        network(Tensor(np.zeros((2, 1, 8, 8), np.float32)))
    with pytest.raises(ValueError, match=r"depth 9n \+ 2 .*, got 30"):
        create("resnext30_8x64d")
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        create("resnext29_8x64d", num_classes=0)
    with pytest.raises(ValueError, match="cardinality must be a positive integer, got 0"):
        create("resnext29_0x64d")


def test_save_and_load_give_the_same_logits(tmp_path):
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    first, second = create("resnext11_2x4d").eval(), create("resnext11_2x4d").eval()
    assert np.abs(first(x).numpy() - second(x).numpy()).max() > 1e-3
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert_allclose(second(x).numpy(), first(x).numpy(), rtol=0, atol=0)
