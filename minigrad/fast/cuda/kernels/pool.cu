// What a network does over a whole image or its windows beside convolution: sums and maxima, channels last.
//
//   y[n, c] = scale * sum over pixels p of x[n, p, c]                      dx[n, p, c] = scale * dy[n, c]
//   y[n, oh, ow, c] = max over taps of x[n, oh SH + kh - PH, ow SW + kw - PW, c], winner = where it came from
//   dx[n, h, w, c] = sum over the windows that see (h, w), at tap t, of dy where their winner is t
//
// A window's border does not take part, and a NaN wins. In the backward pass a pixel asks the windows that see it, so
// nobody adds to the same place and the sums have one order.
//
// Tile: a thread for V channels (16 bytes) of one output; for the sums eight threads share the pixels and one adds them
// up. Bytes: those of x and y (and a byte of winner for each value of y), each once from memory.
// Operations: one addition or comparison for each value and window, so memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_pool.py::test_max_pooling_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_pooling_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

constexpr int ROWS = 8;  // threads that share an image's pixels

// A block of 32 x ROWS threads: 32 vectors of channels of image blockIdx.y.
template <typename T, typename R>
__device__ void image_sums(const T* x, R* y, float scale, int pixels, int C) {
    constexpr int V = Vec<T>::size;
    __shared__ float parts[ROWS][32][V];
    const int vector = blockIdx.x * 32 + threadIdx.x, c = vector * V;
    float sum[V] = {};
    if (c < C) {
        const T* image = x + static_cast<long long>(blockIdx.y) * pixels * C + c;
#pragma unroll 4
        for (int p = threadIdx.y; p < pixels; p += ROWS) {
            const Vec<T> some = load(image + static_cast<long long>(p) * C);
            for (int v = 0; v < V; ++v) sum[v] += to_float(some.lane[v]);
        }
    }
    for (int v = 0; v < V; ++v) parts[threadIdx.y][threadIdx.x][v] = sum[v];
    __syncthreads();
    if (threadIdx.y || c >= C) return;
    for (int v = 0; v < V; ++v) {
        float total = 0.0f;
        for (int row = 0; row < ROWS; ++row) total += parts[row][threadIdx.x][v];
        y[static_cast<long long>(blockIdx.y) * C + c + v] = from_float<R>(scale * total);
    }
}

template <typename T, typename R>
__device__ void image_spread(const R* dy, T* dx, float scale, int pixels, int C) {
    constexpr int V = Vec<T>::size;
    const int c = (blockIdx.x * 32 + threadIdx.x) * V;
    if (c >= C) return;
    Vec<T> value;
    for (int v = 0; v < V; ++v)
        value.lane[v] = from_float<T>(scale * to_float(dy[static_cast<long long>(blockIdx.y) * C + c + v]));
    T* image = dx + static_cast<long long>(blockIdx.y) * pixels * C + c;
    for (int p = threadIdx.y; p < pixels; p += ROWS) store(image + static_cast<long long>(p) * C, value);
}

struct Pool {
    int N, H, W, C, OH, OW, KH, KW, SH, SW, PH, PW;
};

template <typename T>
__device__ void max_pool(const T* x, T* y, unsigned char* winner, Pool s) {
    constexpr int V = Vec<T>::size;
    const long long vectors = static_cast<long long>(s.N) * s.OH * s.OW * (s.C / V);
    const long long step = gridDim.x * static_cast<long long>(blockDim.x);
    for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < vectors; i += step) {
        const int c = static_cast<int>(i % (s.C / V)) * V;
        const long long pixel = i / (s.C / V);
        const int ow = static_cast<int>(pixel % s.OW), oh = static_cast<int>(pixel / s.OW % s.OH);
        const long long n = pixel / s.OW / s.OH;
        float best[V];
        int from[V];
        for (int v = 0; v < V; ++v) best[v] = -infinity(), from[v] = -1;
        for (int kh = 0; kh < s.KH; ++kh) {
            const int h = oh * s.SH + kh - s.PH;
            if (h < 0 || h >= s.H) continue;
            for (int kw = 0; kw < s.KW; ++kw) {
                const int w = ow * s.SW + kw - s.PW;
                if (w < 0 || w >= s.W) continue;
                const Vec<T> some = load(x + ((n * s.H + h) * s.W + w) * s.C + c);
                for (int v = 0; v < V; ++v) {
                    const float value = to_float(some.lane[v]);
                    // Where all are -infinity the first pixel wins, and never the border.
                    if (value > best[v] || value != value || from[v] < 0) best[v] = value, from[v] = kh * s.KW + kw;
                }
            }
        }
        Vec<T> result;
        for (int v = 0; v < V; ++v) {
            result.lane[v] = from_float<T>(best[v]);
            winner[i * V + v] = static_cast<unsigned char>(from[v]);
        }
        store(y + i * V, result);
    }
}

template <typename T>
__device__ void max_pool_backward(const T* dy, const unsigned char* winner, T* dx, Pool s) {
    constexpr int V = Vec<T>::size;
    const long long vectors = static_cast<long long>(s.N) * s.H * s.W * (s.C / V);
    const long long step = gridDim.x * static_cast<long long>(blockDim.x);
    for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < vectors; i += step) {
        const int c = static_cast<int>(i % (s.C / V)) * V;
        const long long pixel = i / (s.C / V);
        const int w = static_cast<int>(pixel % s.W), h = static_cast<int>(pixel / s.W % s.H);
        const long long n = pixel / s.W / s.H;
        float sum[V] = {};
        for (int kh = 0; kh < s.KH; ++kh) {
            const int row = h + s.PH - kh;
            if (row < 0 || row % s.SH || row / s.SH >= s.OH) continue;
            for (int kw = 0; kw < s.KW; ++kw) {
                const int column = w + s.PW - kw;
                if (column < 0 || column % s.SW || column / s.SW >= s.OW) continue;
                const long long at = ((n * s.OH + row / s.SH) * s.OW + column / s.SW) * s.C + c;
                const Vec<T> some = load(dy + at);
                for (int v = 0; v < V; ++v)
                    if (winner[at + v] == kh * s.KW + kw) sum[v] += to_float(some.lane[v]);
            }
        }
        Vec<T> result;
        for (int v = 0; v < V; ++v) result.lane[v] = from_float<T>(sum[v]);
        store(dx + i * V, result);
    }
}

// Named after the images' type, then the sums'.
#define IMAGE_SUMS(T, R, suffix)                                                                              \
    extern "C" __global__ void image_sums_##suffix(const T* x, R* y, float scale, int pixels, int C) {        \
        image_sums(x, y, scale, pixels, C);                                                                   \
    }                                                                                                         \
    extern "C" __global__ void image_spread_##suffix(const R* dy, T* dx, float scale, int pixels, int C) {    \
        image_spread(dy, dx, scale, pixels, C);                                                               \
    }
IMAGE_SUMS(float, float, float32_float32)
IMAGE_SUMS(bf16, bf16, bfloat16_bfloat16)
IMAGE_SUMS(bf16, float, bfloat16_float32)

extern "C" __global__ void max_pool_float32(const float* x, float* y, unsigned char* winner, Pool pool) {
    max_pool(x, y, winner, pool);
}
extern "C" __global__ void max_pool_bfloat16(const bf16* x, bf16* y, unsigned char* winner, Pool pool) {
    max_pool(x, y, winner, pool);
}
extern "C" __global__ void max_pool_backward_float32(const float* dy, const unsigned char* winner, float* dx, Pool pool) {
    max_pool_backward(dy, winner, dx, pool);
}
extern "C" __global__ void max_pool_backward_bfloat16(const bf16* dy, const unsigned char* winner, bf16* dx, Pool pool) {
    max_pool_backward(dy, winner, dx, pool);
}
