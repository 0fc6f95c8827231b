"""The engine room: the operations of minigrad/ops again, with the same signatures and results, made fast.

Nothing here has to be read to understand minigrad, and nothing breaks without it: `MINIGRAD_FAST=0` leaves it out.
"""

from . import cpu
from .cuda import conv
from .cuda import graph as graph


def register() -> None:
    """Let the fast operations stand in for the book's; importing this package alone changes nothing."""
    cpu.register()
    conv.register()
