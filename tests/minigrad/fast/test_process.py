"""What concerns the whole process: untouched by an import, switched by a command, and put back after every section."""

import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.engine import thread_count

from minigrad.fast import process
from minigrad.fast.cpu.threads import thread_pool

IMPORT = """
import ctypes, sys
import numpy as np
from threadpoolctl import ThreadpoolController

def state():
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    cores = []
    for library in found:
        handle = ctypes.CDLL(library.filepath)
        if hasattr(handle, "gotoblas_corename"):
            handle.gotoblas_corename.restype = ctypes.c_char_p
            cores.append(handle.gotoblas_corename())
    return [b.info() for b in found], cores, np.getbufsize(), np.geterr(), sys.getswitchinterval()

class LoudLibrary(ctypes.CDLL):
    def __getattr__(self, name):
        assert name != "mallopt", "the heap was asked to change"
        return super().__getattr__(name)

before = state()
ctypes.CDLL = LoudLibrary
import minigrad
from minigrad import Tensor, functional as F
x, w = Tensor(np.ones((4, 16, 16, 16), np.float32)), Tensor(np.ones((16, 16, 3, 3), np.float32), requires_grad=True)
F.conv2d(x, w, padding=1).sum().backward()
assert state() == before, (before, state())
assert not minigrad.registry.fast("cpu") or minigrad.fast.process._libraries is not None
ctypes.CDLL = LoudLibrary.__base__
print(minigrad.fast.process.prepare())
"""


def test_an_import_and_a_step_leave_the_process_as_it_was():
    """Beside plain NumPy: BLAS's kernels and threads, the heap, NumPy's buffer and errors, the switch interval."""
    environment = {**os.environ, "MINIGRAD_FAST": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if sys.platform == "linux":
        assert "glibc's heap to keep freed memory" in done.stdout  # what the commands of train do, and say


def test_the_heap_is_left_alone_where_there_is_no_glibc(monkeypatch):
    """Windows has no library without a name, musl's has no mallopt."""
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: name + 1)
    assert process.keep_heap() == []
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())
    assert process.keep_heap() == []


def settings():
    return round(sys.getswitchinterval(), 6), np.getbufsize(), [count() for count, _ in process.blas_threads()]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of this process")
@pytest.mark.parametrize("threads", [1, 2])
def test_all_is_put_back_after_a_signal_at_any_point(threads):
    """A handler that raises, as Ctrl-C's does, every few microseconds of a loop of sections; and nobody is at work."""

    class Interrupt(Exception):
        pass

    def handler(*_):
        raise Interrupt

    def work(part):
        at_work.append(part)
        at_work.remove(part)

    before, caught, at_work, parts = settings(), 0, [], list(range(threads))
    gc.disable()  # an exception in a callback of the collector is ignored, and no second signal would come
    old = signal.signal(signal.SIGALRM, handler)
    try:
        with thread_count(threads):
            own, end = thread_pool(), time.monotonic() + 1
            own.run(work, parts)  # Python's own start of a thread is not made for signals that raise
            delays = np.random.default_rng(0).uniform(1e-6, 2e-4, 100_000)
            for delay in delays:
                if time.monotonic() > end:
                    break
                try:
                    signal.setitimer(signal.ITIMER_REAL, delay)
                    while time.monotonic() < end:
                        own.run(work, parts)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupt:
                    caught += 1
                    assert settings() == before and 1 not in at_work
                    at_work.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        gc.enable()
    assert caught > 50
