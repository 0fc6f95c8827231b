"""Threads, and how an operation's work is cut up for them.

An operation cuts its work into one part per thread before it starts, always in the same way, so two runs with the same
number of threads add the same numbers in the same order and agree to the last bit. While the parts run, BLAS is held to
one thread each (../process.py): a matrix product of one image is too small to be worth splitting again. NumPy lets go
of Python's lock inside copies, arithmetic and products, so plain Python threads keep all cores busy.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..process import parallel_section, put_back_after_fork
from .memory import other_scratch

Span = tuple[int, int]


def spans(total: int, parts: int, unit: int = 1) -> list[Span]:
    """Cut range(total) into at most `parts` nearly equal spans (start, stop), multiples of `unit` where possible."""
    blocks = -(-total // unit)
    parts = max(1, min(parts, blocks))
    cuts = [min(total, blocks * i // parts * unit) for i in range(parts + 1)]
    return list(pairwise(cuts))


def steps(span: Span, step: int, unit: int = 1) -> Iterator[Span]:
    """Walk a span in pieces of at most `step`, all nearly equal: a short last piece would make a slow product.

    All but the last are multiples of `unit`, and may be longer than `step` by less than that.
    """
    start, stop = span
    pieces = -(-(stop - start) // step)
    cuts = [start + (stop - start) * i // pieces // unit * unit for i in range(pieces)]
    return pairwise(dict.fromkeys([*cuts, stop]))


def usable_cores() -> int:
    """The cores that this process may run on: its affinity and its control group's quota, not the machine's count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control group, or one of version 1
        pass
    return cores


class ThreadPool:
    """`size` workers: the calling thread and size - 1 threads that wait for it, started on first use."""

    def __init__(self, size: int):
        self.size = size
        self.lock = threading.RLock()  # a signal's handler may come back to a pool that its own thread holds
        self.busy = False
        self.inboxes: list[SimpleQueue] = []

    def run(self, work: Callable[..., None], parts: list[Any]) -> None:
        """Call work(part) for every part, at most `size` of them, each on its own thread; return when all are done.

        An exception in one part is raised here after the others have finished, because they share arrays; so is one
        that a signal raises, such as Ctrl-C. Where the system starts no more threads, this one takes their parts.
        """
        failure: BaseException | None = None
        done: SimpleQueue = SimpleQueue()  # wakes this thread up
        finished: list[BaseException | None] = []  # by the other threads
        handed: list[None] = []  # to them: one single call of C hands a part over and counts it

        def section() -> None:
            nonlocal failure
            try:
                self._start(len(parts) - 1)
                # NumPy keeps `errstate` in the context, and a context can be entered by one thread only.
                others = parts[1 : len(self.inboxes) + 1]
                jobs = [(contextvars.copy_context(), work, part, finished, done) for part in others]
                handed.extend(map(SimpleQueue.put, self.inboxes, jobs))
                for part in (parts[0], *parts[len(jobs) + 1 :]):
                    work(part)
            except BaseException as error:
                failure = error
            waiting = True
            while waiting:
                try:
                    while len(finished) < len(handed):
                        done.get()
                    waiting = False
                except BaseException as error:  # of a signal: the others still write
                    failure = error

        with self.lock:
            if self.busy:  # this is a signal's handler, and what it interrupted goes on afterwards
                with other_scratch():
                    for part in parts:
                        work(part)
                return
            self.busy = True
            try:
                parallel_section(section)
            finally:
                self.busy = False
        for error in (failure, *finished):
            if error is not None:
                raise error

    def _start(self, count: int) -> None:
        """Have `count` threads, or as many as the system starts: a container may have a limit of its own."""
        while len(self.inboxes) < count:
            inbox: SimpleQueue = SimpleQueue()
            name = f"minigrad-{len(self.inboxes) + 1}"
            try:
                threading.Thread(target=self._serve, args=(inbox,), name=name, daemon=True).start()
            except RuntimeError:
                return
            self.inboxes.append(inbox)

    def _serve(self, inbox: SimpleQueue) -> None:
        while (job := inbox.get()) is not None:
            context, work, part, finished, done = job
            failure: BaseException | None = None
            try:
                context.run(work, part)
            except BaseException as error:  # handed to the caller
                failure = error
            # The arrays of this job must not live on until the next one comes.
            del job, context, work, part
            finished.append(failure)
            done.put(None)
            del finished, done, failure

    def stop(self) -> None:
        """Let the threads end; the pool can be used again and starts new ones."""
        with self.lock:
            if self.busy:  # this is a signal's handler: the threads still have parts, and so they stay
                return
            for inbox in self.inboxes:
                inbox.put(None)
            self.inboxes = []


_pool: ThreadPool | None = None


def thread_pool() -> ThreadPool:
    """The threads of this process: a pool of `MINIGRAD_THREADS` workers or one for each usable core."""
    global _pool
    if _pool is None:
        wanted = os.environ.get("MINIGRAD_THREADS", "")
        _pool = ThreadPool(int(wanted) if wanted.isdecimal() and int(wanted) > 0 else usable_cores())
    return _pool


def threads() -> int:
    """The number of threads that fast operations use."""
    return thread_pool().size


def set_threads(count: int) -> None:
    """Use `count` threads from now on. Raises TypeError for what is no integer and ValueError below 1."""
    global _pool
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"the number of threads is an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, got {count}")
    old, _pool = thread_pool(), ThreadPool(int(count))
    old.stop()


def _after_fork() -> None:
    """Threads do not survive a fork: the child starts its own, and nobody is left to end a section of the parent's."""
    global _pool
    put_back_after_fork()
    if _pool is not None:
        _pool = ThreadPool(_pool.size)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def parts_for(operations: int) -> int:
    """How many threads are worth waking for so many elementary operations: one below about 20 microseconds of work."""
    return 1 if operations < 1 << 17 else threads()
