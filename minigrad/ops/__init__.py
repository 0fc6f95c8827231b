"""The book: every operation as a formula, forward and backward on one screen, for NumPy and CuPy alike.

Read basic (arithmetic), then matmul, conv (convolution with groups), norm (batch norm), pool, activation and loss;
operators gives Tensor its operators, and arguments refuses what none of them can take.
"""

from . import operators as operators
from .activation import dropout, log_softmax, relu, sigmoid, softmax, tanh
from .basic import concat, exp, log, max, mean, pad, reshape, sqrt, sum, transpose
from .conv import conv2d
from .loss import cross_entropy
from .matmul import linear
from .norm import batch_norm, batch_norm_relu
from .pool import avg_pool2d, global_avg_pool2d, max_pool2d

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "concat",
    "conv2d",
    "cross_entropy",
    "dropout",
    "exp",
    "global_avg_pool2d",
    "linear",
    "log",
    "log_softmax",
    "max",
    "max_pool2d",
    "mean",
    "pad",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "sqrt",
    "sum",
    "tanh",
    "transpose",
]
