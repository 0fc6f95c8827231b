// What the 32 lanes of a warp find out together, without shared memory.

constexpr unsigned int ALL = 0xffffffffu;

// The sum of all lanes' values, in every lane, always added in the same order.
__device__ inline float sum_of_warp(float value) {
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(ALL, value, mask);
    return value;
}
