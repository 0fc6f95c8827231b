"""Ctrl-C anywhere in a training loop of a notebook, whose process goes on, and in a whole run, which is gone on with.

Python looks for signals when a function begins, after a call and when a loop turns back; there an exception is raised.
Only in `__enter__` and `__exit__` it is not: no program in Python can be safe there.

Afterwards the process computes as before, to the last bit, with as many threads and with a tape; a run that goes on
ends with the bits of the one that was never stopped.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import io
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from support import tiny

import resnext
from minigrad import Tensor, manual_seed, nn, no_grad, optim
from minigrad import functional as F
from minigrad.fast import cpu, process
from train import cifar
from train.run.checkpoint import LAST

from .commands import call, copy_of_honest, resume, same_as_honest

OURS = tuple(str(tiny.ROOT / package) for package in ("minigrad", "resnext", "train"))


@functools.cache
def looks(code: CodeType) -> frozenset[int]:
    """The instructions of a function after which Python looks for signals."""
    names = ("RESUME", "CALL", "JUMP_BACKWARD")
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname.startswith(names))


@contextmanager
def at_place(number: int, action: Callable[[], Any], careful: bool = False) -> Iterator[list[int]]:
    """Inside, do something at the nth place where Python looks for signals in our code; yields their count so far.

    `careful` counts the functions alone that catch something or put something back: one place in ten, where most can
    go wrong.
    """
    count, last = [0], {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(OURS) or code.co_name in ("__enter__", "__exit__"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            before, last[frame] = last.get(frame), frame.f_lasti
            if before in looks(code) and (code.co_exceptiontable or not careful):
                count[0] += 1
                if count[0] == number:
                    action()
        elif event == "return":
            last.pop(frame, None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def interrupt() -> None:
    raise KeyboardInterrupt


def steps() -> list[np.ndarray]:
    """Two steps of a small network and a test; the weights and the loss. Some of it is cut over threads."""
    manual_seed(0)
    stem, block = nn.Conv2d(3, 32, 3, padding=1), resnext.Bottleneck(32, 32, 4, 8)
    network = nn.Sequential(stem, block, nn.MaxPool2d(2), nn.GlobalAvgPool2d(), nn.Linear(32, 4))
    x, labels = Tensor(np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)), [0, 1, 2, 3]
    sgd = optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        sgd.zero_grad()
        F.cross_entropy(network(x), labels).backward()
        sgd.step()
    with no_grad():
        loss = F.cross_entropy(network.eval()(x), labels)
    assert not loss.requires_grad
    return [*(p.data for p in network.parameters()), loss.data]


@functools.cache
def whole(careful: bool) -> tuple[int, list[bytes]]:
    """How many such places two steps have, and what comes of them."""
    steps()  # what is done once is done
    with at_place(0, interrupt, careful) as count:
        found = steps()
    return count[0], [array.tobytes() for array in found]


def state() -> tuple:
    """What belongs to the whole process."""
    blas = [count() for count, _ in process.blas_threads()]
    return blas, cpu.threads(), sys.getswitchinterval(), np.getbufsize(), np.geterr(), F.relu(leaf()).requires_grad


def leaf() -> Tensor:
    return Tensor(1.0, requires_grad=True)


def loop_in_a_notebook(rng: random.Random) -> None:
    """Interrupt two steps, look at the process, make them again."""
    careful = rng.random() < 0.5
    places, expected = whole(careful)
    before, number = state(), rng.randint(1, places)
    try:
        with at_place(number, interrupt, careful):
            steps()
    except KeyboardInterrupt as stop:
        where = traceback.extract_tb(stop.__traceback__)[-3]  # the last two are `trace` and `interrupt`
        story = f"Ctrl-C at place {number} of {places}, {where.filename}:{where.lineno}"
        assert state() == before, f"{story}: the process was {before} and is {state()}"
        assert [array.tobytes() for array in steps()] == expected, f"{story}: other numbers afterwards"


def interrupted_main(number: int, out: Path) -> int:
    with at_place(number, lambda: signal.raise_signal(signal.SIGINT)):
        return cifar.main([*tiny.OPTIONS, "--out", str(out), "--save-every", "1", "--resume"])


def run_in_a_process(rng: random.Random, folder: Path) -> None:
    """Interrupt a run with a signal, go on with it."""
    number = rng.randint(1, 400_000)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    out = folder / "run"
    if rng.random() < 0.5:
        copy_of_honest(folder, rng.choice([4, 6, 8]))
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), tiny.undecorated():
        code = interrupted_main(number, out)
    assert code in (0, 130), f"SIGINT at place {number}: exit code {code}: {silent.getvalue()}"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers, f"at place {number}"
    if (out / LAST).exists():
        resume_code, error = resume(out)
    else:
        with tiny.undecorated():
            resume_code, _, error = call(cifar.main, *tiny.OPTIONS, "--out", out)
    assert resume_code == 0, f"after SIGINT at place {number}: {error}"
    same_as_honest(out)


def trial(rng: random.Random, folder: Path) -> None:
    """Interrupt a few steps or, once in a while, a run."""
    if rng.random() < 0.95:
        loop_in_a_notebook(rng)
    else:
        run_in_a_process(rng, folder)
