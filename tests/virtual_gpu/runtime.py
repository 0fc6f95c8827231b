"""The CUDA runtime as CuPy calls it: the device's memory is the host's, everything runs at once, in order.

Each function here takes the place of the C function of its name. Work that is submitted to a stream is done before the
call returns, unless the stream is being captured: then it is kept, and done whenever the graph is launched.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

from .calls import (
    CAPTURE_INVALIDATED,
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
    """A queue that is always empty; `capture` while it is recorded."""

    def __init__(self, flags: int = 0):
        self.flags = flags
        self.capture: Capture | None = None


STREAMS: dict[int, Stream] = {0: Stream(), 1: Stream(), 2: Stream()}
EVENTS: dict[int, Capture | None] = {}  # the capture that an event was recorded in
GRAPHS: dict[int, list] = {}


def _stream(handle: int | None) -> Stream:
    try:
        return STREAMS[handle or 0]
    except KeyError:
        raise CudaError(INVALID_HANDLE) from None


def submit(stream: int | None, kind: str, action: Callable[[], Any], size: int = 0) -> None:
    """Do the work now, or keep it if the stream is being captured."""

    def work() -> None:
        COUNTERS.did(kind, size)
        action()

    capture = _stream(stream).capture
    if capture is None:
        work()
    elif capture.spoilt:
        raise CudaError(CAPTURE_INVALIDATED)
    else:
        capture.work.append(work)


def _wait(what: str, stream: Stream) -> None:
    """The host waits: not allowed for a stream that is being captured."""
    if stream.capture is not None:
        stream.capture.spoilt = True
        raise CudaError(CAPTURE_UNSUPPORTED)
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
    """A stream that waits for an event of a capture joins the capture."""
    if EVENTS[event] is not None:
        _stream(handle).capture = EVENTS[event]


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
    EVENTS[event] = _stream(stream).capture


@imitates("cudaEventQuery", P)
def event_query(event):
    pass


@imitates("cudaEventSynchronize", P)
def event_synchronize(event):
    if EVENTS[event] is not None:
        EVENTS[event].spoilt = True
        raise CudaError(CAPTURE_UNSUPPORTED)
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
    for stream in STREAMS.values():
        if stream.capture is capture:
            stream.capture = None
    if capture.spoilt:
        raise CudaError(CAPTURE_INVALIDATED)
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
