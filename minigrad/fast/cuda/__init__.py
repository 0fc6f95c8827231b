"""The GPU's fast operations: the same functions as in the book, on kernels and cuBLAS products.

    conv.py       convolution: tensor cores, or columns and products
    norm.py       batch norm with ReLU and shortcut inside
    pool.py       sums and means over whole images, max pooling
    linear.py     matrix products: cuBLAS, float32 sums; a last layer with few outputs by a kernel
    loss.py       cross-entropy and its gradient in one launch
    add.py        the gradients of a residual block's two ways, where they meet
    sgd.py        all parameters in one launch
    augment.py    a training batch in one launch; train/data/augment.py, whose formulas it computes, registers it

They stand on arrays.py (which arrays, and how they lie), gpu.py (launching a kernel), tiles.py (how a convolution is
cut up), cublas.py and kernels/ (CUDA C++); graph.py makes one launch of a whole training step.

Each accepts float32, and bfloat16 on compute capability 8.0 and later; float64 and everything odd is left to the book.
No kernel uses atomics, and cuBLAS has a workspace for each stream: on one GPU the same input gives the same bits, so
`--deterministic` costs nothing.
"""

from __future__ import annotations

from ...ops import basic as book_basic
from ...ops import conv as book_conv
from ...ops import loss as book_loss
from ...ops import matmul as book_matmul
from ...ops import norm as book_norm
from ...ops import pool as book_pool
from ...optim import sgd_step
from ...registry import register as stand_in
from ...tensor import add_gradients
from . import add, sgd
from . import augment as augment
from . import graph as graph
from .conv import Products, TensorCores
from .linear import MatMul, affine
from .loss import CrossEntropy
from .norm import BatchNorm, BatchNormReLU
from .pool import ImageSum, MaxPool2d


def register(kind: str = "cuda") -> None:
    """Let them stand in for the book's operations on a GPU; a test that plays the GPU names its own kind of device."""
    stand_in(book_conv.Conv2d, kind, TensorCores, Products)
    stand_in(book_norm.BatchNorm, kind, BatchNorm)
    stand_in(book_norm.BatchNormReLU, kind, BatchNormReLU)
    stand_in(book_basic.Sum, kind, ImageSum)
    stand_in(book_pool.MaxPool2d, kind, MaxPool2d)
    stand_in(book_matmul.MatMul, kind, MatMul)
    stand_in(book_matmul.affine, kind, affine)
    stand_in(book_loss.CrossEntropy, kind, CrossEntropy)
    stand_in(sgd_step, kind, sgd.sgd_step)
    stand_in(add_gradients, kind, add.add_gradients)
