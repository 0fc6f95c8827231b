// Types, 16-byte vectors and constants that every kernel shares. Plain C++, so that the tests can compile it for the
// CPU too.
//
// bf16 is the upper half of a float32: 8 exponent bits, 7 fraction bits. It is kept as its own two-byte struct instead
// of cuda_bf16.h's type, so that a kernel needs no header besides these two and compiles wherever NVRTC does.
// Arithmetic is in float32 throughout: a kernel converts when it loads and when it stores.

struct bf16 {
    unsigned short bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(bf16 value) { return __uint_as_float(static_cast<unsigned int>(value.bits) << 16); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline bf16 from_float<bf16>(float value) {
    return bf16{round_to_bf16(value)};
}

// Sixteen bytes, the widest access a thread can make: 8 bf16 or 4 float32. A pointer to it must be 16-byte aligned,
// which is why the wrappers accept only channel counts that are multiples of 8 (bf16) or 4 (float32).
template <typename T>
struct alignas(16) Vec {
    static constexpr int size = 16 / static_cast<int>(sizeof(T));
    T lane[size];
};

template <typename T>
__device__ inline Vec<T> load(const T* pointer) {
    return *reinterpret_cast<const Vec<T>*>(pointer);
}
template <typename T>
__device__ inline void store(T* pointer, Vec<T> value) {
    *reinterpret_cast<Vec<T>*>(pointer) = value;
}

// <cmath>'s names for these are macros, which NVRTC does not have.
__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }
__device__ inline float not_a_number() { return __uint_as_float(0x7fffffffu); }

__device__ inline long long smaller(long long a, long long b) { return a < b ? a : b; }
