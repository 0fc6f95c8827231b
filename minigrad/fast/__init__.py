"""The engine room: the operations of minigrad/ops again, with the same signatures and results, made fast.

Nothing here has to be read to understand minigrad, and nothing breaks without it: `MINIGRAD_FAST=0` leaves it out.

    process.py    everything that concerns the whole process: BLAS, the heap, NumPy's buffer, Python's turns
    handover.py   what one fast operation tells the next, and the rule that keeps it true
    cpu/          threads memory layout norm pool sgd add   conv/
    cuda/         conv norm pool linear loss sgd add augment   arrays gpu tiles cublas graph   kernels/
"""

from . import cpu, cuda
from . import process as process


def register() -> None:
    """Let the fast operations stand in for the book's; importing this package alone changes nothing."""
    cpu.register()
    cuda.register()
