"""A linear layer with few outputs on a GPU: kernels/linear.cu on the CPU, held to the book."""

import numpy as np
import pytest
from support.cuda_cases import BF16, F32, close
from support.cuda_shim import compiler
from support.engine import only
from support.strategies import normal

from minigrad import Tensor, registry
from minigrad import functional as F
from minigrad.fast import cuda
from minigrad.fast.cuda import linear
from minigrad.ops import matmul

needs_compiler = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")


def both_ways(function, arrays, wanted, dy):
    """y and the gradients of the tensors that want one."""
    tensors = [None if a is None else Tensor._of(a) for a in arrays]
    for t, wants in zip(tensors, wanted, strict=True):
        if t is not None:
            t.requires_grad = wants
    y = function(*tensors)
    (y * Tensor._of(dy)).sum().backward()
    return [y.data, *(t.grad for t in tensors if t is not None and t.requires_grad)]


@needs_compiler
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, True, True)]
)
def test_a_layer_with_few_outputs_is_the_books(gpu, dtype, biased, wanted):
    """Inputs that fill more than a block of threads, fewer rows than warps, more outputs than warps."""
    x, w, dy = (normal(seed, *shape).astype(dtype) for seed, shape in ((1, (7, 300)), (2, (11, 300)), (3, (7, 11))))
    bias = normal(4, 11).astype(dtype) if biased else None
    exact = [None if a is None else a.astype(np.float64) for a in (x, w, bias)]
    expected = both_ways(matmul.affine, exact, wanted, dy.astype(np.float64))
    with only(lambda: cuda.register("cpu")):
        assert registry.choose(matmul.affine, "cpu", *map(tensor, (x, w, bias))) is linear.affine
        found = both_ways(F.linear, (x, w, bias), wanted, dy)
    assert gpu == [f"linear_{dtype.name}", f"linear_backward_{dtype.name}"]
    for mine, book in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        close(mine, book, dtype)


def tensor(array):
    return None if array is None else Tensor._of(array)


def test_many_outputs_and_other_dtypes_are_left_to_products(gpu):
    x = Tensor._of(np.ones((4, 8), F32))
    weights = [Tensor._of(np.ones(shape, F32)) for shape in ((linear.FEW, 8), (linear.FEW + 1, 8))]
    taken = [linear.affine.accepts(x, w, None) for w in weights]
    assert taken == [True, False]
    assert not linear.affine.accepts(x.reshape(2, 2, 8), weights[0], None)
    assert not linear.affine.accepts(x.to(dtype="float64"), weights[0].to(dtype="float64"), None)
    assert not linear.affine.accepts(x[:0], weights[0], None)
