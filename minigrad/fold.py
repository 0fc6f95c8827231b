"""Batch norm folded into the convolution before it: a network for evaluation alone, with the same results, sooner.

In evaluation batch norm is a straight line for each channel, with the running mean μ and variance σ² (Ioffe & Szegedy,
ICML 2015, Algorithm 2, lines 10 and 11). Convolution is linear, so it can be asked for the line's values at once, by
filters that are scaled beforehand:

    g (w ∗ x + b - μ) / √(σ² + ε) + β  =  w' ∗ x + b'        w' = w g / √(σ² + ε)
                                                             b' = β + (b - μ) g / √(σ² + ε)

What is left of batch norm, ReLU and shortcut is a maximum of sums, which a convolution can take itself.
"""

from __future__ import annotations

from copy import copy
from itertools import pairwise
from typing import Any, NamedTuple

from .backend import Array, array_module
from .nn import BatchNorm2d, Conv2d, Module
from .ops import conv
from .ops.arguments import check_kind, check_tensors
from .tensor import Tensor


class ConvReLU(conv.Conv2d):
    """max(conv2d(x, w, bias) + shortcut, 0) in one node; without the maximum where `relu` is False."""

    def forward(  # type: ignore[override]
        self, x: Array, w: Array, bias: Array, shortcut: Array | None = None, *, relu: bool, **options: Any
    ) -> Array:
        z = super().forward(x, w, bias, **options)
        z = z if shortcut is None else z + shortcut
        self.positive = z > 0 if relu else None
        return array_module(z).maximum(z, 0) if relu else z

    def backward(self, dy: Array) -> tuple[Array | None, ...]:  # type: ignore[override]
        dz = dy if self.positive is None else dy * self.positive
        return (*super().backward(dz), dz)


class Promise(NamedTuple):
    """What a folded convolution returns: itself and its image, to be convolved where the batch norm stood."""

    x: Tensor
    convolution: FoldedConv2d

    def __getattr__(self, name: str) -> Any:
        raise TypeError(
            f"fold: the convolution's output goes into the batch norm alone, but .{name} of it was asked for"
        )


class FoldedConv2d(Module):
    """A convolution that carries the scale and shift of the batch norm after it; see the top of this file.

    It computes nothing by itself: only the call of the batch norm knows of ReLU and shortcut.
    """

    def __init__(self, layer: Conv2d, norm: BatchNorm2d, pair: object):
        self.pair = pair
        g, beta, mean, var = (
            t.data.astype("float64") for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        scale = g / array_module(var).sqrt(var + norm.eps)
        w, b = layer.weight.data, 0 if layer.bias is None else layer.bias.data
        self.weight = Tensor._of(w * scale.astype(w.dtype)[:, None, None, None])
        self.bias = Tensor._of((beta + (b - mean) * scale).astype(w.dtype))
        self.options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}

    def forward(self, x: Tensor) -> Promise:
        check_tensors("FoldedConv2d", x=x)
        return Promise(x, self)


class FoldedNorm(Module):
    """What is left of a batch norm whose scale and shift the convolution has: its ReLU and its shortcut."""

    def __init__(self, pair: object):
        self.pair = pair

    def forward(self, promise: Promise, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        if not isinstance(promise, Promise) or promise.convolution.pair is not self.pair:
            raise TypeError("a folded batch norm takes what the convolution before it returns, and nothing else")
        x, layer = promise
        weight, bias = (t if t.dtype == x.dtype else t.to(dtype=x.dtype) for t in (layer.weight, layer.bias))
        return ConvReLU.apply(x, weight, bias, shortcut, relu=relu, **layer.options)


def fold(network: Module) -> Module:
    """Return a copy of a network that computes what it computes in evaluation, with batch norm folded away.

    Folded is every `BatchNorm2d` that stands right behind a `Conv2d` of its width among a module's attributes, where it
    must be called on the convolution's output and nothing else (TypeError when the copy is called). All else stays as
    it is. The copy has nothing to train, and later changes of the network do not reach it: fold again.
    """
    check_kind(network, Module, "fold takes a network")
    folded = copy(network)
    vars(folded).update({n: Tensor(t) for n, t in vars(network).items() if isinstance(t, Tensor)}, training=False)
    children = list(network.children())
    for name, child in children:
        setattr(folded, name, fold(child))
    for (first, layer), (second, norm) in pairwise(children):
        if (
            type(layer) is Conv2d
            and type(norm) is BatchNorm2d
            and len(layer.weight) == len(norm.weight)
            and "forward" not in vars(layer) | vars(norm)
        ):
            pair = object()
            setattr(folded, first, FoldedConv2d(layer, norm, pair))
            setattr(folded, second, FoldedNorm(pair))
    return folded
