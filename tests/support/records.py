"""A record of the operations table, and the builders of those that have much in common (see operations.py)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from support.strategies import distinct, normal, positive


@dataclass
class Operation:
    """What one public operation promises."""

    call: Callable[..., Tensor]  # takes the tensors alone: options are bound
    arrays: Callable[[], list[np.ndarray]]  # valid inputs in float64, away from kinks and ties
    bad: list[tuple[Callable[[], Any], type[Exception], str]]  # what is refused, and the sentence
    empty: dict[tuple[tuple[int, ...], ...], tuple[int, ...] | str] = field(default_factory=dict)
    # ^ for inputs of these zero-size shapes: the result's shape, or the sentence (of a ValueError)
    error: float = 2.0  # float32: bound of |y32 - y64| and of |dx32 - dx64|, in eps · max |y64|, eps · max |dx64|
    gradient: bool = True  # has a gradient, which is checked
    integers: bool = False  # takes integers too (otherwise: TypeError)
    view: bool = False  # the result may share the input's memory
    same_dtype: bool = True  # the result has the inputs' dtype
    mixes: bool = False  # takes numbers and arrays beside a tensor
    optional: int | None = None  # which input may be None


def T(*shape):
    """A float64 tensor."""
    return Tensor(normal(0, *shape))


INTEGERS = Tensor(np.arange(4))


def seeded(function):
    """The function with the same random numbers in every call."""

    def call(*tensors):
        minigrad.manual_seed(0)
        return function(*tensors)

    return call


def binary(call, values=positive, name="", error=2.0):
    """An arithmetic operator with broadcasting."""
    return Operation(
        call,
        lambda: [values(0, 2, 1, 3), values(1, 4, 3)],
        [
            (lambda: call(T(2), T(3)), ValueError, rf"{name} cannot broadcast shapes \(2,\) and \(3,\)"),
            (lambda: call(T(2), "text"), TypeError, "a Tensor holds float32, float64, integers or booleans, not <U4"),
            (lambda: call(T(2), None), TypeError, "not object"),
            (lambda: call(T(2), 1j), TypeError, "not complex128"),
            (lambda: call(T(2), True), TypeError, f"{name} computes with floating-point tensors, got bool"),
            (
                lambda: call(T(2), Tensor(np.ones(2, np.float32))),
                TypeError,
                f"{name} got tensors of dtypes float64 and float32",
            ),
        ],
        {((0, 3), (3,)): (0, 3), ((2, 0), (1, 1)): (2, 0), ((0,), ()): (0,)},
        error,
        mixes=True,
    )


def comparison(call):
    """A comparison with broadcasting, which has truth values and no gradient."""
    return Operation(
        call,
        lambda: [normal(0, 2, 3), normal(1, 3)],
        [
            (lambda: call(T(2), T(3)), ValueError, r"cannot broadcast shapes \(2,\) and \(3,\)"),
            (lambda: call(T(2), "2"), TypeError, "not <U1"),
        ],
        {((0, 3), (3,)): (0, 3)},
        gradient=False,
        integers=True,
        same_dtype=False,
        mixes=True,
    )


def reversed_binary(name, combine, error=2.0):
    """An operator whose left side is an array or a number; the tensor stands on the right."""
    left = positive(7, 2, 3)

    def call(x):
        return combine(left.astype(x.dtype), x)

    return Operation(
        call,
        lambda: [positive(0, 2, 3)],
        [
            (
                lambda: combine(np.ones(2), T(3)),
                ValueError,
                rf"{name} cannot broadcast shapes \(2,\) and \(3,\)",
            ),
            (lambda: combine("text", T(2)), TypeError, "not <U4"),
        ],
        {((0, 2, 3),): (0, 2, 3)},
        error,
    )


def elementwise(call, values=normal, error=2.0):
    return Operation(
        call,
        lambda: [values(0, 3, 4)],
        [(lambda: call(np.ones(3)), TypeError, r"takes tensors, got ndarray: wrap it in Tensor\(...\)")],
        {((0, 3),): (0, 3)},
        error,
    )


def reduction(call, empty, error=2.0):
    return Operation(
        lambda x: call(x, axis=(0, -1)),
        lambda: [distinct(0, 3, 4, 2)],
        [
            (lambda: call(T(2, 3), axis=2), ValueError, "axis 2 is out of range for a tensor with 2 axes"),
            (lambda: call(T(2, 3), axis=-3), ValueError, "axis -3 is out of range for a tensor with 2 axes"),
            (lambda: call(T(2, 3), axis=(0, -2)), ValueError, r"axis \(0, -2\) names an axis twice"),
            (lambda: call(T(2, 3), axis=1.0), TypeError, "an axis is an integer, got 1.0"),
            (lambda: call(T(2, 3), axis="rows"), TypeError, "an axis is an integer, got 'rows'"),
        ],
        {((0, 4, 2),): empty, ((3, 0, 2),): (0,)},
        error,
    )


def normalised(call):
    """Softmax and its logarithm."""
    return Operation(
        call,
        lambda: [normal(0, 3, 4)],
        [
            (lambda: call(T(2, 3), 2), ValueError, "axis 2 is out of range for a tensor with 2 axes"),
            (lambda: call(T(2, 3), None), ValueError, r"one axis .* is needed, got axis None of shape \(2, 3\)"),
            (lambda: call(T(2, 3), (0, 1)), ValueError, r"got axis \(0, 1\) of shape \(2, 3\)"),
            (lambda: call(Tensor(1.0)), ValueError, "axis -1 is out of range for a tensor with 0 axes"),
        ],
        {((0, 3),): (0, 3), ((3, 0),): r"one axis with values along it is needed, got axis -1 of shape \(3, 0\)"},
        4.0,
    )


def pooling(call, name):
    def pool(*arguments):
        return lambda: call(T(1, 2, 4, 6), *arguments)

    return Operation(
        lambda x: call(x, (2, 3), (2, 1), (1, 1)),
        lambda: [distinct(0, 2, 2, 4, 5)],
        [
            (pool(5), ValueError, f"{name}: a window of 5x5 pixels does not fit into the padded image of 4x6"),
            (pool((2, 7)), ValueError, "a window of 2x7 pixels does not fit into the padded image of 4x6"),
            (pool(0), ValueError, "kernel_size must be at least 1, got 0"),
            (pool(2.0), TypeError, "kernel_size is an integer or a pair of integers, got 2.0"),
            (pool(2, 0), ValueError, "stride must be at least 1, got 0"),
            (pool(2, 1, -1), ValueError, "padding must be at least 0, got -1"),
            (pool(2, 1, (0, 2)), ValueError, r"padding \(0, 2\) must be at most half of the window \(2, 2\)"),
            (lambda: call(T(2, 4, 4), 2), ValueError, rf"{name} expects images .* got 3 axes: \(2, 4, 4\)"),
            (lambda: call(Tensor(np.zeros((1, 1, 2, 2), int)), 2), TypeError, "floating-point images, got int64"),
        ],
        {
            ((0, 2, 4, 5),): r"got an empty batch: the images' shape is \(0, 2, 4, 5\)",
            ((2, 2, 0, 5),): "empty batch",
        },
        4.0,
    )


def convolution(*shapes, **options):
    return lambda: F.conv2d(*(T(*s) for s in shapes), **options)


def normalisation(call, name):
    """Batch norm; `call` takes x, weight, bias, running mean and variance, training, and the rest by name."""
    statistics = normal(3, 3), positive(4, 3)

    def bad(x=(4, 3), weight=(3,), bias=(3,), mean=np.zeros(3), var=np.ones(3), training=True, **options):  # noqa: B008
        tensors = [None if s is None else T(*s) for s in (x, weight, bias)]
        return lambda: call(*tensors, mean, var, training, **options)

    return Operation(
        lambda x, w, b: call(x, w, b, *(Tensor(s, device=getattr(x, "device", None)) for s in statistics), True),
        lambda: [distinct(0, 4, 3, 2, 5), normal(1, 3), normal(2, 3)],
        [
            (bad(x=(4, 2)), ValueError, r"2 channels need a weight of shape \(2,\), got \(3,\)"),
            (bad(bias=(2,)), ValueError, r"3 channels need a bias of shape \(3,\), got \(2,\)"),
            (bad(weight=None), ValueError, r"3 channels need a weight of shape \(3,\), got None"),
            (bad(mean=np.zeros(2)), ValueError, r"3 channels need a running_mean of shape \(3,\), got \(2,\)"),
            (bad(var=[1, 1, 1]), ValueError, r"need a running_var of shape \(3,\), got \[1, 1, 1\]"),
            (bad(x=(1, 3)), ValueError, r"in training needs more than one value per channel, got shape \(1, 3\)"),
            (bad(x=(1, 3, 1, 1)), ValueError, r"more than one value per channel, got shape \(1, 3, 1, 1\)"),
            (bad(x=(3,)), ValueError, r"expects a batch of shape \(N, C, ...\) that is not empty, got \(3,\)"),
            (bad(mean=None, training=False), ValueError, "in evaluation needs running_mean and running_var"),
            (bad(momentum=1.5), ValueError, "needs 0 <= momentum <= 1 and eps >= 0, got momentum 1.5"),
            (bad(eps=-1.0), ValueError, "needs 0 <= momentum <= 1 and eps >= 0, .* eps -1.0"),
            (
                lambda: call(T(4, 3), *(Tensor(np.ones(3, np.float32)) for _ in range(2)), None, None, True),
                TypeError,
                f"{name} got tensors of dtypes float64 and float32",
            ),
        ],
        {
            ((0, 3, 2, 2), (3,), (3,)): r"not empty, got \(0, 3, 2, 2\)",
            ((2, 0), (0,), (0,)): r"not empty, got \(2, 0\)",
        },
        4.0,
    )
