// Weights on their way to a product and back. On the way there a filter's channels are put innermost, as in the columns
// of im2col.cu, its row is filled up with zeros, and float32 becomes the images' dtype:
//
//   rows[f, t c + i] = w[f, i, t]                                    f filter, i channel, t tap; 0 from taps * c on
//
// or, for conv3x3.cu, a row in a pack, the matrix with its groups' weights along the diagonal (see `pack`).
//
// The way back is the last step of every weight gradient: the sum over pixels was cut into shares, so that all
// processors had work; this adds the shares, takes what belongs to each filter and puts it in the weights' own order.
//
//   dw[f, i, t] = sum over shares s of partial[s, f, t, (f mod CO) / o * c + i]        f filter, i channel, t tap
//
// partial holds rows of row_length values, one for each share and filter, a tap every tap_length values. From columns
// (im2col.cu, CO = o = all filters) tap_length is c, and the row may be padded. From packs (conv3x3.cu) it is CI, and
// each of a pack's CO / o groups has c of them on the block diagonal.
//
// Tile: a thread for each value of rows, and of dw in its own order: a warp's values are then written as one line, while it
// reads from as many lines of partial as there are taps, the rest of which its neighbours find in the cache.
// Packs are turned in shared memory instead: 16 filters x 16 channels a block.
// Bytes: those of w and of rows; and 4 for each share and sizeof(T) for each value of dw.
// Operations: none; and one addition for each share, in their order, so the same input gives the same bits; memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_operations.py::test_filters_are_laid_in_rows,
// test_cuda_shim.py::test_conv3x3_is_the_books and ::test_weight_gradients_are_put_together (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_convolution_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

template <typename W, typename T>
__device__ void filters(const W* w, T* rows, int filters, int c, int taps, int row_length) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= filters * row_length) return;
    const int k = index % row_length, filter = index / row_length;
    const long long from = static_cast<long long>(filter) * c * taps + k % c * taps + k / c;
    rows[index] = from_float<T>(k < c * taps ? to_float(w[from]) : 0.0f);
}

extern "C" __global__ void filters_float32_float32(const float* w, float* rows, int count, int c, int taps, int length) {
    filters(w, rows, count, c, taps, length);
}
extern "C" __global__ void filters_float32_bfloat16(const float* w, bf16* rows, int count, int c, int taps, int length) {
    filters(w, rows, count, c, taps, length);
}
extern "C" __global__ void filters_bfloat16_bfloat16(const bf16* w, bf16* rows, int count, int c, int taps, int length) {
    filters(w, rows, count, c, taps, length);
}

// w (G o, c, 3, 3), in float32 or bfloat16 -> packed (packs, CO, 9, CI), the groups of a pack along the diagonal and zeros
// beside them, and, unless it is null, turned (packs, CI, 9, CO) for the input gradient: filter and channel change places,
// and so do the ends of each tap. A block turns 16 filters x 16 channels of a pack in shared memory, so that all sides
// are read and written along their rows; its 256 threads have nine taps each, and all their loads on the way at once.
template <typename W>
__device__ void pack(const W* w, bf16* packed, bf16* turned, int CO, int CI, int o, int c) {
    constexpr int SIDE = 16, TAPS = 9, THREADS = SIDE * SIDE;
    __shared__ bf16 tile[SIDE][SIDE * TAPS + 2];  // the two spread the rows over the banks
    const int i0 = blockIdx.x % (CI / SIDE) * SIDE, f0 = blockIdx.x / (CI / SIDE) % (CO / SIDE) * SIDE;
    const int pack = blockIdx.x / (CI / SIDE) / (CO / SIDE);
#pragma unroll
    for (int n = threadIdx.x; n < THREADS * TAPS; n += THREADS) {
        const int f = n / (SIDE * TAPS), rest = n % (SIDE * TAPS), i = i0 + rest / TAPS;
        const bool same_group = (f0 + f) / o == i / c;
        const long long from = ((pack * CO + f0 + f) * static_cast<long long>(c) + i % c) * TAPS + rest % TAPS;
        tile[f][rest] = from_float<bf16>(same_group ? to_float(w[from]) : 0.0f);
    }
    __syncthreads();
    const int column = threadIdx.x % SIDE, row = threadIdx.x / SIDE;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        packed[((pack * CO + f0 + row) * static_cast<long long>(TAPS) + t) * CI + i0 + column] =
            tile[row][column * TAPS + t];
        if (turned)
            turned[((pack * CI + i0 + row) * static_cast<long long>(TAPS) + t) * CO + f0 + column] =
                tile[column][row * TAPS + TAPS - 1 - t];
    }
}

extern "C" __global__ void __launch_bounds__(256)
    conv3x3_pack_float32(const float* w, bf16* packed, bf16* turned, int CO, int CI, int o, int c) {
    pack(w, packed, turned, CO, CI, o, c);
}
extern "C" __global__ void __launch_bounds__(256)
    conv3x3_pack_bfloat16(const bf16* w, bf16* packed, bf16* turned, int CO, int CI, int o, int c) {
    pack(w, packed, turned, CO, CI, o, c);
}

template <typename T>
__device__ void add_shares(const float* partial, T* dw, int filters, int c, int taps, int tap_length, int row_length,
                           int CO, int o, int shares) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= filters * taps * c) return;
    const int t = index % taps, i = index / taps % c, filter = index / (taps * c);
    const long long size = static_cast<long long>(filters) * row_length;
    const float* row = partial + static_cast<long long>(filter) * row_length;
    const float* from = row + t * tap_length + filter % CO / o * c + i;
    float sum = 0.0f;
#pragma unroll 16  // loads on their way at once
    for (int share = 0; share < shares; ++share) sum += from[share * size];
    dw[index] = from_float<T>(sum);
}

extern "C" __global__ void add_shares_float32(const float* partial, float* dw, int filters, int c, int taps,
                                              int tap_length, int row_length, int CO, int o, int shares) {
    add_shares(partial, dw, filters, c, taps, tap_length, row_length, CO, o, shares);
}
extern "C" __global__ void add_shares_bfloat16(const float* partial, bf16* dw, int filters, int c, int taps,
                                               int tap_length, int row_length, int CO, int o, int shares) {
    add_shares(partial, dw, filters, c, taps, tap_length, row_length, CO, o, shares);
}
