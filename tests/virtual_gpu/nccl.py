"""NCCL between virtual GPUs: their memory is the host's, so MPI adds it up.

A sum is made as late as it may be, when somebody waits for it, whether at once or, if the stream is being captured,
whenever the graph is launched: who does not wait reads what has not been added up. NCCL wants a sum to be captured by
all processes or by none, and hangs, perhaps, where that is not so; here it is an error. And it waits for ever where a
communicator is freed before a graph that holds one of its sums; here the process ends with exit code 9.
"""

import ctypes
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np

from .runtime import GRAPHS, STREAMS, submit

KINDS = {7: np.float32, 8: np.float64}  # ncclDataType_t


class NcclCommunicator:
    """The processes that mpiexec started, each with a virtual GPU; or one alone."""

    def __init__(self, size: int, identity: bytes, rank: int):
        from mpi4py import MPI

        self.comm, self.in_place = MPI.COMM_WORLD.Dup(), MPI.IN_PLACE
        if (self.comm.size, self.comm.rank) != (size, rank):
            raise ValueError(f"rank {rank} of {size} was started as {self.comm.rank} of {self.comm.size}")
        self.captured: list[list] = []  # the work of the captures that hold a sum

    def allReduce(self, source: int, target: int, count: int, kind: int, operation: int, stream: int) -> None:
        """target ← Σ over the processes of source, `count` numbers."""
        dtype, comm, in_place = np.dtype(KINDS[kind]), self.comm, self.in_place
        capture = STREAMS[stream].capture
        captured = capture is not None
        if capture is not None and comm.size > 1:  # one rank alone has nothing to do
            self.captured.append(capture.work)

        def add() -> None:
            mine = np.array([count, kind, captured])
            if (comm.allgather(mine.tolist()) != [mine.tolist()] * comm.size) or operation != 0:
                raise RuntimeError("NCCL's sum is another in another process, or is captured there alone")
            ctypes.memmove(target, source, count * dtype.itemsize)
            numbers = (ctypes.c_char * (count * dtype.itemsize)).from_address(target)
            comm.Allreduce(in_place, np.frombuffer(numbers, dtype))

        submit(stream, "sum of ranks", add, late=True)

    def __del__(self) -> None:
        if any(work is mine for work in GRAPHS.values() for mine in self.captured):  # `commDestroySync` in init.cc
            os.write(2, b"NCCL waits for ever: a graph that holds a sum lives longer than its communicator\n")
            os._exit(9)


def install() -> None:
    """Put this module where CuPy's module for NCCL would be."""
    module: Any = ModuleType("cupy.cuda.nccl")
    module.available, module.NCCL_FLOAT32, module.NCCL_FLOAT64, module.NCCL_SUM = True, 7, 8, 0
    module.NcclCommunicator, module.get_unique_id = NcclCommunicator, lambda: b"identity"
    sys.modules["cupy.cuda.nccl"] = module
