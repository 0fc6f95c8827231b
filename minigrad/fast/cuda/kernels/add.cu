// The sum of two gradients that meet at a node, in channels-last memory: behind every residual block there is such a
// meeting, of what came through the block and of what came around it.
//
//   out = a + b
//
// CuPy's own addition would return (N, C, H, W) memory whatever its operands', and the next kernel would have to turn
// that back into channels last.
//
// Tile: threads stride over the arrays, 16 bytes at a time.
// Bytes: 3Y, with Y the bytes of an array: reads two, writes one.
// Operations: 1 a value, in float32, rounded once, so memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_add_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_gradients_that_meet_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

template <typename T>
__device__ void add(const T* a, const T* b, T* out, long long vectors) {
    constexpr int V = Vec<T>::size;
    const long long step = gridDim.x * static_cast<long long>(blockDim.x);
#pragma unroll 2
    for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < vectors; i += step) {
        const Vec<T> x = load(a + i * V), y = load(b + i * V);
        Vec<T> sum;
        for (int v = 0; v < V; ++v) sum.lane[v] = from_float<T>(to_float(x.lane[v]) + to_float(y.lane[v]));
        store(out + i * V, sum);
    }
}

extern "C" __global__ void add_float32(const float* a, const float* b, float* out, long long vectors) {
    add(a, b, out, vectors);
}
extern "C" __global__ void add_bfloat16(const bf16* a, const bf16* b, bf16* out, long long vectors) {
    add(a, b, out, vectors);
}
