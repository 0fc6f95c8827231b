"""What benchmarks/gpu.sh needs, looked at before anything else: one sentence for each thing that is missing.

python benchmarks/gpu_preflight.py OUT

Leaves OUT/environment.json, the card and the versions, and OUT/parts, a line for each part of the script that can run
(tests, torch, sanitizer, cifar10) and for what depends on the card: its dtype and the batch of the networks. Exit code
2: nothing can run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NETWORK, BATCH = "resnext29_8x64d", 128  # the largest network that is measured, and its batch where it fits
DISK = 1 << 30  # what results, checkpoints and compiled kernels may take
PACKAGES = {"cupy-cuda13x", "cupy-cuda12x", "numpy", "ml_dtypes", "torch", "triton", "cuda-pathfinder"}


class Stop(Exception):
    """Why nothing can run."""


def usable_gpu() -> Any:
    """CuPy, where it can compute; raises Stop with what is missing."""
    try:
        from minigrad.backend import DeviceError, check_device, cupy, float_dtype
    except ImportError as error:
        raise Stop(f"minigrad needs {error.name}, which is not installed: pip install -e '.[test]'") from error
    try:
        check_device("cuda")
        float_dtype("bfloat16", "cuda")
        return cupy()
    except DeviceError as error:
        raise Stop(str(error)) from error


def check_disk(out: Path) -> None:
    """Raise Stop where results or compiled kernels have no room."""
    cache = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    for what, folder, remedy in (
        ("the results", out, "name another folder"),
        ("CuPy's compiled kernels", cache, "set CUPY_CACHE_DIR to another folder"),
    ):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        if free < DISK:
            raise Stop(f"{there} has {free / 2**20:.0f} MiB left for {what}, and 1 GiB may be needed: {remedy}")
        if not os.access(there, os.W_OK):
            raise Stop(f"{there} cannot be written, where {what} belong: {remedy}")


def torch_fault() -> str | None:
    """Why PyTorch cannot be measured here, or None; another process looks: it brings CUDA libraries of its own."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"PyTorch cannot be imported ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
    version, cuda, available = done.stdout.split()
    if cuda == "None":
        return f"PyTorch {version} is built without CUDA"
    return None if available == "True" else f"PyTorch {version}, built for CUDA {cuda}, finds no GPU"


def parts() -> Iterator[tuple[str, str | None]]:
    """Yield each part of the script that may be left out, and why it is, or None where it can run."""
    missing = [package for package in ("pytest", "hypothesis") if find_spec(package) is None]
    what = f"{' and '.join(missing)} missing (pip install -e '.[test]'): the tests are left out"
    yield "tests", what if missing else None
    fault = torch_fault()
    yield "torch", f"{fault}: the networks are measured alone, the kernels not at all" if fault else None
    fault = None if shutil.which("compute-sanitizer") else "compute-sanitizer is not on the PATH"
    yield "sanitizer", f"{fault}: memory accesses are not checked (it comes with the CUDA toolkit)" if fault else None
    folder = os.environ.get("MINIGRAD_CIFAR10", "")
    fault = None if folder and Path(folder).is_dir() else f"MINIGRAD_CIFAR10 names no folder ({folder or 'not set'})"
    yield "cifar10", f"{fault}: the epochs on CIFAR-10 are left out" if fault else None


def choices(cupy: Any, with_torch: bool) -> Iterator[tuple[str, str, str | None]]:
    """Yield (name, value, sentence or None) of what depends on the card: dtype and batch of the networks."""
    from train.measure.memory import USABLE, largest_batch
    from train.options import default_dtype

    dtype = default_dtype("cuda")
    older = "this GPU multiplies no bfloat16 (compute capability below 8.0): everything is measured in float32"
    yield "dtype", dtype, None if dtype == "bfloat16" else older
    free, total = cupy.cuda.runtime.memGetInfo()
    # Beside minigrad's process two of PyTorch's, which are taken to need a quarter more each.
    share = USABLE * free / (3.5 if with_torch else 1)
    batch = min(BATCH, largest_batch(NETWORK, int(share), dtype))
    if not batch:
        raise Stop(f"{free / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB are free, too few for {NETWORK}")
    smaller = f"{free / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB are free: batches of {batch} instead of {BATCH}"
    yield "batch", str(batch), None if batch == BATCH else smaller


def environment(cupy: Any) -> dict[str, Any]:
    """The card and the versions of everything that bears on a number."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    versions = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in PACKAGES}
    return {
        "python": platform.python_version(),
        "packages": versions,
        "device": properties["name"].decode(),
        "processors": properties["multiProcessorCount"],
        "memory": properties["totalGlobalMem"],
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
    }


def main(arguments: list[str]) -> int:
    (out,) = map(Path, arguments)
    try:
        cupy = usable_gpu()
        check_disk(out)
        (out / "environment.json").write_text(json.dumps(environment(cupy), indent=1))
        lines = []
        for name, sentence in parts():
            lines += [name] if sentence is None else []
            if sentence:
                print(f"left out: {sentence}")
        for name, value, sentence in choices(cupy, "torch" in lines):
            lines.append(f"{name} {value}")
            if sentence:
                print(f"note: {sentence}")
    except Stop as reason:
        print(f"nothing can be measured here: {reason}")
        return 2
    (out / "parts").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
