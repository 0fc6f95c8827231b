"""Several processes ("ranks") train one network, each on its part of every batch.

    mpiexec -n 4 python -m mpi4py -m train.cifar ...

Every rank holds the whole network. A step cuts the batch into parts, rank r taking images r, r + size, ...; each rank
computes the gradient of its part's mean loss, and the gradient of the batch's mean loss is their average:

    dw = Σ_r (n_r / n) dw_r          n_r of the batch's n images are rank r's

From the same weights and the same dw all ranks step to the same weights, so weights are never sent. Batch norm
normalises with each rank's own statistics, as in the paper; the running statistics are averaged like the gradients.

MPI starts the ranks and connects them. Gradients go through MPI on the CPU, and between GPUs through NCCL as a part of
the captured step, while the backward pass makes others (buckets.py). One GPU a rank, whether each rank sees all GPUs of
its machine or, as under SLURM, only its own. The command is started as a module of mpi4py because that ends all ranks
when one of them fails.
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

import minigrad
from minigrad import registry
from minigrad.backend import Array, array_module, check_device, cupy

from .buckets import Mean, MPIMean, NCCLMean, SendBuffers
from .signals import Signals

T = TypeVar("T")

# How long a rank waits for the others, in seconds, before it ends the run: one of them has stopped, or does something
# else. A slow disk or file server may want more.
PATIENCE = float(os.environ.get("MINIGRAD_PATIENCE", 600))
GRACE = float(
    os.environ.get("MINIGRAD_GRACE", 60)
)  # the same after a signal, which the others may be too busy to hear of
SPIN = 0.05  # seconds in which a wait looks without a pause, as MPI itself does


class Deserted(RuntimeError):
    """The other ranks have not come."""


class Ranks:
    """One process alone. `MPIRanks` is the same interface for several."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1  # among the ranks on the same machine
    signals: Signals | None = None  # where a wait looks whether a signal came

    def count(self, images: int) -> int:
        """How many of a batch's images are this rank's."""
        return len(range(self.rank, images, self.size))

    def part(self, batch: Array) -> Array:
        """This rank's images of a batch, or their labels; if it has none, the first, which then counts nothing."""
        mine = batch[self.rank :: self.size]
        return array_module(batch).ascontiguousarray(mine if len(mine) else batch[:1])

    def mean(self, fraction: float | Array) -> Mean:
        """Begin a step's mean over the ranks: Σ_r fraction_r · array_r, for each array that is added to it."""
        return Mean()

    def add(self, *numbers: float) -> Sequence[float]:
        """The sum over the ranks, of each of the numbers."""
        return numbers

    def add_arrays(self, array: np.ndarray) -> np.ndarray:
        """The sum over the ranks of an array on the host."""
        return array

    def maximum(self, *numbers: int) -> Sequence[int]:
        """The largest value over the ranks, of each of the numbers."""
        return numbers

    def agree(self, number: int) -> bool:
        """Whether all ranks have the same number."""
        return True

    def wait(self, patience: float = PATIENCE) -> None:
        """Return when all ranks have come here."""

    def in_turn(self, function: Callable[[], T]) -> T:
        """Call the function, on rank 0 before the others: what it downloads is there then."""
        return function()

    def broadcast(self, value: Any) -> Any:
        """What rank 0 has."""
        return value

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError, with both values, where this rank's facts are not those of rank 0."""
        for name, first in self.broadcast(dict(facts)).items():
            if facts.get(name) != first:
                raise ValueError(f"rank {self.rank} has {name} {facts.get(name)} where rank 0 has {first}")
        self.wait()  # a rank that differs does not come here, and its exit ends the others

    def device(self, name: str) -> str:
        """The device of this rank, where the user asked for `name`; it only looks, and takes no GPU's memory."""
        return name

    def connect(self, device: str) -> None:
        """Connect this rank's GPU, which becomes the current one, with those of the others."""

    def threads(self) -> int | None:
        """How many CPU threads this rank should use; None: as many as the libraries like."""
        return None


ALONE = Ranks()


class MPIRanks(Ranks):
    """The processes that `mpiexec` started."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self.MPI, self.comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = self.local.rank, self.local.size
        self.nccl: Any = None  # on GPUs: the communicator, and the stream on which it adds
        self.stream: Any = None
        self.buffers = SendBuffers()

    def _complete(self, *requests: Any, patience: float = math.inf, grace: float = math.inf) -> None:
        """Wait for messages, in Python, where a signal is noticed and patience has an end.

        Raises Deserted when they have not come within `patience` seconds, or within `grace` seconds after a signal.
        """
        begin, signalled = time.monotonic(), math.inf
        while not self.MPI.Request.Testall(requests):
            now = time.monotonic()
            if self.signals is not None and self.signals.number:
                signalled = min(signalled, now)
            if now - begin > patience or now - signalled > grace:
                raise Deserted(
                    f"rank {self.rank} has waited {now - begin:.0f} s for the other ranks: one of them has stopped, or "
                    "was started with other data or options"
                )
            if now - begin > SPIN:
                time.sleep(0.001)

    def mean(self, fraction: float | Array) -> Mean:
        if self.nccl is not None:
            return NCCLMean(self.buffers, fraction, load_nccl(), self.nccl, self.stream)
        return MPIMean(self.buffers, fraction, self.comm, partial(self._complete, patience=PATIENCE, grace=GRACE))

    def add(self, *numbers: float) -> Sequence[float]:
        return self.add_arrays(np.array(numbers, np.float64)).tolist()

    def add_arrays(self, array: np.ndarray) -> np.ndarray:
        total = np.empty_like(array)
        self._complete(self.comm.Iallreduce(array, total), patience=PATIENCE, grace=GRACE)
        return total

    def maximum(self, *numbers: int) -> Sequence[int]:
        largest = np.empty(len(numbers), np.int64)
        mine = np.array(numbers, np.int64)
        self._complete(self.comm.Iallreduce(mine, largest, self.MPI.MAX), patience=PATIENCE, grace=GRACE)
        return largest.tolist()

    def agree(self, number: int) -> bool:
        largest, smallest = self.maximum(number, -number)
        return largest == -smallest

    def wait(self, patience: float = PATIENCE) -> None:
        self._complete(self.comm.Ibarrier(), patience=patience)

    def in_turn(self, function: Callable[[], T]) -> T:
        if self.rank > 0:
            self._complete(self.comm.Ibarrier())  # for as long as it takes: rank 0 may have much to download
            return function()
        value = function()
        self._complete(self.comm.Ibarrier(), patience=PATIENCE)  # the others had nothing to do but to wait here
        return value

    def broadcast(self, value: Any) -> Any:
        content = np.frombuffer(pickle.dumps(value), np.uint8) if self.rank == 0 else np.empty(0, np.uint8)
        size = np.array([len(content)], np.int64)
        self._complete(self.comm.Ibcast(size), patience=PATIENCE)
        content = content.copy() if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self._complete(self.comm.Ibcast(content), patience=PATIENCE)
        return pickle.loads(content.tobytes())

    def device(self, name: str) -> str:
        if name == "cpu":
            return name
        if name != "cuda":
            raise ValueError(f"under mpiexec each rank takes a GPU of its own: use --device cuda, not {name}")
        check_device(name)
        runtime = cupy().cuda.runtime
        seen = [runtime.deviceGetPCIBusId(i) for i in range(runtime.getDeviceCount())]
        index = deal_gpus(self.local.allgather(seen))[self.local_rank]
        mine = f"cuda:{index}" if index else "cuda"
        check_device(mine)
        if self.size > 1:
            load_nccl()
        return mine

    def connect(self, device: str) -> None:
        if device == "cpu":
            return
        cupy().cuda.Device(check_device(device)).use()
        if self.size > 1:
            nccl = load_nccl()
            identity = self.broadcast(nccl.get_unique_id() if self.rank == 0 else None)
            self.nccl = nccl.NcclCommunicator(self.size, identity, self.rank)
            # Where CuPy frees a communicator, NCCL waits for the end of its sums, which never comes where another rank
            # has failed, and of all graphs that hold one, which Python frees later: the run would never end. So it is
            # left to the system.
            never_free(self.nccl)
            self.stream = cupy().cuda.Stream(non_blocking=True)

    def threads(self) -> int | None:
        """The cores of this machine that its ranks may use, divided among them."""
        mine = np.zeros(1 << 16, np.uint8)  # more cores than any machine has
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        mine[list(cores)] = 1
        some = np.empty_like(mine)  # of the ranks; no allgather, which would wait where no signal is noticed
        self._complete(self.local.Iallreduce(mine, some, self.MPI.MAX), patience=PATIENCE)
        return max(1, int(some.sum()) // self.local_size)


def deal_gpus(seen: Sequence[Sequence[str]]) -> list[int]:
    """For each rank of a machine, which of the GPUs that it sees is its own: no two ranks have the same one.

    `seen` holds the PCI addresses of the GPUs that each rank sees: those of all GPUs, or of its own alone, as SLURM's
    CUDA_VISIBLE_DEVICES makes it. Who has the least choice chooses first. Raises ValueError where there are too few.
    """
    chosen: dict[int, str] = {}
    for rank in sorted(range(len(seen)), key=lambda r: (len(seen[r]), r)):
        free = [gpu for gpu in seen[rank] if gpu not in chosen.values()]
        if not free:
            count = len(set().union(*seen))
            same = next(r for r, gpu in chosen.items() if gpu in seen[rank])
            raise ValueError(
                f"mpiexec started {len(seen)} ranks on a machine where they see {count} GPU(s): start one for each "
                f"(ranks {same} and {rank} of the machine would share {chosen[same]})"
            )
        chosen[rank] = free[0]
    return [seen[rank].index(chosen[rank]) for rank in range(len(seen))]


def load_nccl() -> ModuleType:
    """Return CuPy's module for NCCL, through which GPUs add their gradients; ValueError with what to install."""
    built = cupy().cuda.runtime.runtimeGetVersion() // 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own words on what it cannot load
        nccl = import_module("cupy.cuda.nccl")
    if not nccl.available:
        package = f"nvidia-nccl-cu{built}"
        raise ValueError(f"several GPUs add their gradients through NCCL, which is missing: pip install -U {package}")
    return nccl


def never_free(value: Any) -> None:
    """Keep an object until the process is gone, even when Python ends and frees all others."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def use_threads(count: int | None) -> None:
    """Compute with `count` CPU threads from now on, in BLAS and in minigrad's engine room; None leaves it to them."""
    if count is not None:
        threadpool_limits(count)
        if registry.fast("cpu"):
            minigrad.fast.cpu.set_threads(count)


def start() -> Ranks:
    """The ranks of this command: those that mpiexec started, or this process alone.

    Raises ValueError where mpiexec started a plain `python -m train.cifar`: without mpi4py's runner a rank that fails
    would leave the others waiting for ever.
    """
    if "mpi4py.run" in sys.modules:
        return MPIRanks()
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if os.environ.get(variable, "1") != "1":
            raise ValueError("under mpiexec start the ranks with: python -m mpi4py -m train.cifar ...")
    return ALONE
