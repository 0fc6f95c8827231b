"""What a measurement was made with: hardware, memory, libraries, versions, the source's commit."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

import minigrad
from minigrad import registry
from minigrad.backend import cupy, device_index


def hardware(args: argparse.Namespace) -> str:
    """The processor's or the GPU's name, and how many cores or threads are used."""
    if args.device != "cpu":
        return cupy().cuda.runtime.getDeviceProperties(device_index(args.device))["name"].decode()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    threads = args.threads or (minigrad.fast.cpu.threads() if registry.fast("cpu") else os.cpu_count())
    return f"{name}, {threads} threads"


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; what its parent held does not count (Linux)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def blas() -> dict[str, str]:
    """Which BLAS library and kernels NumPy runs."""
    from threadpoolctl import ThreadpoolController

    # threadpoolctl remembers the kernels that it saw first; the engine room may have chosen others.
    fast = registry.fast("cpu")
    found = (
        minigrad.fast.process.libraries() if fast else ThreadpoolController().select(user_api="blas").lib_controllers
    )
    return {"blas": ", ".join(f"{b.internal_api} {b.version}, {b.architecture} kernels" for b in found)}


def commit() -> str | None:
    """The git commit of the source, marked where files have changed since; None outside of a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (" with changes" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    """What the report was written with."""
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "pillow", "safetensors")}
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "Python": platform.python_version(),
        **packages,
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
