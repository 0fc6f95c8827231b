"""Does this machine compute right? `python -m minigrad.check [--device cpu|cuda]` tries every fast operation.

Each family of kernels computes a small fixed case, forward and backward, and is held to the book's formulas in float64.
A worker process does the computing, because a kernel may do worse than lie: it may crash the process, spoil the GPU's
context, or never return. Then this process notes it and starts a new worker at the next family.

`leave_out_what_fails` is what training calls: it asks once for each GPU, driver and version, keeps the answer in the
user's cache folder, and takes failing families out of the registry, so that the next in line computes, or the book.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import timeit
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import diagnosis, registry
from .backend import DeviceError, check_device, cupy, device_index, float_dtype, synchronize, to_device, to_numpy
from .display import Parser
from .weights import write_atomically

WORKER = [sys.executable, "-m", "minigrad.check", "--worker"]
PATIENCE = 180.0  # seconds that one family may take; the first one on a GPU compiles for half a minute
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 2e-2}  # of the largest value of the result
RIGHT = "right"


class Result(NamedTuple):
    """What became of a family: `verdict` is "right", or says what is wrong."""

    name: str
    dtype: str
    verdict: str
    error: float | None = None  # largest difference from the float64 book, as a share of the largest value
    speed: float | None = None  # the book's time on the same device and dtype over this one's


# ---- in the worker --------------------------------------------------------------------------------------------------


def worker(device: str, skip: int) -> None:
    """Try the families from number `skip` on; print a line of JSON before and after each."""
    from .fast.cases import families

    for family in families(device)[skip:]:
        print(json.dumps({"start": [family.name, family.dtype]}), flush=True)
        try:
            result = examine(family, device)
        except Exception as error:  # whatever it is, it is the verdict
            result = Result(family.name, family.dtype, f"fails: {diagnosis.in_words(error)}")
        print(json.dumps({"done": result}), flush=True)


def examine(family: Any, device: str) -> Result:
    """Compute a family's case fast, and by the book in float64 on the host; compare."""
    dtype = float_dtype(family.dtype, device)
    rounded = family.rounded(dtype)
    there = [None if a is None else to_device(a, device) for a in rounded]
    exact = [None if a is None else a.astype(np.float64) for a in rounded]
    computed = [to_numpy(a).astype(np.float64) for a in family.fast(*there)]
    expected = [np.asarray(a, np.float64) for a in family.book(*exact)]
    error = max(map(difference, computed, expected))
    verdict = RIGHT if error <= TOLERANCE[family.dtype] else f"wrong: at most {TOLERANCE[family.dtype]:.0e} is allowed"
    mine, books = (seconds(partial(compute, *there), device) for compute in (family.fast, family.book))
    return Result(family.name, family.dtype, verdict, error, books / mine)


def difference(computed: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest expected value; infinite for NaN and another shape."""
    if computed.shape != expected.shape or not np.isfinite(computed).all():
        return np.inf
    return float(np.abs(computed - expected).max() / max(1e-30, np.abs(expected).max()))


def seconds(function: Callable[[], object], device: str) -> float:
    """The shortest of three runs."""

    def run() -> None:
        function()
        synchronize(device)

    synchronize(device)
    return min(timeit.repeat(run, number=1, repeat=3))


# ---- in the process that asks ---------------------------------------------------------------------------------------


def results(device: str, patience: float = PATIENCE) -> Iterator[Result | tuple[str, str]]:
    """Yield each family's (name, dtype) when it begins and its Result when it ends, whatever a kernel does."""
    finished = 0
    while True:
        process = subprocess.Popen(
            [*WORKER, "--device", device, "--skip", str(finished)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        errors: list[bytes] = []
        readers = [
            threading.Thread(target=_read, args=pipe, daemon=True)
            for pipe in ((process.stdout, lines.put), (process.stderr, errors.append))
        ]
        for reader in readers:
            reader.start()
        begun: tuple[str, str] | None = None
        verdict, over = "", False
        try:
            while (line := lines.get(timeout=patience)) is not None:
                message = json.loads(line)
                if "start" in message:
                    begun = tuple(message["start"])
                    yield begun
                else:
                    finished, begun = finished + 1, None
                    yield Result(*message["done"])
            over = True  # the worker has closed its output
        except queue.Empty:
            verdict = f"hangs: no answer within {patience:g} s"
        finally:
            if not over:
                process.kill()
            code = process.wait(timeout=60)
            for reader in readers:
                reader.join(timeout=60)
        if begun is None and code == 0:
            return
        if begun is None:
            raise DeviceError(_last_line(errors) or f"the check ended with exit code {code}")
        finished += 1
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        yield Result(*begun, verdict or f"crashes: {ended} {_last_line(errors)}".rstrip())


def _read(pipe: Any, take: Callable[[Any], None]) -> None:
    """Hand on a pipe's lines, then None."""
    with pipe:
        for line in pipe:
            take(line)
    take(None)


def _last_line(errors: Sequence[bytes | None]) -> str:
    lines = [line.decode(errors="replace").strip() for line in errors if line and line.strip()]
    return lines[-1] if lines else ""


def machine(device: str) -> dict[str, str]:
    """What the answer depends on: the GPU, its driver, the libraries, and the engine room's sources."""
    cp, index = cupy(), device_index(device)
    from cupy_backends.cuda.libs import nvrtc

    files = (path for path in sorted(Path(__file__).parent.rglob("*")) if path.suffix in (".py", ".cu", ".cuh"))
    return {
        "gpu": cp.cuda.runtime.getDeviceProperties(index)["name"].decode(),
        "capability": cp.cuda.Device(index).compute_capability,
        "driver": str(cp.cuda.runtime.driverGetVersion()),
        "runtime": str(cp.cuda.runtime.runtimeGetVersion()),
        "nvrtc": ".".join(map(str, nvrtc.getVersion())),
        "cupy": cp.__version__,
        "sources": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest(),
    }


def cache_file(found: dict[str, str]) -> Path:
    """Where the answer for a machine is kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigrad"
    key = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"check-{key}.json"


def known(path: Path) -> list[Result] | None:
    """Read a kept answer; None for a file that is not there or is none."""
    try:
        return [Result(*values) for values in json.loads(path.read_text())["results"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def wanted() -> bool:
    """Whether kernels are checked before they are used; `MINIGRAD_CHECK=0` in the environment leaves that out."""
    return os.environ.get("MINIGRAD_CHECK", "1") != "0"


def leave_out_what_fails(device: str, say: Callable[[str], None]) -> None:
    """Before a GPU is used for the first time: check it, keep the answer, and do without the families that fail.

    `say` is given a sentence for everything that a user should know.
    """
    if device == "cpu" or not registry.fast(device) or not wanted():
        return
    found = machine(device)
    path = cache_file(found)
    answers = known(path)
    if answers is None:
        say(f"checking the kernels on this {found['gpu']} once; it takes a minute or two")
        try:
            answers = [result for result in results(device) if isinstance(result, Result)]
        except DeviceError as error:
            say(f"the kernels cannot be checked: {error}")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"machine": found, "results": answers}, indent=1).encode())
        except OSError as error:
            say(f"the check's answer cannot be kept in {path}: {error.strerror}")
    leave_out([result for result in answers if result.verdict != RIGHT], device, say)


def leave_out(failing: Sequence[Result], device: str, say: Callable[[str], None]) -> None:
    """Take the operations of failing families out of the registry."""
    from .fast.cases import families

    known_families = {(family.name, family.dtype): family for family in families(device)}
    for result in failing:
        if (result.name, result.dtype) in known_families:
            known_families[result.name, result.dtype].leave_out()
            say(f"{result.name} in {result.dtype} {result.verdict}: it is left out, and something slower computes it")


# ---- the command ----------------------------------------------------------------------------------------------------


def in_a_row(result: Result) -> str:
    """A line of the table."""
    error = "" if result.error is None else f"{result.error:.1e}"
    speed = "" if result.speed is None else f"{result.speed:.1f}"
    return f"{result.name:36} {result.dtype:9} {error:>8} {speed:>6}  {result.verdict}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 0 if everything is right, 1 if something is wrong, 2 where there is no such device."""
    p = Parser(
        prog="python -m minigrad.check", description="Hold every fast operation of this machine to the formulas."
    )
    p.add_argument("--device", default="cpu", metavar="cpu|cuda", help="what to check (default: cpu)")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.worker:
        worker(args.device, args.skip)
        return 0
    wrong = 0
    try:
        check_device(args.device)  # says what is missing
        print(f"{'operation':36} {'dtype':9} {'error':>8} {'times':>6}  verdict   (times as fast as the formula)")
        for result in results(args.device):
            if isinstance(result, Result):
                print(in_a_row(result), flush=True)
                wrong += result.verdict != RIGHT
    except DeviceError as error:
        print(f"python -m minigrad.check: {error}", file=sys.stderr)
        return 2
    print("everything is right" if not wrong else f"{wrong} of these are wrong: please report this table")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
