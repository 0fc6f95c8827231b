// The windows of a convolution as rows of a matrix (im2col), and its transpose (col2im): for every convolution that the
// tensor-core kernel of conv3x3.cu does not take, followed or preceded by cuBLAS products.
//
// x is (N, H, W, C), channels last; c = C / G channels a group. One row of columns is one output pixel:
//
//   im2col  columns[(n, oh, ow), g, kh, kw, i] = x[n, oh SH + kh DH - PH, ow SW + kw DW - PW, g c + i]
//   col2im  dx[n, h, w, g c + i] = sum of dcolumns[(n, oh, ow), g, kh, kw, i] over the places that im2col copied it to
//
// where x = 0 outside the image.
// With a group's taps side by side, group g's matrix starts at g KH KW c and has the row length `ld`: cuBLAS takes all
// groups in one strided-batched product, and no group is ever copied. `ld` may be longer than C KH KW (the first
// layer's 27 becomes 32); im2col fills the rest with zeros. col2im gathers: each thread owns its pixels and adds its
// taps in a fixed order, in float32, so there are no atomics and the result is the same bits every time.
//
// Tile: a thread owns one piece of V neighbouring channels, 16 bytes where c allows, else one channel, and walks down
// the pixels: what a piece is (group, tap, channel) is worked out once. Neighbouring threads write neighbouring pieces.
// Bytes: im2col reads x once from memory (its repeats hit the cache) and writes KH KW times its size; col2im reverses.
// Operations: col2im KH KW / (SH SW) additions a value; memory decides.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_im2col_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_convolution_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

struct Window {
    int N, H, W, C, G, KH, KW, OH, OW, SH, SW, PH, PW, DH, DW, ld;
};

template <typename T, int V>
struct alignas(V * sizeof(T)) Piece {
    T lane[V];
};

template <typename T, int V>
__device__ void im2col(const T* x, T* columns, const Window& s) {
    const int column = (blockIdx.x * blockDim.x + threadIdx.x) * V, c = s.C / s.G;
    if (column >= s.ld) return;
    const int channel = column % c, tap = column / c;
    const int kw = tap % s.KW, kh = tap / s.KW % s.KH, g = tap / (s.KW * s.KH);
    const bool used = g < s.G;
    const unsigned int pixels = s.N * s.OH * s.OW, step = gridDim.y * blockDim.y;
    for (unsigned int pixel = blockIdx.y * blockDim.y + threadIdx.y; pixel < pixels; pixel += step) {
        const int ow = pixel % s.OW, oh = pixel / s.OW % s.OH, n = pixel / s.OW / s.OH;
        const int h = oh * s.SH + kh * s.DH - s.PH, w = ow * s.SW + kw * s.DW - s.PW;
        Piece<T, V> piece = {};
        if (used && h >= 0 && h < s.H && w >= 0 && w < s.W)
            piece = *reinterpret_cast<const Piece<T, V>*>(x + ((n * s.H + h) * s.W + w) * static_cast<long long>(s.C) +
                                                          g * c + channel);
        *reinterpret_cast<Piece<T, V>*>(columns + pixel * static_cast<long long>(s.ld) + column) = piece;
    }
}

template <typename T, int V>
__device__ void col2im(const T* columns, T* dx, const Window& s) {
    const int channel = (blockIdx.x * blockDim.x + threadIdx.x) * V, c = s.C / s.G, g = channel / c;
    if (channel >= s.C) return;
    const unsigned int pixels = s.N * s.H * s.W, step = gridDim.y * blockDim.y;
    for (unsigned int pixel = blockIdx.y * blockDim.y + threadIdx.y; pixel < pixels; pixel += step) {
        const int w = pixel % s.W, h = pixel / s.W % s.H, n = pixel / s.W / s.H;
        float sum[V] = {};
        for (int kh = 0; kh < s.KH; ++kh) {
            const int top = h + s.PH - kh * s.DH;  // oh SH: where the window lies whose tap kh meets this row
            if (top < 0 || top % s.SH || top / s.SH >= s.OH) continue;
            for (int kw = 0; kw < s.KW; ++kw) {
                const int left = w + s.PW - kw * s.DW;
                if (left < 0 || left % s.SW || left / s.SW >= s.OW) continue;
                const long long row = (n * s.OH + top / s.SH) * s.OW + left / s.SW;
                const int column = ((g * s.KH + kh) * s.KW + kw) * c + channel % c;
                const auto piece = *reinterpret_cast<const Piece<T, V>*>(columns + row * s.ld + column);
                for (int v = 0; v < V; ++v) sum[v] += to_float(piece.lane[v]);
            }
        }
        Piece<T, V> piece;
        for (int v = 0; v < V; ++v) piece.lane[v] = from_float<T>(sum[v]);
        *reinterpret_cast<Piece<T, V>*>(dx + pixel * static_cast<long long>(s.C) + channel) = piece;
    }
}

// `wide` says that c, C and ld are multiples of a 16-byte vector and the arrays aligned to it.
#define IM2COL(T, suffix)                                                                          \
    extern "C" __global__ void im2col_##suffix(const T* x, T* columns, Window window, int wide) {  \
        if (wide)                                                                                  \
            im2col<T, Vec<T>::size>(x, columns, window);                                           \
        else                                                                                       \
            im2col<T, 1>(x, columns, window);                                                      \
    }                                                                                              \
    extern "C" __global__ void col2im_##suffix(const T* columns, T* dx, Window window, int wide) { \
        if (wide)                                                                                  \
            col2im<T, Vec<T>::size>(columns, dx, window);                                          \
        else                                                                                       \
            col2im<T, 1>(columns, dx, window);                                                     \
    }

IM2COL(float, float32)
IM2COL(bf16, bfloat16)
