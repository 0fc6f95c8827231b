"""The engine room: the operations of minigrad/ops again, with the same signatures and results, made fast.

Nothing here has to be read to understand minigrad, and nothing breaks without it: `MINIGRAD_FAST=0` leaves it out.
"""

from . import cpu as cpu
from . import cuda as cuda  # touches CuPy only when an operation meets a CuPy array
