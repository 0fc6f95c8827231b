"""Several ranks, of which one is killed, stopped, signalled, given other images, or alone has a full disk.

All end, within their patience, with a sentence; the state that was saved last is whole, and gone on with it leads to
the bits of a run of as many ranks that was never disturbed. Needs mpi4py and mpiexec.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import tiny

from train.run import checkpoint
from train.run.checkpoint import LAST

from . import Skipped
from .commands import home

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "MINIGRAD_PATIENCE": "5",
    "MINIGRAD_GRACE": "3",
}
OPTIONS = (*tiny.OPTIONS, "--save-every", "1", "--resume")


def start(*words: object, **options: object) -> subprocess.Popen:
    return tiny.start(*OPTIONS, *words, mpi=(MPIEXEC, "-n", "2"), env=SETTINGS, **options)


@functools.cache
def undisturbed() -> Path:
    """A run of two ranks that was never disturbed."""
    process = start("--out", home() / "ranks")
    assert (process.communicate(timeout=170)[1], process.returncode) == ("", 0)
    return home() / "ranks"


def children(pid: int) -> list[int]:
    """The ranks below an mpiexec: Python processes of the command."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if entry.name.isdecimal() and b"train.cifar" in (entry / "cmdline").read_bytes().split(b"\0"):
                parent, seen = int(entry.name), set()
                while parent > 1 and parent not in seen:
                    seen.add(parent)
                    parent = int((entry.parent / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == pid:
                        found.append(int(entry.name))
                        break
    return sorted(pid for pid in found if b"mpiexec" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])


def disturb(rng: random.Random, out: Path) -> tuple[str, str, int]:
    """Start a run and do something to one rank or to all; return what it was, what was said, and the exit code."""
    kind = rng.choice(["kill", "kill", "stop", "signal", "all", "full disk"])
    if kind == "full disk":
        limit, which = rng.choice([1, 1000, 20_000]), rng.choice([0, 1])
        script = (
            "import resource, runpy, sys\n"
            "from mpi4py import MPI\n"  # whose shared memory is a file too
            f"if MPI.COMM_WORLD.rank == {which}:\n    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "sys.argv[0] = 'train.cifar'\nrunpy.run_module('train.cifar', run_name='__main__', alter_sys=True)\n"
        )
        (out.parent / "rank.py").write_text(script)
        command = [MPIEXEC, "-n", "2", sys.executable, "-m", "mpi4py", out.parent / "rank.py", *OPTIONS, "--out", out]
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(tiny.ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
        return f"rank {which} with {limit} bytes of disk", done.stderr, done.returncode
    process = start("--out", out)
    tiny.wait_until(lambda: len(children(process.pid)) == 2 or process.poll() is not None)
    if kind == "stop":  # before that MPI itself may be waiting, or a rank for what rank 0 downloads
        tiny.wait_until(lambda: (out / LAST).exists() or process.poll() is not None)
    time.sleep(rng.uniform(0, 4 if kind != "stop" else 0.5))
    ranks = children(process.pid)
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(kind, rng.choice([signal.SIGINT, signal.SIGTERM]))
    for pid in ranks if kind == "all" else ranks[:1] if rng.random() < 0.5 else ranks[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    try:
        printed, error = process.communicate(timeout=120)
    finally:
        for pid in ranks:  # a stopped one that nobody ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if kind == "kill" and "BAD TERMINATION" in printed:  # MPICH's mpiexec says so there, and ends the other ranks
        error = error or printed
    return f"{kind} {number.name}", error, process.returncode


def trial(rng: random.Random, folder: Path) -> None:
    """Disturb a run once or twice, then let it come to its end."""
    if MPIEXEC is None or importlib.util.find_spec("mpi4py") is None or not Path("/proc/self/stat").exists():
        raise Skipped("mpi4py or mpiexec is missing: pip install mpi4py mpich")
    whole, out = undisturbed(), folder / "run"
    for _ in range(rng.choice([1, 1, 2])):
        what, error, code = disturb(rng, out)
        assert "Traceback" not in error, f"{what}: {error}"
        assert code is not None and (code == 0 or error.strip()), f"{what}: exit code {code} without a word"
        if (out / LAST).exists():
            checkpoint.read(out / LAST)
    process = start("--out", out)
    error = process.communicate(timeout=170)[1]
    assert process.returncode == 0, f"after {what}: {error}"
    different = tiny.differences(whole, out)
    assert not different, f"after {what} it differs in {', '.join(different)}"
