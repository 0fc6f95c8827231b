"""The mean over the ranks of a step's gradients, in buckets that travel while the backward pass makes others.

    mean = ranks.mean(fraction)
    mean.add(array)             for every array, in the same order on all ranks
    means = mean.results()      Σ_r fraction_r · array_r, in the order in which they were added

What is added is packed into the bucket, scaled, and a bucket that is full sets out at once, so the network is at work
while this rank still computes (Li et al., "PyTorch Distributed", VLDB 2020, arXiv:2006.15704, section 3.2.3). The last
layers' gradients come first: a step waits for the sum of what the first layers leave in the last bucket only.

`MPIMean` sends through MPI, `NCCLMean` from GPU to GPU. The latter's sums run on a stream of their own beside the one
that computes: it waits for a bucket to be packed, and the results wait for it. A CUDA graph captures both streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from minigrad import optim
from minigrad.backend import Array, array_module, cupy

# A bucket with so much in it sets out: large enough for bandwidth, small enough that several do in a backward pass.
# (PyTorch's hold 25 MiB: more than all gradients of ResNeXt-29 32x4d, which would travel when the last is there.)
BUCKET_BYTES = 4 << 20


class SendBuffers:
    """The buckets' memory, made once and used by every step: bucket k of a step holds arrays of the same shapes."""

    def __init__(self) -> None:
        self.buckets: dict[tuple, Array] = {}

    def take(self, k: int, arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        """One flat array for all numbers of the arrays, which are of one dtype, and the part of it that is each one's.

        Parts begin at a multiple of four numbers, so that a kernel can read four at once.
        """
        key = (k, arrays[0].dtype.str, *(a.shape for a in arrays))
        begins = list(accumulate((-(-a.size // 4) * 4 for a in arrays), initial=0))
        if key not in self.buckets:
            self.buckets[key] = array_module(arrays[0]).zeros(begins[-1], arrays[0].dtype)
        flat = self.buckets[key]
        return flat, [flat[i : i + a.size].reshape(a.shape) for a, i in zip(arrays, begins, strict=False)]


class Mean:
    """The mean of what is added to it, by one process alone: the arrays as they are."""

    def __init__(self) -> None:
        self.means: list[Array] = []  # of what has set out: where the results will be

    def add(self, array: Array) -> None:
        """Take one more array, which must stay as it is until `results`."""
        self.means.append(array)

    def results(self) -> list[Array]:
        """The means, valid until the next step's."""
        return self.means


class Bucketed(Mean):
    """The mean over several ranks; `fraction` is this one's share."""

    def __init__(self, buffers: SendBuffers, fraction: float | Array):
        super().__init__()
        self.buffers, self.fraction = buffers, fraction
        self.filling: list[Array] = []  # the arrays of the bucket that has not set out yet
        self.sent = 0  # buckets that have

    def add(self, array: Array) -> None:
        if self.filling and self.filling[0].dtype != array.dtype:
            self._send()
        self.filling.append(array)
        if sum(a.nbytes for a in self.filling) >= BUCKET_BYTES:
            self._send()

    def results(self) -> list[Array]:
        if self.filling:
            self._send()
        self.wait()
        return self.means

    def _send(self) -> None:
        arrays, self.filling = self.filling, []
        flat, places = self.buffers.take(self.sent, arrays)
        self.pack(arrays, places, flat)
        self.send(flat)
        self.sent += 1
        self.means += places

    def pack(self, arrays: Sequence[Array], places: Sequence[Array], flat: Array) -> None:
        """Fill the bucket: place ← fraction · array."""
        raise NotImplementedError

    def send(self, flat: Array) -> None:
        """Begin to add the bucket up over the ranks."""
        raise NotImplementedError

    def wait(self) -> None:
        """Let what follows use the sums of all buckets."""
        raise NotImplementedError


class MPIMean(Bucketed):
    """On CPUs. `complete` waits for messages."""

    def __init__(self, buffers: SendBuffers, fraction: float | Array, comm: Any, complete: Callable[..., None]):
        super().__init__(buffers, fraction)
        self.comm, self.complete, self.requests = comm, complete, list[Any]()

    def pack(self, arrays: Sequence[Array], places: Sequence[Array], flat: Array) -> None:
        for a, place in zip(arrays, places, strict=True):
            np.multiply(a, self.fraction, out=place)

    def send(self, flat: Array) -> None:
        from mpi4py import MPI

        MPI.Request.Testall(self.requests)  # MPI moves messages on while it is called
        self.requests.append(self.comm.Iallreduce(MPI.IN_PLACE, flat))

    def wait(self) -> None:
        self.complete(*self.requests)


class NCCLMean(Bucketed):
    """On GPUs. `stream` is where NCCL's sums run, beside the current one."""

    def __init__(self, buffers: SendBuffers, fraction: float | Array, nccl: Any, communicator: Any, stream: Any):
        super().__init__(buffers, fraction)
        self.nccl, self.communicator, self.stream = nccl, communicator, stream

    def pack(self, arrays: Sequence[Array], places: Sequence[Array], flat: Array) -> None:
        flat.fill(0)
        # place ← place - lr array, with place = 0 and lr = -fraction: a launch for 64 arrays, not one for each.
        updates = [(p, a, p, 0.0, 0.0, False) for p, a in zip(places, arrays, strict=True)]
        optim.update_all("cuda", updates, -self.fraction)

    def send(self, flat: Array) -> None:
        kind = {"float32": self.nccl.NCCL_FLOAT32, "float64": self.nccl.NCCL_FLOAT64}[flat.dtype.name]
        follow(self.stream, cupy().cuda.get_current_stream())  # the bucket is packed
        at = flat.data.ptr
        self.communicator.allReduce(at, at, flat.size, kind, self.nccl.NCCL_SUM, self.stream.ptr)

    def wait(self) -> None:
        follow(cupy().cuda.get_current_stream(), self.stream)


def follow(stream: Any, other: Any) -> None:
    """Let what comes on the stream begin only when the other one has come as far as it has been given work now."""
    stream.wait_event(other.record(cupy().cuda.Event(disable_timing=True)))
