// The few instructions that C++ has no words for: rounding to bf16, asynchronous copies and tensor cores, as
// inline PTX.
//
// Nothing here is specific to one kernel. tests/support/cuda_shim/ptx.cuh has the same functions in plain C++, written from the
// PTX ISA's tables: the tests put it in this file's place and run the kernels, tensor-core kernels included, on the
// CPU.

// The block's dynamic shared memory, as bytes. 128-byte alignment keeps one 64-channel bf16 row within one
// line of banks.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// To nearest, ties to even. GPUs before compute capability 8.0 have no instruction for it.
__device__ inline unsigned short round_to_bf16(float value) {
#if __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const unsigned int bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

// low and high, rounded to bf16, in one 32-bit register (the order in which mma and memory want a pair).
__device__ inline unsigned int pack_bf16(float low, float high) {
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Where something lies in shared memory, as a number.
using SharedAddress = unsigned int;
__device__ inline SharedAddress shared_address(const void* pointer) {
    return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// Start copying 16 bytes from global to shared memory; where `inside` is false, write 16 zero bytes and read nothing.
__device__ inline void copy_async(void* shared, const void* global, bool inside) {
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
// Close the group of the copies that this thread has started since the last commit.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most `pending` of this thread's groups, the youngest ones, are still on their way.
template <int pending>
__device__ inline void copy_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(pending) : "memory");
}

// Load four 8x8 matrices of bf16 from shared memory; lane 8i + r gives the address of row r of matrix i (16 bytes,
// aligned). Lane l receives, of each matrix, the pair (row l / 4, columns 2 (l % 4) and + 1).
__device__ inline void load_matrices(unsigned int (&out)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}
// The same, each matrix transposed: lane l receives the pair (rows 2 (l % 4) and + 1, column l / 4).
__device__ inline void load_matrices_transposed(unsigned int (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d (16x8, float32) += a (16x16, bf16, rows of k) @ b (16x8, bf16, columns of k), one warp, one tensor-core
// instruction.
__device__ inline void multiply_accumulate(float (&d)[4], const unsigned int (&a)[4], unsigned int b0,
                                           unsigned int b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
