// What translated kernels need: a thread, its block, and the PTX instructions that C has no operator for.
//
// Memory is the host's. A shared address is an offset into the block's shared memory; a generic address is a pointer.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef _Float16 half;
typedef float brain;  // a bfloat16 in an expression

struct Work {  // counters.py has the same fields
    uint64_t loaded, stored, shared_loaded, shared_stored, fma, add, atomics, mma, mma_zero, barriers;
};

typedef struct Block {
    uint32_t ntid[3], ctaid[3], nctaid[3];
    uint32_t static_shared, shared_size;
    uint8_t *shared;
    struct Work *work;
    struct Crew *crew;  // the block's threads, where they wait for one another
} Block;

typedef struct Thread {
    Block *block;
    uint32_t tid[3], lane, warp;
    uint32_t in[10], out[4];  // what a thread brings to its warp's common instruction, and takes away
} Thread;

enum Meeting { WARP_BARRIER, SHUFFLE, VOTE, LDMATRIX, MMA };

void block_barrier(Thread *);
void meet(Thread *, uint32_t mask, enum Meeting what, int mode);
uint32_t active_lanes(Thread *);
_Noreturn void fault(const char *reason);
float fmaf_down(float, float, float);
float toward_zero(double);

#define INLINE static inline __attribute__((unused, always_inline))

INLINE void *at(uint64_t address, uint64_t bytes) {
    if (address & (bytes & -bytes) - 1) fault("misaligned address");
    return (void *)address;
}
INLINE void *shared_at(Block *B, uint64_t address, uint64_t bytes) {
    uint32_t offset = (uint32_t)address;
    if (offset & (bytes & -bytes) - 1) fault("misaligned shared address");
    if (offset + bytes > B->shared_size) fault("address outside of shared memory");
    return B->shared + offset;
}
INLINE void copy_async(Block *B, void *to, uint64_t from, uint32_t size, uint32_t bytes) {
    memcpy(to, (void *)from, bytes);
    memset((char *)to + bytes, 0, size - bytes);
    B->work->loaded += bytes;
}

// Bits as numbers, and back.
#define BITS_OF(name, type, bits_type)          \
    INLINE type name##_(bits_type bits) {       \
        type value;                             \
        memcpy(&value, &bits, sizeof value);    \
        return value;                           \
    }                                           \
    INLINE bits_type bits_##name(type value) {  \
        bits_type bits;                         \
        memcpy(&bits, &value, sizeof bits);     \
        return bits;                            \
    }
BITS_OF(f32, float, uint32_t)
BITS_OF(f64, double, uint64_t)
BITS_OF(f16, half, uint16_t)
INLINE float bf16_(uint16_t bits) { return f32_((uint32_t)bits << 16); }
INLINE uint16_t bits_bf16(float value) {
    uint32_t bits = bits_f32(value);
    return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
}

INLINE float saturate(float a) { return a > 0 ? a < 1 ? a : 1 : 0; }  // a NaN becomes 0
INLINE float nan_minf(float a, float b) { return a != a || b != b ? NAN : fminf(a, b); }
INLINE float nan_maxf(float a, float b) { return a != a || b != b ? NAN : fmaxf(a, b); }
INLINE double nan_min(double a, double b) { return a != a || b != b ? NAN : fmin(a, b); }
INLINE double nan_max(double a, double b) { return a != a || b != b ? NAN : fmax(a, b); }

// Integers: a shift by more than the width, a division by zero and a conversion out of range have values on a GPU.
#define INTEGER(name, type, lowest, highest)                                                                \
    INLINE type to_##name(double a) {                                                                       \
        return a != a ? 0 : a <= (double)(lowest) ? (lowest) : a >= (double)(highest) ? (highest) : (type)a; \
    }                                                                                                       \
    INLINE type clamp_##name(__int128 a) { return a < (lowest) ? (lowest) : a > (highest) ? (highest) : (type)a; } \
    INLINE type div_##name(type a, type b) {                                                                \
        return b == 0 ? (type)-1 : (type)-1 < 0 && b == (type)-1 ? (type)(0 - a) : (type)(a / b);           \
    }                                                                                                       \
    INLINE type rem_##name(type a, type b) {                                                                \
        return b == 0 ? a : (type)-1 < 0 && b == (type)-1 ? 0 : (type)(a % b);                              \
    }                                                                                                       \
    INLINE type shr_##name(type a, uint32_t n) {                                                            \
        return n < 8 * sizeof a ? a >> n : (type)-1 < 0 && a < 0 ? -1 : 0;                                  \
    }                                                                                                       \
    INLINE type shl_##name(type a, uint32_t n) { return n < 8 * sizeof a ? a << n : 0; }
INTEGER(s8, int8_t, INT8_MIN, INT8_MAX)
INTEGER(u8, uint8_t, 0, UINT8_MAX)
INTEGER(s16, int16_t, INT16_MIN, INT16_MAX)
INTEGER(u16, uint16_t, 0, UINT16_MAX)
INTEGER(s32, int32_t, INT32_MIN, INT32_MAX)
INTEGER(u32, uint32_t, 0, UINT32_MAX)
INTEGER(s64, int64_t, INT64_MIN, INT64_MAX)
INTEGER(u64, uint64_t, 0, UINT64_MAX)
#define shl_b16 shl_u16
#define shl_b32 shl_u32
#define shl_b64 shl_u64
#define shr_b16 shr_u16
#define shr_b32 shr_u32
#define shr_b64 shr_u64

INLINE int16_t mul_hi_s16(int16_t a, int16_t b) { return a * b >> 16; }
INLINE uint16_t mul_hi_u16(uint16_t a, uint16_t b) { return (uint32_t)a * b >> 16; }
INLINE int32_t mul_hi_s32(int32_t a, int32_t b) { return (int64_t)a * b >> 32; }
INLINE uint32_t mul_hi_u32(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
INLINE int64_t mul_hi_s64(int64_t a, int64_t b) { return (__int128)a * b >> 64; }
INLINE uint64_t mul_hi_u64(uint64_t a, uint64_t b) { return (unsigned __int128)a * b >> 64; }

INLINE uint32_t popc_b32(uint32_t a) { return __builtin_popcount(a); }
INLINE uint32_t popc_b64(uint64_t a) { return __builtin_popcountll(a); }
INLINE uint32_t clz_b32(uint32_t a) { return a ? __builtin_clz(a) : 32; }
INLINE uint32_t clz_b64(uint64_t a) { return a ? __builtin_clzll(a) : 64; }
INLINE uint32_t bfind_u32(uint32_t a) { return a ? 31 - __builtin_clz(a) : -1u; }
INLINE uint32_t bfind_s32(int32_t a) { return bfind_u32(a < 0 ? ~a : a); }
INLINE uint32_t bfind_u64(uint64_t a) { return a ? 63 - __builtin_clzll(a) : -1u; }
INLINE uint32_t brev_b32(uint32_t a) {
    uint32_t result = 0;
    for (int i = 0; i < 32; ++i) result |= (a >> i & 1) << (31 - i);
    return result;
}
INLINE uint32_t bfe_u32(uint32_t a, uint32_t start, uint32_t length) {
    return shr_u32(a, start & 255) & (shl_u32(1, length & 255) - 1);
}
INLINE int32_t bfe_s32(int32_t a, uint32_t start, uint32_t length) {
    start &= 255, length &= 255;
    if (!length) return 0;
    if (start + length > 32) return shr_s32(a, start);
    return (int32_t)((uint32_t)a << (32 - start - length)) >> (32 - length);
}
INLINE uint64_t bfe_u64(uint64_t a, uint64_t start, uint64_t length) {
    return shr_u64(a, start & 255) & (shl_u64(1, length & 255) - 1);
}
INLINE uint32_t bfi_b32(uint32_t a, uint32_t b, uint32_t start, uint32_t length) {
    uint32_t mask = shl_u32(shl_u32(1, length & 255) - 1, start & 255);
    return (shl_u32(a, start & 255) & mask) | (b & ~mask);
}
INLINE uint64_t bfi_b64(uint64_t a, uint64_t b, uint64_t start, uint64_t length) {
    uint64_t mask = shl_u64(shl_u64(1, length & 255) - 1, start & 255);
    return (shl_u64(a, start & 255) & mask) | (b & ~mask);
}
INLINE uint32_t prmt_b32(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        uint32_t choice = selector >> 4 * i & 15, byte = bytes >> 8 * (choice & 7) & 255;
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
INLINE uint32_t lop3_b32(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t result = 0;
    for (int i = 0; i < 8; ++i)
        if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return result;
}
INLINE uint32_t shf_l_wrap_b32(uint32_t low, uint32_t high, uint32_t n) {
    return ((uint64_t)high << 32 | low) << (n & 31) >> 32;
}
INLINE uint32_t shf_r_wrap_b32(uint32_t low, uint32_t high, uint32_t n) {
    return ((uint64_t)high << 32 | low) >> (n & 31);
}
INLINE uint32_t shf_l_clamp_b32(uint32_t low, uint32_t high, uint32_t n) {
    return n >= 32 ? low : ((uint64_t)high << 32 | low) << n >> 32;
}
INLINE uint32_t shf_r_clamp_b32(uint32_t low, uint32_t high, uint32_t n) {
    return n >= 32 ? high : ((uint64_t)high << 32 | low) >> n;
}
// copysign.f32 d, a, b: a's sign with b's magnitude.
INLINE float copysign_f32(float a, float b) { return copysignf(b, a); }
INLINE double copysign_f64(double a, double b) { return copysign(b, a); }
