"""Modules and kernels: PTX is translated to C, compiled by the system's C compiler, and kept on disk."""

import ctypes
import hashlib
import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .counters import COUNTERS, Work
from .operands import c_name
from .ptx import Entry, Parameter, translate

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigrad-virtual-gpu"
COMPILE = (
    "cc", "-std=gnu11", "-march=native", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off", "-shared", "-fPIC",
    "-w", "-Werror=implicit-function-declaration",
)  # fmt: skip
WORKERS = min(len(os.sched_getaffinity(0)), 16)


@cache
def _salt() -> str:
    """What a compiled kernel depends on besides its text: these files and the processor."""
    translation = [HERE / f"{name}.py" for name in ("ptx", "operands", "instructions", "effects")]
    files = b"".join(path.read_bytes() for path in [*sorted(HERE.glob("*.[hc]")), *translation])
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return hashlib.sha256(files + flags.encode()).hexdigest()


def compile_library(code: str, optimise: str, *options: str) -> Path:
    """Compile C to a shared library, once: the next process with the same code takes it from the disk."""
    name = hashlib.sha256("\0".join((code, optimise, *options, _salt())).encode()).hexdigest()[:32]
    CACHE.mkdir(parents=True, exist_ok=True)
    library = CACHE / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            source, made = Path(folder, "kernel.c"), Path(folder, "kernel.so")
            source.write_text(code)
            command = [*COMPILE, optimise, f"-I{HERE}", str(source), "-o", str(made), *options, "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if result.returncode:
                raise RuntimeError(f"the C compiler refuses a translated kernel:\n{result.stderr[:2000]}")
            made.replace(library)
    return library


@cache
def _runner() -> Any:
    """The library that runs grids; its functions are visible to the kernels that are loaded later."""
    path = compile_library((HERE / "device.c").read_text(), "-O3", "-pthread")
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL).launch_grid


class Kernel:
    """A kernel of a module."""

    def __init__(self, library: ctypes.CDLL, entry: Entry):
        self.name, self.parameters, self.shared, self.together = entry
        self.function = getattr(library, c_name(entry.name))
        self.dynamic_limit = (48 << 10) - self.shared

    def pack(self, pointers: int) -> bytes:
        """The arguments that a launch points to, one after the other, as the kernel reads them."""
        end = max((p.offset + p.size for p in self.parameters), default=0)
        packed = bytearray(end)
        if end:
            array = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
            for i, (offset, size) in enumerate(self.parameters):
                packed[offset : offset + size] = ctypes.string_at(array[i], size)
        return bytes(packed)

    def launch(self, grid: tuple, block: tuple, dynamic_shared: int, parameters: bytes) -> None:
        """Run the whole grid."""
        work = COUNTERS.work.setdefault(self.name, Work())
        COUNTERS.launches[self.name] += 1
        if COUNTERS.blank:
            return
        triple = ctypes.c_uint32 * 3
        memory = (ctypes.c_uint64 * (len(parameters) // 8 + 1))()
        ctypes.memmove(memory, parameters, len(parameters))
        blocks = grid[0] * grid[1] * grid[2]
        workers = min(WORKERS, blocks) if blocks * block[0] * block[1] * block[2] >= 4096 else 1
        _runner()(
            ctypes.cast(self.function, ctypes.c_void_p), int(self.together), workers, triple(*grid), triple(*block),
            self.shared, self.shared + dynamic_shared, memory, ctypes.byref(work),
        )  # fmt: skip


class Module:
    """What NVRTC made of a source file."""

    def __init__(self, ptx: str):
        _runner()
        name = hashlib.sha256((ptx + _salt()).encode()).hexdigest()[:32]
        CACHE.mkdir(parents=True, exist_ok=True)
        described = CACHE / f"{name}.json"
        try:
            library, entries = json.loads(described.read_text())
            entries = [Entry(n, [Parameter(*p) for p in ps], s, t) for n, ps, s, t in entries]
            loaded = ctypes.CDLL(str(CACHE / library))
        except (OSError, ValueError):
            code, entries = translate(ptx)
            path = compile_library(code, "-O1")
            loaded = ctypes.CDLL(str(path))
            temporary = described.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps([path.name, entries]))
            temporary.replace(described)
        self.kernels = {entry.name: Kernel(loaded, entry) for entry in entries}
