"""Every network of the paper's tables by name.

CIFAR names are resnext<depth>_<C>x<d>d, for any depth 9n + 2, cardinality C and width d: resnext29_8x64d. ImageNet
names are resnet50 and resnext50_32x4d and the like. "_noresidual" behind a name leaves the shortcuts out (Section 5.1).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from minigrad.nn import Module

from . import model

CIFAR_DEPTHS = re.compile(r"(?:resnext)(\d+)_(\d+)x(\d+)d")
IMAGENET: dict[str, Callable[..., Module]] = {
    "resnet50": partial(model.imagenet, 50),
    "resnet101": partial(model.imagenet, 101),
    "resnet152": partial(model.imagenet, 152),
    "resnet200": partial(model.imagenet, 200),
    "wide_resnet101_100d": partial(model.imagenet, 101, 1, 100),
    **{f"resnext50_{c}x{d}d": partial(model.imagenet, 50, c, d) for c, d in ((2, 40), (4, 24), (8, 14), (32, 4))},
    **{
        f"resnext101_{c}x{d}d": partial(model.imagenet, 101, c, d)
        for c, d in ((2, 40), (4, 24), (8, 14), (32, 4), (2, 64), (64, 4))
    },
}
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


def names() -> list[str]:
    """Return the names in the paper's tables, CIFAR first. Other CIFAR names, of any depth, C and d, work too."""
    return [*CIFAR, *IMAGENET]


def create(name: str, num_classes: int | None = None, **options: Any) -> Module:
    """Build a network by name, with He initialisation from `minigrad.manual_seed`'s numbers.

    `num_classes` is 10 for CIFAR networks and 1000 for ImageNet networks unless given; `options` are the network's own
    (form="a", ...). Raises ValueError for a name that is unknown, with the nearest ones, or whose numbers do not work.
    """
    base = name.removesuffix("_noresidual")
    if base != name:
        options["residual"] = False
    if base in IMAGENET:
        return IMAGENET[base](num_classes=1000 if num_classes is None else num_classes, **options)
    match = CIFAR_DEPTHS.fullmatch(base)
    if match:
        depth, cardinality, width = map(int, match.groups())
        return model.cifar(depth, cardinality, width, 10 if num_classes is None else num_classes, **options)
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
    hint = f": did you mean {', '.join(near)}?" if near else f"; there are {', '.join(names())}"
    raise ValueError(f"there is no network {name!r}{hint}")
