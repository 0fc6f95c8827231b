"""The CPU's fast operations.

    conv/         convolution: pointwise, Winograd, runs, phases or columns
    norm.py       batch norm with ReLU and shortcut
    pool.py       pooling; of a whole image, and of the loss, the book's formulas take no time worth saving
    add.py        the gradients of a residual block's two ways, where they meet
    sgd.py        the optimiser's step

They stand on layout.py (channels-last memory, sums per channel), threads.py and memory.py (scratch).
"""

from __future__ import annotations

from ...fold import ConvReLU
from ...ops.conv import Conv2d
from ...ops.norm import BatchNorm, BatchNormReLU
from ...ops.pool import AvgPool2d, MaxPool2d
from ...optim import sgd_step
from ...registry import register as stand_in
from ...tensor import add_gradients
from . import add, sgd
from .conv.columns import Columns
from .conv.phases import Phases
from .conv.pointwise import Pointwise
from .conv.runs import Runs
from .conv.winograd import Winograd
from .norm import FastBatchNorm, FastBatchNormReLU
from .pool import FastAvgPool2d, FastMaxPool2d
from .threads import set_threads, threads

__all__ = ["register", "set_threads", "threads"]


def register() -> None:
    """Let them stand in for the book's operations on a CPU."""
    for convolution in (Conv2d, ConvReLU):
        stand_in(convolution, "cpu", Pointwise, Winograd, Runs, Phases, Columns)
    stand_in(BatchNorm, "cpu", FastBatchNorm)
    stand_in(BatchNormReLU, "cpu", FastBatchNormReLU)
    stand_in(MaxPool2d, "cpu", FastMaxPool2d)
    stand_in(AvgPool2d, "cpu", FastAvgPool2d)
    stand_in(sgd_step, "cpu", sgd.sgd_step)
    stand_in(add_gradients, "cpu", add.add_gradients)
