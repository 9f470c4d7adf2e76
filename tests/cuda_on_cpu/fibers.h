// Threads of a block as fibers of one thread of the host, and what they wait for each other with.
//
// Every fiber runs until it has to wait; it then switches straight to the next one that can run.  Which one that is
// follows an order of the warps and of the lanes in a warp that a seed shuffles, so that a kernel that relies on an
// order shows it.  Whoever waits for a thread that will never come ends the launch with an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

#include "context.h"

namespace cuda_on_cpu {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024;

struct Position {
    unsigned x, y, z;
};

// --- the threads of a block ---------------------------------------------------------------------------------------

enum class Waits : unsigned char { FRESH, RUNS, BLOCK, WARP, ENDED };

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool there;
    int group;
};

struct Thread {
    Position index;
    int number;
    Waits waits;
    int line; // of what it waits at
    const char* kind; // what it waits at
    char* stack;
    Context context;
    int open_group; // of asynchronous copies
    std::vector<Copy> copies;
};

// What a lane hands in, or is given.
struct alignas(16) Slot {
    unsigned char bytes[64];
};

struct Warp {
    unsigned ready; // places in the order of lanes that can run
    int arrived;
    int line;
    const char* kind;
    int bytes;
    Slot in[WARP], out[WARP];
};

struct Launch {
    Position block, grid, block_size;
    int threads;
    void (*run)(void** arguments);
    void** arguments;
    char* error;
    size_t error_size;
    bool failed;
};

inline Thread threads[MOST_THREADS];
inline Warp warps[MOST_THREADS / WARP];
inline Thread* current;
inline Launch launch;
inline Context scheduler;
inline unsigned ready_warps; // places in the order of warps
inline int place_of_warp[WARP], warp_at[WARP], place_of_lane[WARP], lane_at[WARP];
inline int arrived_at_block, ended, block_line;
inline std::vector<char*> free_stacks;
inline char* dynamic_shared_memory;

inline char* new_stack() {
    if (free_stacks.empty()) {
        void* memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            fputs("cuda_on_cpu: no memory for a stack\n", stderr);
            abort();
        }
        mprotect(memory, 4096, PROT_NONE);
        return static_cast<char*>(memory);
    }
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
}

template <class... Parts>
void describe(const char* format, Parts... parts) {
    if (!launch.failed) {
        snprintf(launch.error, launch.error_size, format, parts...);
    }
    launch.failed = true;
}

// Ends the launch: nothing of it runs any more.
template <class... Parts>
[[noreturn]] void fail(const char* format, Parts... parts) {
    describe(format, parts...);
    Context abandoned;
    switch_context(&abandoned, &scheduler);
    abort();
}

// The next thread that can run, taken out of the list; null where all wait or have ended.
inline Thread* next_thread() {
    int warp = current ? current->number / WARP : 0;
    if (!warps[warp].ready) {
        if (!ready_warps) {
            return nullptr;
        }
        warp = warp_at[__builtin_ctz(ready_warps)];
    }
    unsigned& ready = warps[warp].ready;
    int lane = lane_at[__builtin_ctz(ready)];
    ready &= ready - 1;
    if (!ready) {
        ready_warps &= ~(1u << place_of_warp[warp]);
    }
    return &threads[warp * WARP + lane];
}

inline void run_threads();

// From the current thread, which waits or has ended, to the next.
inline void switch_from(Context* left, Thread* next) {
    if (!next) {
        switch_context(left, &scheduler);
        return;
    }
    current = next;
    if (next->waits == Waits::FRESH) {
        next->stack = new_stack();
        begin_context(&next->context, next->stack, run_threads);
    }
    next->waits = Waits::RUNS;
    switch_context(left, &next->context);
}

// What runs on a stack: one thread after the other as long as none of them waits.
inline void run_threads() {
    for (;;) {
        launch.run(launch.arguments);
        Thread* thread = current;
        if (!thread->copies.empty()) {
            fail("thread (%u, %u, %u) ended with asynchronous copies that nobody waited for", thread->index.x,
                 thread->index.y, thread->index.z);
        }
        thread->waits = Waits::ENDED;
        ended++;
        Thread* next = next_thread();
        if (next && next->waits == Waits::FRESH) {
            next->waits = Waits::RUNS;
            next->stack = thread->stack;
            current = next;
            continue;
        }
        free_stacks.push_back(thread->stack);
        Context abandoned;
        switch_from(&abandoned, next);
    }
}

inline void wait(Waits what) {
    Thread* thread = current;
    thread->waits = what;
    switch_from(&thread->context, next_thread());
}

inline void make_ready(int warp, unsigned lanes) {
    unsigned ready = 0;
    for (; lanes; lanes &= lanes - 1) {
        ready |= 1u << place_of_lane[__builtin_ctz(lanes)];
    }
    warps[warp].ready |= ready;
    if (ready) {
        ready_warps |= 1u << place_of_warp[warp];
    }
}

inline int lanes_of(int warp) {
    int rest = launch.threads - warp * WARP;
    return rest < WARP ? rest : WARP;
}

// --- __syncthreads ------------------------------------------------------------------------------------------------

inline void wait_for_block(int line) {
    Thread* thread = current;
    thread->line = line;
    thread->kind = "__syncthreads";
    if (arrived_at_block++ == 0) {
        block_line = line;
    } else if (line != block_line) {
        fail("divergence: some threads of the block wait at __syncthreads of line %d, thread (%u, %u, %u) at that of "
             "line %d",
             block_line, thread->index.x, thread->index.y, thread->index.z, line);
    }
    if (arrived_at_block < launch.threads) {
        wait(Waits::BLOCK);
        return;
    }
    arrived_at_block = 0;
    for (int warp = 0; warp * WARP < launch.threads; warp++) {
        int lanes = lanes_of(warp);
        unsigned all = lanes == WARP ? ~0u : (1u << lanes) - 1;
        make_ready(warp, warp == thread->number / WARP ? all & ~(1u << thread->number % WARP) : all);
    }
}

// --- exchanges within a warp --------------------------------------------------------------------------------------

// Every lane hands in `value`; `combine(in, out)` runs once, when all have; the answer is what it put into `out` for
// this lane. The next time that it runs, every lane has been here again, and so has read its answer.
template <class In, class Out, class Combine>
Out exchange(const char* kind, int line, const In& value, Combine combine) {
    static_assert(sizeof(In) <= sizeof(Slot) && sizeof(Out) <= sizeof(Slot));
    Thread* thread = current;
    int number = thread->number / WARP, lane = thread->number % WARP;
    Warp& warp = warps[number];
    thread->line = line;
    thread->kind = kind;
    if (lanes_of(number) != WARP) {
        fail("%s (line %d) in a warp of %d threads: it needs all 32", kind, line, lanes_of(number));
    }
    memcpy(warp.in[lane].bytes, &value, sizeof(In));
    if (warp.arrived++ == 0) {
        warp.line = line;
        warp.kind = kind;
        warp.bytes = sizeof(In);
    } else if (warp.line != line || strcmp(warp.kind, kind) || warp.bytes != int(sizeof(In))) {
        fail("divergence: some lanes of warp %d wait at %s (line %d), lane %d at %s (line %d)", number, warp.kind,
             warp.line, lane, kind, line);
    }
    if (warp.arrived < WARP) {
        wait(Waits::WARP);
    } else {
        warp.arrived = 0;
        In in[WARP];
        Out out[WARP];
        for (int i = 0; i < WARP; i++) {
            memcpy(&in[i], warp.in[i].bytes, sizeof(In));
        }
        combine(in, out);
        for (int i = 0; i < WARP; i++) {
            memcpy(warp.out[i].bytes, &out[i], sizeof(Out));
        }
        make_ready(number, ~(1u << lane));
    }
    Out answer;
    memcpy(&answer, warp.out[lane].bytes, sizeof(Out));
    return answer;
}

// --- asynchronous copies: they arrive when they are waited for, and not before ------------------------------------

inline void begin_copy(void* to, const void* from, int bytes, bool there) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || (there && reinterpret_cast<uintptr_t>(from) % bytes)) {
        fail("an asynchronous copy of %d bytes needs addresses that are multiples of it", bytes);
    }
    current->copies.push_back({to, from, bytes, there, current->open_group});
}

inline void close_group() { current->open_group++; }

inline void end_copies(Thread* thread, int newest_pending) {
    int last = thread->open_group - newest_pending; // groups before this one have to arrive
    size_t kept = 0;
    for (const Copy& copy : thread->copies) {
        if (copy.group >= last) {
            thread->copies[kept++] = copy;
        } else if (copy.there) {
            memcpy(copy.to, copy.from, copy.bytes);
        } else {
            memset(copy.to, 0, copy.bytes);
        }
    }
    thread->copies.resize(kept);
}

// --- blocks -------------------------------------------------------------------------------------------------------

inline uint64_t next_random(uint64_t& state) { // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

template <class Number>
void shuffle_order(Number* order, size_t count, uint64_t* random) {
    for (size_t i = 0; i < count; i++) {
        order[i] = Number(i);
    }
    if (random) {
        for (size_t i = count; i > 1; i--) {
            size_t j = next_random(*random) % i;
            Number kept = order[i - 1];
            order[i - 1] = order[j];
            order[j] = kept;
        }
    }
}

inline void report_waiting() {
    const Thread* waiting = nullptr;
    for (int i = 0; i < launch.threads; i++) {
        const Thread& thread = threads[i];
        if (thread.waits == Waits::BLOCK || thread.waits == Waits::WARP) {
            if (!waiting) {
                waiting = &thread;
            }
            if (strcmp(thread.kind, waiting->kind)) {
                describe("divergence: thread (%u, %u, %u) waits at %s (line %d), thread (%u, %u, %u) at %s (line %d)",
                         waiting->index.x, waiting->index.y, waiting->index.z, waiting->kind, waiting->line,
                         thread.index.x, thread.index.y, thread.index.z, thread.kind, thread.line);
            }
        }
    }
    describe("divergence: %d of %d threads of the block ended while others wait at %s (line %d)", ended,
             launch.threads, waiting->kind, waiting->line);
}

inline void run_block(uint64_t* random, char* shared, size_t shared_bytes, char* statics, size_t static_bytes) {
    int count = (launch.threads + WARP - 1) / WARP;
    shuffle_order(warp_at, count, random);
    shuffle_order(lane_at, WARP, random);
    for (int i = 0; i < WARP; i++) {
        place_of_lane[lane_at[i]] = i;
    }
    for (int i = 0; i < count; i++) {
        place_of_warp[warp_at[i]] = i;
    }
    memset(shared, 0xff, shared_bytes + 256);
    memset(statics, 0xff, static_bytes);
    ready_warps = 0;
    arrived_at_block = ended = 0;
    for (int i = 0; i < launch.threads; i++) {
        Thread& thread = threads[i];
        unsigned rest = i / launch.block_size.x;
        thread.index = {i % launch.block_size.x, rest % launch.block_size.y, rest / launch.block_size.y};
        thread.number = i;
        thread.waits = Waits::FRESH;
        thread.open_group = 0;
        thread.copies.clear();
    }
    for (int warp = 0; warp < count; warp++) {
        int lanes = lanes_of(warp);
        warps[warp].ready = 0;
        warps[warp].arrived = 0;
        make_ready(warp, lanes == WARP ? ~0u : (1u << lanes) - 1);
    }
    current = &threads[warp_at[0] * WARP];
    switch_from(&scheduler, next_thread());
    if (!launch.failed && ended < launch.threads) {
        report_waiting();
    }
    for (size_t i = 0; !launch.failed && i < 256; i++) {
        if (static_cast<unsigned char>(shared[shared_bytes + i]) != 0xff) {
            describe("the kernel wrote beyond its %zu bytes of dynamic shared memory", shared_bytes);
        }
    }
    if (launch.failed) { // the stacks of threads that wait are free again
        for (int i = 0; i < launch.threads; i++) {
            if (threads[i].waits == Waits::BLOCK || threads[i].waits == Waits::WARP ||
                threads[i].waits == Waits::RUNS) {
                free_stacks.push_back(threads[i].stack);
            }
        }
    }
}

// Runs all blocks, one after the other.  0, or -1 with a text in `error`.
inline int run_grid(void (*run)(void**), void** arguments, const unsigned* grid, const unsigned* block,
                    size_t shared_bytes, const uint64_t* seed, char* statics, size_t static_bytes, char* error,
                    size_t error_size) {
    launch.run = run;
    launch.arguments = arguments;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block_size = {block[0], block[1], block[2]};
    launch.threads = int(block[0] * block[1] * block[2]);
    launch.error = error;
    launch.error_size = error_size;
    launch.failed = false;
    size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    std::vector<unsigned char> memory(shared_bytes + 256 + 1024);
    char* shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 1023) / 1024 * 1024);
    dynamic_shared_memory = shared;
    uint64_t state = seed ? *seed : 0;
    std::vector<size_t> order(blocks);
    shuffle_order(order.data(), blocks, seed ? &state : nullptr);
    for (size_t i = 0; i < blocks && !launch.failed; i++) {
        size_t number = order[i];
        launch.block = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                        unsigned(number / grid[0] / grid[1])};
        run_block(seed ? &state : nullptr, shared, shared_bytes, statics, static_bytes);
    }
    return launch.failed ? -1 : 0;
}

} // namespace cuda_on_cpu
