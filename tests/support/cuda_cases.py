"""What the tests of the CUDA engine room share: cases, tolerances, and running an operation without the tape."""

import ml_dtypes
import numpy as np

from minigrad import registry
from minigrad.ops import conv

BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
# |fast - book| <= TOLERANCE * (|book| + largest |book|): one rounding of a result is 2^-9 in bfloat16 (2^-8 spacing);
# batch norm's input gradient adds three rounded terms. In float32 the sums' order differs.
TOLERANCE = {BF16: 2**-7, F32: 1e-5}


def close(actual, expected, dtype):
    actual, expected = (np.asarray(a).astype(np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape
    error = np.abs(actual - expected) / (np.abs(expected) + np.abs(expected).max() + 1e-30)
    assert np.isfinite(actual).all() and error.max() <= TOLERANCE[dtype], f"relative error {error.max():.2g}"


def run(operation, arrays, dy, needs=None, **options):
    """Forward and backward of a Function class; returns (y, gradients)."""
    node = operation()
    node.needs = needs or tuple(a is not None for a in arrays)
    y = node.forward(*arrays, **options)
    gradients = node.backward(dy)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return y, [g for g, needed in zip(gradients, node.needs, strict=True) if needed]


def exact(arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


CONVOLUTIONS = {  # dtype, x shape, O, kernel, stride, padding, dilation, groups
    "1x1": (BF16, (2, 16, 3, 4), 24, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1, stride 2": (BF16, (4, 16, 5, 4), 8, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "1x1, groups": (F32, (2, 12, 3, 4), 8, (1, 1), (1, 1), (0, 0), (1, 1), 2),
    "1x1, stride 2, chunks of 4 images of 5": (F32, (5, 24, 10, 8), 8, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "first layer": (BF16, (2, 3, 6, 6), 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "3x3, tensor cores": (BF16, (2, 64, 6, 6), 64, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "3x3, tensor cores, stride 2": (BF16, (2, 128, 7, 8), 128, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "3x3, groups of 40": (BF16, (2, 80, 4, 5), 80, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "3x3, float32": (F32, (3, 8, 5, 6), 12, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "uneven": (F32, (2, 6, 9, 8), 4, (2, 3), (3, 1), (0, 2), (2, 1), 2),
    "depthwise": (BF16, (1, 8, 5, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), 8),
}


def convolution_case(case):
    dtype, shape, O, kernel, stride, padding, dilation, groups = case
    rng = np.random.default_rng(7)
    out = conv.output_size(shape[2:], kernel, stride, padding, dilation)
    x = rng.standard_normal(shape).astype(dtype)
    w = rng.standard_normal((O, shape[1] // groups, *kernel)).astype(dtype)
    bias = rng.standard_normal(O).astype(dtype)
    dy = rng.standard_normal((shape[0], O, *out)).astype(dtype)
    return dtype, (x, w, bias), dy, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def batch_norm_case(dtype, shape, with_shortcut):
    rng = np.random.default_rng(8)
    C = shape[1]
    x, dy, shortcut = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    weight, bias = (rng.standard_normal(C).astype(F32) for _ in range(2))
    running = rng.standard_normal(C).astype(F32), rng.uniform(0.5, 2, C).astype(F32)
    return (x, weight, bias, shortcut if with_shortcut else None), dy, running


def chosen(arrays, options):
    """The method of convolution that the engine room chooses on a GPU; the book's where all decline."""
    return registry.choose(conv.Conv2d, "cuda", *arrays, **options)
