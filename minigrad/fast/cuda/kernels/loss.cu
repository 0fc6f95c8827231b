// Softmax cross-entropy with label smoothing: the mean loss and its gradient in one launch, without leaving the GPU.
//
//   loss = mean over n of -sum over k of q[n, k] * log p[n, k],   p = softmax(logits),   q = (1 - s) * one-hot + s / K
//   dlogits[n, k] = (p[n, k] - q[n, k]) / N
//
// It also writes the 1 that a backward pass begins with. A label that is no class makes the loss NaN: inside a captured
// graph nobody can look at labels and complain.
//
// Tile: one block of 32 warps; a warp takes a row at a time; its lanes stride over the classes and combine by shuffle.
// The warps' sums are added in a fixed order, so the loss is the same bits every time.
// Bytes: reads the logits three times (once from memory, then from the cache) and writes the gradient once.
// Operations: one exponential a logit and pass; with 128 rows of 10 classes the launch itself takes longest.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_cross_entropy_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_cross_entropy_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"
#include "warp.cuh"

constexpr int WARPS = 32;

__device__ inline float largest_of_warp(float value) {
    for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, mask));
    return value;
}

extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy(const float* logits, const long long* labels, float* loss, float* seed, float* gradient, int N,
                  int K, float smoothing) {
    __shared__ float of_warp[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float total = 0.0f;
    for (int n = warp; n < N; n += WARPS) {
        const float* row = logits + static_cast<long long>(n) * K;
        const long long label = labels[n];
        float most = -infinity();
        for (int k = lane; k < K; k += 32) most = fmaxf(most, row[k]);  // drops a NaN, which the exponentials keep
        most = largest_of_warp(most);
        float exponentials = 0.0f, sum = 0.0f;
        for (int k = lane; k < K; k += 32) {
            exponentials += expf(row[k] - most);
            if (smoothing > 0.0f) sum += row[k] - most;  // without, 0 * sum must not be NaN for a masked class, of -inf
        }
        const float log_sum = logf(sum_of_warp(exponentials));
        sum = sum_of_warp(sum);
        const bool known = label >= 0 && label < K;
        // -sum q log p = log_sum - (1 - s) * (logit of the label) - s / K * (sum of logits), logits less their largest
        const float of_label = known ? row[label] - most : not_a_number();
        total += log_sum - (1.0f - smoothing) * of_label - smoothing / K * sum;
        for (int k = lane; k < K; k += 32) {
            const float q = (k == label ? 1.0f - smoothing : 0.0f) + smoothing / K;
            gradient[static_cast<long long>(n) * K + k] = (expf(row[k] - most - log_sum) - q) / N;
        }
    }
    if (lane == 0) of_warp[warp] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int w = 0; w < WARPS; ++w) sum += of_warp[w];
        *loss = sum / N;
        *seed = 1.0f;
    }
}

// out = gradient * dy, with dy, the gradient of the loss itself, in the device's memory.
extern "C" __global__ void cross_entropy_backward(const float* gradient, const float* dy, float* out, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = gradient[i] * *dy;
}
