// Batch normalisation over channels-last rows, with ReLU and the residual shortcut inside, forward and backward.
//
// x is (M, C): M = N*H*W pixels, C channels, C contiguous. T is float32 or bf16; every sum and coefficient is float32
// or wider.
//
//   forward   z = (x - mean) * scale + beta [+ shortcut],   y = relu(z) or z,   scale = gamma / sqrt(var + eps)
//   backward  g  = dy where z > 0, else 0           (also the shortcut's gradient)
//             dbeta = sum g,   dgamma = sum g * (x - mean) / sqrt(var + eps)
//             dx = scale * (g - dbeta / M - xhat * dgamma / M) = scale * g + b * (x - mean) + c    per channel
//
// Tile: a block is (bx, by) threads, bx * by = 256, bx at most 8. A thread owns one 16-byte vector of channels (8 bf16 or
// 4 float32) and walks down its rows by by, so that its coefficients stay in registers; eight threads read a whole
// 128-byte line.
// Sums take two stages: each block of a pass over the rows leaves one partial per channel in `partial` (chunks, 2, C);
// each block of the pass that needs the sums first adds its channels' chunks in a fixed order, in float64. A block has
// few channels, so that this is little to read, and it saves a launch. No atomics: the same input gives the same bits.
// Bytes, with Y = M * C * sizeof(T): forward 3Y (sums 1, apply 2), + 1Y with a shortcut, - 1Y where the convolution
// before has left the sums (see conv3x3.cu). Backward without shortcut 5Y (sums 2, apply 3, the mask recomputed from
// x); with it 7Y (sums read dy, x, y, write g; apply reads g, x, writes dx).
// Operations: about 4 a value forward, 8 backward, so memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_batch_norm_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_batch_norm_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

constexpr int BLOCK = 256;
constexpr int WIDEST = 64;  // the most channels of a block: 8 threads with 8 bf16 each
constexpr int AHEAD = 4;    // rows that a thread loads before it uses the first

// A thread goes through the rows of its block's chunk: `use(at, values)` for each, with its place in the arrays, at the
// channels from `c` on, and the values that the first N of `arrays` have there. AHEAD rows are loaded before the first is used: the
// compiler moves no load in front of a store, for all it knows the same memory, and one row at a time would leave the
// memory waiting. The second pass over an array goes backwards: what the first one read last may still be in the cache.
enum Direction { FORWARDS, BACKWARDS };
template <Direction direction, int N, typename T, typename Use>
__device__ void for_each_row(const T* const* arrays, long long M, int C, int c, long long rows_per_chunk, Use use) {
    const long long begin = blockIdx.y * rows_per_chunk;
    const int rows = static_cast<int>(smaller(M - begin, rows_per_chunk)), first = threadIdx.y;  // fewer than 2^31
    long long at = (begin + (direction == BACKWARDS ? rows - 1 - first : first)) * C + c;
    const long long step = static_cast<long long>(blockDim.y) * (direction == BACKWARDS ? -C : C);
    for (int row = first; row < rows; row += AHEAD * blockDim.y, at += AHEAD * step) {
        Vec<T> values[AHEAD][N];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
            if (row + i * blockDim.y < rows)
                for (int n = 0; n < N; ++n) values[i][n] = load(arrays[n] + at + i * step);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
            if (row + i * blockDim.y < rows) use(at + i * step, values[i]);
    }
}

// Adds each thread's two vectors of sums over the block's rows and writes the block's partial. The first row of threads
// adds in the order of the rows, so the result does not depend on which warp came first.
template <typename T>
__device__ void write_partial(const float (&first)[Vec<T>::size], const float (&second)[Vec<T>::size], float* partial,
                              int C) {
    constexpr int V = Vec<T>::size;
    __shared__ float sums[2][BLOCK * V];
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int v = 0; v < V; ++v) {
        // Lane-major order: neighbouring threads write neighbouring words, without bank conflicts.
        sums[0][v * BLOCK + thread] = first[v];
        sums[1][v * BLOCK + thread] = second[v];
    }
    __syncthreads();
    // (2, V, bx) results, spread over all threads of the block.
    for (int i = thread; i < 2 * V * static_cast<int>(blockDim.x); i += BLOCK) {
        int which = i / (V * blockDim.x), v = i / blockDim.x % V, column = i % blockDim.x;
        float total = 0.0f;
        for (int row = 0; row < static_cast<int>(blockDim.y); ++row)
            total += sums[which][v * BLOCK + row * blockDim.x + column];
        int c = (blockIdx.x * blockDim.x + column) * V + v;
        if (c < C) partial[(static_cast<long long>(blockIdx.y) * 2 + which) * C + c] = total;
    }
}

// partial[chunk] = (sum of x - x0, sum of (x - x0)^2) over the chunk's rows, x0 the channel's first value. Shifting by
// any value of the channel keeps the difference of the two sums from cancelling when the mean is large against the
// deviation.
template <typename T>
__device__ void bn_sums(const T* x, float* partial, long long M, int C, long long rows_per_chunk) {
    constexpr int V = Vec<T>::size;
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sum[V] = {}, square[V] = {};
    if (c < C) {
        Vec<T> origin = load(x + c);
        for_each_row<FORWARDS, 1>(&x, M, C, c, rows_per_chunk, [&](long long, const Vec<T>* values) {
            for (int v = 0; v < V; ++v) {
                float d = to_float(values[0].lane[v]) - to_float(origin.lane[v]);
                sum[v] += d;
                square[v] += d * d;
            }
        });
    }
    write_partial<T>(sum, square, partial, C);
}

// Both sums over all chunks of the block's channel `thread`, for the threads below `width`, how many channels it has. The
// BLOCK / width threads of a channel share the chunks, and the first one adds what the others have, in their order.
__device__ void add_chunks(const float* partial, int C, int chunks, int width, double& first, double& second) {
    __shared__ double sums[2][BLOCK];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, c = blockIdx.x * width + thread % width;
    first = second = 0.0;
    if (c < C) {
#pragma unroll 8
        for (int chunk = thread / width; chunk < chunks; chunk += BLOCK / width) {
            first += partial[2LL * chunk * C + c];
            second += partial[(2LL * chunk + 1) * C + c];
        }
    }
    sums[0][thread] = first;
    sums[1][thread] = second;
    __syncthreads();
    if (thread >= width) return;
    for (int other = thread + width; other < BLOCK; other += width) {
        first += sums[0][other];
        second += sums[1][other];
    }
}

// folded (ceil(chunks / some), 2, C): the sums of every `some` chunks, where there are too many for each block to add.
extern "C" __global__ void bn_fold(const float* partial, float* folded, int C, int chunks, int some) {
    const int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= 2 * C) return;
    const long long begin = static_cast<long long>(blockIdx.y) * some, end = smaller(chunks, begin + some);
    double total = 0.0;
#pragma unroll 8
    for (long long chunk = begin; chunk < end; ++chunk) total += partial[chunk * 2 * C + i];
    folded[blockIdx.y * 2LL * C + i] = static_cast<float>(total);
}

// One vector's coefficients, held in registers while a thread walks down its rows: those of the channels from `c` on in
// stats (4, C) = mean, 1 / sqrt(var + eps), scale, beta. affine() is z without its shortcut, the one expression that the
// forward pass and the recomputed mask share. The mean is subtracted first: x * scale + (beta - mean * scale) would cancel
// where the mean is large against the deviation.
template <int V>
struct Coefficients {
    float mean[V], scale[V], beta[V];
    __device__ Coefficients(const float* stats, int C, int c) {
        for (int v = 0; v < V; ++v) {
            mean[v] = stats[c + v];
            scale[v] = stats[2 * C + c + v];
            beta[v] = stats[3 * C + c + v];
        }
    }
    __device__ float affine(float x, int v) const { return fmaf(x - mean[v], scale[v], beta[v]); }
};

// What a forward pass knows of its channels. In training the moments are the batch's, from `chunks` partial sums, which
// are of x - x0 where `shifted` (a convolution leaves sums of x itself, see conv3x3.cu); running_mean and running_var are
// then updated in place, the variance unbiased, as PyTorch does. Otherwise they are the moments.
struct Moments {
    const float *partial, *gamma, *beta;
    float *running_mean, *running_var;
    int chunks, shifted, training;
    float momentum, eps;
};

// The block's own `stats`, (4, WIDEST); the first row of blocks also leaves them in memory, and the running statistics.
template <typename T>
__device__ void finish_forward(const T* x, const Moments& s, float* own, float* stats, long long M, int C) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, width = blockDim.x * Vec<T>::size;
    const int c = blockIdx.x * width + thread;
    double sum, square;
    add_chunks(s.partial, C, s.training ? s.chunks : 0, width, sum, square);
    if (thread < width && c < C) {
        double mean, variance;
        if (s.training) {
            double shifted = sum / M;
            mean = shifted + (s.shifted ? to_float(x[c]) : 0.0f);
            variance = square / M - shifted * shifted;
            if (variance < 0.0) variance = 0.0;  // rounding; a NaN stays a NaN
        } else {
            mean = s.running_mean[c];
            variance = s.running_var[c];
        }
        double inverse = 1.0 / sqrt(variance + s.eps);
        own[thread] = static_cast<float>(mean);
        own[WIDEST + thread] = static_cast<float>(inverse);
        own[2 * WIDEST + thread] = static_cast<float>(s.gamma[c] * inverse);
        own[3 * WIDEST + thread] = s.beta[c];
        if (blockIdx.y == 0) {
            for (int i = 0; i < 4; ++i) stats[i * C + c] = own[i * WIDEST + thread];
            if (s.training) {
                double unbiased = variance * M / (M > 1 ? M - 1 : 1);
                s.running_mean[c] = static_cast<float>((1.0 - s.momentum) * s.running_mean[c] + s.momentum * mean);
                s.running_var[c] = static_cast<float>((1.0 - s.momentum) * s.running_var[c] + s.momentum * unbiased);
            }
        }
    }
    __syncthreads();
}

template <typename T, bool SHORTCUT>
__device__ void bn_apply(const T* x, const T* shortcut, const Moments& moments, float* stats, T* y, long long M, int C,
                         long long rows_per_chunk, int relu) {
    constexpr int V = Vec<T>::size;
    __shared__ float own[4 * WIDEST];
    finish_forward(x, moments, own, stats, M, C);
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= C) return;
    Coefficients<V> coefficients(own, WIDEST, threadIdx.x * V);
    const T* const arrays[] = {x, shortcut};
    for_each_row<BACKWARDS, 1 + SHORTCUT>(arrays, M, C, c, rows_per_chunk, [&](long long at, const Vec<T>* values) {
        Vec<T> result;
        for (int v = 0; v < V; ++v) {
            float z = coefficients.affine(to_float(values[0].lane[v]), v);
            if (SHORTCUT) z += to_float(values[1].lane[v]);
            // Written so that a NaN stays a NaN: a diverged run must show.
            result.lane[v] = from_float<T>(relu && z < 0.0f ? 0.0f : z);
        }
        store(y + at, result);
    });
}

// g = dy masked, its two sums per channel, and g itself where a shortcut needs it. `y`, when given, is the forward's
// output and tells the mask (a shortcut took part in z); otherwise the mask is recomputed from x, which saves reading
// y.
template <typename T, bool SHORTCUT>
__device__ void bn_backward_sums(const T* dy, const T* x, const T* y, const float* stats, T* g, float* partial,
                                 long long M, int C, long long rows_per_chunk, int relu) {
    constexpr int V = Vec<T>::size;
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sum[V] = {}, product[V] = {};
    if (c < C) {
        Coefficients<V> forward(stats, C, c);
        const T* const arrays[] = {dy, x, y};
        auto add = [&](long long at, const Vec<T>* values) {
            Vec<T> upstream = values[0];
            for (int v = 0; v < V; ++v) {
                float xv = to_float(values[1].lane[v]);
                float z = SHORTCUT ? to_float(values[2].lane[v]) : forward.affine(xv, v);
                if (relu && z <= 0.0f) upstream.lane[v] = T{};
                float gv = to_float(upstream.lane[v]);
                sum[v] += gv;
                product[v] += gv * (xv - forward.mean[v]);
            }
            if (SHORTCUT) store(g + at, upstream);
        };
        for_each_row<FORWARDS, 2 + SHORTCUT>(arrays, M, C, c, rows_per_chunk, add);
    }
    write_partial<T>(sum, product, partial, C);
}

// The block's own coefficients b and c, (2, WIDEST), of dx = scale * g + b * (x - mean) + c; the first row of blocks
// also leaves dgamma and dbeta. In evaluation mode the statistics are constants, so dx = scale * g.
__device__ void finish_backward(const float* partial, const float* stats, float* own, float* dgamma, float* dbeta,
                                long long M, int C, int chunks, int width, int training) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, c = blockIdx.x * width + thread;
    double sum, product;
    add_chunks(partial, C, chunks, width, sum, product);
    if (thread < width && c < C) {
        double inverse = stats[C + c], scale = stats[2 * C + c];
        own[thread] = static_cast<float>(training ? -scale * inverse * inverse * product / M : 0.0);
        own[WIDEST + thread] = static_cast<float>(training ? -scale * sum / M : 0.0);
        if (blockIdx.y == 0) {
            dgamma[c] = static_cast<float>(product * inverse);
            dbeta[c] = static_cast<float>(sum);
        }
    }
    __syncthreads();
}

// dx = scale * g + b * (x - mean) + c. `masked` says that dy is already g (bn_backward_sums wrote it); otherwise the mask
// is recomputed.
template <typename T>
__device__ void bn_backward_apply(const T* dy, const T* x, const float* stats, const float* partial, float* dgamma,
                                  float* dbeta, T* dx, long long M, int C, long long rows_per_chunk, int chunks,
                                  int training, int relu, int masked) {
    constexpr int V = Vec<T>::size;
    __shared__ float own[2 * WIDEST];
    finish_backward(partial, stats, own, dgamma, dbeta, M, C, chunks, blockDim.x * V, training);
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= C) return;
    Coefficients<V> forward(stats, C, c);
    float b[V], constant[V];
    for (int v = 0; v < V; ++v) {
        b[v] = own[threadIdx.x * V + v];
        constant[v] = own[WIDEST + threadIdx.x * V + v];
    }
    const T* const arrays[] = {dy, x};
    for_each_row<BACKWARDS, 2>(arrays, M, C, c, rows_per_chunk, [&](long long at, const Vec<T>* values) {
        Vec<T> result;
        for (int v = 0; v < V; ++v) {
            float gv = to_float(values[0].lane[v]), xv = to_float(values[1].lane[v]);
            if (relu && !masked && forward.affine(xv, v) <= 0.0f) gv = 0.0f;
            const float dxv = fmaf(forward.scale[v], gv, fmaf(b[v], xv - forward.mean[v], constant[v]));
            result.lane[v] = from_float<T>(dxv);
        }
        store(dx + at, result);
    });
}

// The entry points, once for each type: extern "C" gives them names that Python can ask for. Two blocks a processor are
// what norm.py plans, so a thread may take half of the registers that there are for it.
#define BATCH_NORM(T, suffix)                                                                                          \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2) bn_sums_##suffix(const T* x, float* partial, long long M,   \
                                                                            int C, long long rows) {                   \
        bn_sums<T>(x, partial, M, C, rows);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2)                                                             \
        bn_apply_##suffix(const T* x, const T* shortcut, const float* partial, const float* gamma, const float* beta,  \
                          float* running_mean, float* running_var, float* stats, T* y, long long M, int C,             \
                          long long rows, int chunks, int shifted, int training, float momentum, float eps,            \
                          int relu) {                                                                                  \
        const Moments moments{partial, gamma,   beta,     running_mean, running_var,                                   \
                              chunks,  shifted, training, momentum,     eps};                                          \
        if (shortcut)                                                                                                  \
            bn_apply<T, true>(x, shortcut, moments, stats, y, M, C, rows, relu);                                       \
        else                                                                                                           \
            bn_apply<T, false>(x, shortcut, moments, stats, y, M, C, rows, relu);                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2)                                                             \
        bn_backward_sums_##suffix(const T* dy, const T* x, const T* y, const float* stats, T* g, float* partial,       \
                                  long long M, int C, long long rows, int relu) {                                      \
        if (y)                                                                                                         \
            bn_backward_sums<T, true>(dy, x, y, stats, g, partial, M, C, rows, relu);                                  \
        else                                                                                                           \
            bn_backward_sums<T, false>(dy, x, y, stats, g, partial, M, C, rows, relu);                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2)                                                             \
        bn_backward_apply_##suffix(const T* dy, const T* x, const float* stats, const float* partial, float* dgamma,   \
                                   float* dbeta, T* dx, long long M, int C, long long rows, int chunks, int training,  \
                                   int relu, int masked) {                                                             \
        bn_backward_apply<T>(dy, x, stats, partial, dgamma, dbeta, dx, M, C, rows, chunks, training, relu, masked);    \
    }

BATCH_NORM(float, float32)
BATCH_NORM(bf16, bfloat16)
