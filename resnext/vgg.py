"""VGG: nothing but 3x3 convolutions, stacked in stages of one shape (Simonyan & Zisserman, ICLR 2015).

Two 3x3 convolutions see as far as one of 5x5, three as far as one of 7x7, with fewer weights and a ReLU in between.
ResNeXt keeps the idea: one block, repeated, with the widths doubling where the image halves.
"""

from __future__ import annotations

from minigrad import Tensor
from minigrad import functional as F
from minigrad.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class ConvBN(Module):
    """A convolution that keeps the image's size, batch norm, ReLU: (N, I, H, W) -> (N, O, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        self.conv = Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x), relu=True)


class VGG(Module):
    """The CIFAR version of VGG-`depth`: (N, 3, H, W) -> logits (N, num_classes), H and W at least 16.

    Five stages of `width`, 2, 4, 8 and 8 `width` channels, a max pooling between them. Two customary changes to the
    original: batch norm after each convolution, and one linear layer on the mean over the image in place of three wide
    ones. Raises ValueError for a depth that is not 11, 13, 16 or 19.
    """

    input_size = 32

    def __init__(self, depth: int, width: int = 64, num_classes: int = 10):
        if depth not in STAGES:
            raise ValueError(f"a VGG network has depth {', '.join(map(str, STAGES))}, got {depth}")
        channels = 3
        for stage, count in enumerate(STAGES[depth]):
            out_channels = width * min(2**stage, 8)
            layers = [ConvBN(channels if i == 0 else out_channels, out_channels, 3) for i in range(count)]
            setattr(self, f"stage{stage + 1}", Sequential(*layers))
            channels = out_channels
        self.fc = Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(x)  # type: ignore[attr-defined]
        for stage in (2, 3, 4, 5):
            x = getattr(self, f"stage{stage}")(F.max_pool2d(x, 2))
        return self.fc(F.global_avg_pool2d(x))
