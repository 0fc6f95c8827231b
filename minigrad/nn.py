"""Layers: modules that hold parameters, and the initial values these start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import ops
from .backend import device_of, float_dtype, generator, is_float, to_device
from .ops.arguments import Pair, as_array, as_pair, as_probability, as_size, check_kind, check_moving, check_tensors
from .tensor import Tensor


class Parameter(Tensor):
    """A tensor that training changes: a leaf that requires a gradient, found by its module."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad=requires_grad)


class Module:
    """A function with parameters. A subclass sets attributes in `__init__` and defines `forward`.

    What an attribute is decides its role: a `Parameter` is trained; any other `Tensor` is a buffer, saved but not
    trained (batch norm's running statistics); a `Module` is a child. Names join with dots: "layer1.0.conv2.weight".
    Who replaces a parameter assigns a `Parameter`: a plain `Tensor` in its place would be a buffer.
    """

    training = True

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for the modules that are attributes of this one."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) for the parameters and buffers of this module and all below it."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_tensors(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter) for what training changes; one that several layers share once, by its first name."""
        seen: dict[Tensor, str] = {}
        every = ((name, t) for name, t in self.named_tensors() if isinstance(t, Parameter))
        return ((name, t) for name, t in every if seen.setdefault(t, name) == name)

    def parameters(self) -> Iterator[Parameter]:
        """Yield what training changes, in the order of `named_parameters`."""
        return (p for _, p in self.named_parameters())

    def train(self, mode: bool = True) -> Module:
        """Switch batch norm and dropout, here and below, to training (or, with False, to evaluation)."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch to evaluation: batch norm uses its running statistics, dropout passes everything."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.grad = None

    def to(self, device: str | None = None, dtype: Any = None) -> Module:
        """Move parameters and buffers, in place, to a device and a floating-point dtype; forgets gradients.

        Integer buffers, which only count, stay on the host in their dtype.
        """
        for _, t in self.named_tensors():
            if is_float(t.dtype):
                moved = t.data if device is None else to_device(t.data, device)
                wanted = t.dtype if dtype is None else float_dtype(dtype, device_of(moved))
                t.data = moved.astype(wanted, copy=False)
                t.grad = None
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers as contiguous NumPy arrays, by name."""
        return {name: np.array(t.numpy(), order="C") for name, t in self.named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Give the parameters and buffers copies of the arrays of their names; return (missing, unexpected) names.

        A "module." in front of every name, which data-parallel training leaves behind, is dropped. Nothing is changed
        unless everything fits: raises ValueError for arrays of another shape and, when `strict`, for missing and
        unexpected names. `num_batches_tracked`, which counts steps and is used by nothing, may be missing, and is left
        as it was where it is no integer.
        """
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise TypeError(f"load_state_dict takes a dictionary of arrays by name, got {type(state).__name__}")
        own = dict(self.named_tensors())
        if state and all(n.startswith("module.") for n in state) and not any(n.startswith("module.") for n in own):
            state = {name.removeprefix("module."): value for name, value in state.items()}
        missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
        unexpected = [n for n in state if n not in own]
        if strict and (missing or unexpected):
            raise ValueError(
                f"the weights do not fit the {type(self).__name__}: "
                + "; ".join(
                    f"{kind}: {_some(n)}" for kind, n in (("missing", missing), ("unexpected", unexpected)) if n
                )
            )
        arrays = {n: as_array(state[n], n) for n in own if n in state}
        # Who halves all of a file's arrays halves the counters too, up to infinity.
        arrays = {n: a for n, a in arrays.items() if a.dtype.kind in "iub" or not n.endswith("num_batches_tracked")}
        for n, array in arrays.items():
            if array.shape != own[n].shape:
                raise ValueError(f"{n} has shape {array.shape} in the weights and {own[n].shape} in the model")
            if (array.dtype.kind in "iub") != (own[n].dtype.kind in "iub") or array.dtype.kind in "cmMOSU":
                raise TypeError(f"{n} has dtype {array.dtype} in the weights and {own[n].dtype} in the model")
        for n, array in arrays.items():
            own[n].data = to_device(array.astype(own[n].dtype), own[n].device)
        return missing, unexpected


def _some(names: list[str], limit: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class Sequential(Module):
    """Modules one after the other, named "0", "1", ...; `sequential[i]` is one of them."""

    def __init__(self, *modules: Module):
        for i, module in enumerate(modules):
            check_kind(module, Module, "Sequential takes modules")
            setattr(self, str(i), module)

    def forward(self, x: Tensor) -> Tensor:
        for _, module in self.children():
            x = module(x)
        return x

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __getitem__(self, i: int) -> Module:
        return [module for _, module in self.children()][i]


def he_normal(shape: tuple[int, ...], fan: int) -> np.ndarray:
    """Draw from N(0, 2/fan), in float32: keeps the variance through ReLU layers (He et al., ICCV 2015, eq. 10)."""
    return generator().standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan))


def uniform(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Draw uniformly from ±1/√fan_in, in float32: PyTorch's start for linear layers and biases."""
    bound = 1 / np.sqrt(fan_in)
    return generator().uniform(-bound, bound, shape).astype(np.float32)


def _cast(layer: Conv2d | Linear, x: Tensor, mixed: bool = False) -> tuple[Tensor, Tensor | None]:
    """The layer's weight and bias in the precision of x, which must be a tensor.

    Weights are kept in float32 and may meet bfloat16 activations. An operation that is `mixed` takes them as they are;
    otherwise the cast is on the tape. Either way their gradient is float32.
    """
    check_tensors(type(layer).__name__, x=x)
    dtype = x.dtype if is_float(x.dtype) and not (mixed and x.dtype.itemsize == 2) else layer.weight.dtype
    return layer.weight.to(dtype=dtype), None if layer.bias is None else layer.bias.to(dtype=dtype)


class Conv2d(Module):
    """Convolution with `out_channels` filters; see `ops.conv.conv2d`. Weights (O, C/groups, KH, KW).

    They start from N(0, 2 / (KH KW O)), "fan out" over all filters, as in the authors' code. Raises ValueError where
    the channels are not divisible by the groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        in_channels, out_channels, groups = (as_size(value, name) for name, value in sizes.items())
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: {in_channels} input and {out_channels} output channels must be divisible by {groups} groups"
            )
        kernel = as_pair(kernel_size, "kernel_size", 1)
        self.stride, self.padding = as_pair(stride, "stride", 1), as_pair(padding, "padding", 0)
        self.dilation, self.groups = as_pair(dilation, "dilation", 1), groups
        fan_in, fan_out = (in_channels // groups * kernel[0] * kernel[1], out_channels * kernel[0] * kernel[1])
        self.weight = Parameter(he_normal((out_channels, in_channels // groups, *kernel), fan_out))
        self.bias = Parameter(uniform((out_channels,), fan_in)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, *_cast(self, x, mixed=True), self.stride, self.padding, self.dilation, self.groups)


class BatchNorm2d(Module):
    """Batch normalisation with its running statistics; `bn(x, relu=True, shortcut=s)` is max(BN(x) + s, 0) in one node.

    See `ops.norm.batch_norm`. Scale starts at 1, shift at 0, the running mean at 0 and the running variance at 1.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        num_features = as_size(num_features, "num_features")
        self.momentum, self.eps = check_moving("BatchNorm2d", momentum, eps)
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Tensor(np.zeros(num_features, np.float32))
        self.running_var = Tensor(np.ones(num_features, np.float32))
        self.num_batches_tracked = Tensor(np.zeros((), np.int64))

    def forward(self, x: Tensor, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        check_tensors("BatchNorm2d", x=x, shortcut=shortcut)
        if x.ndim != 4:
            raise ValueError(f"BatchNorm2d expects images of shape (N, C, H, W), got {x.shape}")
        if shortcut is not None and not relu:
            raise ValueError("BatchNorm2d adds a shortcut only in front of a ReLU: pass relu=True")
        state = (self.weight, self.bias, self.running_mean, self.running_var, self.training, self.momentum, self.eps)
        y = ops.batch_norm_relu(x, *state, shortcut=shortcut) if relu else ops.batch_norm(x, *state)
        if self.training:
            self.num_batches_tracked.data += 1
        return y


class Linear(Module):
    """y = x weightᵀ + bias with weights (O, I); both start uniform in ±1/√I."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        in_features, out_features = as_size(in_features, "in_features"), as_size(out_features, "out_features")
        self.weight = Parameter(uniform((out_features, in_features), in_features))
        self.bias = Parameter(uniform((out_features,), in_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, *_cast(self, x))


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class _Pool(Module):
    """A window and how it moves; the stride is the window's size unless given."""

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0):
        self.kernel_size, self.padding = as_pair(kernel_size, "kernel_size", 1), as_pair(padding, "padding", 0)
        self.stride = self.kernel_size if stride is None else as_pair(stride, "stride", 1)


class MaxPool2d(_Pool):
    """The largest value of each window; see `ops.pool.max_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool):
    """The mean of each window; see `ops.pool.avg_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class GlobalAvgPool2d(Module):
    """The mean over each channel's image: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.global_avg_pool2d(x)


class Dropout(Module):
    """Zero each value with probability p in training, pass everything in evaluation; see `ops.activation.dropout`."""

    def __init__(self, p: float = 0.5):
        self.p = as_probability(p, "Dropout")

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)


class Flatten(Module):
    """(N, ...) -> (N, everything else)."""

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("Flatten", x=x)
        return x.reshape(x.shape[0], -1)


class Identity(Module):
    """x itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x
