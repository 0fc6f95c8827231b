"""SIGINT (Ctrl-C) and SIGTERM: a command ends with one sentence and the exit code 128 + n.

train.predict, train.report and train.figures have nothing of their own to save and end at once (`train.figures --jobs`
hands the signal on to its runs first, see jobs.py); train.cifar does this:

| when the signal comes | what happens |
| --- | --- |
| while modules are imported | there is nothing to lose: the process ends |
| while a network is trained | the step is finished and the run saved, see `Guard` in faults.py |
| at any other moment | `Interrupted` is raised there: what is half written is cleared away on the way out |

A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal has asked the command to stop. No Exception, so that no library takes it for a failure of its own."""

    def __init__(self, number: int, rest: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{rest}")
        self.number = number


class Signals:
    """Watches for the first signal: Python calls `_on_signal` between two instructions of the main thread."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came
        self.postpone = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch signals inside this block."""
        if threading.current_thread() is not threading.main_thread():  # only that one may, and is told
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside this block a signal interrupts nothing: who is inside looks at `number` when it is time to stop."""
        self.postpone = True
        try:
            yield
        finally:
            self.postpone = False

    def _on_signal(self, number: int, frame: Any) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once
        if not self.postpone:
            raise Interrupted(number)


def end_at_once(program: str) -> None:
    """Let a signal end the process with a sentence, from now on until signals are caught."""

    def end(number: int, frame: Any) -> None:
        os.write(2, f"{program}: {Interrupted(number)}\n".encode())
        if "mpi4py.run" in sys.modules:  # a rank that ends before MPI_Init ends the others only if it is killed
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        os._exit(128 + number)  # an exception could get lost in somebody's module that is half imported

    for number in SIGNALS:
        signal.signal(number, end)
