// The last step of every weight gradient: the sum over pixels was cut into shares, so that all processors had work;
// this adds the shares, takes what belongs to each filter and puts it in the weights' own order.
//
//   dw[f, i, t] = sum over shares s of partial[s, f, t, (f mod CO) / o * c + i]        f filter, i channel, t tap
//
// partial holds rows of row_length values, one for each share and filter, a tap every tap_length values. From columns
// (im2col.cu, CO = o = all filters) tap_length is c, and the row may be padded. From packs (conv3x3.cu) it is CI, and
// each of a pack's CO / o groups has c of them on the block diagonal.
//
// Tile: a thread for each value of dw, in partial's order, where most of the reading is.
// Bytes: 4 for each share and sizeof(T) for each value of dw.
// Operations: one addition for each share, in their order, so the same input gives the same bits; memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_weight_gradients_are_put_together (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_convolution_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

template <typename T>
__device__ void add_shares(const float* partial, T* dw, int filters, int c, int taps, int tap_length, int row_length,
                           int CO, int o, int shares) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= filters * taps * c) return;
    const int i = index % c, t = index / c % taps, filter = index / (taps * c);
    const long long size = static_cast<long long>(filters) * row_length;
    const float* row = partial + static_cast<long long>(filter) * row_length;
    const float* from = row + t * tap_length + filter % CO / o * c + i;
    float sum = 0.0f;
#pragma unroll 8
    for (int share = 0; share < shares; ++share) sum += from[share * size];
    dw[(static_cast<long long>(filter) * c + i) * taps + t] = from_float<T>(sum);
}

extern "C" __global__ void add_shares_float32(const float* partial, float* dw, int filters, int c, int taps,
                                              int tap_length, int row_length, int CO, int o, int shares) {
    add_shares(partial, dw, filters, c, taps, tap_length, row_length, CO, o, shares);
}
extern "C" __global__ void add_shares_bfloat16(const float* partial, bf16* dw, int filters, int c, int taps,
                                               int tap_length, int row_length, int CO, int o, int shares) {
    add_shares(partial, dw, filters, c, taps, tap_length, row_length, CO, o, shares);
}
