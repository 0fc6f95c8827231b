"""minigrad: automatic differentiation on NumPy (CPU) or CuPy (CUDA), small enough to read in an afternoon.

Start with tensor.py, go on to ops/basic.py and ops/conv.py, then nn.py.
"""

import os

from . import display as display
from . import functional, nn, optim
from .backend import manual_seed
from .exchange import from_dlpack
from .gradcheck import GradcheckError, gradcheck
from .nn import Module, Parameter
from .tensor import Function, Tensor, no_grad
from .weights import load_weights, save_weights

if os.environ.get("MINIGRAD_FAST", "1") != "0":
    from . import fast

    fast.register()  # the faster versions of the operations in ops/

__version__ = "0.2.0"

__all__ = [
    "Function",
    "GradcheckError",
    "Module",
    "Parameter",
    "Tensor",
    "from_dlpack",
    "functional",
    "gradcheck",
    "load_weights",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "save_weights",
]
