"""The stand-in that runs CUDA kernels on the CPU notices what would go wrong on a GPU, and each barrier taken away."""

import ctypes
import itertools
import re

import numpy as np
import pytest
from support.cuda_shim import SHIM, compile_text, compiler, kernel_names
from test_cuda_shim import CONVOLUTIONS, check_conv3x3, pack, run_batch_norm

from minigrad.fast.cuda.gpu import kernel_source
from minigrad.fast.cuda.tiles import Packing

ml_dtypes = pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
pytestmark = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
i32, i64, f32 = np.int32, np.int64, np.float32

BROKEN = r"""
#include "ptx.cuh"
extern "C" __global__ void no_barrier(int* out) {
    __shared__ int values[64];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[63 - threadIdx.x];
}
extern "C" __global__ void no_barrier_after(int* out) {
    __shared__ int values[64];
    for (int i = 0; i < 2; ++i) {
        values[threadIdx.x] = threadIdx.x;
        __syncthreads();
        out[threadIdx.x] = values[63 - threadIdx.x];
    }
}
extern "C" __global__ void shuffled(int* out) {
    __shared__ int values[32];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = __shfl_xor_sync(~0u, values[threadIdx.x], 1);  // waits, but orders no memory
    out[threadIdx.x] += values[31 - threadIdx.x];
}
extern "C" __global__ void two_blocks(int* out) { out[threadIdx.x] = blockIdx.x; }
extern "C" __global__ void no_wait(const float* in, float* out) {
    DYNAMIC_SHARED(bytes);
    float* row = reinterpret_cast<float*>(bytes);
    copy_async(row + 4 * threadIdx.x, in + 4 * threadIdx.x, true);
    copy_commit();
    __syncthreads();
    out[threadIdx.x] = row[4 * threadIdx.x];
}
extern "C" __global__ void too_far() {
    DYNAMIC_SHARED(bytes);
    bytes[2 * threadIdx.x] = 1;
}
extern "C" __global__ void stuck() {
    if (threadIdx.x < 32) __syncthreads();
}
extern "C" __global__ void astray(const float* in) {
    DYNAMIC_SHARED(bytes);
    copy_async(bytes, in + 32, true);
}
extern "C" __global__ void crooked(float* out) {
    DYNAMIC_SHARED(bytes);
    copy_async(bytes + 4, out, true);
}
"""


def test_the_shim_notices_what_would_go_wrong_on_a_gpu():
    text = BROKEN.replace('#include "ptx.cuh"', (SHIM / "ptx.cuh").read_text())
    module = compile_text("broken.cu", text, re.findall(r"void (\w+)\(", BROKEN))
    out, values = np.zeros(64, np.int32), np.arange(128, dtype=F32)
    for schedule in (0, 1):
        with pytest.raises(RuntimeError, match=r"without a barrier|not written"):
            module.launch("no_barrier", (1,), (64,), [out], schedule=schedule)
        with pytest.raises(RuntimeError, match="without a barrier"):
            module.launch("no_barrier_after", (1,), (64,), [out], schedule=schedule)
        with pytest.raises(RuntimeError, match="without a barrier"):
            module.launch("shuffled", (1,), (32,), [out], schedule=schedule)
        with pytest.raises(RuntimeError, match=r"in an array thread .* of block 1 .* written by thread .* of block 0"):
            module.launch("two_blocks", (2,), (32,), [out], schedule=schedule)
        with pytest.raises(RuntimeError, match="still brings"):
            module.launch("no_wait", (1,), (32,), [values, values], shared=512, schedule=schedule)
    with pytest.raises(RuntimeError, match="outside of the launch's arrays"):
        module.launch("too_far", (1,), (128,), [], shared=128)
    with pytest.raises(RuntimeError, match="outside of the launch's arrays"):
        module.launch("two_blocks", (1,), (65,), [out])
    with pytest.raises(RuntimeError, match="returned while others wait"):
        module.launch("stuck", (1,), (64,), [])
    with pytest.raises(RuntimeError, match="not a multiple of 16"):
        module.launch("crooked", (1,), (1,), [values], shared=128)
    with pytest.raises(RuntimeError, match="outside of the launch's arrays"):
        module.launch("astray", (1,), (1,), [values[:32]], shared=128)
    with pytest.raises(RuntimeError, match="takes 1 arguments, not 2"):
        module.launch("no_barrier", (1,), (64,), [values, values])


# --- every barrier is needed ------------------------------------------------------------------------------------------

BARRIER = re.compile(r"(?:__syncthreads|__syncwarp|copy_wait<[^>]+>)\(\);")


def exercise_norm(module):
    x, channel = np.ones((40, 16), F32), np.ones(16, F32)
    run_batch_norm(module, x, channel, channel, [channel.copy(), channel.copy()], x, None, True, True, 0)


def exercise_loss(module):
    logits, labels = np.ones((40, 3), F32), np.zeros(40, np.int64)
    arguments = [logits, labels, np.zeros(1, F32), np.zeros(1, F32), np.zeros_like(logits), i32(40), i32(3), f32(0)]
    module.launch("cross_entropy", (1,), (1024,), arguments)


def exercise_pool(module):
    x, y = np.ones((2, 20, 16), F32), np.zeros((2, 16), F32)
    module.launch("image_sums_float32_float32", (1, 2), (32, 8), [x, y, f32(1), i32(20), i32(16)])


def exercise_conv3x3(module):
    for name in ("stride 2", "larger than a tile"):
        check_conv3x3(module, CONVOLUTIONS[name])


def exercise_filters(module):
    pack(module, np.ones((64, 8, 3, 3), F32), Packing.of(64, 64, 8))


# How to run a file's kernels, and which of its barriers, counted from 0, only guards against changes to come: after
# conv3x3's last step no copy is left to wait for.
EXERCISES = {
    "norm.cu": (exercise_norm, set()),
    "loss.cu": (exercise_loss, set()),
    "pool.cu": (exercise_pool, set()),
    "conv3x3.cu": (exercise_conv3x3, {3}),
    "filters.cu": (exercise_filters, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_the_shim_notices_every_barrier_that_is_taken_away(name):
    """Run a file's kernels once for each of their barriers and waits, without it: the shim must name a race."""
    exercise, idle = EXERCISES[name]
    numbers = itertools.count()
    text = BARRIER.sub(lambda m: f"(without({next(numbers)}) ? (void)0 : {m[0][:-1]});", kernel_source(name, SHIM))
    switch = "SHIM_VISIBLE int skipped = -1;\nUNWATCHED bool without(int barrier) { return barrier == skipped; }\n"
    module = compile_text(name, switch + text, kernel_names(name))
    skipped = ctypes.c_int.in_dll(module.dll, "skipped")
    exercise(module)
    for number in set(range(next(numbers))) - idle:
        skipped.value = number
        with pytest.raises(RuntimeError, match=r"without a barrier|still brings|has not written"):
            exercise(module)
