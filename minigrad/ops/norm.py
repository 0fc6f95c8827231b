"""Batch normalisation, alone and with the shortcut and ReLU that follow it in a residual network.

x has shape (N, C, H, W) or (N, C); every channel is normalised over the m = N H W values that it has in the batch.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module, total
from ..tensor import Function, Tensor
from .arguments import check_tensors, norm_options


class BatchNorm(Function):
    """y = weight x̂ + bias with x̂ = (x - μ) / √(σ² + ε) (Ioffe & Szegedy, ICML 2015, Algorithm 1).

    In training μ and σ² are the batch's own mean and (biased) variance; x then reaches x̂ three ways, directly, through
    μ and through σ², and their sum is

        dx = weight / √(σ² + ε) · (dy - mean(dy) - x̂ mean(dy x̂))

    the part of dy that is neither constant nor along x̂: a shift or a scaling of x leaves y as it is. In evaluation μ
    and σ² are constants, and dx = weight / √(σ² + ε) · dy.
    """

    mixed = True

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        *,
        running_mean: Array,
        running_var: Array,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Array:
        self.axes = (0, *range(2, x.ndim))
        self.channels = (1, -1) + (1,) * (x.ndim - 2)  # the shape in which a value per channel meets x
        self.training, self.weight, self.dtype = training, weight, x.dtype
        x = x.astype(weight.dtype, copy=False)  # bfloat16 has too few digits for a variance

        if training:
            m = x.size // x.shape[1]
            mean = total(x, self.axes) / m
            centred = x - mean.reshape(self.channels)
            var = total(centred * centred, self.axes) / m
            update_running(running_mean, mean, momentum)
            update_running(running_var, var * (m / (m - 1)), momentum)  # the unbiased variance
        else:
            mean, var = (r.astype(x.dtype, copy=False) for r in (running_mean, running_var))
            centred = x - mean.reshape(self.channels)

        self.inv_std = 1 / array_module(x).sqrt(var + eps)
        self.x_hat = centred * self.inv_std.reshape(self.channels)
        y = self.x_hat * weight.reshape(self.channels) + bias.reshape(self.channels)
        return y.astype(self.dtype, copy=False)

    def backward(self, dy: Array) -> tuple[Array, Array, Array]:
        dy = dy.astype(self.weight.dtype, copy=False)
        dweight = total(dy * self.x_hat, self.axes)
        dbias = total(dy, self.axes)
        dx = dy
        if self.training:
            m = dy.size // dy.shape[1]
            dx = dy - (dbias / m).reshape(self.channels) - self.x_hat * (dweight / m).reshape(self.channels)
        dx = dx * (self.weight * self.inv_std).reshape(self.channels)
        return dx.astype(self.dtype, copy=False), dweight, dbias


class BatchNormReLU(BatchNorm):
    """y = max(BN(x) + shortcut, 0): the end of a residual block as one node, so that one pass can do all of it.

    With z = BN(x) + shortcut and dz = dy where z > 0, the shortcut's gradient is dz and the others follow from dz.
    """

    inputs_at_most = 4

    def forward(self, x: Array, weight: Array, bias: Array, shortcut: Array | None = None, **options: Any) -> Array:
        z = super().forward(x, weight, bias, **options)
        z = z if shortcut is None else z + shortcut
        self.positive = z > 0
        return array_module(z).maximum(z, 0)

    def backward(self, dy: Array) -> tuple[Array, Array, Array, Array]:  # type: ignore[override]
        dz = dy * self.positive
        return (*super().backward(dz), dz)


def update_running(running: Array | None, batch: Array, momentum: float) -> None:
    """running ← (1 - momentum) running + momentum batch, in place; nothing where no running value is kept."""
    if running is not None:
        running *= 1 - momentum
        running += momentum * batch


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of x (N, C, H, W) or (N, C), then scale by `weight` and shift by `bias`, both (C,).

    y = weight (x - μ) / √(σ² + eps) + bias. In training μ and σ² are the batch's mean and biased variance, and the
    running statistics move in place: running = (1 - momentum) running + momentum batch, with the unbiased variance
    (Ioffe & Szegedy, ICML 2015, with PyTorch's conventions). In evaluation μ and σ² are the running statistics. These
    may be tensors, arrays or, in training, None. Raises ValueError for shapes and devices that do not fit and, in
    training, for one value per channel.
    """
    options = norm_options(x, weight, bias, running_mean, running_var, training, momentum, eps)
    return BatchNorm.apply(x, weight, bias, **options)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    shortcut: Tensor | None = None,
) -> Tensor:
    """max(batch_norm(x, ...) + shortcut, 0): the same numbers as the three operations, in one node of the graph.

    Without a shortcut it is relu(batch_norm(x, ...)). Raises what `batch_norm` raises, and ValueError for a shortcut
    whose shape is not x's.
    """
    options = norm_options(x, weight, bias, running_mean, running_var, training, momentum, eps)
    check_tensors("batch_norm_relu", shortcut=shortcut)
    if shortcut is not None and shortcut.shape != x.shape:
        raise ValueError(f"batch_norm_relu: the shortcut's shape {shortcut.shape} must be the input's, {x.shape}")
    return BatchNormReLU.apply(x, weight, bias, shortcut, **options)
