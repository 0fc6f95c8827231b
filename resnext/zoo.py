"""Every network of the paper's tables by name, the systems before it, and what the paper prints about them.

resnext<depth>_<C>x<d>d         CIFAR, any depth 9n + 2, cardinality C and width d: resnext29_8x64d
resnet50, resnext50_32x4d, ...  ImageNet (Tables 1 to 4)
..._noresidual                  behind any of these: without the shortcuts (Section 5.1)
vgg16, plain20, resnet20, inception, hog_linear, ...      CIFAR, the road to ResNeXt; a "_w8" behind those that are
                                convolutional makes the first stage 8 channels wide: vgg16_w8
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from minigrad.diagnosis import shown
from minigrad.nn import Module
from minigrad.ops.arguments import check_kind

from . import model
from .hog import HOGLinear
from .inception import Inception
from .resnet import BasicResNet
from .vgg import VGG

CIFAR_NAME = re.compile(r"resnext(\d+)_(\d+)x(\d+)d(?:_w(\d+))?")
CIFAR = (
    "resnext29_8x64d",
    "resnext29_16x64d",
    "resnext29_32x4d",
    "resnext29_1x64d",
    "resnext29_2x64d",
    "resnext29_4x64d",
    "resnext20_8x16d",
    "resnext11_4x16d",
)
IMAGENET: dict[str, Callable[..., Module]] = {
    "resnet50": partial(model.imagenet, 50),
    **{f"resnext50_{C}x{d}d": partial(model.imagenet, 50, C, d) for C, d in ((2, 40), (4, 24), (8, 14), (32, 4))},
    "resnet101": partial(model.imagenet, 101),
    **{f"resnext101_{C}x{d}d": partial(model.imagenet, 101, C, d) for C, d in ((2, 40), (4, 24), (8, 14), (32, 4))},
    "resnet200": partial(model.imagenet, 200),
    "wide_resnet101_100d": partial(model.imagenet, 101, 1, 100),
    **{f"resnext101_{C}x{d}d": partial(model.imagenet, 101, C, d) for C, d in ((2, 64), (64, 4))},
    "resnet152": partial(model.imagenet, 152),
}
ROAD: dict[str, Callable[..., Module]] = {
    "hog_linear": HOGLinear,
    **{f"vgg{depth}": partial(VGG, depth) for depth in (11, 13, 16, 19)},
    "inception": Inception,
    **{f"plain{depth}": partial(BasicResNet, depth, residual=False) for depth in (20, 32, 44, 56)},
    **{f"resnet{depth}": partial(BasicResNet, depth) for depth in (20, 32, 44, 56)},
    "resnet29": partial(model.cifar, 29, 1, 64),  # of bottlenecks, which are ResNeXt blocks with one path
}
NO_RESIDUAL = "_noresidual"


@dataclass(frozen=True)
class Reported:
    """What the paper prints about a network, in its own digits; "" where it prints nothing."""

    table: str  # the tables it stands in
    errors: str  # per cent; ImageNet top-1 or top-1/top-5, 224x224 centre crop; CIFAR-10/CIFAR-100
    parameters: str = ""  # millions
    multiply_adds: str = ""  # billions


REPORTED = {
    "resnet50": Reported("1, 3", "23.9", "25.5", "4.1"),
    "resnext50_2x40d": Reported("3", "23.0"),
    "resnext50_4x24d": Reported("3", "22.6"),
    "resnext50_8x14d": Reported("3", "22.3"),
    "resnext50_32x4d": Reported("1, 3", "22.2", "25.0", "4.2"),
    "resnet101": Reported("3, 4", "22.0/6.0"),
    "resnext101_2x40d": Reported("3", "21.7"),
    "resnext101_4x24d": Reported("3", "21.4"),
    "resnext101_8x14d": Reported("3", "21.3"),
    "resnext101_32x4d": Reported("3, 4", "21.2/5.6"),
    "resnet200": Reported("4", "21.7/5.8"),
    "wide_resnet101_100d": Reported("4", "21.3/5.7"),
    "resnext101_2x64d": Reported("4", "20.7/5.5"),
    "resnext101_64x4d": Reported("4, 5", "20.4/5.3"),
    "resnet50_noresidual": Reported("text", "31.2"),
    "resnext50_32x4d_noresidual": Reported("text", "26.1"),
    "resnext29_8x64d": Reported("7", "3.65/17.77", "34.4"),
    "resnext29_16x64d": Reported("7", "3.58/17.31", "68.1"),
}
# Table 2: cardinality C and width d of blocks that cost about the same; conv2 of the 50- and 101-layer networks.
TABLE_2 = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))


def block_parameters(cardinality: int, d: int, channels: int = 256) -> int:
    """The weights of a block with `channels` outside (Equation 4, with 256): C (256 d + 3 · 3 d d + d 256)."""
    return cardinality * (channels * d + 9 * d * d + d * channels)


def equal_width(cardinality: int, d: int = 64, channels: int = 256) -> int:
    """The width of C paths that comes nearest to the cost of one path of width `d`: Table 2 for C = 1, 2, 4, 8, 32."""
    budget = block_parameters(1, d, channels)
    return min(range(1, d + 1), key=lambda width: abs(block_parameters(cardinality, width, channels) - budget))


def names() -> list[str]:
    """Return the names: CIFAR, ImageNet, the road to ResNeXt. CIFAR names of any other depth, C and d work too."""
    return [*CIFAR, *IMAGENET, *(name for name in REPORTED if name.endswith(NO_RESIDUAL)), *ROAD]


def create(name: str, num_classes: int | None = None, **options: Any) -> Module:
    """Build a network by name, with He initialisation from `minigrad.manual_seed`'s numbers.

    `num_classes` is 10 for CIFAR networks and 1000 for ImageNet networks unless given; `options` are the network's own
    (form="a", ...). Raises ValueError for a name that is unknown, with the nearest ones, or whose numbers do not work.
    """
    check_kind(name, str, "a network is created by its name")
    base = name.removesuffix(NO_RESIDUAL)
    if base != name and base not in ROAD:
        options["residual"] = False
    cifar = CIFAR_NAME.fullmatch(base)
    road, _, width = name.partition("_w")
    if base in IMAGENET:
        factory, default = IMAGENET[base], 1000
    elif cifar:
        depth, cardinality, d, stem = map(int, cifar.groups(default="64"))
        factory, default = partial(model.cifar, depth, cardinality, d, stem=stem), 10
    elif name in ROAD:
        factory, default = ROAD[name], 10
    elif road in ROAD and road not in ("hog_linear", "resnet29") and width.isdecimal() and int(width):
        factory, default = partial(ROAD[road], width=int(width)), 10
    else:
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f": did you mean {', '.join(near)}?" if near else f"; there are {', '.join(names())}"
        raise ValueError(f"there is no network {shown(name)}{hint}")
    return factory(num_classes=default if num_classes is None else num_classes, **options)
