"""NCCL between virtual GPUs: their memory is the host's, so MPI adds it up.

A sum is made as late as it may be, when somebody waits for it, whether at once or, if the stream is being captured,
whenever the graph is launched: who does not wait reads what has not been added up. NCCL wants a sum to be captured by
all processes or by none, and hangs, perhaps, where that is not so; here it is an error.
"""

import ctypes
import sys
from types import ModuleType
from typing import Any

import numpy as np

from .runtime import STREAMS, submit

KINDS = {7: np.float32, 8: np.float64}  # ncclDataType_t


class NcclCommunicator:
    """The processes that mpiexec started, each with a virtual GPU; or one alone."""

    def __init__(self, size: int, identity: bytes, rank: int):
        from mpi4py import MPI

        self.comm, self.in_place = MPI.COMM_WORLD.Dup(), MPI.IN_PLACE
        if (self.comm.size, self.comm.rank) != (size, rank):
            raise ValueError(f"rank {rank} of {size} was started as {self.comm.rank} of {self.comm.size}")

    def allReduce(self, source: int, target: int, count: int, kind: int, operation: int, stream: int) -> None:
        """target ← Σ over the processes of source, `count` numbers."""
        dtype = np.dtype(KINDS[kind])
        captured = STREAMS[stream].capture is not None

        def add() -> None:
            mine = np.array([count, kind, captured])
            if (self.comm.allgather(mine.tolist()) != [mine.tolist()] * self.comm.size) or operation != 0:
                raise RuntimeError("NCCL's sum is another in another process, or is captured there alone")
            ctypes.memmove(target, source, count * dtype.itemsize)
            numbers = (ctypes.c_char * (count * dtype.itemsize)).from_address(target)
            self.comm.Allreduce(self.in_place, np.frombuffer(numbers, dtype))

        submit(stream, "sum of ranks", add, late=True)


def install() -> None:
    """Put this module where CuPy's module for NCCL would be."""
    module: Any = ModuleType("cupy.cuda.nccl")
    module.available, module.NCCL_FLOAT32, module.NCCL_FLOAT64, module.NCCL_SUM = True, 7, 8, 0
    module.NcclCommunicator, module.get_unique_id = NcclCommunicator, lambda: b"identity"
    sys.modules["cupy.cuda.nccl"] = module
