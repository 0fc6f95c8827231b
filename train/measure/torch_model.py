"""PyTorch's side of `python -m train.bench --versus torch`: the networks of `resnext`, and what measures them.

Only a process that runs PyTorch imports this file.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import nn

import minigrad
import resnext

from .environment import peak_memory
from .workers import RECIPE, batch_of, in_a_row


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


class Torch:
    """The same network in PyTorch, with minigrad's weights, in one of `torch_modes`."""

    def __init__(self, args: argparse.Namespace, mode: str):
        if args.threads and args.device == "cpu":
            torch.set_num_threads(args.threads)
        minigrad.manual_seed(0)
        self.device = args.device
        layout = torch.contiguous_format if "NCHW" in mode else torch.channels_last
        network = resnext.create(args.model)
        assert isinstance(network, resnext.ResNeXt)  # `train.bench` has made sure
        model = ResNeXt(network).to(args.device, memory_format=layout)
        self.layout, self.model = layout, model
        # What minigrad does for a forward pass: weights that stay as they are, with batch norm folded into them.
        torch._inductor.config.freezing = args.device == "cpu"
        # "reduce-overhead" is PyTorch's name for CUDA graphs, which a small network needs: see minigrad's graph.py.
        how = "reduce-overhead" if "CUDA graphs" in mode else "default"
        self.run = torch.compile(model, mode=how) if "compile" in mode else model
        self.half = mode.endswith("bfloat16")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # float32 with all its digits, as in minigrad
        self.optimizer = torch.optim.SGD(model.parameters(), **RECIPE, fused=args.device != "cpu")
        self.use(args.batch_size, args.image_size)

    def use(self, batch: int, image: int) -> None:
        images, labels = batch_of(batch, image)
        self.images = torch.from_numpy(images).to(self.device).contiguous(memory_format=self.layout)
        self.labels = torch.from_numpy(labels).to(self.device)

    def autocast(self) -> Any:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.half)

    def train(self) -> None:
        self.model.train()
        for _ in range(in_a_row(self.device)):
            torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                loss = F.cross_entropy(self.run(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
        self.wait()

    def forward(self) -> None:
        self.model.eval()
        with torch.no_grad(), self.autocast():
            for _ in range(in_a_row(self.device)):
                torch.compiler.cudagraph_mark_step_begin()
                self.run(self.images)
        self.wait()

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        return peak_memory() if self.device == "cpu" else torch.cuda.max_memory_reserved(self.device)

    def describe(self) -> dict[str, Any]:
        return {"torch": torch.__version__}
