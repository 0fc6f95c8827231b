"""Two ranks whose GPUs add their gradients with NCCL itself, no stand-in (train/run/parallel.py, buckets.py)."""

import os

import numpy as np
import pytest
from support import two_ranks

from minigrad import backend
from train.run import parallel


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(two_ranks.MISSING, reason="mpi4py or mpiexec is missing: pip install mpi4py mpich")
@pytest.mark.skipif(os.environ.get("MINIGRAD_VIRTUAL_GPU") == "1", reason="on a virtual GPU there is no NCCL")
def test_two_ranks_end_at_the_same_weights_eager_and_captured(tmp_path):
    """And they end: NCCL must not wait for what Python frees later. From 2.30 on it lets two ranks share a GPU."""
    try:
        gpus, nccl = backend.cupy().cuda.runtime.getDeviceCount(), parallel.load_nccl()
    except (backend.DeviceError, ValueError) as error:
        pytest.skip(str(error))
    if gpus < 2 and nccl.get_version() < 23000:
        pytest.skip(f"two ranks need two GPUs, or NCCL 2.30 to share one; this is version {nccl.get_version()}")
    # Two processes on a GPU take turns, so each may have few blocks that wait for the other.
    share = {} if gpus > 1 else {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_MAX_CTAS": "4"}
    where = "two" if gpus > 1 else "one"
    eager_steps, eager = two_ranks.trained(tmp_path, "eager", where, share)
    graph_steps, graph = two_ranks.trained(tmp_path, "graph", where, share)
    assert eager_steps == [14, 14] and max(graph_steps) < 14
    assert eager.keys() == graph.keys()
    for name, a in eager.items():
        np.testing.assert_array_equal(a, graph[name])
