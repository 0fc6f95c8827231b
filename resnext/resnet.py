"""ResNet's CIFAR networks of two-layer blocks, with and without shortcuts (He et al., CVPR 2016, Section 4.2).

    plain      y = ReLU(F(x))              F: 3x3, batch norm, ReLU, 3x3, batch norm
    residual   y = ReLU(F(x) + x)

A block that had better do nothing must learn the identity in the first form; in the second it only has to keep F at
zero. With depth the plain network gets worse even on its training images, and the residual network better. (The
three-layer "bottleneck" of ResNet is ResNeXt's block with one path: `resnet29`.)
"""

from __future__ import annotations

from minigrad import Tensor
from minigrad import functional as F
from minigrad.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut without parameters: (N, I, H, W) -> (N, O, H/stride, W/stride).

    Where shapes change the shortcut takes every other pixel and adds channels of zeros ("type A").
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, residual: bool):
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(out_channels)
        self.stride, self.residual, self.new_channels = stride, residual, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), relu=True, shortcut=self.shortcut(x) if self.residual else None)

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, 1, self.stride)  # windows of one pixel: every other pixel as it is
        return F.pad(x, ((0, 0), (0, self.new_channels), (0, 0), (0, 0))) if self.new_channels else x


class BasicResNet(Module):
    """A network of depth 6n + 2: a 3x3 convolution, three stages of n blocks of `width`, 2 and 4 `width` channels.

    (N, 3, H, W) -> logits (N, num_classes). Raises ValueError for any other depth.
    """

    input_size = 32

    def __init__(self, depth: int, width: int = 16, num_classes: int = 10, residual: bool = True):
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a network of two-layer blocks has depth 6n + 2 (8, 14, 20, 26, 32, ...), got {depth}")
        self.conv1 = Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        channels = width
        for stage in range(3):
            blocks = []
            for i in range((depth - 2) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride, residual))
                channels = width * 2**stage
            setattr(self, f"layer{stage + 1}", Sequential(*blocks))
        self.fc = Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x), relu=True)
        x = self.layer3(self.layer2(self.layer1(x)))  # type: ignore[attr-defined]
        return self.fc(F.global_avg_pool2d(x))
