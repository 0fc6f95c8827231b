// Weights on their way to a product and back. On the way there a filter's channels are put innermost, as in the columns
// of im2col.cu, its row is filled up with zeros, and float32 becomes the images' dtype:
//
//   rows[f, t c + i] = w[f, i, t]                                    f filter, i channel, t tap; 0 from taps * c on
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
// Bytes: those of w and of rows; and 4 for each share and sizeof(T) for each value of dw.
// Operations: none; and one addition for each share, in their order, so the same input gives the same bits; memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_operations.py::test_filters_are_laid_in_rows,
// test_cuda_shim.py::test_weight_gradients_are_put_together (CPU) and
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
