"""The CPU's threads, and what concerns the whole process."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import block, block_arrays, both, results, thread_count

from minigrad.fast import cpu, process
from minigrad.fast.cpu.memory import scratch
from minigrad.fast.cpu.threads import ThreadPool, spans, steps, thread_pool


def test_same_threads_same_bits_and_other_threads_same_numbers():
    results = {}
    for count in (1, 2, 2, 3):
        with thread_count(count):
            result = both(block, block_arrays(9, 96, np.float32))[0]
        if count in results:
            assert all(np.array_equal(a, b) for a, b in zip(result, results[count], strict=True))
        results[count] = result
    for count in (2, 3):
        for a, b in zip(results[count], results[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_two_threads_of_the_user_do_not_disturb_each_other():
    arrays = block_arrays(4, 96)
    expected = both(block, arrays)[1]
    failures = []

    def work():
        for a, b in zip(results(block, arrays), expected, strict=True):
            if np.abs(a - b).max() > 1e-10 * max(1, np.abs(b).max()):
                failures.append(np.abs(a - b).max())

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    assert not failures


def test_an_exception_reaches_the_caller_and_the_pool_goes_on():
    own = ThreadPool(3)

    def fail(part):
        if part == 2:
            raise ArithmeticError("part 2")

    with pytest.raises(ArithmeticError, match="part 2"):
        own.run(fail, [0, 1, 2])
    done = []
    own.run(done.append, [0, 1, 2])
    assert sorted(done) == [0, 1, 2]
    own.stop()


def test_the_calling_thread_takes_the_parts_of_threads_that_do_not_start(monkeypatch):
    """As in a container with a limit on processes; and whoever can start later is used."""
    own, limit, done = ThreadPool(3), [1], []
    start = threading.Thread.start

    def limited(thread):
        if not limit[0]:
            raise RuntimeError("can't start new thread")
        limit[0] -= 1
        start(thread)

    def work(part):
        done.append((part, threading.current_thread().name))
        barrier.wait(10)

    monkeypatch.setattr(threading.Thread, "start", limited)
    barrier, here = threading.Barrier(1), threading.current_thread().name
    own.run(work, [0, 1, 2])
    assert sorted(done) == [(0, here), (1, "minigrad-1"), (2, here)]
    monkeypatch.undo()
    barrier = threading.Barrier(3)
    own.run(work, [0, 1, 2])
    assert sorted(done[3:]) == [(0, here), (1, "minigrad-1"), (2, "minigrad-2")]
    own.stop()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
def test_ctrl_c_waits_for_the_other_threads():
    """The second and the third too: the others write to arrays that the caller may throw away."""
    own, main, finished = ThreadPool(2), threading.get_ident(), []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets commands behind & ignore it

    def work(part):
        if part == 1:
            for _ in range(3):
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.02)
            finished.append(part)

    try:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                own.run(work, [0, 1])
            assert finished.pop() == 1
    finally:
        signal.signal(signal.SIGINT, before)
    own.stop()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs a signal for users")
def test_a_signals_handler_may_compute_in_the_middle_of_a_section():
    """On the same pool and the same thread; what it interrupted finds its scratch memory as it was."""
    own, seen, same = ThreadPool(2), [], []

    def in_handler(part):
        scratch("image", (4,), np.dtype(float)).fill(-1)
        seen.append(part)

    def work(part):
        buffer = scratch("image", (4,), np.dtype(float))
        buffer.fill(part)
        if part == 0:
            signal.raise_signal(signal.SIGUSR1)
        same.append((buffer == part).all())

    def handler(*_):
        own.run(in_handler, [5, 6])
        own.stop()  # as `set_threads` does; the section still needs the threads
        assert len(own.inboxes) == 1

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        own.run(work, [0, 1])
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert seen == [5, 6] and same == [True, True]
    own.stop()


def test_a_thread_that_waits_keeps_nothing_alive():
    class Arrays:
        pass

    own, arrays = ThreadPool(2), Arrays()
    gone = weakref.ref(arrays)
    own.run(lambda part, arrays=arrays: None, [0, 1])
    del arrays
    assert gone() is None
    own.stop()


def test_blas_threads_are_put_back():
    from threadpoolctl import threadpool_info

    before = [i["num_threads"] for i in threadpool_info()]
    thread_pool().run(lambda part: None, [0])
    assert [i["num_threads"] for i in threadpool_info()] == before


def test_the_turn_of_pythons_lock_and_numpys_buffer_are_put_back():
    def settings():
        return round(sys.getswitchinterval(), 6), np.getbufsize()

    before, seen, own = settings(), [], ThreadPool(2)
    own.run(lambda part: seen.append(settings()), [0, 1])
    assert seen == [(1e-4, 512)] * 2
    assert settings() == before
    with pytest.raises(ZeroDivisionError):
        own.run(lambda part: 1 // part, [1, 0])
    assert settings() == before
    own.stop()


@pytest.mark.parametrize(
    ("family", "flags", "zen4"),
    [
        (25, "avx2 avx512f fma", True),
        (25, "avx2 fma", False),
        (26, "avx2 avx512f fma", False),
        (6, "avx512f fma", False),
    ],
)
def test_the_processor_is_recognised(family, flags, zen4):
    text = f"processor\t: 0\ncpu family\t: {family}\nmodel\t\t: 17\nflags\t\t: fpu {flags} sse\n\nprocessor\t: 1\n"
    assert process.is_zen4(text) == zen4


KERNELS = """
import ctypes, sys, threading
import numpy as np
from minigrad.fast import process
{before}
found = [b for b in process.libraries() if b.internal_api == "openblas"]
if not found or not hasattr(handle := ctypes.CDLL(found[0].filepath), "gotoblas_corename"):
    print("no choice")
    sys.exit()
handle.gotoblas_corename.restype = ctypes.c_char_p
found[0].architecture = "SkylakeX"
then = handle.gotoblas_corename().decode()
process.choose_kernels(sys.argv[1])
a = np.random.default_rng(0).standard_normal((300, 300))
assert np.allclose(a.astype(np.float32) @ a.astype(np.float32), a @ a, atol=1e-3)
print(then, handle.gotoblas_corename().decode(), found[0].architecture)
"""


@pytest.mark.parametrize(
    ("before", "pin", "chooses"),
    [
        ("", None, True),
        ("", "Nehalem", False),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", None, False),
    ],
)
def test_openblas_is_asked_for_other_kernels_on_zen4_alone(tmp_path, before, pin, chooses):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("cpu family\t: 25\nflags\t\t: fma avx512f sse\n")
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"} | {"MINIGRAD_FAST": "0"}
    if pin is not None:
        environment["OPENBLAS_CORETYPE"] = pin
    code = KERNELS.format(before=before)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(cpuinfo)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    if answer == ["no", "choice"]:
        pytest.skip("NumPy's BLAS is no OpenBLAS that can choose its kernels")
    then, now, noted = answer
    if chooses:
        assert now == noted == "Haswell"  # the AVX2 kernels, whatever the machine would have by itself
    else:
        assert now == then


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError)])
def test_set_threads_refuses(count, error):
    with pytest.raises(error, match="number of threads"):
        cpu.set_threads(count)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 16))
def test_spans_cover_everything_once(total, parts, unit):
    cut = spans(total, parts, unit)
    assert len(cut) <= parts and cut[0][0] == 0 and cut[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(cut)) and all(a < b for a, b in cut)
    pieces = [p for span in cut for p in steps(span, unit)]
    assert sum(b - a for a, b in pieces) == total and all(0 < b - a <= unit for a, b in pieces)
    pieces = list(steps((0, total), 3 * unit, unit))
    assert pieces[0][0] == 0 and pieces[-1][1] == total and all(a[1] == b[0] for a, b in pairwise(pieces))
    assert all(0 < b - a < 4 * unit and a % unit == 0 for a, b in pieces)


def test_threads_survive_a_fork():
    """A child process has none of its parent's threads and must start its own."""
    code = (
        "import os, numpy as np, minigrad\n"
        "from minigrad import Tensor, functional as F\n"
        "minigrad.fast.cpu.set_threads(2)\n"
        "x = Tensor(np.ones((8, 16, 16, 16), np.float32)); w = Tensor(np.ones((16, 16, 3, 3), np.float32))\n"
        "F.conv2d(x, w, padding=1)\n"
        "pid = os.fork()\n"
        "F.conv2d(x, w, padding=1)\n"
        "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "os._exit(0)\n"
    )
    run_alone(code)


def run_alone(code):
    """Run a program with the engine room in a process of its own, which must end well."""
    environment = {**os.environ, "MINIGRAD_FAST": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, env=environment)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_in_the_middle_of_a_section_of_another_thread_has_the_settings_of_before():
    code = (
        "import os, sys, threading\n"
        "from minigrad.fast import process\n"
        "from minigrad.fast.cpu.threads import ThreadPool, thread_pool\n"
        "def settings(): return round(sys.getswitchinterval(), 6), [count() for count, _ in process.blas_threads()]\n"
        "for _, setter in process.blas_threads(): setter(2)\n"
        "before, inside, end = settings(), threading.Event(), threading.Event()\n"
        "def work(part): inside.set(); end.wait()\n"
        "other = threading.Thread(target=thread_pool().run, args=(work, [0]))\n"
        "other.start(); inside.wait()\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(settings() != before)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "end.set(); other.join()\n"
        "raise SystemExit(code or settings() != before)\n"
    )
    run_alone(code)
