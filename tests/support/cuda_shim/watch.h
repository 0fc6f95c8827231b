// A watch over every load and store of a kernel: for races, for shared memory that nobody has written, and for
// addresses outside of the launch's arrays.
//
// The compiler announces each access to the __tsan functions at the end of this file (-fsanitize=thread, without that
// option's library, which knows the threads of an operating system). For every two bytes of shared memory and of the
// launch's arrays we keep who wrote them last and who has read them since. Two accesses of different threads, one of
// them a write, must have a barrier between them: __syncthreads for the threads of a block, __syncwarp for those of a
// warp, nothing for two blocks. A shuffle or ldmatrix makes a warp wait for its lanes but orders no memory (CUDA C++
// Programming Guide, "Warp Shuffle Functions"). Bytes that cp.async is bringing belong to the copy from its start
// until its thread has waited. So a missing barrier shows under whatever schedule the threads happen to run.

namespace shim {

constexpr unsigned int NOBODY = ~0u;

// A thread at a time that its barriers tell.
struct Moment {
    unsigned int block, thread = NOBODY, block_barriers, warp_barriers;
};
static Moment now;
static bool watching;  // only while a kernel's own code runs

#define UNWATCHED __attribute__((no_sanitize("thread")))
struct Quiet {  // in all that the shim itself does
    const bool before;
    UNWATCHED Quiet() : before(watching) { watching = false; }
    UNWATCHED ~Quiet() { watching = before; }
};

enum Access { READ, WRITE, COPY_STARTS, COPY_ARRIVES };

struct Cell {
    Moment write, reads[2];
    bool arriving = false;
};

struct Region {
    const char *begin, *end;
    bool shared;
    std::vector<Cell> cells{};
    void forget() { cells.assign((end - begin + 1) / 2, {}); }
};
static std::vector<Region> regions;
// What kernels may touch besides, unwatched: the current fiber's stack, their arguments, threadIdx and its kind.
struct Span {
    const char* begin;
    size_t bytes;
};
static Span unwatched[6];

inline void watch(const void* begin, const void* end, bool shared) {
    regions.push_back({static_cast<const char*>(begin), static_cast<const char*>(end), shared});
    regions.back().forget();
}

// How far apart two threads are: 0 the same, 1 in a warp, 2 in a block, 3 in different blocks.
UNWATCHED inline int distance(const Moment& a, const Moment& b) {
    if (a.block != b.block) return 3;
    return a.thread == b.thread ? 0 : a.thread / 32 == b.thread / 32 ? 1 : 2;
}
// Whether nothing orders what a thread did then and what the current one does now.
UNWATCHED inline bool concurrent(const Moment& then) {
    if (then.thread == NOBODY) return false;
    switch (distance(then, now)) {
        case 0: return false;
        case 1: return then.block_barriers == now.block_barriers && then.warp_barriers == now.warp_barriers;
        case 2: return then.block_barriers == now.block_barriers;
        default: return true;
    }
}

inline void complain(const char* what, const Moment& other, bool shared) {
    auto name = [](const Moment& m) {
        return " thread " + std::to_string(m.thread) + " of block " + std::to_string(m.block) + " ";
    };
    fail("in " + std::string(shared ? "shared memory" : "an array") + name(now) + what + name(other));
}

UNWATCHED inline void touch(Cell& cell, Access access, bool shared) {
    if (access == COPY_ARRIVES) {
        cell = {now};
        return;
    }
    if (cell.arriving) complain("touches bytes that cp.async still brings for", cell.write, shared);
    if (concurrent(cell.write)) complain("touches without a barrier what was written by", cell.write, shared);
    if (access == READ) {
        if (shared && cell.write.thread == NOBODY) fail("a kernel reads shared memory that it has not written");
        // Two readers are enough, if they are far apart: who races with any of them races with one of the two.
        Moment* reads = cell.reads;
        if (!concurrent(reads[0]))
            reads[0] = now;
        else if (!concurrent(reads[1]) || distance(now, reads[0]) > distance(reads[1], reads[0]))
            reads[1] = now;
    } else {
        for (const Moment& read : cell.reads)
            if (concurrent(read)) complain("writes without a barrier what was read by", read, shared);
        cell = {now, {}, access == COPY_STARTS};
    }
}

UNWATCHED inline void touch(const void* address, size_t bytes, Access access) {
    const auto* first = static_cast<const char*>(address);
    for (const Span& span : unwatched)
        if (static_cast<size_t>(first - span.begin) < span.bytes) return;
    Quiet quiet;
    for (Region *region = regions.data(), *end = region + regions.size(); region < end; ++region)
        if (first >= region->begin && first + bytes <= region->end) {
            Cell* cells = region->cells.data();
            size_t from = (first - region->begin) / 2, to = (first + bytes - 1 - region->begin) / 2;
            for (size_t i = from; i <= to; ++i) touch(cells[i], access, region->shared);
            return;
        }
    fail("thread " + std::to_string(now.thread) + " of block " + std::to_string(now.block) +
         " touches memory outside of the launch's arrays");
}

}  // namespace shim

#define SHIM_ANNOUNCE(name, access, bytes)                           \
    extern "C" UNWATCHED void __tsan_##name##bytes(void* where) {    \
        if (shim::watching) shim::touch(where, bytes, shim::access); \
    }
#define SHIM_ANNOUNCE_ALL(bytes)               \
    SHIM_ANNOUNCE(read, READ, bytes)           \
    SHIM_ANNOUNCE(write, WRITE, bytes)         \
    SHIM_ANNOUNCE(unaligned_read, READ, bytes) \
    SHIM_ANNOUNCE(unaligned_write, WRITE, bytes)
SHIM_ANNOUNCE(read, READ, 1)
SHIM_ANNOUNCE(write, WRITE, 1)
SHIM_ANNOUNCE_ALL(2)
SHIM_ANNOUNCE_ALL(4)
SHIM_ANNOUNCE_ALL(8)
SHIM_ANNOUNCE_ALL(16)
extern "C" UNWATCHED void __tsan_read_range(void* where, unsigned long bytes) {
    if (shim::watching) shim::touch(where, bytes, shim::READ);
}
extern "C" UNWATCHED void __tsan_write_range(void* where, unsigned long bytes) {
    if (shim::watching) shim::touch(where, bytes, shim::WRITE);
}
extern "C" UNWATCHED void __tsan_func_entry(void*) {}
extern "C" UNWATCHED void __tsan_func_exit() {}
extern "C" UNWATCHED void __tsan_init() {}
