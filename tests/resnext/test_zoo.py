"""Names, parameters and multiply-adds: exact numbers, and the paper's own where it prints some."""

import re
import subprocess
import sys

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.nn import Conv2d, Linear, Module, Sequential
from resnext import Bottleneck, counts, create, names, zoo
from resnext.__main__ import main

PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_64x4d": 83_455_272,
    "resnext29_1x64d": 4_914_250,
    "resnext29_8x64d": 34_426_698,
    "resnext29_16x64d": 68_155_210,
    "resnext29_32x4d": 4_775_754,
}
MULTIPLY_ADDS = {"resnet50": 4.09, "resnext50_32x4d": 4.23, "resnext29_8x64d": 5.39, "resnext29_32x4d": 0.77}  # 10⁹


def build(name, **options):
    with counts.outlines():
        return create(name, **options)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exact(name):
    assert counts.parameters(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds(name):
    assert round(counts.multiply_adds(build(name)) / 1e9, 2) == MULTIPLY_ADDS[name]


def test_multiply_adds_of_resnet50_layer_by_layer():
    """Summed by hand from Table 1, in multiply-adds: 4,089,184,256."""
    total = 3 * 64 * 49 * 112**2
    channels = 64
    for width, blocks, side in ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)):
        for i in range(blocks):
            before = side * (2 if i == 0 and width > 64 else 1)  # the first 1x1 works before the stride
            total += channels * width * before**2 + 9 * width**2 * side**2 + 4 * width**2 * side**2
            total += channels * 4 * width * side**2 if i == 0 else 0
            channels = 4 * width
    total += 2048 * 1000
    assert counts.multiply_adds(build("resnet50")) == total == 4_089_184_256


@pytest.mark.parametrize("name", [n for n, paper in zoo.REPORTED.items() if paper.parameters or paper.multiply_adds])
def test_counts_are_what_the_paper_prints(name):
    """The paper rounds some figures and truncates others (25.557 to 25.5): the last digit may differ by one."""
    network, paper = build(name), zoo.REPORTED[name]
    for ours, theirs in (
        (counts.parameters(network) / 1e6, paper.parameters),
        (counts.multiply_adds(network) / 1e9, paper.multiply_adds),
    ):
        assert not theirs or abs(ours - float(theirs)) < 0.1


def test_networks_of_one_table_cost_about_the_same():
    for first, *others in (
        ["resnet50", "resnext50_2x40d", "resnext50_4x24d", "resnext50_8x14d", "resnext50_32x4d"],
        ["resnet101", "resnext101_2x40d", "resnext101_4x24d", "resnext101_8x14d", "resnext101_32x4d"],
        ["resnet200", "wide_resnet101_100d", "resnext101_2x64d", "resnext101_64x4d"],
    ):
        reference = counts.multiply_adds(build(first))
        assert all(abs(counts.multiply_adds(build(name)) / reference - 1) < 0.05 for name in others)


@pytest.mark.parametrize(
    "C, d, equation", [(1, 64, 69_632), (2, 40, 69_760), (4, 24, 69_888), (8, 14, 71_456), (32, 4, 70_144)]
)
def test_table_2_and_equation_4(C, d, equation):
    with counts.outlines():
        block = Bottleneck(256, 256, C, d)
    weights = sum(p.size for p in block.parameters() if p.ndim == 4)
    assert zoo.block_parameters(C, d) == weights == equation
    assert (C, d) in zoo.TABLE_2 and zoo.equal_width(C) == d
    assert {1: 64, 2: 80, 4: 96, 8: 112, 32: 128}[C] == block.conv2.weight.shape[0]
    assert block.conv2.groups == C


def test_every_name_of_the_list_builds_and_is_there_once():
    listed = names()
    assert len(set(listed)) == len(listed)
    assert set(zoo.REPORTED) <= set(listed)
    for name in listed:
        network = build(name)
        assert counts.trace(network)[-1].output == ((1000,) if network.input_size == 224 else (10,)), name


def test_names_that_follow_the_pattern_build():
    for name in (
        "resnext20_8x16d",
        "resnext38_1x8d",
        "resnext47_3x5d_noresidual",
        "resnext11_2x4d_w16_noresidual",
        "vgg16_w8",
        "resnet32_w4",
    ):
        assert counts.parameters(build(name, num_classes=4)) > 0
    assert build("resnext29_4x8d").layer3[2].conv2.weight.shape == (128, 32, 3, 3)
    slim = build("resnext11_2x4d_w16")
    assert slim.conv1.weight.shape == (16, 3, 3, 3) and slim.layer3[0].conv3.weight.shape == (256, 32, 1, 1)
    assert build("vgg16_w8").stage5[0].conv.weight.shape == (64, 64, 3, 3)


@pytest.mark.parametrize(
    "name, says",
    [
        ("resnext50_32x4", "did you mean resnext50_32x4d"),
        ("resnext29", "did you mean"),
        ("resnet50_w8", "there is no network 'resnet50_w8'"),
        ("vgg16_w0", "there is no network"),
        ("hog_linear_w3", "there is no network"),
        ("vgg16_noresidual", "there is no network"),
        ("qqq", "there are resnext29_8x64d, "),
        ("", "there are resnext29_8x64d, "),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name, says):
    with pytest.raises(ValueError, match=says):
        create(name)


def test_a_trace_leaves_the_network_as_it_was():
    network = create("resnext11_2x4d").eval()
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32))
    before = network(x).numpy()
    counts.trace(network)
    assert not any("forward" in vars(module) for module in network.modules())
    assert np.array_equal(network(x).numpy(), before)


def test_a_trace_counts_groups_strides_dilation_and_layers_used_twice():
    class Twice(Module):
        input_size = 9

        def __init__(self):
            self.conv = Conv2d(3, 3, 3, padding=1, bias=False)
            self.odd = Sequential(Conv2d(3, 6, (3, 1), (2, 1), (0, 2), (2, 1), groups=3))
            self.fc = Linear(6, 2)

        def forward(self, x):
            return self.fc(self.odd(self.conv(self.conv(x))).mean(axis=(2, 3)))

    layers = counts.trace(Twice())
    assert [layer.name for layer in layers] == ["conv", "conv", "odd.0", "fc"]
    assert [layer.output for layer in layers] == [(3, 9, 9), (3, 9, 9), (6, 3, 13), (2,)]
    assert [layer.multiply_adds for layer in layers] == [3 * 81 * 27, 3 * 81 * 27, 6 * 39 * 3, 12]
    assert layers[2].kind == "conv 3x1, 3 -> 6, 3 groups, /2"
    assert layers[2].parameters == 6 * 3 + 6


def test_the_table_shows_ours_beside_the_papers(capsys):
    assert main([]) == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line}
    assert lines["resnext50_32x4d"] == "resnext50_32x4d 224 25,028,904 4.23 G 25.0 4.2 22.2 1, 3"
    assert lines["resnext29_8x64d"] == "resnext29_8x64d 32 34,426,698 5.39 G 34.4 3.65/17.77 7"
    assert "64,673,832 15.01 G" in lines["resnet200"]
    assert lines["32"] == "32 4 128 70,144 70,144 220 M"
    assert set(names()) <= set(lines)


def test_one_network_layer_by_layer(capsys):
    assert main(["resnext11_2x8d", "--size", "16", "--classes", "3"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "conv1 3x3, 3->64 64x16x16 1,728 0.44 M"
    *layers, total, _, exact = lines[1:]
    assert layers[-1] == "fc linear, 1024->3 3 3,075 3,072"
    parameters = [int(re.search(r" ([\d,]+) [\d.,]+( [GM])?$", line)[1].replace(",", "")) for line in [*layers, total]]
    assert sum(parameters[:-1]) == parameters[-1]
    with counts.outlines():
        network = create("resnext11_2x8d", 3)
    assert exact == f"{counts.multiply_adds(network, 16):,} multiply-adds (mult-adds) for one image"


@pytest.mark.parametrize("name", [(), ("resnext101_64x4d",), ("resnext29_16x64d",), ("vgg16_w16",)])
def test_tables_fit_eighty_columns_of_ascii(capsys, name):
    assert main([*name]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii() and max(map(len, printed.splitlines())) <= 80


def test_the_command_line_says_what_is_wrong():
    command = [sys.executable, "-m", "resnext"]
    result = subprocess.run([*command, "resnext29_8x64"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("python -m resnext: there is no network 'resnext29_8x64': did you mean")
    assert subprocess.run([*command, "--size", "9"], capture_output=True, timeout=60).returncode == 2


def test_bad_sizes_are_usage_errors(capsys):
    for size in ("0", "-3"):
        assert main(["resnext29_8x64d", "--size", size]) == 2
        assert "--size" in capsys.readouterr().err
