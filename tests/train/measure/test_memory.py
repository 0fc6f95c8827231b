"""The memory of a GPU's training step, from shapes, against what the engine room really asks for."""

import tracemalloc

import numpy as np
import pytest
from support.engine import only

import minigrad
from minigrad import Tensor, optim
from minigrad import functional as F
from minigrad.fast import cuda
from minigrad.fast.cuda import cublas, gpu
from minigrad.ops import basic
from resnext import create
from train import memory as command
from train.measure.memory import CONSTANT, largest_batch, step_bytes


@pytest.fixture
def blank_gpu(monkeypatch):
    """The CUDA engine room's Python on NumPy arrays, and kernels that do nothing: what is left is the memory."""
    pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    from support import host_gpu

    monkeypatch.setattr(gpu, "launch", lambda *arguments, **options: None)
    monkeypatch.setattr(gpu, "properties", lambda: host_gpu.HOPPER._replace(processors=132))
    monkeypatch.setattr(gpu, "address", lambda array: array.ctypes.data)
    monkeypatch.setattr(cublas, "product", lambda *arguments, **options: None)
    for module in (basic, minigrad.tensor):  # which refuse bfloat16 on the CPU
        monkeypatch.setattr(module, "float_dtype", lambda name, device="cpu": np.dtype(name))
    with only(lambda: cuda.register("cpu")), np.errstate(all="ignore"):
        yield


def measured(model, batch, dtype):
    """The peak of what a step allocates, parameters, velocities and all, in bytes."""
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    tracemalloc.start()
    try:
        network = create(model)
        optimizer = optim.SGD(network.parameters(), 0.1, momentum=0.9)
        images = np.zeros((batch, 3, 32, 32), kind)
        for _ in range(2):  # the velocities come with the first step
            optimizer.zero_grad()
            tracemalloc.reset_peak()
            logits = network(Tensor._of(images))
            loss = F.cross_entropy(logits.to(dtype="float32"), np.zeros(batch, int))
            loss.backward()
            del logits, loss
            optimizer.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("model", "batch"), [("resnext29_8x64d", 8), ("resnext29_32x4d", 16), ("resnext20_4x16d", 16)])
def test_the_estimate_is_what_a_step_allocates(blank_gpu, model, batch, dtype):
    found, expected = measured(model, batch, dtype), step_bytes(model, batch, dtype) - CONSTANT
    assert 0.9 * expected <= found <= 1.1 * expected


def test_the_largest_batch_fits_and_the_next_one_does_not():
    memory = 6 << 30
    batch = largest_batch("resnext29_8x64d", memory, "bfloat16")
    assert step_bytes("resnext29_8x64d", batch, "bfloat16") <= memory
    assert step_bytes("resnext29_8x64d", batch + 8, "bfloat16") > memory
    assert largest_batch("resnext29_8x64d", 100 << 20, "float32") == 0


def test_the_table_has_a_line_for_each_network_and_dtype(capsys):
    assert command.main(["--model", "resnext29_8x64d", "resnext29_32x4d", "--batch-size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4 and "resnext29_8x64d" in lines[2]
    assert command.main(["--model", "resnext29_nonsense"]) == 2
    assert "python -m train.memory" in capsys.readouterr().err
