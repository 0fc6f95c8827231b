// minigrad/fast/cuda/kernels/ptx.cuh in plain C++: the same functions, written from the PTX ISA's text (sections on cp.async,
// ldmatrix and the fragments of mma.m16n8k16), for the host shim. One lane's operands come in, the warp's result goes
// out.

#define DYNAMIC_SHARED(name) unsigned char* name = shim::dynamic_shared()

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* pointer) { return reinterpret_cast<SharedAddress>(pointer); }

inline unsigned short round_to_bf16(float value) {
    unsigned int bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}
inline unsigned int pack_bf16(float low, float high) {
    return round_to_bf16(low) | static_cast<unsigned int>(round_to_bf16(high)) << 16;
}

namespace shim {
inline void perform(const Copy& copy) {
    if (copy.inside)
        std::memcpy(copy.to, copy.from, 16);
    else
        std::memset(copy.to, 0, 16);
}
inline void check_alignment(const void* pointer, const char* what) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16)
        fail(std::string(what) + " at an address that is not a multiple of 16");
}
}  // namespace shim

inline void copy_async(void* shared, const void* global, bool inside) {
    shim::Quiet quiet;
    shim::check_alignment(shared, "cp.async to shared memory");
    if (inside) {
        shim::check_alignment(global, "cp.async from global memory");
        shim::touch(global, 16, shim::READ);
    }
    shim::touch(shared, 16, shim::COPY_STARTS);
    shim::Copy copy{shared, global, inside};
    shim::fibers[shim::current].copies.back().push_back(copy);
    if (!shim::late_copies) shim::perform(copy);
}
inline void copy_commit() {
    shim::Quiet quiet;
    shim::fibers[shim::current].copies.emplace_back();
}
template <int pending>
inline void copy_wait() {
    shim::Quiet quiet;
    auto& groups = shim::fibers[shim::current].copies;  // the last one is open and does not count
    while (groups.size() > pending + 1) {
        for (const shim::Copy& copy : groups.front()) {
            if (shim::late_copies) shim::perform(copy);
            shim::touch(copy.to, 16, shim::COPY_ARRIVES);
        }
        groups.erase(groups.begin());
    }
}

namespace shim {
struct Matrices {
    const unsigned short* row;
    unsigned int* out;
};
inline void load_matrices(unsigned int* out, const void* row, bool transposed) {
    Quiet quiet;
    check_alignment(row, "ldmatrix");
    touch(row, 16, READ);
    Matrices operands{static_cast<const unsigned short*>(row), out};
    warp_wide(operands, [transposed](Matrices** lanes) UNWATCHED {
        for (int matrix = 0; matrix < 4; ++matrix) {
            unsigned int banks = 0;  // eight rows of 16 bytes should lie in eight different groups of four banks
            for (int r = 0; r < 8; ++r) {
                unsigned int bank = 1u << (reinterpret_cast<uintptr_t>(lanes[8 * matrix + r]->row) / 16 % 8);
                bank_conflicts += (banks & bank) != 0;
                banks |= bank;
            }
            for (unsigned int lane = 0; lane < WARP; ++lane) {
                int i = lane / 4, j = lane % 4 * 2;
                auto element = [&](int r, int c) UNWATCHED {
                    return static_cast<unsigned int>(lanes[8 * matrix + r]->row[c]);
                };
                lanes[lane]->out[matrix] =
                    transposed ? element(j, i) | element(j + 1, i) << 16 : element(i, j) | element(i, j + 1) << 16;
            }
        }
    });
}
struct Product {
    float* d;
    unsigned int a[4], b[2];
};
UNWATCHED inline float half_of(unsigned int pair, int which) {
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}
}  // namespace shim

inline void load_matrices(unsigned int (&out)[4], SharedAddress row) {
    shim::load_matrices(out, reinterpret_cast<const void*>(row), false);
}
inline void load_matrices_transposed(unsigned int (&out)[4], const void* row) { shim::load_matrices(out, row, true); }

inline void multiply_accumulate(float (&d)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
    shim::Product operands{d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    shim::warp_wide(operands, [](shim::Product** lanes) UNWATCHED {
        float A[16][16], B[16][8];
        for (unsigned int lane = 0; lane < shim::WARP; ++lane) {
            int group = lane / 4, pair = lane % 4 * 2;
            for (int i = 0; i < 4; ++i)
                for (int half = 0; half < 2; ++half)
                    A[group + i % 2 * 8][pair + i / 2 * 8 + half] = shim::half_of(lanes[lane]->a[i], half);
            for (int i = 0; i < 2; ++i)
                for (int half = 0; half < 2; ++half)
                    B[pair + i * 8 + half][group] = shim::half_of(lanes[lane]->b[i], half);
        }
        for (unsigned int lane = 0; lane < shim::WARP; ++lane)
            for (int i = 0; i < 4; ++i) {
                int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = lanes[lane]->d[i];
                for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][column];
                lanes[lane]->d[i] = sum;
            }
    });
}
