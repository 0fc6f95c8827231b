// Grouped 3x3 convolution on tensor cores, bf16 in and out, float32 sums: forward, input gradient and weight gradient
// as implicit matrix products. The columns of im2col are never written: a tap is the same tile read from another row.
//
//   forward   y[p, o]     = sum over taps t, channels i of  x[p + t, i] * w[o, t, i]
//   dgrad     dx[p, i]    = sum over taps t, filters o of  dy[p - t, o] * w[o, t, i]      (forward with other weights)
//   wgrad     dw[o, t, i] = sum over pixels p of           dy[p, o] * x[p + t, i]
//
// Groups narrower than 64 channels are packed: 64 / c neighbouring groups form one "pack" whose weights stand
// block-diagonally in a 64 x 64 matrix per tap, zeros elsewhere; filters.cu lays them so. A tensor core multiplies 16
// channels by 8 filters at a time, so of the zeros only those in blocks of 16 x 16 or 32 x 32 around the diagonal need
// be multiplied: DIAGONAL is the side of these blocks, 64 where everything is. Wider groups (multiples of 64) are a
// pack of their own. CI and CO are a pack's input and output channels.
//
// Tile, forward and dgrad: 256, 128 or 64 pixels (TI images x TH rows x TW columns) by 64 or 128 filters of one pack, a
// warp for each 64 x 64. Input channels go by 64 at a time: the patch of pixels that the tile's taps touch is loaded
// once into shared memory, 128 bytes a pixel, and serves all taps; the weights of a tap stream through three buffers.
// Tile, wgrad: 64 filters by 64 input channels by nine taps, all in the registers of eight warps, over a share of the
// pixels, 128 or 64 at a time: what fits into the GPU's shared memory (tiles.py chooses). Each share leaves its partial sums, which filters.cu adds.
// A pixel's column (a filter's number) is XORed into the position of its 16-byte pieces, so that ldmatrix, which reads
// eight neighbours at a time, meets no bank conflict. All lines keep that position: a tap's row costs one addition.
// Bytes: x once (a border of 1.3 to 1.6 times the tile comes from the cache), y once, weights once per tile (cache).
// Where a batch norm follows, its sums leave with y, 8 bytes a filter and tile, and y is not read again for them.
// Operations: 2 * 9 * min(CI, DIAGONAL) * CO a pixel and pack, the zeros within the blocks on the diagonal included.
// No atomics anywhere: the same input gives the same bits.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_conv3x3_is_the_books (CPU, with mma.sync, ldmatrix and cp.async
// imitated) and tests/minigrad/fast/cuda/test_cuda_gpu.py::test_convolution_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

constexpr int K = 64;        // channels in one row of shared memory
constexpr int LINE = 2 * K;  // its bytes: one line of all 32 banks
constexpr int RING = 3;      // weight buffers: one in use, two on their way

// What a launch computes, for the pixels (i, j) of a grid of OH x OW, with x = 0 outside H x W and S = 2^S_log:
//
//   y[n, OS i + OH0, OS j + OW0] = sum over the taps of x[n, S i + dh, S j + dw] * w[..., tap, :]
//
// Forward: OS = 1, S the stride, nine taps with dh, dw in -1..1. The input gradient of stride 2 is four of them in one
// launch, OS = 2, one for each parity of (h, w): blockIdx.y.
struct Conv {
    int N, H, W, C;              // x
    int YH, YW, YC;              // y
    int OH, OW, OS, OH0, OW0;    // the grid of pixels and where it lies in y
    int S_log;                   // log2 of the stride in x: 0 or 1
    int CI, CO, packs;           // input and output channels of a pack
    int TI_log, TH_log, TW_log;  // the tile: 2^TI_log images, 2^TH_log rows, 2^TW_log columns
    int tiles, tiles_h, tiles_w;  // how many tiles cover everything, OH and OW
    int taps, top, left;         // smallest dh and dw: where the patch starts
    int PH, PW;                  // rows and columns of the patch, one image
    int PH_inverse, PW_inverse;  // 2^20 / PH and 2^20 / PW, rounded up: n / PW = n * PW_inverse >> 20 for n < 2048
    int dh[9], dw[9], tap[9];    // offsets from (top, left), and the place of the tap in w
};
struct Parts { Conv part[4]; };

// Where piece `piece` (16 bytes, 8 channels) of row `row` lies in a buffer of 128-byte rows.
__device__ inline int swizzled(int row, int key, int piece) { return row * K + ((piece ^ (key & 7)) << 3); }

// The position of pixel m of a tile.
struct Pixel {
    int image, row, column;
    __device__ Pixel(int m, const Conv& s)
        : image(m >> (s.TH_log + s.TW_log)),
          row((m >> s.TW_log) & ((1 << s.TH_log) - 1)),
          column(m & ((1 << s.TW_log) - 1)) {}
};

// Which images, rows and columns a tile starts at.
struct Tile {
    int image, row, column;
    __device__ Tile(int tile, const Conv& s)
        : image(tile / (s.tiles_h * s.tiles_w) << s.TI_log),
          row(tile / s.tiles_w % s.tiles_h << s.TH_log),
          column(tile % s.tiles_w << s.TW_log) {}
};

// Start copying the patch of x under a tile: (TI, PH, PW) rows of 64 channels from `channel` on, zeros outside.
__device__ inline void load_patch(bf16* patch, const bf16* x, const Conv& s, const Tile& tile, int channel,
                                  int threads) {
    const int piece = threadIdx.x & 7, rows = s.PH * s.PW << s.TI_log;
    const int h0 = (tile.row << s.S_log) + s.top, w0 = (tile.column << s.S_log) + s.left;
#pragma unroll 2  // more would take registers from the products
    for (int row = threadIdx.x >> 3; row < rows; row += threads >> 3) {
        const int line = row * s.PW_inverse >> 20, column = row - line * s.PW, image = line * s.PH_inverse >> 20;
        const int n = tile.image + image, h = h0 + line - image * s.PH, w = w0 + column;
        const bool inside = n < s.N && h >= 0 && h < s.H && w >= 0 && w < s.W;
        const bf16* from = x + ((n * s.H + h) * s.W + w) * static_cast<long long>(s.C) + channel + piece * 8;
        copy_async(patch + swizzled(row, column >> s.S_log, piece), inside ? from : x, inside);
    }
}

// One block: PIXELS pixels by FILTERS filters of one pack; blockIdx.x = (tile, pack, block of filters), the last one
// fastest, so that blocks that run together read the same pixels. 64 pixels by 64 filters a warp.
//
// sums (tiles, 2, YC), unless null, receives for every filter the tile's sum of y and of its squares, as rounded to
// bf16: the batch norm that follows then need not read y for them. In float32 without a shift, which is enough here:
// where a mean is 256 times its deviation, bf16 has left no digit of the deviation anyway.
template <int PIXELS, int FILTERS, int DIAGONAL>
__device__ void conv3x3(const bf16* x, const bf16* w, bf16* y, float* sums, const Conv& s) {
    constexpr int PIXEL_WARPS = PIXELS / 64, THREADS = PIXEL_WARPS * FILTERS / 64 * 32;
    DYNAMIC_SHARED(shared_bytes);
    const int chunks = s.CI / K, patch_size = (s.PH * s.PW << s.TI_log) * K;
    bf16* patches = reinterpret_cast<bf16*>(shared_bytes);
    bf16* ring = patches + patch_size * (chunks > 1 ? 2 : 1);

    const int filter_blocks = s.CO / FILTERS, filter_block = blockIdx.x % filter_blocks;
    const int pack = blockIdx.x / filter_blocks % s.packs;
    const int tile_index = blockIdx.x / (filter_blocks * s.packs);
    if (tile_index >= s.tiles) return;  // another part has more
    const Tile tile(tile_index, s);
    // w is (packs, CO, 9, CI).
    const bf16* filters = w + (pack * s.CO + filter_block * FILTERS) * 9LL * s.CI;

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int warp_pixel = warp % PIXEL_WARPS * 64, warp_filter = warp / PIXEL_WARPS * 64;

    // Start copying the weights of the next step: of the next tap, or the next chunk's first. After the last step come the
    // first weights again, which nobody reads: that costs less than to ask.
    int next_chunk = 0, next_tap = 0;
    auto load_weights = [&](int buffer) {
        const int piece = threadIdx.x & 7;
        const bf16* from = filters + s.tap[next_tap] * s.CI + next_chunk * K + piece * 8;
#pragma unroll
        for (int i = 0; i < FILTERS; i += THREADS / 8) {
            const int row = i + (threadIdx.x >> 3);
            copy_async(ring + buffer * FILTERS * K + swizzled(row, row, piece), from + row * 9LL * s.CI, true);
        }
        if (++next_tap == s.taps) {
            next_tap = 0;
            if (++next_chunk == chunks) next_chunk = 0;
        }
    };

    // The patch row, and its column, under each of this lane's ldmatrix rows at the first tap.
    int patch_row[4], patch_column[4];
    for (int m = 0; m < 4; ++m) {
        const Pixel pixel(warp_pixel + 16 * m + (lane & 15), s);
        patch_column[m] = pixel.column << s.S_log;
        patch_row[m] = (pixel.image * s.PH + (pixel.row << s.S_log)) * s.PW + patch_column[m];
    }
    // Where they lie at tap t of a chunk. That is for the first 16 channels, two pieces; those of the channels from 16 k on
    // are 32 k bytes away in the sense of XOR, here as in the weights.
    SharedAddress pixel_at[4];
    auto go_to = [&](int chunk, int t) {
        const bf16* patch = patches + chunk % 2 * patch_size;
        const int dw = s.dw[t], shift = s.dh[t] * s.PW + dw;
        for (int m = 0; m < 4; ++m) {
            const int row = patch_row[m] + shift, key = (patch_column[m] + dw) >> s.S_log;
            pixel_at[m] = shared_address(patch + swizzled(row, key, lane >> 4));
        }
    };
    const int filter_row = warp_filter + (lane & 7) + (lane >> 4) * 8;
    const SharedAddress filters_at = shared_address(ring + swizzled(filter_row, filter_row, (lane >> 3) & 1));

    float result[4][8][4] = {};  // (16 pixels) x (8 filters) x the lane's four values of a product
    load_patch(patches, x, s, tile, pack * s.CI, THREADS);
    for (int buffer = 0; buffer < RING - 1; ++buffer) {
        load_weights(buffer);
        copy_commit();
    }
    int chunk = 0, t = 0;
    go_to(chunk, t);
    for (int step = 0; step < chunks * s.taps; ++step) {
        // All but the youngest group: this step's weights are here, and its patch, which left a chunk's taps ago.
        // With a single tap that is the youngest group itself.
        if (s.taps == 1)
            copy_wait<0>();
        else
            copy_wait<RING - 2>();

        __syncthreads();  // for every thread, and nobody reads the buffers that are filled next
        if (t == 0 && chunk + 1 < chunks)
            load_patch(patches + (chunk + 1) % 2 * patch_size, x, s, tile, pack * s.CI + (chunk + 1) * K, THREADS);

        const SharedAddress filter_at = filters_at + step % RING * FILTERS * LINE;
#pragma unroll
        for (int k = 0; k < K / 16; ++k) {
            unsigned int a[4][4], b[4][4];
#pragma unroll
            for (int m = 0; m < 4; ++m) load_matrices(a[m], pixel_at[m] ^ 32 * k);
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                if ((16 * k ^ 16 * n) >= DIAGONAL) continue;  // zeros; known when this is compiled
                load_matrices(b[n], (filter_at ^ 32 * k) + 16 * n * LINE);
            }
#pragma unroll
            for (int m = 0; m < 4; ++m)
#pragma unroll
                for (int n = 0; n < 8; ++n)
                    if ((16 * k ^ 8 * n) < DIAGONAL)
                        multiply_accumulate(result[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            if (k == 0) load_weights((step + RING - 1) % RING);  // its arithmetic while the tensor cores are busy
        }
        copy_commit();
        if (++t == s.taps) {
            t = 0;
            ++chunk;
        }
        go_to(chunk, t);
    }

    // Through shared memory, so that each pixel's 64 filters leave as one 128-byte line. Each warp has rows of its own.
    copy_wait<0>();
    __syncthreads();
    bf16* staged = reinterpret_cast<bf16*>(shared_bytes) + warp * 64 * K;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * m + 8 * half + (lane >> 2);
                auto* pair = reinterpret_cast<unsigned int*>(staged + swizzled(row, row, n) + (lane & 3) * 2);
                *pair = pack_bf16(result[m][n][2 * half], result[m][n][2 * half + 1]);
            }
    __syncwarp();
    const int channel = pack * s.CO + filter_block * FILTERS;
    float sum[8] = {}, square[8] = {};  // of the lane's 8 filters over its rows
    bf16* to = y + channel + warp_filter + (lane & 7) * 8;
#pragma unroll 4
    for (int row = lane >> 3; row < 64; row += 4) {
        const Pixel pixel(warp_pixel + row, s);
        const int n = tile.image + pixel.image, i = tile.row + pixel.row, j = tile.column + pixel.column;
        const bool inside = n < s.N && i < s.OH && j < s.OW;
        const int h = i * s.OS + s.OH0, v = j * s.OS + s.OW0;
        const Vec<bf16> value = load(staged + swizzled(row, row, lane & 7));
        if (inside) store(to + ((n * s.YH + h) * s.YW + v) * static_cast<long long>(s.YC), value);
        if (!sums) continue;
        for (int c = 0; c < 8; ++c) {
            const float one = inside ? to_float(value.lane[c]) : 0.0f;
            sum[c] += one;
            square[c] = fmaf(one, one, square[c]);
        }
    }
    if (!sums) return;

    // The lanes' sums, (warps, 2, 8, 32), take the place of the staged rows; each filter's are added in one order.
    __syncthreads();
    float* shares = reinterpret_cast<float*>(shared_bytes);
    for (int c = 0; c < 8; ++c) {
        shares[(warp * 16 + c) * 32 + lane] = sum[c];
        shares[(warp * 16 + 8 + c) * 32 + lane] = square[c];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * FILTERS; i += THREADS) {
        const int which = i / FILTERS, filter = i % FILTERS;
        float total = 0.0f;
        for (int n = 0; n < PIXEL_WARPS * 4; ++n) {
            const int from = filter / 64 * PIXEL_WARPS + n / 4;
            total += shares[(from * 16 + which * 8 + filter % 8) * 32 + n % 4 * 8 + filter % 64 / 8];
        }
        sums[(tile_index * 2LL + which) * s.YC + channel + filter] = total;
    }
}

// A kernel is named after its tile and, where only a part of the weights is multiplied, that part: conv3x3_256x64_d16.
#define CONV3X3(NAME, PIXELS, FILTERS, DIAGONAL)                                              \
    extern "C" __global__ void __launch_bounds__(PIXELS * FILTERS / 128)                      \
        conv3x3_##NAME(const bf16* x, const bf16* w, bf16* y, float* sums, Parts parts) {     \
        conv3x3<PIXELS, FILTERS, DIAGONAL>(x, w, y, sums, parts.part[blockIdx.y]);            \
    }
CONV3X3(256x128, 256, 128, 64)
CONV3X3(128x128, 128, 128, 64)
CONV3X3(256x64, 256, 64, 64)
CONV3X3(128x64, 128, 64, 64)
CONV3X3(64x64, 64, 64, 64)
CONV3X3(256x64_d32, 256, 64, 32)
CONV3X3(128x64_d32, 128, 64, 32)
CONV3X3(64x64_d32, 64, 64, 32)
CONV3X3(256x64_d16, 256, 64, 16)
CONV3X3(128x64_d16, 128, 64, 16)
CONV3X3(64x64_d16, 64, 64, 16)

// partial (shares, packs, CO, 9, CI), float32: the sums over each share's tiles. blockIdx.x = (share, pack, block of
// filters, block of channels), the last one fastest. Here a product sums over pixels, so ldmatrix transposes both
// operands: a warp's filters are columns of dy's tile, its channels columns of x's patch. The eight warps share the blocks
// on the diagonal: 32 filters by 16 channels each of the one block of 64, 16 by 16 of two of 32, 16 by 8 of four of 16.
// What lies off the diagonal is not written, and nobody reads it.
template <int PIXELS, int DIAGONAL>
__device__ void conv3x3_wgrad(const bf16* x, const bf16* dy, float* partial, const Conv& s, int shares) {
    constexpr int M = DIAGONAL == 64 ? 2 : 1, N = DIAGONAL == 16 ? 1 : 2;  // products of 16 filters by 8 channels
    constexpr int ACROSS = DIAGONAL / (16 * M), WARPS = ACROSS * DIAGONAL / (8 * N);  // a block's warps
    DYNAMIC_SHARED(stage_bytes);
    const int patch_size = (s.PH * s.PW << s.TI_log) * K, stage_size = patch_size + PIXELS * K;
    bf16* stages = reinterpret_cast<bf16*>(stage_bytes);

    const int channel_blocks = s.CI / K, filter_blocks = s.CO / K;
    const int channel_block = blockIdx.x % channel_blocks, filter_block = blockIdx.x / channel_blocks % filter_blocks;
    const int pack = blockIdx.x / (channel_blocks * filter_blocks) % s.packs;
    const int share = blockIdx.x / (channel_blocks * filter_blocks * s.packs);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int block = warp / WARPS * DIAGONAL;
    const int warp_filter = block + warp % WARPS % ACROSS * 16 * M;
    const int warp_channel = block + warp % WARPS / ACROSS * 8 * N;

    auto load_stage = [&](int i) {
        const Tile tile(share + i * shares, s);
        bf16* patch = stages + i % 2 * stage_size;
        load_patch(patch, x, s, tile, pack * s.CI + channel_block * K, 256);
        const int piece = threadIdx.x & 7, channel = pack * s.CO + filter_block * K + piece * 8;
#pragma unroll
        for (int first = 0; first < PIXELS; first += 256 / 8) {
            const int row = first + (threadIdx.x >> 3);
            const Pixel pixel(row, s);
            const int n = tile.image + pixel.image, i = tile.row + pixel.row, j = tile.column + pixel.column;
            const bool inside = n < s.N && i < s.OH && j < s.OW;
            const bf16* from = dy + ((n * s.YH + i) * s.YW + j) * static_cast<long long>(s.YC) + channel;
            copy_async(patch + patch_size + swizzled(row, row, piece), inside ? from : dy, inside);
        }
    };

    float sums[9][M][N][4] = {};  // taps x (16 filters) x (8 channels) x the lane's four values
    const int mine = (s.tiles - share + shares - 1) / shares;
    if (mine > 0) load_stage(0);
    copy_commit();
    for (int i = 0; i < mine; ++i) {
        if (i + 1 < mine) load_stage(i + 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const bf16* patch = stages + i % 2 * stage_size;
        const bf16* upstream = patch + patch_size;
#pragma unroll 4  // turns share some of their address arithmetic, which takes as many instructions as the products
        for (int k = 0; k < PIXELS; k += 16) {
            unsigned int a[M][4], b[4];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                const int row = k + (lane & 7) + (lane >> 4) * 8;
                load_matrices_transposed(a[m],
                                         upstream + swizzled(row, row, warp_filter / 8 + 2 * m + ((lane >> 3) & 1)));
            }
            const Pixel pixel(k + (lane & 15), s);
            const int line = (pixel.image * s.PH + (pixel.row << s.S_log)) * s.PW;
#pragma unroll
            for (int dw = 0; dw < 3; ++dw) {
                const int column = (pixel.column << s.S_log) + dw;
                const bf16* pixels = patch + swizzled(line + column, column >> s.S_log, warp_channel / 8 + (lane >> 4) * (N - 1));
#pragma unroll
                for (int dh = 0; dh < 3; ++dh, pixels += s.PW * K) {
                    load_matrices_transposed(b, pixels);
#pragma unroll
                    for (int m = 0; m < M; ++m)
#pragma unroll
                        for (int n = 0; n < N; ++n)
                            multiply_accumulate(sums[3 * dh + dw][m][n], a[m], b[2 * n], b[2 * n + 1]);
                }
            }
        }
        __syncthreads();  // nobody reads this stage any more: the next turn fills it
    }
    for (int t = 0; t < 9; ++t)
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < 4; ++v) {
                    const int o = filter_block * K + warp_filter + 16 * m + (lane >> 2) + v / 2 * 8;
                    const int i = channel_block * K + warp_channel + 8 * n + (lane & 3) * 2 + v % 2;
                    partial[(((share * s.packs + pack) * static_cast<long long>(s.CO) + o) * 9 + t) * s.CI + i] =
                        sums[t][m][n][v];
                }
}

#define CONV3X3_WGRAD(NAME, PIXELS, DIAGONAL)                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                             \
        conv3x3_wgrad_##NAME(const bf16* x, const bf16* dy, float* partial, Conv conv, int shares) {              \
        conv3x3_wgrad<PIXELS, DIAGONAL>(x, dy, partial, conv, shares);                                            \
    }
CONV3X3_WGRAD(128, 128, 64)
CONV3X3_WGRAD(64, 64, 64)
CONV3X3_WGRAD(128_d32, 128, 32)
CONV3X3_WGRAD(64_d32, 64, 32)
CONV3X3_WGRAD(128_d16, 128, 16)
CONV3X3_WGRAD(64_d16, 64, 16)
