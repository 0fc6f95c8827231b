"""Parameters and multiply-adds of a network, counted by sending shapes through it in place of numbers.

A multiply-add is one product added to a sum. The paper prints them as "FLOPs" and counts, as everybody does, those of
convolutions and linear layers; batch norm, ReLU, pooling and additions are left out.

    convolution   O · OH · OW · (C/G) · KH · KW      every output pixel of every filter is a sum of (C/G) KH KW products
    linear        O · I
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from minigrad import Tensor, nn, no_grad
from minigrad.nn import BatchNorm2d, Conv2d, Linear, Module
from minigrad.ops.arguments import as_pair
from minigrad.ops.conv import output_size


@dataclass(frozen=True)
class Layer:
    """One layer with parameters, as an image of a given size meets it."""

    name: str  # layer1.0.conv2
    kind: str  # conv 3x3, 128 -> 128, 32 groups
    output: tuple[int, ...]  # shape for one image: (O, OH, OW)
    parameters: int
    multiply_adds: int


def parameters(model: Module) -> int:
    """The number of values that training changes."""
    return sum(p.size for p in model.parameters())


def multiply_adds(model: Module, size: int | None = None) -> int:
    """The multiply-adds of one forward pass of one image of `size` x `size` pixels (default: the network's own)."""
    return sum(layer.multiply_adds for layer in trace(model, size))


def trace(model: Module, size: int | None = None) -> list[Layer]:
    """Send one image through the network and list its layers in the order in which they are used.

    Convolutions, batch norms and linear layers are replaced, for this one pass, by functions that return zeros of the
    right shape, so nothing that takes time is computed.
    """
    layers: list[Layer] = []
    counted = [(name, module) for name, module in named_modules(model) if type(module) in COUNTERS]
    side = size or model.input_size  # type: ignore[attr-defined]
    try:
        for name, module in counted:
            vars(module)["forward"] = _recorder(name, module, layers)  # found before the class's own forward
        with no_grad():
            model(Tensor(np.zeros((1, 3, side, side), np.float32)))
    finally:
        for _, module in counted:
            vars(module).pop("forward", None)
    return layers


def _recorder(name: str, module: Module, layers: list[Layer]) -> Any:
    """A forward() that notes the layer and returns zeros of its output's shape, which share one number's memory."""

    def forward(x: Tensor, **options: Any) -> Tensor:
        kind, output, products = COUNTERS[type(module)](module, x.shape[1:])
        layers.append(Layer(name, kind, output, parameters(module), products))
        return Tensor._of(np.broadcast_to(np.float32(0), (len(x), *output)))

    return forward


def _conv(layer: Conv2d, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], int]:
    O, c, KH, KW = layer.weight.shape
    stride, dilation = as_pair(layer.stride, "stride", 1), as_pair(layer.dilation, "dilation", 1)
    out = output_size((shape[1], shape[2]), (KH, KW), stride, as_pair(layer.padding, "padding", 0), dilation)
    kind = f"conv {KH}x{KW}, {shape[0]} -> {O}"
    kind += f", {layer.groups} groups" if layer.groups > 1 else ""
    kind += f", /{stride[0]}" if stride != (1, 1) else ""
    return kind, (O, *out), O * math.prod(out) * c * KH * KW


def _batch_norm(layer: BatchNorm2d, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], int]:
    return "batch norm", shape, 0


def _linear(layer: Linear, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], int]:
    O, I = layer.weight.shape
    return f"linear, {I} -> {O}", (O,), O * I


COUNTERS: dict[type[Module], Any] = {Conv2d: _conv, BatchNorm2d: _batch_norm, Linear: _linear}


def named_modules(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (name, module) for all modules below this one, in the order of their definition."""
    for name, child in module.children():
        yield prefix + name, child
        yield from named_modules(child, f"{prefix}{name}.")


class Outline(nn.Parameter):
    """A parameter with a shape but without memory of its own."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        self._set(data)
        self.requires_grad = requires_grad


@contextmanager
def outlines() -> Iterator[None]:
    """Inside, networks are built from `Outline`s: 80 million parameters then cost neither memory nor random numbers."""

    def zeros(shape: tuple[int, ...], fan: int) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    with replaced(nn, he_normal=zeros, uniform=zeros, Parameter=Outline):
        yield


@contextmanager
def replaced(module: ModuleType, **stand_ins: Any) -> Iterator[None]:
    """Inside, names of a module mean something else: `unittest.mock.patch.multiple`, whose import takes 35 ms."""
    own = {name: getattr(module, name) for name in stand_ins}
    vars(module).update(stand_ins)
    try:
        yield
    finally:
        vars(module).update(own)
