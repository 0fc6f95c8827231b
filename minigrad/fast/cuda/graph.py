"""A training step as a CUDA graph: recorded once, then launched as one, without Python or the driver in between.

A small network's step is hundreds of launches of a few microseconds each, which the CPU cannot issue as fast as the GPU
runs them. A graph holds the launches with all their arguments; a replay costs one call. What a step must keep to:

- It is a function of arrays that returns arrays; whatever changes from step to step (batch, labels, learning rate)
  comes in as an array. Everything else, addresses included, is frozen.
- It reads nothing back (no `.item()`, no `if` on a value), copies nothing from the host and draws no random numbers.
- Weights, statistics and velocities are updated in place, in arrays that stay where they are.

Several processes that train one network replay a step which adds their gradients up. NCCL wants such a step captured by
all of them or by none, and every replay by all, so they decide each call together (NCCL's user guide, "Using NCCL with
CUDA Graphs").

The first calls run eagerly: they compile kernels and make workspaces and velocities, which a capture must not. They are
real steps, so nothing is computed twice and a captured run gives the same numbers as an eager one. What Python counts,
like batch norm's `num_batches_tracked`, stands still during replays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ... import backend
from ...backend import Array

EAGER_CALLS = 3  # compilation, then velocities and pool in their final state, then one more for certainty

# What a call of a graph does. Where processes differ, all do the largest.
REPLAY, CAPTURE, EAGER = range(3)

CAPTURING = True


def avoid() -> None:
    """Run every step eagerly from now on: the check has found that replays go wrong on this machine."""
    global CAPTURING
    CAPTURING = False


class Workspace:
    """A stream and a memory pool, where graphs work that never run at the same time.

    The default pool may hand a graph's memory to someone else when memory is short, and the default stream cannot be
    captured. Between two replays everything in the pool is free but results and what lives on, like the weights'
    gradients, so whatever runs in between can have it: see `borrowed`. A second pool would hold as much again, and
    CuPy's pools cannot lend to each other.
    """

    def __init__(self) -> None:
        cp = backend.cupy()
        self.stream = cp.cuda.Stream(non_blocking=True)
        self.memory_pool = cp.cuda.MemoryPool(self.allocate)
        self.allocations = 0  # how often the pool has asked the GPU for memory

    def allocate(self, size: int) -> Any:
        """Memory for the pool, straight from the GPU."""
        self.allocations += 1
        cp = backend.cupy()
        return cp.cuda.MemoryPointer(cp.cuda.Memory(size), 0)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Inside, compute on this stream and in this memory: nothing is replayed meanwhile."""
        cp = backend.cupy()
        caller = cp.cuda.get_current_stream()
        self.stream.wait_event(caller.record())  # the inputs are ready when the caller's stream has come this far
        with self.stream, cp.cuda.using_allocator(self.memory_pool.malloc):
            yield
        caller.wait_event(self.stream.record())  # and the results when this stream has


class CudaGraph:
    """`step`, run eagerly three times and as a captured graph from then on.

        graph = CudaGraph(step)
        loss, logits = graph(batch, labels, lr)

    Arrays of the first call fix shapes and dtypes; later calls copy theirs (from the host or the device) into the same
    memory. A call with others, like an epoch's smaller last batch, runs eagerly. Results are overwritten by the next
    call. A step that CUDA refuses to capture goes on eagerly, with a RuntimeWarning that says why.

    `largest` returns the largest of the numbers that it is given in all processes that take the step together.

    Two graphs may share a workspace, training and evaluation for example: then a call of one overwrites the results of
    the other as well.
    """

    def __init__(
        self,
        step: Callable[..., Sequence[Array]],
        workspace: Workspace | None = None,
        largest: Callable[[int], int] = int,
    ):
        self.step, self.largest = step, largest
        self.workspace = workspace or Workspace()  # lives as long as the graph
        self.captured_at = 0  # how often the pool had asked for memory when the step was captured
        self.inputs: list[Array] | None = None
        self.outputs: Sequence[Array] = ()
        self.graph: Any = None
        self.capturable = CAPTURING  # until a capture has failed
        self.calls = 0

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        way = self.largest(self._way(arrays))
        if self.inputs is not None and _shapes(arrays) != _shapes(self.inputs):
            cp = backend.cupy()
            with self.workspace.borrowed():
                return self.step(*(cp.asarray(a) for a in arrays))
        with self.workspace.borrowed():
            self._take(arrays)
            if way == CAPTURE:
                self._capture()
            if way == EAGER or self.graph is None:
                outputs = self.step(*self.inputs or ())
            else:
                outputs = self.outputs
                self.graph.launch(self.workspace.stream)
            self.calls += 1
        return outputs

    def _way(self, arrays: Sequence[Array]) -> int:
        """What this process would do with the arrays."""
        if not self.capturable or self.calls < EAGER_CALLS or _shapes(arrays) != _shapes(self.inputs or ()):
            return EAGER
        # A pool that is out of memory gives back what is free before it asks for more: what is free now, but not while
        # the graph runs, may be somebody else's. The step is captured anew.
        stale = self.workspace.allocations != self.captured_at
        return CAPTURE if self.graph is None or stale else REPLAY

    def _take(self, arrays: Sequence[Array]) -> None:
        """Copy the call's arrays to where the graph reads them."""
        cp = backend.cupy()
        if self.inputs is None:
            self.inputs = [cp.array(a) for a in arrays]
            return
        for mine, new in zip(self.inputs, arrays, strict=True):
            mine[...] = cp.asarray(new)

    def _capture(self) -> None:
        self.graph, reason = None, ""
        self.workspace.stream.begin_capture()
        try:
            self.outputs = self.step(*self.inputs or ())
            self.graph = self.workspace.stream.end_capture()
            self.captured_at = self.workspace.allocations
        except Exception as error:
            with suppress(Exception):  # a spoilt capture must be closed, and says once more that it is spoilt
                self.workspace.stream.end_capture()
            if isinstance(error, MemoryError):
                raise
            reason = str(error)
        if self.largest(int(self.graph is None)):
            # Nothing of the step has run, so it can still be run eagerly.
            self.graph, self.capturable = None, False
            reason = reason or "another process could not capture it"
            warnings.warn(f"the step runs eagerly, it cannot be a CUDA graph: {reason}", RuntimeWarning, stacklevel=3)


def _shapes(arrays: Sequence[Array]) -> list[tuple]:
    return [(a.shape, a.dtype.name) for a in arrays]
