"""How the CUDA engine room is tested: its operations registered, and the CPU in the GPU's place where a test asks."""

import pytest
from support.engine import only

from minigrad.fast import cuda


@pytest.fixture(autouse=True)
def registered():
    """The GPU's operations, whether or not MINIGRAD_FAST left them out."""
    with only(cuda.register):
        yield


@pytest.fixture
def gpu(monkeypatch):
    """The CPU in the GPU's place; the value is the list of kernels launched so far."""
    pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
    from support import host_gpu

    return host_gpu.install(monkeypatch)
