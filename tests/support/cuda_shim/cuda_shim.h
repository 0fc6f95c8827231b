// Enough of CUDA's execution model, in plain C++, to run a kernel on the CPU and check its indexing.
//
// A block's threads are fibers of one operating-system thread. Each runs until it reaches a barrier (__syncthreads,
// __syncwarp or a warp-wide instruction), then the next one runs; when all that the barrier needs have arrived, they go
// on. Blocks run one after the other, so `__shared__` is simply `static`. Dynamic shared memory is filled with NaN
// before each block and has a guard behind it. Two schedules bring out what real hardware's freedom would:
//   schedule 0: warps side by side in rising order; asynchronous copies land as late as permitted (when waited for)
//   schedule 1: warps in falling order, each as far ahead as barriers let it; asynchronous copies land at once
// Beside the values, watch.h looks at each load and store: two threads that touch the same bytes without a barrier
// between them are a race, whatever values came out, and an address outside of the launch's arrays is an error. What
// this cannot show: memory coalescing, speed, instructions whose real behaviour differs from the PTX ISA's text, a race
// on a path that no test takes.
#pragma once
#include <csetjmp>
#include <cstdio>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#include <ucontext.h>

#define SHIM_VISIBLE extern "C" __attribute__((visibility("default")))
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 {
    unsigned int x, y, z;
};
using dim3 = uint3;
// Not zero at first, so that among the variables that are (from __bss_start to _end, says the linker), kernels use none
// but those that they call __shared__.
static uint3 threadIdx{1, 1, 1}, blockIdx{1, 1, 1};
static dim3 blockDim{1, 1, 1}, gridDim{1, 1, 1};
extern unsigned char __bss_start[] __attribute__((visibility("hidden")));
extern unsigned char _end[] __attribute__((visibility("hidden")));

inline float __uint_as_float(unsigned int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned int __float_as_uint(float value) {
    unsigned int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}

namespace shim {

constexpr unsigned int WARP = 32;
constexpr size_t STACK_BYTES = 64 << 10, GUARD_BYTES = 256;
enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, AT_WARP_INSTRUCTION, DONE };

struct Copy {
    void* to;
    const void* from;
    bool inside;
};

struct Fiber {
    ucontext_t first_entry;
    jmp_buf resume;
    bool started = false;
    State state = READY;
    uint3 index{};
    void* deposit = nullptr;                // a warp-wide instruction's operands, on the fiber's own stack
    std::vector<std::vector<Copy>> copies;  // the open group is the last one
    unsigned int warp_barriers = 0;         // passed so far
    std::unique_ptr<char[]> stack;
};

static std::vector<Fiber> fibers;
static unsigned int current;
static jmp_buf scheduler;
static ucontext_t scheduler_context;
static const std::function<void()>* kernel;
static std::string error;
static bool late_copies;
static std::vector<unsigned char> shared_memory;
static long long bank_conflicts;

inline void fail(const std::string& message) {
    if (error.empty()) error = message;
}

}  // namespace shim
#include "watch.h"
namespace shim {

// Hand over to the scheduler in the given state; returns when the barrier has opened.
inline void wait_as(State state) {
    Quiet quiet;
    fibers[current].state = state;
    if (_setjmp(fibers[current].resume) == 0) _longjmp(scheduler, 1);
}

UNWATCHED inline void run_fiber() {
    watching = true;
    (*kernel)();
    watching = false;
    fibers[current].state = DONE;
    _longjmp(scheduler, 1);
}

// makecontext builds the new stack once; the many switches after that are longjmps, which need no system call.
inline void switch_to(unsigned int thread) {
    Fiber& fiber = fibers[thread];
    current = thread;
    threadIdx = fiber.index;
    unwatched[0] = {fiber.stack.get(), STACK_BYTES};
    now.thread = thread;
    now.warp_barriers = fiber.warp_barriers;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.first_entry);
    fiber.first_entry.uc_stack.ss_sp = fiber.stack.get();
    fiber.first_entry.uc_stack.ss_size = STACK_BYTES;
    fiber.first_entry.uc_link = nullptr;
    makecontext(&fiber.first_entry, run_fiber, 0);
    setcontext(&fiber.first_entry);
}

inline bool all_in(unsigned int begin, unsigned int end, State state) {
    for (unsigned int i = begin; i < end; ++i)
        if (fibers[i].state != state) return false;
    return true;
}

// Run a warp's ready threads up to their next barrier, and open it if it is the warp's own; false if none was ready.
inline bool run_warp(unsigned int first, unsigned int end, bool falling) {
    bool moved = false;
    for (unsigned int i = first; i < end && error.empty(); ++i) {
        unsigned int thread = falling ? first + end - 1 - i : i;
        if (fibers[thread].state != READY) continue;
        moved = true;
        switch_to(thread);
    }
    for (State barrier : {AT_WARP_BARRIER, AT_WARP_INSTRUCTION})
        if (all_in(first, end, barrier))
            for (unsigned int lane = first; lane < end; ++lane) {
                fibers[lane].state = READY;
                fibers[lane].warp_barriers += barrier == AT_WARP_BARRIER;
            }
    return moved;
}

inline void run_block(unsigned int threads, bool ahead) {
    for (unsigned int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.started = false;
        fiber.state = READY;
        fiber.copies.assign(1, {});
        fiber.warp_barriers = 0;
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    }
    unsigned int warps = (threads + WARP - 1) / WARP;
    while (error.empty() && !all_in(0, threads, DONE)) {
        bool moved = false;
        for (unsigned int i = 0; i < warps; ++i) {
            unsigned int first = (ahead ? warps - 1 - i : i) * WARP, end = std::min(first + WARP, threads);
            while (run_warp(first, end, ahead)) {
                moved = true;
                if (!ahead) break;
            }
        }
        bool waiting = false, only_barrier = true;
        for (unsigned int i = 0; i < threads; ++i) {
            waiting |= fibers[i].state == AT_BLOCK_BARRIER;
            only_barrier &= fibers[i].state == AT_BLOCK_BARRIER || fibers[i].state == DONE;
        }
        now.block_barriers += waiting && only_barrier;
        if (waiting && only_barrier)
            for (unsigned int i = 0; i < threads; ++i) {
                if (fibers[i].state == DONE) fail("a thread returned while others wait at __syncthreads");
                fibers[i].state = READY;
            }
        else if (!moved)
            fail("deadlock: the threads of a block wait at different barriers");
    }
}

inline unsigned char* dynamic_shared() {
    Quiet quiet;
    auto address = reinterpret_cast<uintptr_t>(shared_memory.data());
    return reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
}

inline void launch(const unsigned int* grid, const unsigned int* block, size_t shared_bytes, int schedule,
                   const std::function<void()>& body) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    unsigned int threads = blockDim.x * blockDim.y * blockDim.z;
    kernel = &body;
    late_copies = schedule == 0;
    while (fibers.size() < threads) {
        fibers.emplace_back();
        fibers.back().stack.reset(new char[STACK_BYTES]);
    }
    shared_memory.resize(shared_bytes + GUARD_BYTES + 128);
    watch(dynamic_shared(), dynamic_shared() + shared_bytes, true);
    watch(__bss_start, _end, true);
    Span* span = unwatched + 1;  // the first is a fiber's stack
    for (uint3* index : {&threadIdx, &blockIdx, &blockDim, &gridDim})
        *span++ = {reinterpret_cast<char*>(index), sizeof(uint3)};
    *span = {static_cast<char*>(__builtin_frame_address(0)), STACK_BYTES};  // our callers' stack, with the arguments
    for (unsigned int z = 0; z < gridDim.z; ++z)
        for (unsigned int y = 0; y < gridDim.y; ++y)
            for (unsigned int x = 0; x < gridDim.x; ++x) {
                if (!error.empty()) return;
                blockIdx = {x, y, z};
                now.block = (z * gridDim.y + y) * gridDim.x + x;
                now.block_barriers = 0;
                std::memset(shared_memory.data(), 0xff,
                            shared_memory.size());  // 0xffff is a NaN in bf16 and in float32
                for (Region& region : regions)
                    if (region.shared) region.forget();
                run_block(threads, schedule == 1);
                for (size_t i = shared_memory.size() - GUARD_BYTES; i < shared_memory.size(); ++i)
                    if (shared_memory[i] != 0xff) fail("a kernel wrote past its dynamic shared memory");
            }
}

// A warp-wide instruction: every lane leaves a pointer to its operands; the last one to arrive works for all of them.
template <typename Operands, typename Work>
void warp_wide(Operands& operands, Work work) {
    Quiet quiet;
    fibers[current].deposit = &operands;
    unsigned int warp = current / WARP * WARP, arrived = 0;
    for (unsigned int lane = warp; lane < warp + WARP && lane < fibers.size(); ++lane)
        arrived += lane == current || fibers[lane].state == AT_WARP_INSTRUCTION;
    if (arrived == WARP) {
        Operands* lanes[WARP];
        for (unsigned int lane = 0; lane < WARP; ++lane)
            lanes[lane] = static_cast<Operands*>(fibers[warp + lane].deposit);
        work(lanes);
    }
    wait_as(AT_WARP_INSTRUCTION);
}

// Unpack cudaLaunchKernel's array of pointers to arguments, as the kernel's own signature tells.
template <typename... Arguments, size_t... I>
void call(void (*function)(Arguments...), const unsigned int* grid, const unsigned int* block, size_t shared_bytes,
          int schedule, void** arguments, std::index_sequence<I...>) {
    std::tuple<Arguments...> values{*static_cast<Arguments*>(arguments[I])...};
    launch(grid, block, shared_bytes, schedule, [&] { std::apply(function, values); });
}
template <typename... Arguments>
const char* start(void (*function)(Arguments...), int count, const unsigned int* grid, const unsigned int* block,
                  size_t shared_bytes, int schedule, void** arguments) {
    error.clear();
    if (count != static_cast<int>(sizeof...(Arguments)))
        fail("the kernel takes " + std::to_string(sizeof...(Arguments)) + " arguments, not " + std::to_string(count));
    else
        call(function, grid, block, shared_bytes, schedule, arguments, std::index_sequence_for<Arguments...>{});
    return error.c_str();
}

}  // namespace shim

inline void __syncthreads() { shim::wait_as(shim::AT_BLOCK_BARRIER); }
inline void __syncwarp() { shim::wait_as(shim::AT_WARP_BARRIER); }

template <typename T>
T __shfl_xor_sync(unsigned int, T value, int mask) {
    struct Operands {
        T in, out;
    } operands{value, value};
    shim::warp_wide(operands, [&](Operands** lanes) {
        for (unsigned int lane = 0; lane < shim::WARP; ++lane) lanes[lane]->out = lanes[lane ^ mask]->in;
    });
    return operands.out;
}

// The launcher of one kernel, for ctypes: returns an error message, empty when all went well.
#define SHIM_EXPORT(kernel)                                                                                   \
    SHIM_VISIBLE const char* launch_##kernel(int count, const unsigned int* grid, const unsigned int* block,  \
                                           unsigned long long shared_bytes, int schedule, void** arguments) { \
        return shim::start(kernel, count, grid, block, shared_bytes, schedule, arguments);                    \
    }
SHIM_VISIBLE void shim_arrays(int count, const unsigned long long* begins, const unsigned long long* ends) {
    shim::regions.clear();
    for (int i = 0; i < count; ++i)
        shim::watch(reinterpret_cast<void*>(begins[i]), reinterpret_cast<void*>(ends[i]), false);
}
SHIM_VISIBLE long long shim_bank_conflicts() { return std::exchange(shim::bank_conflicts, 0); }
