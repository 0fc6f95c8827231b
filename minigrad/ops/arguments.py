"""What the operations accept: their arguments are checked here, so that the other files of this folder hold formulas.

Whatever does not fit is refused before anything is computed, with a TypeError for the wrong kind of thing and a
ValueError for the wrong size, in one sentence that names the numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import Array, array_module, capturing, device_of, is_array, is_float, to_device
from ..diagnosis import shown
from ..tensor import Tensor

Pair = tuple[int, int]


def check_tensors(operation: str, **arguments: Any) -> None:
    """Raise TypeError for an argument that is no tensor; a bias and a shortcut may be None."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (value is None and name in ("bias", "shortcut")):
            kind = type(value).__name__
            raise TypeError(f"{operation} takes tensors, got {kind} for its {name}: wrap it in Tensor(...)")


def check_kind(value: Any, kind: Any, sentence: str) -> None:
    """Raise TypeError with the sentence, and what came instead, unless the value is of that kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{sentence}, got {type(value).__name__}")


def as_tensors(operation: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Return both sides of an operator as tensors: what is none takes the other's device and floating-point dtype."""
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        check_tensors(operation, a=a, b=b)  # which raises
    return _beside(a, b), _beside(b, a)


def _beside(value: Any, other: Any) -> Tensor:
    """Return `value` as a tensor that can be combined with the tensor `other`; a boolean stays one."""
    if isinstance(value, Tensor):
        return value
    floating = is_float(other.dtype)
    if floating and isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        # Written where it is needed: a copy from the host would make the GPU wait, and no captured graph may hold one.
        return Tensor._of(array_module(other.data).full((), as_number(value, "a number"), other.dtype))
    tensor = Tensor(value, device=other.device)
    floating = floating and not isinstance(value, bool | np.bool)
    return Tensor._of(tensor.data.astype(other.dtype, copy=False)) if floating else tensor


def is_integer(value: Any) -> bool:
    """True for integers of Python and NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_number(value: Any, name: str) -> float:
    """Return a number of Python or NumPy as a float, infinite where none is so large; TypeError for anything else.

    Compared and combined with others as it is, a float16 or an int8 would turn these into its own kind.
    """
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_amount(value: Any, name: str) -> float:
    """Return a finite number that is not negative as a float; ValueError for one that is not."""
    if not 0 <= (number := as_number(value, name)) < math.inf:
        raise ValueError(f"{name} must be a finite number that is not negative, got {shown(value)}")
    return number


def as_factor(value: Any, times: int, name: str) -> float:
    """Return an amount that may be multiplied by itself so many times; ValueError where no float is so large."""
    number = as_amount(value, name)
    if number > 1 and times * math.log(number) > math.log(sys.float_info.max):
        raise ValueError(f"{name} {number:g} to the power of {times} is larger than any number")
    return number


def as_size(value: Any, name: str) -> int:
    """Return a positive integer; ValueError for anything else, and for what no memory could hold."""
    if not is_integer(value) or not 0 < value < 1 << 31:
        limit = " below 2^31" if is_integer(value) and value > 0 else ""
        raise ValueError(f"{name} must be a positive integer{limit}, got {shown(value)}")
    return int(value)


def as_list(values: Any, name: str) -> list[Any]:
    """Return what a loop can run over as a list; TypeError for anything else."""
    if isinstance(values, str):  # Python could run over its letters
        raise TypeError(f"a list of {name} is needed, got {shown(values)}")
    check_kind(values, Iterable, f"a list of {name} is needed")
    return list(values)


def as_array(value: Any, name: str) -> np.ndarray:
    """Return what NumPy makes of a value on the host; ValueError where it is no rectangular array."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be a rectangular array, got {shown(value)}") from None


def as_pair(value: Any, name: str, minimum: int) -> Pair:
    """Return an int or a pair of ints as a pair (rows, columns); ValueError below `minimum`, TypeError otherwise."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(is_integer(n) for n in pair):
        raise TypeError(f"{name} is an integer or a pair of integers, got {shown(value)}")
    if min(pair) < minimum or max(pair) >= 1 << 31:
        limit = " and below 2^31" if min(pair) >= minimum else ""
        raise ValueError(f"{name} must be at least {minimum}{limit}, got {shown(value)}")
    return int(pair[0]), int(pair[1])


def as_axes(operation: str, axis: Any, x: Tensor) -> tuple[int, ...]:
    """Return `axis` as a tuple of distinct axes of x counted from the front; None means all. Raises where it is not."""
    check_tensors(operation, x=x)
    axes = tuple(range(x.ndim)) if axis is None else tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    for a in axes:
        if not is_integer(a):
            raise TypeError(f"{operation}: an axis is an integer, got {shown(a)}")
        if not -x.ndim <= a < x.ndim:
            raise ValueError(f"{operation}: axis {a} is out of range for a tensor with {x.ndim} axes")
    axes = tuple(int(a) % x.ndim for a in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{operation}: axis {axis} names an axis twice")
    return axes


def as_shape(shape: tuple[Any, ...], x: Tensor) -> tuple[int, ...]:
    """Return the sizes that `reshape` was given, one by one or in a list; raise where x does not fit into them."""
    check_tensors("reshape", x=x)
    wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if not all(is_integer(n) for n in wanted):
        raise TypeError(f"a shape is made of integers, got {wanted}")
    known = math.prod(int(n) for n in wanted if n != -1)
    holes = wanted.count(-1)
    fits = x.size == known if not holes else known and holes == 1 and x.size % known == 0
    if not fits or min(wanted, default=0) < -1:
        raise ValueError(f"a tensor of shape {x.shape} with {x.size} values cannot take shape {wanted}")
    return wanted


def check_concat(tensors: Any, axis: Any) -> int:
    """Return the axis along which tensors can be joined, counted from the front; raise where they cannot."""
    if not isinstance(tensors, tuple | list) or not tensors:
        raise TypeError(f"concat needs a list of at least one tensor, got {type(tensors).__name__}")
    first = tensors[0]
    (a,) = as_axes("concat", (axis,), first)
    for t in tensors:
        check_tensors("concat", list=t)
        if t.ndim != first.ndim or t.shape[:a] + t.shape[a + 1 :] != first.shape[:a] + first.shape[a + 1 :]:
            raise ValueError(f"concat along axis {axis} needs equal other sizes, got {first.shape} and {t.shape}")
    return a


def check_two(operation: str, arrays: tuple[Array | None, ...]) -> None:
    """Raise TypeError unless a binary operation got two tensors."""
    if len(arrays) != 2 or any(a is None for a in arrays):
        raise TypeError(f"{operation} takes two tensors, got {sum(a is not None for a in arrays)}")


def check_broadcast(operation: str, a: tuple[int, ...], b: tuple[int, ...], inner: int = 0) -> None:
    """Raise ValueError where two shapes, but for their last `inner` axes, do not broadcast as in NumPy."""
    try:
        np.broadcast_shapes(a[: len(a) - inner], b[: len(b) - inner])
    except ValueError:
        raise ValueError(f"{operation} cannot broadcast shapes {a} and {b}") from None


def filled_axes(operation: str, axis: Any, x: Tensor) -> tuple[int, ...]:
    """The same as `as_axes`. Raises ValueError, too, where no value lies along one of the axes."""
    axes = as_axes(operation, axis, x)
    if 0 in (x.shape[a] for a in axes):
        raise ValueError(f"{operation} over no elements: the tensor's shape is {x.shape}, the axes are {axis}")
    return axes


def one_axis(operation: str, axis: Any, x: Tensor) -> int:
    """Return a single axis of x counted from the front. Raises where it is none, or no value lies along it."""
    axes = as_axes(operation, axis, x)
    if len(axes) != 1 or not x.shape[axes[0]]:
        raise ValueError(f"{operation}: one axis with values along it is needed, got axis {axis} of shape {x.shape}")
    return axes[0]


def check_product(a: Tensor, b: Tensor) -> None:
    """Raise ValueError where the matrix product a @ b does not exist."""
    if not a.ndim or not b.ndim:
        raise ValueError(f"a matrix product needs at least one axis on each side, got shapes {a.shape} and {b.shape}")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"a matrix product needs equal inner sizes, got shapes {a.shape} and {b.shape}")


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError where features x (..., I), weights (O, I) and bias (O,) do not fit."""
    check_tensors("linear", x=x, weight=weight, bias=bias)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: features of shape {x.shape} do not fit weights of shape {weight.shape} (O, I)")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: {weight.shape[0]} outputs need a bias of shape {weight.shape[:1]}, got {bias.shape}")


def check_images(x: Tensor, operation: str) -> None:
    """Raise unless x is a batch of images (N, C, H, W) with at least one of each and floating-point values."""
    check_tensors(operation, x=x)
    if x.ndim != 4:
        raise ValueError(f"{operation} expects images of shape (N, C, H, W), got {x.ndim} axes: {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"{operation} got an empty batch: the images' shape is {x.shape}")
    if not is_float(x.dtype):
        raise TypeError(f"{operation} expects floating-point images, got {x.dtype}: scale them and convert with .to()")


def check_window(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, operation: str) -> None:
    """Raise ValueError where the (dilated) window is larger than the padded image."""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    padded = tuple(n + 2 * p for n, p in zip(x.shape[2:], padding, strict=True))
    if reach[0] > padded[0] or reach[1] > padded[1]:
        raise ValueError(
            f"{operation}: a window of {reach[0]}x{reach[1]} pixels does not fit into the padded image of "
            f"{padded[0]}x{padded[1]}"
        )


def check_filters(x: Tensor, weight: Tensor, bias: Tensor | None, groups: Any) -> None:
    """Raise where filters (O, C/G, KH, KW), a bias (O,) and the groups do not fit images x (N, C, H, W)."""
    check_images(x, "conv2d")
    check_tensors("conv2d", weight=weight, bias=bias)
    if weight.ndim != 4:
        raise ValueError(f"conv2d expects weights of shape (O, C/groups, KH, KW), got {weight.shape}")
    C, (O, c, _, _) = x.shape[1], weight.shape
    groups = as_size(groups, "conv2d: groups")
    if C % groups or O % groups:
        raise ValueError(f"conv2d: {C} input channels and {O} filters must both be divisible by {groups} groups")
    if c * groups != C:
        raise ValueError(
            f"conv2d: weights of shape {weight.shape} with {groups} group(s) need {c * groups} input channels, "
            f"the images have {C}"
        )
    if 0 in weight.shape:
        raise ValueError(f"conv2d got empty weights of shape {weight.shape}")
    if bias is not None and bias.shape != (O,):
        raise ValueError(f"conv2d: {O} filters need a bias of shape ({O},), got {bias.shape}")


def as_probability(p: Any, operation: str) -> float:
    """Return p as a float; ValueError unless 0 <= p < 1."""
    if not 0 <= (number := as_number(p, f"{operation}'s p")) < 1:
        raise ValueError(f"{operation} needs a probability 0 <= p < 1, got {shown(p)}")
    return number


def check_moving(operation: str, momentum: Any, eps: Any) -> tuple[float, float]:
    """Return a batch norm's (momentum, eps) as floats; ValueError where they are out of range."""
    momentum, eps = as_number(momentum, f"{operation}'s momentum"), as_number(eps, f"{operation}'s eps")
    if not (0 <= momentum <= 1 and 0 <= eps < math.inf):
        raise ValueError(f"{operation} needs 0 <= momentum <= 1 and eps >= 0, got momentum {momentum} and eps {eps}")
    return momentum, eps


def norm_options(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> dict[str, Any]:
    """Check what batch norm takes, and return its options with the running statistics as arrays."""
    check_tensors("batch_norm", x=x)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"batch_norm expects a batch of shape (N, C, ...) that is not empty, got {x.shape}")
    C = x.shape[1]
    mean, var = (r.data if isinstance(r, Tensor) else r for r in (running_mean, running_var))
    for name, value in (("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", var)):
        shape = getattr(value, "shape", value)
        if shape != (C,) and (value is not None or name in ("weight", "bias")):
            raise ValueError(f"batch_norm: {C} channels need a {name} of shape ({C},), got {shown(shape)}")
    for name, statistic in (("running_mean", mean), ("running_var", var)):
        if statistic is not None and not (is_array(statistic) and is_float(statistic.dtype)):
            kind = getattr(statistic, "dtype", type(statistic).__name__)
            raise TypeError(f"batch_norm needs a floating-point array or tensor as its {name}, got {kind}")
        if statistic is not None and device_of(statistic) != x.device:  # it is changed in place, so never copied
            raise ValueError(f"batch_norm: the input is on {x.device}, {name} on {device_of(statistic)}: move one")
    momentum, eps = check_moving("batch_norm", momentum, eps)
    if training and x.size == C:
        raise ValueError(f"batch_norm in training needs more than one value per channel, got shape {x.shape}")
    if not training and (mean is None or var is None):
        raise ValueError("batch_norm in evaluation needs running_mean and running_var")
    for statistic in (running_mean, running_var):
        if training and isinstance(statistic, Tensor):
            statistic.changed()  # as it will be, in place: an operation that keeps it notices
    return {"running_mean": mean, "running_var": var, "training": training, "momentum": momentum, "eps": eps}


def as_labels(labels: Any, logits: Tensor) -> Array:
    """Return class numbers (N,) as an array on the device of the logits (N, K); raise where they do not fit."""
    array = labels.data if isinstance(labels, Tensor) else labels
    array = array if is_array(array) else as_array(array, "the labels")
    if array.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy expects integer labels, got {array.dtype}")
    N, K = logits.shape
    if array.shape != (N,):
        raise ValueError(f"cross_entropy expects {N} labels of shape ({N},), got shape {array.shape}")
    if capturing(array):
        return array  # while a CUDA graph is recorded nobody can look at a value
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= K:
        raise ValueError(f"cross_entropy: label {low if low < 0 else high} is not one of the {K} classes, 0 to {K - 1}")
    return array if device_of(array) == logits.device else to_device(array, logits.device)
