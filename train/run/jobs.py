"""Runs side by side: `train.figures --jobs N` keeps N processes of `train.cifar` at work, with one thread each.

While they work, a line is printed for every run that ends, and a bar shows what part of all the work is done and how
long the rest will take. A signal is handed on to the processes, which save their runs; the same command then goes on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from resnext import counts, create

from ..options import USAGE
from .series import Cell, Stopped
from .signals import Interrupted, Signals

COMMAND = (sys.executable, "-m", "train.cifar")
LOOK = 0.5  # seconds between two looks at the processes


def train_side_by_side(cells: Sequence[Cell], jobs: int, ended: Callable[[Cell], object]) -> None:
    """Train the runs that are not done, `jobs` at a time, and call `ended` after each one that got to its end.

    A run that fails does not stop the others; only a command line that cannot work, which is that of all, does. Raises
    Stopped with the exit code of the first failure, or 128 + n after signal n, when every process has ended.
    """
    signals, failures = Signals(), []
    waiting = [cell for cell in cells if not cell.is_done()]
    running: dict[Cell, subprocess.Popen] = {}
    print(f"{len(cells) - len(waiting)} of {len(cells)} runs are done; the others go {jobs} at a time", flush=True)
    with ExitStack() as stack:
        stack.enter_context(signals.caught())
        stack.enter_context(signals.postponed())  # no process may be started and not be known here
        bar = stack.enter_context(Progress(cells))
        try:
            while running or waiting:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell] = start(cell)
                time.sleep(LOOK)
                if signals.number:
                    raise Interrupted(signals.number)
                bar.show(len(running))
                for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                    code = running.pop(cell).returncode
                    if code == 0 and cell.is_done():
                        bar.show(len(running))
                        ended(cell)
                        continue
                    # 0: --resume keeps the options that a run was begun with; below 0: a signal has ended the process.
                    failures.append(128 - code if code < 0 else code or USAGE)
                    tqdm.write(f"{cell}: {last_words(cell, code)}", sys.stderr)
                    if failures[-1] == USAGE:
                        waiting.clear()
        except Interrupted as stop:
            end(running.values(), stop.number)
            tqdm.write(f"{stop}: the runs are saved, the same command goes on", sys.stderr)
            raise Stopped(128 + stop.number) from None
        except BaseException:  # whatever ended this, no process may go on unseen
            end(running.values(), signal.SIGTERM)
            raise
    if failures:
        raise Stopped(failures[0])


def log_of(cell: Cell) -> Path:
    """Where the process of a run writes what it has to say: beside the run's folder."""
    return cell.out.with_name(f"{cell.out.name}.log")


def start(cell: Cell) -> subprocess.Popen:
    """Start the process of a run. What it says goes into a file beside the run's folder."""
    threads = [] if any(word.split("=")[0] == "--threads" for word in cell.command) else ["--threads", "1"]
    command = [*COMMAND, *cell.command, *threads]
    cell.out.parent.mkdir(parents=True, exist_ok=True)
    with log_of(cell).open("w") as log:
        # In a session of its own, so that Ctrl-C reaches it once, from here: a second signal would end it unsaved.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def end(processes: Collection[subprocess.Popen], number: int) -> None:
    """Hand a signal on to the processes and wait until they have saved their runs."""
    for process in processes:
        process.send_signal(number)
    for process in processes:
        process.wait()


def last_words(cell: Cell, code: int) -> str:
    """Why a run did not get to its end: the last line that its process wrote."""
    if code == 0:
        return f"{cell.out} holds a run with other options: choose another folder with --runs"
    lines = log_of(cell).read_text(errors="replace").split("\n")
    said = [line.split("\r")[-1].strip() for line in lines if line.strip()]  # a bar overwrites its line
    return said[-1] if said else f"its process ended with exit code {code} and said nothing; see {log_of(cell)}"


def cost(model: str) -> int:
    """The multiply-adds of an image's way through a network."""
    with counts.outlines():
        return counts.multiply_adds(create(model))


class Progress:
    """A bar over the epochs of all runs, an epoch of a large network counting for more than one of a small one."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells = cells
        self.cost = {model: cost(model) for model in {cell.model for cell in cells}}
        total = sum(self.cost[cell.model] * cell.config.recipe.epochs for cell in cells)
        # disable=None: no bar where standard error is no terminal. smoothing=0: the time left is that at the mean pace.
        self.bar = tqdm(
            total=total,
            initial=self.done(),
            smoothing=0,
            disable=None,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def done(self) -> int:
        """What is done: multiply-adds of an image's way through the network, times epochs."""
        return sum(self.cost[cell.model] * cell.epochs() for cell in self.cells)

    def show(self, running: int) -> None:
        """Bring the bar up to date."""
        if self.bar.disable:
            return
        finished = sum(cell.is_done() for cell in self.cells)
        self.bar.set_description(f"{finished} of {len(self.cells)} runs, {running} at work", refresh=False)
        self.bar.update(self.done() - self.bar.n)
        self.bar.refresh()
