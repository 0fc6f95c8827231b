"""Inception: split, transform, merge, with a shape of its own for every path (Szegedy et al., CVPR 2015).

        ┌─ 1x1 ─────────────────┐
    x ──┼─ 1x1 ─ 3x3 ───────────┼── concat
        ├─ 1x1 ─ 5x5 ───────────┤
        └─ 3x3 max pool ─ 1x1 ──┘

It computes much with few products; the price is a number to be chosen by hand for every convolution of every path.
ResNeXt splits and merges too, but all of its paths have one shape, so that two numbers, C and d, remain.
"""

from __future__ import annotations

from minigrad import Tensor
from minigrad import functional as F
from minigrad.nn import Linear, Module, Sequential

from .vgg import ConvBN


class Mixed(Module):
    """The module of the figure above: (N, I, H, W) -> (N, out_channels, H, W).

    Of 16 output channels 4 come from 1x1, 8 from 3x3, 2 from 5x5 and 2 from the pooling; 3x3 reads 6 and 5x5 reads 1
    channel. These are the proportions of the original's first module, 3a: 64, 128, 32, 32 and 96, 16 of 256.
    """

    def __init__(self, in_channels: int, out_channels: int):
        if out_channels % 16:
            raise ValueError(f"the output channels of an Inception module are a multiple of 16, got {out_channels}")
        part = out_channels // 16
        self.path1 = ConvBN(in_channels, 4 * part, 1)
        self.path2 = Sequential(ConvBN(in_channels, 6 * part, 1), ConvBN(6 * part, 8 * part, 3))
        self.path3 = Sequential(ConvBN(in_channels, part, 1), ConvBN(part, 2 * part, 5))
        self.path4 = ConvBN(in_channels, 2 * part, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return F.concat([self.path1(x), self.path2(x), self.path3(x), self.path4(pooled)], axis=1)


class Inception(Module):
    """A CIFAR network of Inception modules: (N, 3, H, W) -> logits (N, num_classes), H and W at least 4.

    A 3x3 convolution of `width` channels, then three stages of two modules with 2, 4 and 8 `width` channels, a max
    pooling between them. `width` must be a multiple of 8.
    """

    input_size = 32

    def __init__(self, width: int = 64, num_classes: int = 10):
        self.stem = ConvBN(3, width, 3)
        channels = width
        for stage in (1, 2, 3):
            out_channels = width * 2**stage
            setattr(self, f"stage{stage}", Sequential(Mixed(channels, out_channels), Mixed(out_channels, out_channels)))
            channels = out_channels
        self.fc = Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in (1, 2, 3):
            x = getattr(self, f"stage{stage}")(x if stage == 1 else F.max_pool2d(x, 2))
        return self.fc(F.global_avg_pool2d(x))
