// A training batch in one pass, from the bytes of the data set: shifted, mirrored, normalised, with a square blanked.
//
//   y[n, i, j, c] = (x[image, c, i + down - P, k + right - P] - mean[c]) / std[c],  k = W - 1 - j where mirrored, else j
//
// Outside the image it is 0, or that of the pixel mirrored at the border; inside the square of S x S pixels at (top,
// left) it is 0. image, down, right, mirrored, top and left are what chance decided about batch image n: choices[n]. An
// evaluation has no choices (null), no padding and no square: its images are normalised as they are.
//
// Tile: a thread for one pixel. Bytes: those of the batch's images and of y, each once.
// Operations: one subtraction and one division for each value, so memory decides.
// Held to the formulas by
// tests/minigrad/fast/cuda/test_cuda_augment.py::test_the_kernel_makes_the_very_numbers_of_the_formulas (CPU),
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_a_training_batch_on_the_gpu (GPU) and every run before its first step.

#include "ptx.cuh"
#include "device.cuh"

constexpr int CHANNELS = 4;  // at most

struct Augment {
    int N, C, H, W, P, reflect, S;
    float mean[CHANNELS], std[CHANNELS];
};

struct Choice {
    int image, down, right, mirrored, top, left;
};

// The pixel that lies at `at` of a row whose border pixels are mirrors: -1 is 1, and n is n - 2.
__device__ inline int mirrored_at_border(int at, int n) {
    if (at < 0) at = -at;
    return at < n ? at : 2 * (n - 1) - at;
}

template <typename T>
__device__ void augment(const unsigned char* x, const Choice* choices, T* y, Augment s) {
    const long long pixels = static_cast<long long>(s.N) * s.H * s.W;
    for (long long p = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; p < pixels;
         p += static_cast<long long>(gridDim.x) * blockDim.x) {
        const int j = p % s.W, i = p / s.W % s.H, n = p / s.W / s.H;
        const Choice choice = choices ? choices[n] : Choice{n, s.P, s.P, 0, 0, 0};
        const int top = choice.top, left = choice.left;
        int row = i + choice.down - s.P, column = (choice.mirrored ? s.W - 1 - j : j) + choice.right - s.P;
        if (s.reflect) {
            row = mirrored_at_border(row, s.H);
            column = mirrored_at_border(column, s.W);
        }
        const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
        const bool blank = i >= top && i < top + s.S && j >= left && j < left + s.S;
#pragma unroll  // so that mean and std are read from where the arguments lie
        for (int c = 0; c < CHANNELS; ++c) {
            if (c >= s.C) break;
            float value = 0.0f;
            if (inside && !blank) {
                const long long plane = static_cast<long long>(choice.image) * s.C + c;
                value = (x[(plane * s.H + row) * s.W + column] - s.mean[c]) / s.std[c];
            }
            y[p * s.C + c] = from_float<T>(value);
        }
    }
}

extern "C" __global__ void augment_float32(const unsigned char* x, const Choice* choices, float* y, Augment s) {
    augment(x, choices, y, s);
}
extern "C" __global__ void augment_bfloat16(const unsigned char* x, const Choice* choices, bf16* y, Augment s) {
    augment(x, choices, y, s);
}
