// A linear layer with few outputs, as the last one of a network has: forward in one launch, all gradients in another.
//
//   y[n, o] = bias[o] + sum over i of x[n, i] * w[o, i]
//   dx[n, i] = sum over o of dy[n, o] * w[o, i],  dw[o, i] = sum over n of dy[n, o] * x[n, i],  dbias[o] = sum of dy[n, o]
//
// Tile: forward a block of eight warps for a row of x, which they share, a warp for an output at a time; its lanes
// stride over the inputs. Backward a thread for each value of dx and dw: blocks below O compute rows of dw, the others
// rows of dx. Every sum is float32, in one order, and rounded once.
// Bytes: those of the arrays, each once from memory; x and w again from the cache for each output.
// Operations: N * I * O multiply-adds forward, twice as many backward, outside of tensor cores: many outputs are left
// to cuBLAS.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_linear.py::test_a_layer_with_few_outputs_is_the_books (CPU)
// and tests/minigrad/fast/cuda/test_cuda_gpu.py::test_a_linear_layer_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"
#include "warp.cuh"

template <typename T>
__device__ void linear(const T* x, const T* w, const T* bias, T* y, int I, int O) {
    const T* row = x + static_cast<long long>(blockIdx.x) * I;
    for (int o = threadIdx.y; o < O; o += blockDim.y) {
        const T* filter = w + static_cast<long long>(o) * I;
        float sum = 0.0f;
#pragma unroll 8
        for (int i = threadIdx.x; i < I; i += 32) sum = fmaf(to_float(row[i]), to_float(filter[i]), sum);
        sum = sum_of_warp(sum);
        if (threadIdx.x == 0)
            y[static_cast<long long>(blockIdx.x) * O + o] = from_float<T>(bias ? sum + to_float(bias[o]) : sum);
    }
}

// Gradients that are not wanted are null.
template <typename T>
__device__ void linear_backward(const T* dy, const T* x, const T* w, T* dx, T* dw, T* dbias, int N, int I, int O) {
    const long long i = blockIdx.y * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i >= I) return;
    const int o = blockIdx.x, n = o - O;
    float sum = 0.0f;
    if (n >= 0) {
        if (!dx) return;
#pragma unroll 8
        for (long long k = 0; k < O; ++k)
            sum = fmaf(to_float(dy[static_cast<long long>(n) * O + k]), to_float(w[k * I + i]), sum);
        dx[static_cast<long long>(n) * I + i] = from_float<T>(sum);
        return;
    }
    float of_bias = 0.0f;
#pragma unroll 8
    for (long long k = 0; k < N; ++k) {
        const float upstream = to_float(dy[k * O + o]);
        sum = fmaf(upstream, to_float(x[k * I + i]), sum);
        of_bias += upstream;
    }
    if (dw) dw[static_cast<long long>(o) * I + i] = from_float<T>(sum);
    if (dbias && i == 0) dbias[o] = from_float<T>(of_bias);
}

#define LINEAR(T, suffix)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                           \
        linear_##suffix(const T* x, const T* w, const T* bias, T* y, int I, int O) {                            \
        linear(x, w, bias, y, I, O);                                                                            \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                           \
        linear_backward_##suffix(const T* dy, const T* x, const T* w, T* dx, T* dw, T* dbias, int N, int I, int O) { \
        linear_backward(dy, x, w, dx, dw, dbias, N, I, O);                                                      \
    }
LINEAR(float, float32)
LINEAR(bf16, bfloat16)
