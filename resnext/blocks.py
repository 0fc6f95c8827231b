"""The ResNeXt block in its three equivalent forms (Xie et al. 2017, Figure 3).

    y = ReLU(shortcut(x) + BN(Σᵢ Tᵢ(x)))        Tᵢ: 1x1 to d channels, 3x3, 1x1 back;  i = 1 ... C

A neuron computes Σ wᵢ xᵢ: it splits its input into numbers, scales each and adds up. The block does the same with
functions in place of the weights. C, the number of paths, is the cardinality; d is the width of one.

    (a) C paths, their outputs summed     (b) paths concatenated before       (c) grouped convolution
                                              one last 1x1
        x ─┬─ 1x1 ─ 3x3 ─ 1x1 ─┐              x ─┬─ 1x1 ─ 3x3 ─┐                 x ── 1x1 ── 3x3, C groups ── 1x1
           ├─ 1x1 ─ 3x3 ─ 1x1 ─┼─ +              ├─ 1x1 ─ 3x3 ─┼─ concat ─ 1x1
           └─ 1x1 ─ 3x3 ─ 1x1 ─┘                 └─ 1x1 ─ 3x3 ─┘

(a) = (b): multiplying the concatenated [x₁ x₂] by the stacked [B₁; B₂] is x₁B₁ + x₂B₂.  (b) = (c): C small 1x1
convolutions of the same x are one with their filters stacked, and C separate 3x3 convolutions of neighbouring channels
are one with C groups: that is the definition of groups. Form (c) is the shortest and the fastest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from minigrad import Tensor
from minigrad import functional as F
from minigrad.diagnosis import shown
from minigrad.nn import BatchNorm2d, Conv2d, Identity, Module, Sequential
from minigrad.ops.arguments import as_size, check_kind

FORMS = ("a", "b", "c")
EXPANSION = 4  # the block's output has four times its stage's base channels: 64 -> 256 and so on


class Path(Module):
    """One transformation Tᵢ: 1x1 to d channels, 3x3, and in form (a) its own 1x1 to the block's output."""

    def __init__(self, in_channels: int, d: int, stride: int, out_channels: int | None):
        self.conv1 = Conv2d(in_channels, d, 1, bias=False)
        self.bn1 = BatchNorm2d(d)
        self.conv2 = Conv2d(d, d, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(d)
        self.conv3 = None if out_channels is None else Conv2d(d, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return y if self.conv3 is None else self.conv3(y)


class Bottleneck(Module):
    """A block with `cardinality` C paths of width d, as form "a", "b" or "c" of the figure above.

    (N, in_channels, H, W) -> (N, out_channels, H/stride, W/stride), rounded up. The stride sits in the 3x3. The
    shortcut is the identity, or a 1x1 projection with batch norm where shapes change ("type B"); `residual=False`
    leaves it out, for the paper's comparison in Section 5.1. With C = 1 this is the bottleneck of ResNet (He et al.,
    CVPR 2016).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cardinality: int = 1,
        d: int = 64,
        stride: int = 1,
        form: str = "c",
        residual: bool = True,
    ):
        if not isinstance(form, str) or form not in FORMS:
            raise ValueError(f"a block has form 'a', 'b' or 'c', got {shown(form)}")
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "cardinality": cardinality, "d": d}
        in_channels, out_channels, cardinality, d = (as_size(value, name) for name, value in sizes.items())
        stride = as_size(stride, "stride")
        self.form, self.cardinality, self.residual = form, cardinality, residual
        self.in_channels, self.out_channels, self.d, self.stride = in_channels, out_channels, d, stride
        width = cardinality * d  # of all paths together
        if form == "c":
            self.conv1 = Conv2d(in_channels, width, 1, bias=False)
            self.bn1 = BatchNorm2d(width)
            self.conv2 = Conv2d(width, width, 3, stride, padding=1, groups=cardinality, bias=False)
            self.bn2 = BatchNorm2d(width)
        else:
            last = out_channels if form == "a" else None
            self.paths = Sequential(*(Path(in_channels, d, stride, last) for _ in range(cardinality)))
        if form != "a":
            self.conv3 = Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample: Module = Identity()
        if residual and (stride != 1 or in_channels != out_channels):
            self.downsample = Sequential(
                Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, f"aggregate_{self.form}")(x)
        return self.bn3(y, relu=True, shortcut=self.downsample(x) if self.residual else None)

    def aggregate_a(self, x: Tensor) -> Tensor:
        """Σᵢ Tᵢ(x): the definition (Figure 3a, equation 2)."""
        first, *others = (path(x) for _, path in self.paths.children())
        for y in others:
            first = first + y
        return first

    def aggregate_b(self, x: Tensor) -> Tensor:
        """The paths' 3x3 outputs side by side, then one 1x1 (Figure 3b)."""
        return self.conv3(F.concat([path(x) for _, path in self.paths.children()], axis=1))

    def aggregate_c(self, x: Tensor) -> Tensor:
        """1x1, 3x3 in C groups, 1x1 (Figure 3c)."""
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return self.conv3(y)


def convert(block: Bottleneck, form: str) -> Bottleneck:
    """Return a block of another form that computes the same function: the same weights, split or joined.

    Batch norms keep their eps, momentum and mode, and what is frozen stays frozen.
    """
    check_kind(block, Bottleneck, "convert takes a Bottleneck")
    other = Bottleneck(
        block.in_channels, block.out_channels, block.cardinality, block.d, block.stride, form, block.residual
    )
    weight = next(iter(block.parameters()))
    other.to(weight.device, weight.dtype).train(block.training)
    other.load_state_dict(split(join(block.state_dict(), block.cardinality), block.cardinality, form))
    norms = dict(batch_norms(block))
    for name, norm in batch_norms(other):
        norm.eps, norm.momentum, norm.training = norms[name].eps, norms[name].momentum, norms[name].training
    frozen = {ONE_PATH.sub("", name) for name, p in block.named_parameters() if not p.requires_grad}
    for name, p in other.named_parameters():
        p.requires_grad = ONE_PATH.sub("", name) not in frozen
    return other


ONE_PATH = re.compile(r"paths\.\d+\.")  # in front of the names that a path's layers have in form (c)


def batch_norms(module: Module, prefix: str = "") -> Iterator[tuple[str, BatchNorm2d]]:
    """Yield the batch norms below a module, those of a path by their names in form (c)."""
    for name, child in module.children():
        if isinstance(child, BatchNorm2d):
            yield ONE_PATH.sub("", prefix + name), child
        yield from batch_norms(child, f"{prefix}{name}.")


def convert_network(network: Module, form: str) -> Module:
    """Replace every block of a network, in place, by its equivalent of another form; return the network."""
    check_kind(network, Module, "convert_network takes a network")
    for parent in list(network.modules()):
        for name, child in list(parent.children()):
            if isinstance(child, Bottleneck):
                setattr(parent, name, convert(child, form))
    return network


# Which axis of a weight in form (c) runs over the paths. In conv3 it is the input: path i feeds columns i d ... of it.
PATH_AXIS = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}


def split(state: dict[str, np.ndarray], cardinality: int, form: str) -> dict[str, np.ndarray]:
    """Take the weights of form (c) apart into those of `form`."""
    moved = {"a": ("conv1", "bn1", "conv2", "bn2", "conv3"), "b": ("conv1", "bn1", "conv2", "bn2"), "c": ()}[form]
    parts: dict[str, np.ndarray] = {}
    for name, array in state.items():
        layer = name.split(".")[0]
        if layer not in moved:
            parts[name] = array
            continue
        # num_batches_tracked is one number: every path has seen the same batches.
        pieces = np.split(array, cardinality, PATH_AXIS[layer]) if array.ndim else [array] * cardinality
        parts.update({f"paths.{i}.{name}": piece for i, piece in enumerate(pieces)})
    return parts


def join(parts: dict[str, np.ndarray], cardinality: int) -> dict[str, np.ndarray]:
    """Put the weights of form (a) or (b) together into those of form (c); those of (c) stay as they are."""
    state = {name: array for name, array in parts.items() if not name.startswith("paths.")}
    for name, first in parts.items():
        if name.startswith("paths.0."):
            own = name.removeprefix("paths.0.")
            pieces = [parts[f"paths.{i}.{own}"] for i in range(cardinality)]
            state[own] = np.concatenate(pieces, PATH_AXIS[own.split(".")[0]]) if first.ndim else first
    return state
