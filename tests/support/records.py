"""The operations table: one record for every public operation, with what it takes, what it refuses and how exact it is.

test_operations_table.py checks every record in the same ways, and fails where an operation has none: a new one cannot
be added without saying what it does with empty, strided, read-only and integer inputs, and what it says to bad ones.
"""

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


LABELS = np.array([2, 0, 3])

OPERATIONS = {
    "__add__": binary(lambda a, b: a + b, normal, "Add"),
    "__sub__": binary(lambda a, b: a - b, normal, "Subtract"),
    "__mul__": binary(lambda a, b: a * b, normal, "Multiply", 4.0),
    "__truediv__": binary(lambda a, b: a / b, positive, "Divide", 4.0),
    "__pow__": binary(lambda a, b: a**b, positive, "Power", 4.0),
    "__radd__": reversed_binary("Add", lambda a, x: a + x),
    "__rsub__": reversed_binary("Subtract", lambda a, x: a - x),
    "__rmul__": reversed_binary("Multiply", lambda a, x: a * x),
    "__rtruediv__": reversed_binary("Divide", lambda a, x: a / x, 4.0),
    "__rpow__": reversed_binary("Power", lambda a, x: a**x, 4.0),
    "__matmul__": Operation(
        lambda a, b: a @ b,
        lambda: [normal(0, 2, 3, 4), normal(1, 4, 5)],
        [
            (lambda: T(2, 3) @ T(2, 3), ValueError, r"equal inner sizes, got shapes \(2, 3\) and \(2, 3\)"),
            (lambda: T(2, 3) @ T(2), ValueError, r"equal inner sizes, got shapes \(2, 3\) and \(2,\)"),
            (lambda: T(2, 3) @ 2.0, ValueError, r"at least one axis on each side, got shapes \(2, 3\) and \(\)"),
            (
                lambda: T(2, 1, 3) @ T(3, 3, 1),
                ValueError,
                r"MatMul cannot broadcast shapes \(2, 1, 3\) and \(3, 3, 1\)",
            ),
        ],
        {((0, 4), (4, 5)): (0, 5), ((2, 0), (0, 3)): (2, 3), ((0,), (0,)): ()},
        4.0,
        mixes=True,
    ),
    "__rmatmul__": Operation(
        lambda x: normal(5, 2, 3).astype(x.dtype) @ x,
        lambda: [normal(0, 3, 4)],
        [(lambda: np.ones((2, 3)) @ T(2), ValueError, r"equal inner sizes, got shapes \(2, 3\) and \(2,\)")],
        {((3, 0),): (2, 0)},
        4.0,
    ),
    "__neg__": elementwise(lambda x: -x if isinstance(x, Tensor) else Tensor.__neg__(x)),
    "__getitem__": Operation(
        lambda x: x[1:, [0, 2, 2]],
        lambda: [normal(0, 3, 4)],
        [
            (lambda: T(2, 3)[5], IndexError, "index 5 is out of bounds for axis 0 with size 2"),
            (lambda: T(2, 3)[0, 0, 0], IndexError, "array is 2-dimensional, but 3 were indexed"),
            (lambda: T(2, 3)[1.5], IndexError, "only integers, slices"),
            (lambda: T(2, 3)["rows"], IndexError, "only integers, slices"),
            (lambda: T(2, 3)[np.array([True])], IndexError, "boolean index did not match"),
        ],
        {((3, 4, 0),): (2, 3, 0)},
        integers=True,
        view=True,
    ),
    "__eq__": Operation(
        lambda a, b: a == b,
        lambda: [normal(0, 2, 3), normal(1, 3)],
        [(lambda: T(2) == T(3), ValueError, r"shapes \(2,\) \(3,\)"), (lambda: T(2) == "2", TypeError, "not <U1")],
        {((0, 3), (3,)): (0, 3)},
        gradient=False,
        integers=True,
        same_dtype=False,
        mixes=True,
    ),
    "__ne__": Operation(
        lambda a, b: a != b,
        lambda: [normal(0, 2, 3), normal(1, 3)],
        [(lambda: T(2) != T(3), ValueError, r"shapes \(2,\) \(3,\)"), (lambda: T(2) != "2", TypeError, "not <U1")],
        {((0, 3), (3,)): (0, 3)},
        gradient=False,
        integers=True,
        same_dtype=False,
        mixes=True,
    ),
    "T": Operation(
        lambda x: x.T,
        lambda: [normal(0, 2, 3, 4)],
        [(lambda: setattr(T(2), "T", 1), AttributeError, "T")],
        {((2, 0),): (0, 2)},
        integers=True,
        view=True,
    ),
    "to": Operation(
        lambda x: x.to(x.device, np.float64),
        lambda: [normal(0, 2, 3)],
        [
            (lambda: T(2).to(dtype="int64"), ValueError, "dtype int64 is not one that minigrad computes in"),
            (lambda: T(2).to(dtype="float16"), ValueError, "dtype float16 is not one that minigrad computes in"),
            (lambda: T(2).to(dtype="bfloat16"), ValueError, "bfloat16 is computed on CUDA devices only"),
            (lambda: T(2).to(dtype="text"), TypeError, "data type 'text' not understood"),
            (lambda: T(2).to("gpu"), ValueError, "unknown device 'gpu': use 'cpu', 'cuda' or 'cuda:<index>'"),
        ],
        {((0, 2),): (0, 2)},
        integers=True,
        view=True,
        same_dtype=False,
    ),
    "exp": elementwise(F.exp),
    "log": elementwise(F.log, positive, 4.0),
    "sqrt": elementwise(F.sqrt, positive),
    "relu": elementwise(F.relu, distinct),
    "sigmoid": elementwise(F.sigmoid, error=4.0),
    "tanh": elementwise(F.tanh, error=4.0),
    "sum": reduction(F.sum, (4,), 4.0),
    "mean": reduction(F.mean, r"mean over no elements: the tensor's shape is \(0, 4, 2\), the axes are \(0, -1\)", 4.0),
    "max": reduction(F.max, r"max over no elements: the tensor's shape is \(0, 4, 2\), the axes are \(0, -1\)"),
    "reshape": Operation(
        lambda x: F.reshape(x, 4, -1),
        lambda: [normal(0, 2, 6)],
        [
            (lambda: T(2, 3).reshape(4, 2), ValueError, r"shape \(2, 3\) with 6 values cannot take shape \(4, 2\)"),
            (lambda: T(2, 3).reshape(-1, -1), ValueError, r"cannot take shape \(-1, -1\)"),
            (lambda: T(2, 3).reshape(4, -1), ValueError, r"cannot take shape \(4, -1\)"),
            (lambda: T(2, 3).reshape(-2, -3), ValueError, r"cannot take shape \(-2, -3\)"),
            (lambda: T(2, 3).reshape(2.0, 3), TypeError, r"a shape is made of integers, got \(2.0, 3\)"),
            (lambda: T(2, 3).reshape("ab"), TypeError, r"a shape is made of integers, got \('ab',\)"),
            (lambda: T(0, 3).reshape(2**32, 2**32), ValueError, r"with 0 values cannot take shape \(4294967296, 42949"),
        ],
        {((0, 3),): (4, 0)},
        integers=True,
        view=True,
    ),
    "transpose": Operation(
        lambda x: F.transpose(x, 2, 0, 1),
        lambda: [normal(0, 2, 3, 4)],
        [
            (lambda: T(2, 3).transpose(0, 0), ValueError, r"axis \(0, 0\) names an axis twice"),
            (lambda: T(2, 3).transpose(0), ValueError, r"transpose needs each of the 2 axes once, got \(0,\)"),
            (lambda: T(2, 3).transpose(0, 2), ValueError, "axis 2 is out of range for a tensor with 2 axes"),
            (lambda: T(2, 3).transpose(None), TypeError, "an axis is an integer, got None"),
        ],
        {((0, 2, 3),): (3, 0, 2)},
        integers=True,
        view=True,
    ),
    "concat": Operation(
        lambda a, b: F.concat([a, b], axis=1),
        lambda: [normal(0, 2, 3), normal(1, 2, 1)],
        [
            (lambda: F.concat([]), TypeError, "concat needs a list of at least one tensor, got list"),
            (lambda: F.concat(T(2, 3)), TypeError, "concat needs a list of at least one tensor, got Tensor"),
            (lambda: F.concat([np.ones(2)]), TypeError, "concat takes tensors, got ndarray"),
            (lambda: F.concat([T(2, 3), T(3, 3)], 1), ValueError, r"equal other sizes, got \(2, 3\) and \(3, 3\)"),
            (lambda: F.concat([T(2, 3), T(2)]), ValueError, r"equal other sizes, got \(2, 3\) and \(2,\)"),
            (lambda: F.concat([T(2)], 1), ValueError, "axis 1 is out of range for a tensor with 1 axes"),
            (lambda: F.concat([Tensor(1.0)]), ValueError, "axis 0 is out of range for a tensor with 0 axes"),
        ],
        {((2, 0), (2, 3)): (2, 3), ((0, 1), (0, 2)): (0, 3)},
    ),
    "pad": Operation(
        lambda x: F.pad(x, [(1, 2), (0, 1)]),
        lambda: [normal(0, 2, 3)],
        [
            (lambda: F.pad(T(2, 3), [(1, 1)]), ValueError, r"a pair .* for each of the 2 axes, got \[\(1, 1\)\]"),
            (lambda: F.pad(T(2, 3), 1), ValueError, "a pair .* for each of the 2 axes, got 1"),
            (lambda: F.pad(T(2, 3), [(1, -1), (0, 0)]), ValueError, r"must be at least 0, got \(1, -1\)"),
            (lambda: F.pad(T(2, 3), [(1.5, 1), (0, 0)]), TypeError, r"a pair of integers, got \(1.5, 1\)"),
        ],
        {((0, 3),): (3, 4)},
    ),
    "dropout": Operation(
        seeded(lambda x: F.dropout(x, 0.4)),
        lambda: [normal(0, 4, 5)],
        [
            (lambda: F.dropout(T(2), 1.0), ValueError, "a probability 0 <= p < 1, got 1.0"),
            (lambda: F.dropout(T(2), -0.1), ValueError, "a probability 0 <= p < 1, got -0.1"),
            (lambda: F.dropout(T(2), float("nan")), ValueError, "a probability 0 <= p < 1, got nan"),
        ],
        {((0, 3),): (0, 3)},
    ),
    "softmax": normalised(F.softmax),
    "log_softmax": normalised(F.log_softmax),
    "conv2d": Operation(
        lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2),
        lambda: [normal(0, 2, 4, 4, 6), normal(1, 6, 2, 3, 2), normal(2, 6)],
        [
            (
                convolution((1, 3, 4, 4), (4, 1, 2, 2), groups=2),
                ValueError,
                "3 input channels and 4 filters must both be divisible by 2 groups",
            ),
            (
                convolution((1, 4, 4, 4), (3, 2, 2, 2), groups=2),
                ValueError,
                "4 input channels and 3 filters must both be divisible by 2 groups",
            ),
            (
                convolution((1, 3, 4, 4), (4, 2, 2, 2)),
                ValueError,
                r"\(4, 2, 2, 2\) with 1 group\(s\) need 2 input channels, the images have 3",
            ),
            (
                convolution((1, 3, 4, 4), (4, 3, 5, 3)),
                ValueError,
                "a window of 5x3 pixels does not fit into the padded image of 4x4",
            ),
            (
                convolution((1, 3, 4, 4), (4, 3, 3, 3), padding=(1, 0), dilation=2),
                ValueError,
                "a window of 5x5 pixels does not fit into the padded image of 6x4",
            ),
            (convolution((3, 4, 4), (4, 3, 3, 3)), ValueError, r"expects images .* got 3 axes: \(3, 4, 4\)"),
            (convolution((1, 3, 4, 4), (4, 3, 3)), ValueError, r"expects weights .* got \(4, 3, 3\)"),
            (
                convolution((1, 3, 4, 4), (4, 3, 3, 3), (3,)),
                ValueError,
                r"4 filters need a bias of shape \(4,\), got \(3,\)",
            ),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), stride=0), ValueError, "stride must be at least 1, got 0"),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), padding=(0, -1)), ValueError, r"padding .* got \(0, -1\)"),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), padding="same"), TypeError, "padding is an integer .* got 'same'"),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), stride=1.5), TypeError, "stride is an integer .* got 1.5"),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), stride=True), TypeError, "stride is an integer .* got True"),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), dilation=(1, 1, 1)), TypeError, r"dilation .* got \(1, 1, 1\)"),
            (convolution((1, 3, 4, 4), (4, 3, 3, 3), groups=0), ValueError, "groups must be a positive integer, got 0"),
            (
                convolution((1, 3, 4, 4), (4, 3, 3, 3), groups=1.0),
                ValueError,
                "groups must be a positive integer, got 1.0",
            ),
            (
                lambda: F.conv2d(Tensor(np.zeros((1, 1, 4, 4), np.uint8)), T(1, 1, 2, 2)),
                TypeError,
                "expects floating-point images, got uint8",
            ),
            (
                lambda: F.conv2d(Tensor(np.zeros((1, 1, 4, 4), np.float32)), T(1, 1, 2, 2)),
                TypeError,
                "Conv2d got tensors of dtypes float32 and float64",
            ),
        ],
        {
            ((0, 4, 4, 6), (6, 2, 3, 2), (6,)): r"an empty batch: the images' shape is \(0, 4, 4, 6\)",
            ((2, 4, 0, 6), (6, 2, 3, 2), (6,)): "an empty batch",
            ((2, 4, 4, 6), (0, 2, 3, 2), (0,)): r"empty weights of shape \(0, 2, 3, 2\)",
            ((2, 4, 4, 6), (6, 2, 0, 2), (6,)): r"empty weights of shape \(6, 2, 0, 2\)",
        },
        4.0,
        optional=2,
    ),
    "linear": Operation(
        F.linear,
        lambda: [normal(0, 3, 4), normal(1, 2, 4), normal(2, 2)],
        [
            (lambda: F.linear(T(2, 3), T(4, 5)), ValueError, r"\(2, 3\) do not fit weights of shape \(4, 5\)"),
            (lambda: F.linear(Tensor(1.0), T(4, 5)), ValueError, r"features of shape \(\) do not fit"),
            (lambda: F.linear(T(2, 3), T(3)), ValueError, r"do not fit weights of shape \(3,\)"),
            (
                lambda: F.linear(T(2, 3), T(4, 3), T(5)),
                ValueError,
                r"4 outputs need a bias of shape \(4,\), got \(5,\)",
            ),
        ],
        {((0, 4), (2, 4), (2,)): (0, 2), ((3, 0), (2, 0), (2,)): (3, 2)},
        4.0,
        optional=2,
    ),
    "cross_entropy": Operation(
        lambda x: F.cross_entropy(x, LABELS, 0.1),
        lambda: [normal(0, 3, 4)],
        [
            (lambda: F.cross_entropy(T(2, 3), [0, 3]), ValueError, "label 3 is not one of the 3 classes, 0 to 2"),
            (lambda: F.cross_entropy(T(2, 3), [-1, 0]), ValueError, "label -1 is not one of the 3 classes, 0 to 2"),
            (lambda: F.cross_entropy(T(2, 3), [0]), ValueError, r"expects 2 labels of shape \(2,\), got shape \(1,\)"),
            (lambda: F.cross_entropy(T(2, 3), [0.0, 1.0]), TypeError, "expects integer labels, got float64"),
            (lambda: F.cross_entropy(T(2, 3), [True, False]), TypeError, "expects integer labels, got bool"),
            (lambda: F.cross_entropy(T(2, 3), ["a", "b"]), TypeError, "expects integer labels, got <U1"),
            (lambda: F.cross_entropy(T(3, 3), np.eye(3)), TypeError, "expects integer labels, got float64"),
            (lambda: F.cross_entropy(T(3, 3), np.eye(3, dtype=int)), ValueError, r"got shape \(3, 3\)"),
            (lambda: F.cross_entropy(T(3), [0]), ValueError, r"expects logits of shape \(N, K\), got \(3,\)"),
            (lambda: F.cross_entropy(T(2, 3), [0, 1], 1.5), ValueError, "must lie between 0 and 1, got 1.5"),
            (lambda: F.cross_entropy(T(2, 3), [0, 1], float("nan")), ValueError, "between 0 and 1, got nan"),
        ],
        {((0, 4),): r"an empty batch: the logits' shape is \(0, 4\)", ((3, 0),): r"the logits' shape is \(3, 0\)"},
        4.0,
    ),
    "batch_norm": normalisation(F.batch_norm, "BatchNorm"),
    "batch_norm_relu": normalisation(F.batch_norm_relu, "BatchNormReLU"),
    "max_pool2d": pooling(F.max_pool2d, "max_pool2d"),
    "avg_pool2d": pooling(F.avg_pool2d, "avg_pool2d"),
    "global_avg_pool2d": Operation(
        F.global_avg_pool2d,
        lambda: [normal(0, 2, 3, 4, 5)],
        [
            (lambda: F.global_avg_pool2d(T(3, 4)), ValueError, r"expects images .* got 2 axes: \(3, 4\)"),
            (lambda: F.global_avg_pool2d(Tensor(np.zeros((1, 1, 2, 2), int))), TypeError, "floating-point images"),
        ],
        {((0, 3, 4, 5),): r"an empty batch: the images' shape is \(0, 3, 4, 5\)"},
        4.0,
    ),
}
