"""Hypothesis strategies that build valid cases: no drawn example is thrown away.

Shapes and options are drawn, so that a failure shrinks to a small one; values come from a drawn seed. Every size of a
case is chosen to fit the others (the image is as large as the kernel needs, the channels are a multiple of the groups),
images are not square, and stride, padding and dilation differ per axis.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 4)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


def normal(seed, *shape):
    """Values from the normal distribution, in float64."""
    return np.random.default_rng(seed).standard_normal(shape)


def positive(seed, *shape):
    """Values from 0.5 to 2: safe to divide by, to take the logarithm of, to raise to a power."""
    return np.random.default_rng(seed).uniform(0.5, 2.0, shape)


def distinct(seed, *shape):
    """Values at least 0.25 from each other and 0.125 from 0: no ties, no kink within a finite difference's step."""
    rng = np.random.default_rng(seed)
    count = prod(shape)
    return (rng.permutation(count) - count // 2 + 0.5).reshape(shape) * 0.25


@st.composite
def broadcastable(draw, count=2):
    """Shapes that broadcast with each other, some axes missing and some of size 1."""
    return draw(hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=4, max_side=3)).input_shapes


@st.composite
def axes_of(draw, ndim):
    """None, one axis or several, counted from the front or from the back."""
    one = st.integers(-ndim, ndim - 1) if ndim else st.nothing()
    several = st.lists(one, unique_by=lambda a: a % ndim, max_size=ndim).map(tuple)
    return draw(st.none() | one | several if ndim else st.none() | st.just(()))


@dataclass
class ConvCase:
    """Arrays and options of one convolution."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def options(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def __repr__(self):
        bias = "no bias" if self.bias is None else "bias"
        return f"ConvCase(x {self.x.shape}, w {self.w.shape}, {bias}, {self.options})"


@st.composite
def conv_cases(draw, groups=None, per_group=None):
    """Convolutions whose kernel fits; `per_group` fixes (channels, filters) of a group, e.g. (1, 1) for depthwise."""
    G = draw(st.integers(1, 4)) if groups is None else groups
    c, o = (draw(st.integers(1, 3)), draw(st.integers(1, 3))) if per_group is None else per_group
    kernel, stride, dilation, padding, image = [], [], [], [], []
    for _ in range(2):
        k, s, d, p = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
        needed = max(1, d * (k - 1) + 1 - 2 * p)  # the smallest image that the kernel fits into
        for values, value in zip((kernel, stride, dilation, padding), (k, s, d, p), strict=True):
            values.append(value)
        image.append(needed + draw(st.integers(0, 4)))
    seed = draw(seeds)
    x = normal(seed, draw(st.integers(1, 2)), G * c, *image)
    w = normal(seed + 1, G * o, c, *kernel)
    bias = normal(seed + 2, G * o) if draw(st.booleans()) else None
    return ConvCase(x, w, bias, tuple(stride), tuple(padding), tuple(dilation), G)


@dataclass
class PoolCase:
    """Images without ties, and the window that moves over them."""

    x: np.ndarray
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def __repr__(self):
        return f"PoolCase(x {self.x.shape}, kernel {self.kernel}, stride {self.stride}, padding {self.padding})"


@st.composite
def pool_cases(draw):
    """Pooling windows that fit, padded by at most half of their size."""
    kernel, stride, padding, image = [], [], [], []
    for _ in range(2):
        k, s = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        p = draw(st.integers(0, k // 2))
        for values, value in zip((kernel, stride, padding), (k, s, p), strict=True):
            values.append(value)
        image.append(max(1, k - 2 * p) + draw(st.integers(0, 4)))
    x = distinct(draw(seeds), draw(sizes), draw(sizes), *image)
    return PoolCase(x, tuple(kernel), tuple(stride), tuple(padding))
