"""The engine room beside the book: run a function both ways and compare."""

from contextlib import contextmanager

import numpy as np

from minigrad import Tensor, registry
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.ops.norm import batch_norm, batch_norm_relu
from support.strategies import normal


@contextmanager
def only(*rooms):
    """Inside, these rooms' operations stand in for the book's on the CPU, and no others; see `register` of each."""
    with registry.book_only():
        for register in rooms:
            register()
        yield


@contextmanager
def thread_count(count):
    """Use so many threads inside."""
    before = cpu.threads()
    cpu.set_threads(count)
    try:
        yield
    finally:
        cpu.set_threads(before)


def results(function, arrays, seed=0):
    """Run `function` of tensors: its output and every input's gradient."""
    inputs = [None if a is None else Tensor(a, requires_grad=True) for a in arrays]
    y = function(*inputs)
    y.backward(normal(seed, *y.shape).astype(y.dtype))
    return [y.data] + [t.grad for t in inputs if t is not None]


def both(function, arrays, seed=0):
    """`results`, fast and by the book."""
    with only(cpu.register):
        fast = results(function, arrays, seed)
    with registry.book_only():
        return fast, results(function, arrays, seed)


def assert_same(function, arrays, tolerance=1e-12):
    """Fast and book agree, forward and backward, to `tolerance` times the largest value."""
    for fast, book in zip(*both(function, arrays), strict=True):
        assert fast.shape == book.shape and fast.dtype == book.dtype
        np.testing.assert_allclose(fast, book, rtol=0, atol=tolerance * max(1, np.abs(book).max()))


def block(x, w1, g1, b1, w2, g2, b2, w3, g3, b3):
    """A residual block with everything that is fused: statistics, outputs made again, masks, shortcuts."""
    y = batch_norm_relu(F.conv2d(x, w1), g1, b1, None, None, True)
    y = batch_norm_relu(F.conv2d(y, w2, padding=1, groups=2), g2, b2, None, None, True)
    y = batch_norm_relu(F.conv2d(y, w3), g3, b3, None, None, True, shortcut=x)
    z = batch_norm(F.conv2d(y, w1, stride=2), g1, b1, None, None, True)
    q = batch_norm_relu(F.conv2d(y, w1), g1, b1, None, None, True)
    return batch_norm_relu(F.conv2d(q, w2, stride=2, padding=1, groups=2), g2, b2, None, None, True, shortcut=z)


def block_arrays(N, width, dtype=np.float64):
    c = width // 2
    shapes = [(N, 16, 8, 8), (width, 16, 1, 1), (width,), (width,), (width, c, 3, 3), (width,), (width,)]
    shapes += [(16, width, 1, 1), (16,), (16,)]
    return [normal(i, *shape).astype(dtype) for i, shape in enumerate(shapes)]
