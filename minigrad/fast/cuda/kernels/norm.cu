// Batch normalisation over channels-last rows, with ReLU and the residual shortcut inside, forward and backward.
//
// x is (M, C): M = N*H*W pixels, C channels, C contiguous. T is float32 or bf16; every sum and coefficient is float32
// or wider.
//
//   forward   z = (x - mean) * scale + beta [+ shortcut],   y = relu(z) or z,   scale = gamma / sqrt(var + eps)
//   backward  g  = dy where z > 0, else 0           (also the shortcut's gradient)
//             dbeta = sum g,   dgamma = sum g * (x - mean) / sqrt(var + eps)
//             dx = scale * (g - dbeta / M - xhat * dgamma / M) = a * g + b * (x - mean) + c    per channel
//
// Tile: a block is (bx, by) threads, bx * by = 256. A thread owns one 16-byte vector of channels (8 bf16 or 4 float32)
// and walks down its rows by by, so that its coefficients stay in registers and a warp reads whole 128-byte lines.
// Sums take two stages: each block leaves one partial per channel in `partial` (chunks, 2, C), then bn_finish_* adds
// the chunks in a fixed order, in float64. No atomics: the same input gives the same bits.
// Bytes, with Y = M * C * sizeof(T): forward 3Y (sums 1, apply 2), + 1Y with a shortcut, - 1Y where the convolution
// before has left the sums (see conv3x3.cu). Backward without shortcut 5Y (sums 2, apply 3, the mask recomputed from
// x); with it 7Y (sums read dy, x, y, write g; apply reads g, x, writes dx).
// Operations: about 4 a value forward, 8 backward, so memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_batch_norm_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_batch_norm_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

constexpr int BLOCK = 256;

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
        long long end = smaller(M, (blockIdx.y + 1LL) * rows_per_chunk);
#pragma unroll 4
        for (long long row = blockIdx.y * rows_per_chunk + threadIdx.y; row < end; row += blockDim.y) {
            Vec<T> value = load(x + row * C + c);
            for (int v = 0; v < V; ++v) {
                float d = to_float(value.lane[v]) - to_float(origin.lane[v]);
                sum[v] += d;
                square[v] += d * d;
            }
        }
    }
    write_partial<T>(sum, square, partial, C);
}

// Both sums of channel c over all chunks, for the threads with threadIdx.y = 0: a block of (32, 32) threads works on 32
// channels, its rows share the chunks, and their sums are added in the order of the rows.
__device__ void add_chunks(const float* partial, int C, int chunks, int c, double& first, double& second) {
    __shared__ double sums[2][32][32];
    first = second = 0.0;
    if (c < C) {
#pragma unroll 4
        for (int chunk = threadIdx.y; chunk < chunks; chunk += 32) {
            first += partial[2LL * chunk * C + c];
            second += partial[(2LL * chunk + 1) * C + c];
        }
    }
    sums[0][threadIdx.y][threadIdx.x] = first;
    sums[1][threadIdx.y][threadIdx.x] = second;
    __syncthreads();
    for (int row = 1; row < 32; ++row) {
        first += sums[0][row][threadIdx.x];
        second += sums[1][row][threadIdx.x];
    }
}

// For each channel: stats (4, C) = mean, 1 / sqrt(var + eps), scale, beta. x is null where the partial sums are not
// shifted, which is how a convolution leaves them (see conv3x3.cu). In training the moments are the batch's, and
// running_mean and running_var are updated in place, the variance unbiased, as PyTorch does; otherwise they are the
// moments.
template <typename T>
__device__ void bn_finish_forward(const T* x, const float* partial, const float* gamma, const float* beta,
                                  float* running_mean, float* running_var, float* stats, long long M, int C, int chunks,
                                  float momentum, float eps, int training) {
    int c = blockIdx.x * 32 + threadIdx.x;
    double sum, square;
    add_chunks(partial, C, training ? chunks : 0, c, sum, square);
    if (c >= C || threadIdx.y) return;
    double mean = running_mean[c], variance = running_var[c];
    if (training) {
        double shifted = sum / M;
        mean = shifted + (x ? to_float(x[c]) : 0.0f);
        variance = square / M - shifted * shifted;
        if (variance < 0.0) variance = 0.0;  // rounding; a NaN stays a NaN
        double unbiased = variance * M / (M > 1 ? M - 1 : 1);
        running_mean[c] = static_cast<float>((1.0 - momentum) * running_mean[c] + momentum * mean);
        running_var[c] = static_cast<float>((1.0 - momentum) * running_var[c] + momentum * unbiased);
    }
    double inverse = 1.0 / sqrt(variance + eps);
    stats[c] = static_cast<float>(mean);
    stats[C + c] = static_cast<float>(inverse);
    stats[2 * C + c] = static_cast<float>(gamma[c] * inverse);
    stats[3 * C + c] = beta[c];
}

// One vector's coefficients, held in registers while a thread walks down its rows. affine() is z without its shortcut,
// the one expression that the forward pass and the recomputed mask share. The mean is subtracted first: x * scale +
// (beta - mean * scale) would cancel where the mean is large against the deviation.
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

template <typename T>
__device__ void bn_apply(const T* x, const T* shortcut, const float* stats, T* y, long long M, int C,
                         long long rows_per_chunk, int relu) {
    constexpr int V = Vec<T>::size;
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= C) return;
    Coefficients<V> coefficients(stats, C, c);
    long long end = smaller(M, (blockIdx.y + 1LL) * rows_per_chunk);
#pragma unroll 4
    for (long long row = blockIdx.y * rows_per_chunk + threadIdx.y; row < end; row += blockDim.y) {
        Vec<T> value = load(x + row * C + c), added = {}, result;
        if (shortcut) added = load(shortcut + row * C + c);
        for (int v = 0; v < V; ++v) {
            float z = coefficients.affine(to_float(value.lane[v]), v);
            if (shortcut) z += to_float(added.lane[v]);
            // Written so that a NaN stays a NaN: a diverged run must show.
            result.lane[v] = from_float<T>(relu && z < 0.0f ? 0.0f : z);
        }
        store(y + row * C + c, result);
    }
}

// g = dy masked, its two sums per channel, and g itself where a shortcut needs it. `y`, when given, is the forward's
// output and tells the mask (a shortcut took part in z); otherwise the mask is recomputed from x, which saves reading
// y.
template <typename T>
__device__ void bn_backward_sums(const T* dy, const T* x, const T* y, const float* stats, T* g, float* partial,
                                 long long M, int C, long long rows_per_chunk, int relu) {
    constexpr int V = Vec<T>::size;
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float sum[V] = {}, product[V] = {};
    if (c < C) {
        Coefficients<V> forward(stats, C, c);
        long long end = smaller(M, (blockIdx.y + 1LL) * rows_per_chunk);
#pragma unroll 2
        for (long long row = blockIdx.y * rows_per_chunk + threadIdx.y; row < end; row += blockDim.y) {
            long long at = row * C + c;
            Vec<T> upstream = load(dy + at), value = load(x + at), output = {};
            if (y) output = load(y + at);
            for (int v = 0; v < V; ++v) {
                float xv = to_float(value.lane[v]);
                float z = y ? to_float(output.lane[v]) : forward.affine(xv, v);
                if (relu && z <= 0.0f) upstream.lane[v] = T{};
                float gv = to_float(upstream.lane[v]);
                sum[v] += gv;
                product[v] += gv * (xv - forward.mean[v]);
            }
            if (g) store(g + at, upstream);
        }
    }
    write_partial<T>(sum, product, partial, C);
}

// For each channel: dgamma, dbeta and the coefficients (3, C) of dx = a * g + b * (x - mean) + c. In evaluation
// mode the statistics are constants, so dx = scale * g.
extern "C" __global__ void bn_finish_backward(const float* partial, const float* stats, float* dgamma, float* dbeta,
                                              float* coefficients, long long M, int C, int chunks, int training) {
    int c = blockIdx.x * 32 + threadIdx.x;
    double sum, product;
    add_chunks(partial, C, chunks, c, sum, product);
    if (c >= C || threadIdx.y) return;
    double inverse = stats[C + c], scale = stats[2 * C + c];
    dgamma[c] = static_cast<float>(product * inverse);
    dbeta[c] = static_cast<float>(sum);
    coefficients[c] = static_cast<float>(scale);
    coefficients[C + c] = static_cast<float>(training ? -scale * inverse * inverse * product / M : 0.0);
    coefficients[2 * C + c] = static_cast<float>(training ? -scale * sum / M : 0.0);
}

// dx = a * g + b * (x - mean) + c. `masked` says that dy is already g (bn_backward_sums wrote it); otherwise the mask
// is recomputed.
template <typename T>
__device__ void bn_backward_apply(const T* dy, const T* x, const float* stats, const float* coefficients, T* dx,
                                  long long M, int C, long long rows_per_chunk, int relu, int masked) {
    constexpr int V = Vec<T>::size;
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= C) return;
    Coefficients<V> forward(stats, C, c);
    float a[V], b[V], constant[V];
    for (int v = 0; v < V; ++v) {
        a[v] = coefficients[c + v];
        b[v] = coefficients[C + c + v];
        constant[v] = coefficients[2 * C + c + v];
    }
    long long end = smaller(M, (blockIdx.y + 1LL) * rows_per_chunk);
#pragma unroll 2
    for (long long row = blockIdx.y * rows_per_chunk + threadIdx.y; row < end; row += blockDim.y) {
        long long at = row * C + c;
        Vec<T> upstream = load(dy + at), value = load(x + at), result;
        for (int v = 0; v < V; ++v) {
            float xv = to_float(value.lane[v]), gv = to_float(upstream.lane[v]);
            if (relu && !masked && forward.affine(xv, v) <= 0.0f) gv = 0.0f;
            result.lane[v] = from_float<T>(fmaf(a[v], gv, fmaf(b[v], xv - forward.mean[v], constant[v])));
        }
        store(dx + at, result);
    }
}

// The entry points, once for each type: extern "C" gives them names that Python can ask for.
#define BATCH_NORM(T, suffix)                                                                                          \
    extern "C" __global__ void bn_sums_##suffix(const T* x, float* partial, long long M, int C, long long rows) {      \
        bn_sums<T>(x, partial, M, C, rows);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void bn_finish_forward_##suffix(                                                             \
        const T* x, const float* partial, const float* gamma, const float* beta, float* running_mean,                  \
        float* running_var, float* stats, long long M, int C, int chunks, float momentum, float eps, int training) {   \
        bn_finish_forward<T>(x, partial, gamma, beta, running_mean, running_var, stats, M, C, chunks, momentum, eps,   \
                             training);                                                                                \
    }                                                                                                                  \
    extern "C" __global__ void bn_apply_##suffix(const T* x, const T* shortcut, const float* stats, T* y, long long M, \
                                                 int C, long long rows, int relu) {                                    \
        bn_apply<T>(x, shortcut, stats, y, M, C, rows, relu);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void bn_backward_sums_##suffix(const T* dy, const T* x, const T* y, const float* stats,      \
                                                         T* g, float* partial, long long M, int C, long long rows,     \
                                                         int relu) {                                                   \
        bn_backward_sums<T>(dy, x, y, stats, g, partial, M, C, rows, relu);                                            \
    }                                                                                                                  \
    extern "C" __global__ void bn_backward_apply_##suffix(const T* dy, const T* x, const float* stats,                 \
                                                          const float* coefficients, T* dx, long long M, int C,        \
                                                          long long rows, int relu, int masked) {                      \
        bn_backward_apply<T>(dy, x, stats, coefficients, dx, M, C, rows, relu, masked);                                \
    }

BATCH_NORM(float, float32)
BATCH_NORM(bf16, bfloat16)
