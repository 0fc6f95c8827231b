"""The networks of `resnext` in PyTorch, for `python -m train.bench --versus torch`; nothing else imports this file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import resnext


class Bottleneck(nn.Module):
    """Form (c) of the block, as torchvision writes it."""

    def __init__(self, block: resnext.Bottleneck):
        super().__init__()
        width = block.cardinality * block.d
        self.conv1 = nn.Conv2d(block.in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, block.stride, 1, groups=block.cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, block.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(block.out_channels)
        self.downsample, self.residual = None, block.residual
        if block.residual and (block.stride != 1 or block.in_channels != block.out_channels):
            projection = nn.Conv2d(block.in_channels, block.out_channels, 1, block.stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(block.out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.residual:
            y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y)


class ResNeXt(nn.Module):
    """The same network as `model`, with the same weights."""

    def __init__(self, model: resnext.ResNeXt):
        super().__init__()
        self.imagenet, self.stages = model.imagenet, model.stages
        stem, _, kernel, _ = model.conv1.weight.shape
        self.conv1 = nn.Conv2d(3, stem, kernel, 2 if model.imagenet else 1, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        for i in range(1, model.stages + 1):
            blocks = [Bottleneck(block) for _, block in getattr(model, f"layer{i}").children()]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        classes, features = model.fc.weight.shape
        self.fc = nn.Linear(features, classes)
        self.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in model.state_dict().items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))
