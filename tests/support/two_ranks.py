"""Two ranks that train a small network on GPUs with the command itself: on virtual ones, on two, or on one of both."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
# pip puts mpiexec beside the interpreter, which need not be on the PATH.
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
MISSING = MPIEXEC is None or find_spec("mpi4py") is None
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MINIGRAD_CHECK": "0",
    # Open MPI refuses root unless it is told twice that this is meant.
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}  # fmt: skip

SCRIPT = """
import sys

folder, way, gpus = sys.argv[1:]
if gpus == "virtual":
    from tests.virtual_gpu import install

    install()
from mpi4py import MPI

import train.cifar
from minigrad.fast.cuda import graph
from train.run import buckets, loop, parallel

if gpus == "one":  # the command wants one for each rank
    parallel.deal_gpus = lambda seen: [0] * len(seen)
calls, update = [], loop.update
loop.update = lambda *arguments: calls.append(1) or update(*arguments)
if way == "eager":
    graph.avoid()
buckets.BUCKET_BYTES = 4000  # many, for a small network
# Steps of 3 and 2 images, and at the end of an epoch one of 2 and 2: for rank 1 alone it looks like all others.
options = "--data shapes --model resnext11_2x2d_w4 --limit-train 34 --limit-test 8 --batch-size 5 --epochs 2 --lr 0.02"
code = train.cifar.main([*options.split(), "--device", "cuda", "--dtype", "float32", "--out", folder])
print(f"rank {MPI.COMM_WORLD.rank}: {len(calls)} steps in Python", flush=True)
sys.exit(code)
"""


def trained(
    folder: Path, way: str, gpus: str, settings: Mapping[str, str] | None = None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Train, "eager" or as a "graph", on GPUs that are "virtual", "two" or "one".

    Returns how many steps Python took on each rank, and the weights and statistics; counts stand still in replays.
    """
    assert MPIEXEC is not None
    script = folder / "ranks.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, **ENVIRONMENT, **(settings or {})}
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "mpi4py", str(script), str(folder / way), way, gpus]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = dict(re.findall(r"rank (\d): (\d+) steps in Python", result.stdout))
    saved = load_file(folder / way / "last.safetensors")
    weights = {name: a for name, a in saved.items() if not name.endswith("num_batches_tracked")}
    return [int(steps["0"]), int(steps["1"])], weights
