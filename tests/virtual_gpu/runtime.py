"""The CUDA runtime as CuPy calls it: the device's memory is the host's, everything runs at once, in order.

Each function here takes the place of the C function of its name. Work that is submitted to a stream is done before the
call returns, unless the stream is being captured: then it is kept, and done whenever the graph is launched. Only what
may come late (NCCL's sums, copies to the host) is done as late as it may be.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

from .calls import (
    CAPTURE_INVALIDATED,
    CAPTURE_ISOLATION,
    CAPTURE_UNJOINED,
    CAPTURE_UNSUPPORTED,
    DEVICE_TO_HOST,
    FLOAT,
    HANDLES,
    INVALID_HANDLE,
    INVALID_VALUE,
    OUT_OF_MEMORY,
    SIZE,
    CudaError,
    I,
    P,
    U,
    imitates,
    put,
)  # fmt: skip
from .counters import COUNTERS
from .properties import Device

# ---- memory ----

ALLOCATIONS: dict[int, mmap.mmap | Any] = {}
PINNED: set[int] = set()  # those of the host, which the GPU can reach
UNDER_WAY: list[tuple[int, bytes]] = []  # what is being copied there, and has not arrived


def _allocate(size: int) -> int:
    """Host memory on a page of its own, filled with bytes that make a NaN of every float type."""
    block = mmap.mmap(-1, max(size, 1))
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    if not COUNTERS.blank:
        ctypes.memset(address, 0xFF, size)
    ALLOCATIONS[address] = block
    return address


@imitates("cudaMalloc", P, SIZE)
def malloc(out, size):
    if COUNTERS.allocated + size > Device.memory:
        raise CudaError(OUT_OF_MEMORY)
    address = _allocate(size)
    COUNTERS.allocate(len(ALLOCATIONS[address]))
    put(out, address, SIZE)


@imitates("cudaFree", P)
def free(address):
    if address:
        if address not in ALLOCATIONS:
            raise CudaError(INVALID_VALUE)
        COUNTERS.allocate(-len(ALLOCATIONS.pop(address)))


@imitates("cudaHostAlloc", P, SIZE, U)
def host_allocate(out, size, flags):
    address = _allocate(size)
    PINNED.add(address)
    put(out, address, SIZE)


@imitates("cudaFreeHost", P)
def host_free(address):
    ALLOCATIONS.pop(address, None)
    PINNED.discard(address)


@imitates("cudaMemGetInfo", P, P)
def memory_info(free, total):
    put(free, Device.memory - COUNTERS.allocated, SIZE)
    put(total, Device.memory, SIZE)


class PointerAttributes(ctypes.Structure):
    _fields_ = (("type", I), ("device", I), ("device_pointer", P), ("host_pointer", P))


@imitates("cudaPointerGetAttributes", P, P)
def pointer_attributes(out, address):
    device = any(start <= address < start + len(block) for start, block in ALLOCATIONS.items())
    a = PointerAttributes.from_address(out)
    a.type, a.device, a.device_pointer, a.host_pointer = (2, 0, address, None) if device else (0, -1, None, address)


def _copy(to: int, source: int, size: int, kind: int, stream: int, waits: bool) -> None:
    if not size:
        return
    if kind == DEVICE_TO_HOST and not waits and any(p <= to < p + len(ALLOCATIONS[p]) for p in PINNED):
        # The host goes on, and must not look at what it gets before it has waited: it comes as late as it may.
        submit(stream, "copy", lambda: UNDER_WAY.append((to, ctypes.string_at(source, size))), size)
        return
    if kind == DEVICE_TO_HOST or waits:
        COUNTERS.wait("copy to the host" if kind == DEVICE_TO_HOST else "copy that waits")
    submit(stream, "copy", lambda: ctypes.memmove(to, source, size), size)


def _arrive() -> None:
    """The host has waited: what was under way to its memory is there."""
    for to, content in UNDER_WAY:
        ctypes.memmove(to, content, len(content))
    UNDER_WAY.clear()


@imitates("cudaMemcpy", P, P, SIZE, I)
def memcpy(to, source, size, kind):
    _copy(to, source, size, kind, 0, kind != 3)


@imitates("cudaMemcpyAsync", P, P, SIZE, I, P)
def memcpy_async(to, source, size, kind, stream):
    _copy(to, source, size, kind, stream or 0, False)


@imitates("cudaMemset", P, I, SIZE)
def memset(address, value, size):
    memset_async(address, value, size, 0)


@imitates("cudaMemsetAsync", P, I, SIZE, P)
def memset_async(address, value, size, stream):
    submit(stream or 0, "memset", lambda: COUNTERS.blank or ctypes.memset(address, value, size), size)


# ---- streams, events, graphs ----


class Capture:
    """The work of the streams that are being captured together."""

    def __init__(self, origin: int):
        self.origin, self.work, self.spoilt = origin, [], False


class Stream:
    """A queue, empty but for what comes late, which is done when somebody waits for it; `capture` while recorded."""

    def __init__(self, flags: int = 0):
        self.flags = flags
        self.capture: Capture | None = None
        self.late: list[Callable[[], Any]] = []

    def catch_up(self, count: int) -> None:
        """Do so much of what is late, or keep it as the next work of the capture."""
        for work in self.late[:count]:
            if self.capture is None:
                work()
            else:
                self.capture.work.append(work)
        del self.late[:count]


class Event:
    """A place in a stream's work: behind `last`, if something is late. `capture` is the one that it was recorded in."""

    def __init__(self, stream: Stream):
        self.stream, self.capture, self.last = stream, stream.capture, stream.late[-1:]

    def catch_up(self) -> None:
        """Do what comes before the event."""
        if self.last and self.last[0] in self.stream.late:
            self.stream.catch_up(self.stream.late.index(self.last[0]) + 1)


STREAMS: dict[int, Stream] = {0: Stream(), 1: Stream(), 2: Stream()}
EVENTS: dict[int, Event | None] = {}  # None: not recorded yet
GRAPHS: dict[int, list] = {}


def _stream(handle: int | None) -> Stream:
    try:
        return STREAMS[handle or 0]
    except KeyError:
        raise CudaError(INVALID_HANDLE) from None


def submit(stream: int | None, kind: str, action: Callable[[], Any], size: int = 0, late: bool = False) -> None:
    """Do the work now, or keep it if the stream is being captured; where it may come `late`, as late as it may."""

    def work() -> None:
        COUNTERS.did(kind, size)
        action()

    s = _stream(stream)
    if s.capture is not None and s.capture.spoilt:
        raise CudaError(CAPTURE_INVALIDATED)
    s.late.append(work)
    if not late:
        s.catch_up(len(s.late))


def _wait(what: str, stream: Stream) -> None:
    """The host waits: not allowed for a stream that is being captured."""
    if stream.capture is not None:
        stream.capture.spoilt = True
        raise CudaError(CAPTURE_UNSUPPORTED)
    stream.catch_up(len(stream.late))
    _arrive()
    COUNTERS.wait(what)


@imitates("cudaStreamCreate", P)
def stream_create(out):
    stream_create_with_priority(out, 0, 0)


@imitates("cudaStreamCreateWithFlags", P, U)
def stream_create_with_flags(out, flags):
    stream_create_with_priority(out, flags, 0)


@imitates("cudaStreamCreateWithPriority", P, U, I)
def stream_create_with_priority(out, flags, priority):
    handle = next(HANDLES)
    STREAMS[handle] = Stream(flags)
    put(out, handle, SIZE)


@imitates("cudaStreamDestroy", P)
def stream_destroy(handle):
    STREAMS.pop(handle, None)


@imitates("cudaStreamGetFlags", P, P)
def stream_flags(handle, out):
    put(out, _stream(handle).flags, U)


@imitates("cudaStreamGetPriority", P, P)
def stream_priority(handle, out):
    put(out, 0, I)


@imitates("cudaStreamSynchronize", P)
def stream_synchronize(handle):
    _wait("stream synchronised", _stream(handle))


@imitates("cudaDeviceSynchronize")
def device_synchronize():
    for stream in STREAMS.values():
        if stream.capture is not None:
            _wait("", stream)
        stream.catch_up(len(stream.late))
    _arrive()
    COUNTERS.wait("device synchronised")


@imitates("cudaStreamQuery", P)
def stream_query(handle):
    _stream(handle)


@imitates("cudaStreamIsCapturing", P, P)
def stream_is_capturing(handle, out):
    capture = _stream(handle).capture
    put(out, 0 if capture is None else 2 if capture.spoilt else 1, I)


@imitates("cudaStreamWaitEvent", P, P, U)
def stream_wait_event(handle, event, flags):
    """A stream that waits for an event of a capture joins the capture; one that is captured waits for no other."""
    stream, mark = _stream(handle), EVENTS[event]
    if mark is None:
        return
    if stream.capture is None and mark.capture is not None:
        stream.catch_up(len(stream.late))
        stream.capture = mark.capture
    if stream.capture is not mark.capture:
        raise CudaError(CAPTURE_ISOLATION)
    mark.catch_up()


@imitates("cudaLaunchHostFunc", P, P, P)
def launch_host_function(stream, function, data):
    submit(stream, "host function", lambda: ctypes.CFUNCTYPE(None, P)(function)(data))


@imitates("cudaStreamAddCallback", P, P, P, U)
def stream_add_callback(stream, function, data, flags):
    ctypes.CFUNCTYPE(None, P, I, P)(function)(stream, 0, data)


@imitates("cudaEventCreateWithFlags", P, U)
def event_create(out, flags):
    handle = next(HANDLES)
    EVENTS[handle] = None
    put(out, handle, SIZE)


@imitates("cudaEventCreate", P)
def event_create_plain(out):
    event_create(out, 0)


@imitates("cudaEventDestroy", P)
def event_destroy(handle):
    EVENTS.pop(handle, None)


@imitates("cudaEventRecord", P, P)
def event_record(event, stream):
    EVENTS[event] = Event(_stream(stream))


@imitates("cudaEventQuery", P)
def event_query(event):
    pass


@imitates("cudaEventSynchronize", P)
def event_synchronize(event):
    mark = EVENTS[event]
    if mark is not None and mark.capture is not None:
        mark.capture.spoilt = True
        raise CudaError(CAPTURE_UNSUPPORTED)
    if mark is not None:
        mark.catch_up()
    _arrive()
    COUNTERS.wait("event synchronised")


@imitates("cudaEventElapsedTime", P, P, P)
def event_elapsed(out, start, end):
    put(out, 1.0, FLOAT)  # no clock: everything takes a millisecond


@imitates("cudaStreamBeginCapture", P, I)
def begin_capture(handle, mode):
    if not handle or _stream(handle).capture is not None:
        raise CudaError(CAPTURE_UNSUPPORTED)
    _stream(handle).capture = Capture(handle)


@imitates("cudaStreamEndCapture", P, P)
def end_capture(handle, out):
    capture = _stream(handle).capture
    if capture is None or capture.origin != handle:
        raise CudaError(INVALID_VALUE)
    unjoined = False  # whether nobody waits for some work
    for stream in STREAMS.values():
        if stream.capture is capture:
            unjoined |= bool(stream.late)
            stream.capture = None
            stream.late.clear()
    if capture.spoilt or unjoined:
        raise CudaError(CAPTURE_UNJOINED if unjoined else CAPTURE_INVALIDATED)
    graph = next(HANDLES)
    GRAPHS[graph] = capture.work
    put(out, graph, SIZE)


@imitates("cudaGraphInstantiate", P, P, ctypes.c_ulonglong)
def graph_instantiate(out, graph, flags):
    executable = next(HANDLES)
    GRAPHS[executable] = list(GRAPHS[graph])
    put(out, executable, SIZE)


@imitates("cudaGraphLaunch", P, P)
def graph_launch(executable, stream):
    submit(stream, "graph", lambda: [work() for work in GRAPHS[executable]])


@imitates("cudaGraphUpload", P, P)
def graph_upload(executable, stream):
    pass


@imitates("cudaGraphDestroy", P)
def graph_destroy(graph):
    GRAPHS.pop(graph, None)


@imitates("cudaGraphExecDestroy", P)
def executable_destroy(executable):
    GRAPHS.pop(executable, None)
