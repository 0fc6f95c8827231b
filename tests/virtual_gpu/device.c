// How a grid runs: block after block on the host's cores, and within a block thread after thread. Threads that wait for
// one another are fibers, each with a stack of its own; a wait switches to the next one.

#include "device.h"

#include <fenv.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

enum { STACK = 64 << 10, MOST_THREADS = 1024, MOST_WORKERS = 16 };

typedef void (*Kernel)(Thread *, uint8_t *params);

// Threads that meet in a warp's instruction are told by the lowest lane of the instruction's mask.
typedef struct {
    uint32_t mask, arrived, generation;
    int what, mode;
} Appointment;

typedef struct Crew {
    Kernel kernel;
    uint8_t *params;
    int threads, alive, at_barrier, current, fruitless;
    uint32_t barrier_generation;
    uint8_t done[MOST_THREADS], waiting[MOST_THREADS];
    Thread thread[MOST_THREADS];
    void *stack_pointer[MOST_THREADS], *main_stack_pointer;
    uint32_t lanes[32];  // of each warp, those that have not returned
    Appointment appointments[32][32];
} Crew;

_Noreturn void fault(const char *reason) {
    fprintf(stderr, "virtual GPU: %s\n", reason);
    abort();
}

// Saves the callee's registers on this stack, goes to the other one and takes them from there (System V, x86-64).
__attribute__((naked, noinline)) static void switch_stack(void **from, void *to) {
    __asm__(
        "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n\t"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n\t"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

static void next_thread(Crew *crew) {
    int from = crew->current, to = from;
    do {
        if (++to == crew->threads) to = 0;
    } while (crew->done[to] || crew->waiting[to]);
    if (to == from) return;
    crew->current = to;
    switch_stack(&crew->stack_pointer[from], crew->stack_pointer[to]);
}

static void open_barrier(Crew *crew) {
    crew->at_barrier = 0;
    memset(crew->waiting, 0, crew->threads);
}

static _Thread_local Crew *starting;

static void first_step(void) {
    Crew *crew = starting;
    int me = crew->current;
    Thread *thread = &crew->thread[me];
    crew->kernel(thread, crew->params);
    crew->done[me] = 1;
    crew->lanes[thread->warp] &= ~(1u << thread->lane);
    crew->fruitless = 0;
    if (--crew->alive == 0) {
        void *unused;
        switch_stack(&unused, crew->main_stack_pointer);
    }
    if (crew->at_barrier == crew->alive) open_barrier(crew);
    next_thread(crew);
    __builtin_unreachable();
}

void block_barrier(Thread *T) {
    Crew *crew = T->block->crew;
    int me = crew->current;
    T->block->work->barriers++;
    crew->fruitless = 0;
    if (++crew->at_barrier == crew->alive)
        open_barrier(crew);
    else {
        crew->waiting[me] = 1;
        next_thread(crew);
    }
}

uint32_t active_lanes(Thread *T) { return T->block->crew->lanes[T->warp]; }

// ---- what a warp does together; the fragments are laid out as the PTX ISA's figures show ----

static void shuffle(Thread *lanes, uint32_t present, int mode) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(present >> lane & 1)) continue;
        uint32_t b = lanes[lane].in[1], c = lanes[lane].in[2], limit = c & 31, segment = c >> 8 & 31;
        int highest = (lane & segment) | (limit & ~segment), lowest = lane & segment, from;
        b &= 31;
        if (mode == 0) from = lane - b;
        else if (mode == 1) from = lane + b;
        else if (mode == 2) from = lane ^ b;
        else from = lowest | (b & ~segment);
        int inside = mode == 0 ? from >= highest : from <= highest;
        if (!inside) from = lane;
        lanes[lane].out[0] = present >> from & 1 ? lanes[from].in[0] : 0;
        lanes[lane].out[1] = inside;
    }
}

static void vote(Thread *lanes, uint32_t present, int mode) {
    uint32_t ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (present >> lane & 1 && lanes[lane].in[0]) ballot |= 1u << lane;
    uint32_t result[] = {ballot == present, ballot != 0, ballot == present || !ballot, ballot};
    for (int lane = 0; lane < 32; ++lane) lanes[lane].out[0] = result[mode];
}

static void load_matrices(Thread *lanes, int mode) {
    Block *B = lanes->block;
    for (int matrix = 0; matrix < (mode & 15); ++matrix) {
        uint16_t *rows[8];
        for (int row = 0; row < 8; ++row) rows[row] = shared_at(B, lanes[8 * matrix + row].in[0], 16);
        for (int lane = 0; lane < 32; ++lane) {
            int i = lane / 4, j = lane % 4 * 2;
            uint16_t low = mode & 16 ? rows[j][i] : rows[i][j], high = mode & 16 ? rows[j + 1][i] : rows[i][j + 1];
            lanes[lane].out[matrix] = (uint32_t)high << 16 | low;
        }
    }
}

// mma.m16n8k16: d (16x8) = a (16x16) b (16x8) + c, bfloat16 with float32 sums.
static void multiply(Thread *lanes) {
    float a[16][16], b[16][8], d[16][8];
    uint32_t any_a = 0, any_b = 0;
    for (int lane = 0; lane < 32; ++lane) {
        uint32_t *in = lanes[lane].in;
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            float *to = &a[group + i % 2 * 8][pair + i / 2 * 8];
            to[0] = f32_(in[i] << 16), to[1] = f32_(in[i] & 0xffff0000);
            any_a |= in[i];
            d[group + i / 2 * 8][pair + i % 2] = f32_(in[6 + i]);
        }
        for (int i = 0; i < 2; ++i) {
            b[pair + i * 8][group] = f32_(in[4 + i] << 16), b[pair + i * 8 + 1][group] = f32_(in[4 + i] & 0xffff0000);
            any_b |= in[4 + i];
        }
    }
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) lanes[lane].out[i] = bits_f32(d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    struct Work *work = lanes->block->work;
    work->mma++;
    work->mma_zero += !any_a || !any_b;
}

void meet(Thread *T, uint32_t mask, enum Meeting what, int mode) {
    Crew *crew = T->block->crew;
    Appointment *a = &crew->appointments[T->warp][__builtin_ctz(mask)];
    if (!a->arrived) a->mask = mask, a->what = what, a->mode = mode;
    if (a->mask != mask || a->what != (int)what || a->mode != mode) fault("lanes of a warp meet at different instructions");
    a->arrived |= 1u << T->lane;
    uint32_t generation = a->generation;
    crew->fruitless = 0;
    for (;;) {
        uint32_t expected = mask & crew->lanes[T->warp];
        if (a->generation != generation) return;
        if (a->arrived == expected) {
            Thread *lanes = T - T->lane;
            a->arrived = 0;
            a->generation++;
            if (what == SHUFFLE) shuffle(lanes, expected, mode);
            if (what == VOTE) vote(lanes, expected, mode);
            if (what == LDMATRIX) load_matrices(lanes, mode);
            if (what == MMA) multiply(lanes);
            return;
        }
        if (++crew->fruitless > 4 * crew->threads) fault("a warp waits for a lane that never comes");
        next_thread(crew);
    }
}

// ---- launching ----

typedef struct {
    Kernel kernel;
    uint8_t *params;
    int together;
    uint32_t grid[3], block[3], static_shared, shared_size;
    uint64_t next;  // the next block to take
    struct Work total;
    pthread_mutex_t lock;
} Launch;

static void run_together(Block *block, Crew *crew, uint8_t *stacks) {
    crew->alive = crew->threads;
    crew->at_barrier = crew->current = crew->fruitless = 0;
    memset(crew->done, 0, crew->threads);
    memset(crew->waiting, 0, crew->threads);
    memset(crew->lanes, 0, sizeof crew->lanes);
    for (int i = 0; i < crew->threads; ++i) {
        crew->lanes[i / 32] |= 1u << i % 32;
        // Six registers, the address to return to, and one word so that the stack is aligned as after a call.
        void **top = (void **)(stacks + (i + 1UL) * STACK) - 8;
        memset(top, 0, 8 * sizeof *top);
        top[6] = (void *)first_step;
        crew->stack_pointer[i] = top;
    }
    memset(crew->appointments, 0, sizeof crew->appointments);
    starting = crew;
    switch_stack(&crew->main_stack_pointer, crew->stack_pointer[0]);
}

static void *work(void *argument) {
    Launch *launch = argument;
    struct Work work = {0};
    uint32_t threads = launch->block[0] * launch->block[1] * launch->block[2];
    Crew *crew = calloc(1, sizeof *crew);
    uint8_t *stacks = NULL;
    uint8_t *shared = aligned_alloc(1024, (launch->shared_size + 1024) & ~1023u);
    if (launch->together) {
        stacks = mmap(NULL, (size_t)STACK * threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stacks == MAP_FAILED) fault("no memory for the threads' stacks");
    }
    Block block = {.static_shared = launch->static_shared, .shared_size = launch->shared_size, .shared = shared,
                   .work = &work, .crew = crew};
    memcpy(block.ntid, launch->block, sizeof block.ntid);
    memcpy(block.nctaid, launch->grid, sizeof block.nctaid);
    crew->kernel = launch->kernel, crew->params = launch->params, crew->threads = threads;
    for (uint32_t i = 0; i < threads; ++i)
        crew->thread[i] = (Thread){.block = &block, .lane = i % 32, .warp = i / 32,
                                   .tid = {i % launch->block[0], i / launch->block[0] % launch->block[1],
                                           i / launch->block[0] / launch->block[1]}};
    const uint64_t blocks = (uint64_t)launch->grid[0] * launch->grid[1] * launch->grid[2];
    for (;;) {
        uint64_t index = __atomic_fetch_add(&launch->next, 1, __ATOMIC_RELAXED);
        if (index >= blocks) break;
        block.ctaid[0] = index % launch->grid[0];
        block.ctaid[1] = index / launch->grid[0] % launch->grid[1];
        block.ctaid[2] = index / launch->grid[0] / launch->grid[1];
        memset(shared, 0xff, launch->shared_size);  // NaN, not zero: nobody may count on what was never written
        if (launch->together)
            run_together(&block, crew, stacks);
        else
            for (uint32_t i = 0; i < threads; ++i) launch->kernel(&crew->thread[i], launch->params);
    }
    if (stacks) munmap(stacks, (size_t)STACK * threads);
    free(shared);
    free(crew);
    pthread_mutex_lock(&launch->lock);
    for (size_t i = 0; i < sizeof work / 8; ++i) ((uint64_t *)&launch->total)[i] += ((uint64_t *)&work)[i];
    pthread_mutex_unlock(&launch->lock);
    return NULL;
}

void launch_grid(Kernel kernel, int together, int workers, const uint32_t *grid, const uint32_t *block,
                 uint32_t static_shared, uint32_t shared_size, uint8_t *params, struct Work *work_done) {
    Launch launch = {.kernel = kernel, .params = params, .together = together, .static_shared = static_shared,
                     .shared_size = shared_size, .lock = PTHREAD_MUTEX_INITIALIZER};
    memcpy(launch.grid, grid, sizeof launch.grid);
    memcpy(launch.block, block, sizeof launch.block);
    pthread_t helpers[MOST_WORKERS];
    for (int i = 1; i < workers; ++i) pthread_create(&helpers[i], NULL, work, &launch);
    work(&launch);
    for (int i = 1; i < workers; ++i) pthread_join(helpers[i], NULL);
    for (size_t i = 0; i < sizeof launch.total / 8; ++i) ((uint64_t *)work_done)[i] += ((uint64_t *)&launch.total)[i];
}

// ---- rounding that C's operators do not have ----

__attribute__((optimize("rounding-math"))) float fmaf_down(float a, float b, float c) {
    int mode = fegetround();
    fesetround(FE_DOWNWARD);
    volatile float x = a, y = b, z = c, result = fmaf(x, y, z);
    fesetround(mode);
    return result;
}
float toward_zero(double a) {
    float nearest = (float)a;
    return fabs((double)nearest) > fabs(a) ? nextafterf(nearest, 0.0f) : nearest;
}
