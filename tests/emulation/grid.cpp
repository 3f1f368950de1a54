// The scheduler of a grid: blocks one after another, warp by warp, each CUDA thread on a fiber.
//
// A thread runs until it waits or ends. Fibers are taken when a thread starts and given back when it ends, so threads
// that never wait all use the same, warm stack. A warp's meeting is carried out by the lane that comes last; the others
// then go on with their results. When nothing of a block can run, all its threads have to be at the same barrier: if
// not, the kernel would hang or be undefined on a device, and the process ends with a list of where its threads are.
//
// FGS_EMULATION_SEED=n (not 0) runs blocks, warps and lanes in a random order: kernels that lack a barrier, or depend
// on the order of blocks, then give other results.
//
// Cost: a few nanoseconds per thread and per wait; memory for as many stacks as threads of a block wait at a time.

#include "grid.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"

namespace emulation {

__thread Thread* running = nullptr;
const Kernel* Kernel::first = nullptr;

namespace {

enum class State : uint8_t { fresh, ready, in_meeting, at_barrier, ended };

const char* name_of(Meeting meeting) {
    switch (meeting) {
        case Meeting::sync: return "__syncwarp";
        case Meeting::shuffle: return "a shuffle";
        case Meeting::ballot: return "a vote";
        default: return "a reduction";
    }
}

struct Worker : Thread {
    State state = State::fresh;
    Meeting meeting{};
    unsigned mask = 0, source = 0;
    uint64_t value = 0, result = 0;
    Place place{};
    Fiber* fiber = nullptr;
};

struct Warp {
    uint32_t runnable = 0;  // lanes that are fresh or ready
    uint32_t lanes = 0;     // lanes that exist
};

// One per thread of the operating system that runs grids.
class Scheduler {
public:
    Scheduler() {
        const size_t limit = shared_limit + Fiber::guard;
        void* memory = mmap(nullptr, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) abort();
        shared_end = static_cast<char*>(memory) + shared_limit;
        mprotect(shared_end, Fiber::guard, PROT_NONE);
        const char* seed = getenv("FGS_EMULATION_SEED");
        random_order = seed != nullptr && atoi(seed) != 0;
        if (random_order) random.seed(static_cast<unsigned>(atoi(seed)));
    }
    Scheduler(const Scheduler&) = delete;
    Scheduler& operator=(const Scheduler&) = delete;
    ~Scheduler() { munmap(shared_end - shared_limit, shared_limit + Fiber::guard); }

    void run(const Kernel& launched, Dim3 extent, Dim3 block, size_t shared, const void* bytes);
    void barrier(Place place);
    uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, unsigned source, Place place);
    void list_threads();

    const Kernel* kernel = nullptr;
    const void* params = nullptr;
    char* shared_memory = nullptr;
    Grid grid{};

private:
    static constexpr size_t shared_limit = 256 * 1024;

    static void fiber_main();
    void run_block();
    void resume(Worker& thread);
    void suspend(State state, Place place);
    void release_barrier();
    void carry_out(Worker* lanes, unsigned mask);
    unsigned pick(uint32_t set);
    template <typename T>
    void shuffle_if_wanted(std::vector<T>& order) {
        if (random_order) std::shuffle(order.begin(), order.end(), random);
    }

    std::vector<Worker> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> warp_order;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> idle_fibers;
    Resumption self;
    char* shared_end;
    bool random_order;
    std::mt19937 random;
};

thread_local Scheduler* scheduler = nullptr;

Worker& current() { return static_cast<Worker&>(*running); }

// What a fiber does for ever: the kernel, for whichever thread was given to it.
void Scheduler::fiber_main() {
    for (;;) {
        scheduler->kernel->body(scheduler->params);
        scheduler->suspend(State::ended, Place{});
    }
}

void Scheduler::resume(Worker& thread) {
    if (thread.fiber == nullptr) {
        if (idle_fibers.empty()) {
            fibers.push_back(std::make_unique<Fiber>(&fiber_main, fibers.size()));
            idle_fibers.push_back(fibers.back().get());
        }
        thread.fiber = idle_fibers.back();
        idle_fibers.pop_back();
    }
    running = &thread;
    self.switch_to(thread.fiber->resumption);
    running = nullptr;
    if (thread.state == State::ended) {
        idle_fibers.push_back(thread.fiber);
        thread.fiber = nullptr;
    }
}

void Scheduler::suspend(State state, Place place) {
    Worker& thread = current();
    thread.state = state;
    thread.place = place;
    thread.fiber->resumption.switch_to(self);
}

void Scheduler::barrier(Place place) { suspend(State::at_barrier, place); }

uint64_t Scheduler::meet(Meeting meeting, unsigned mask, uint64_t value, unsigned source, Place place) {
    Worker& thread = current();
    const unsigned own = 1u << thread.lane();
    Worker* lanes = &threads[thread.number - thread.lane()];
    const Warp& warp = warps[thread.number / 32];
    if ((mask & own) == 0) {
        fail("%s:%d: lane %u calls %s with mask %08x, in which it is not", place.file, place.line, thread.lane(),
             name_of(meeting), mask);
    }
    if ((mask & ~warp.lanes) != 0) {
        fail("%s:%d: mask %08x of %s names lanes that the warp does not have (it has %08x)", place.file, place.line,
             mask, name_of(meeting), warp.lanes);
    }
    if (meeting == Meeting::shuffle && (mask >> source & 1) == 0) {
        fail("%s:%d: a shuffle with mask %08x reads lane %u, which is not in the mask", place.file, place.line, mask,
             source);
    }
    thread.meeting = meeting;
    thread.mask = mask;
    thread.value = value;
    thread.source = source;
    thread.place = place;
    bool complete = true;
    for (uint32_t rest = mask & ~own; rest != 0; rest &= rest - 1) {
        const Worker& other = lanes[__builtin_ctz(rest)];
        if (other.state == State::ended) {
            fail("%s:%d: lane %u waits in %s with mask %08x, but lane %u has ended", place.file, place.line,
                 thread.lane(), name_of(meeting), mask, other.lane());
        }
        if (other.state != State::in_meeting) {
            complete = false;
            continue;
        }
        if (other.meeting == meeting && other.mask == mask && other.place.line == place.line &&
            strcmp(other.place.file, place.file) == 0) {
            continue;
        }
        complete = false;
        // A meeting of other lanes will pass. One that waits for this lane, which is here, never will.
        if ((other.mask & own) != 0) {
            fail("%s:%d: lane %u is in %s with mask %08x, but lane %u is in %s with mask %08x at %s:%d", place.file,
                 place.line, thread.lane(), name_of(meeting), mask, other.lane(), name_of(other.meeting), other.mask,
                 other.place.file, other.place.line);
        }
    }
    if (complete) {
        carry_out(lanes, mask);
    } else {
        suspend(State::in_meeting, place);
    }
    return thread.result;
}

// Gives every lane of a meeting its result and lets the ones that wait go on.
void Scheduler::carry_out(Worker* lanes, unsigned mask) {
    const Meeting meeting = current().meeting;
    uint64_t common = 0;
    if (meeting == Meeting::min || meeting == Meeting::conjunction) common = 0xffffffffu;
    if (meeting != Meeting::sync && meeting != Meeting::shuffle) {
        for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
            const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
            const uint64_t value = lanes[lane].value;
            switch (meeting) {
                case Meeting::ballot: common |= value << lane; break;
                case Meeting::add: common = (common + value) & 0xffffffffu; break;
                case Meeting::min: common = std::min(common, value); break;
                case Meeting::max: common = std::max(common, value); break;
                case Meeting::conjunction: common &= value; break;
                case Meeting::disjunction: common |= value; break;
                default: common ^= value; break;
            }
        }
    }
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        Worker& lane = lanes[__builtin_ctz(rest)];
        lane.result = meeting == Meeting::shuffle ? lanes[lane.source].value : common;
        lane.state = State::ready;
    }
    warps[current().number / 32].runnable |= mask & ~(1u << current().lane());
}

unsigned Scheduler::pick(uint32_t set) {
    if (!random_order) return static_cast<unsigned>(__builtin_ctz(set));
    const unsigned turn = random() % 32;
    const uint32_t turned = turn == 0 ? set : set >> turn | set << (32 - turn);
    return (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32;
}

// Called when no thread can run and not all have ended.
void Scheduler::release_barrier() {
    const Worker* waiting = nullptr;
    for (const Worker& thread : threads) {
        if (thread.state == State::at_barrier) {
            waiting = &thread;
            break;
        }
    }
    for (const Worker& thread : threads) {
        if (thread.state == State::in_meeting) {
            fail("%s:%d: lane %u of warp %u waits in %s with mask %08x for lanes that never come", thread.place.file,
                 thread.place.line, thread.lane(), thread.number / 32, name_of(thread.meeting), thread.mask);
        }
        if (thread.state == State::ended || thread.place.line != waiting->place.line ||
            strcmp(thread.place.file, waiting->place.file) != 0) {
            fail("%s:%d: __syncthreads is reached by some threads of the block only (divergent barrier)",
                 waiting->place.file, waiting->place.line);
        }
    }
    for (Worker& thread : threads) thread.state = State::ready;
    for (Warp& warp : warps) warp.runnable = warp.lanes;
}

void Scheduler::run_block() {
    for (Worker& thread : threads) thread.state = State::fresh;
    for (Warp& warp : warps) warp.runnable = warp.lanes;
    shuffle_if_wanted(warp_order);
    for (;;) {
        for (unsigned number : warp_order) {
            Warp& warp = warps[number];
            while (warp.runnable != 0) {
                const unsigned lane = pick(warp.runnable);
                warp.runnable &= ~(1u << lane);
                resume(threads[number * 32 + lane]);
            }
        }
        const auto has_ended = [](const Worker& thread) { return thread.state == State::ended; };
        if (std::all_of(threads.begin(), threads.end(), has_ended)) return;
        release_barrier();
    }
}

void Scheduler::run(const Kernel& launched, Dim3 extent, Dim3 block, size_t shared, const void* bytes) {
    kernel = &launched;
    params = bytes;
    grid.extent = extent;
    grid.block = block;
    if (shared > shared_limit) fail("%s asks for %zu bytes of shared memory", launched.name, shared);
    // The memory ends where its guard page begins: the first byte beyond it crashes.
    shared_memory = shared_end - (shared + 15) / 16 * 16;

    const unsigned count = static_cast<unsigned>(block.count());
    threads.assign(count, Worker{});
    warps.assign((count + 31) / 32, Warp{});
    for (unsigned i = 0; i < count; i++) {
        threads[i].number = i;
        threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        threads[i].grid = &grid;
        warps[i / 32].lanes |= 1u << i % 32;
    }
    warp_order.resize(warps.size());
    std::iota(warp_order.begin(), warp_order.end(), 0u);

    std::vector<uint32_t> blocks(random_order ? extent.count() : 0);
    std::iota(blocks.begin(), blocks.end(), 0u);
    shuffle_if_wanted(blocks);
    for (unsigned long long i = 0; i < extent.count(); i++) {
        const unsigned long long block_number = random_order ? blocks[i] : i;
        grid.block_index = {static_cast<unsigned>(block_number % extent.x),
                            static_cast<unsigned>(block_number / extent.x % extent.y),
                            static_cast<unsigned>(block_number / extent.x / extent.y)};
        memset(shared_memory, 0xa5, static_cast<size_t>(shared_end - shared_memory));
        run_block();
    }
    kernel = nullptr;
}

// Where the first threads of the block are: what a developer needs to see of a hang.
void Scheduler::list_threads() {
    unsigned shown = 0;
    for (const Worker& thread : threads) {
        if (shown == 40) {
            fprintf(stderr, "  ... and %zu more\n", threads.size() - shown);
            return;
        }
        const char* what = thread.state == State::ended        ? "has ended"
                           : thread.state == State::at_barrier ? "is at __syncthreads,"
                           : thread.state == State::in_meeting ? "waits in its warp,"
                                                               : "can run";
        const bool waits = thread.state == State::at_barrier || thread.state == State::in_meeting;
        fprintf(stderr, "  thread %u (lane %u of warp %u) %s", thread.number, thread.lane(), thread.number / 32, what);
        if (waits) fprintf(stderr, " %s:%d", thread.place.file, thread.place.line);
        fputc('\n', stderr);
        shown++;
    }
}

}  // namespace

const Kernel* Kernel::find(const char* name) {
    const Kernel* found = nullptr;
    for (const Kernel* kernel = first; kernel != nullptr; kernel = kernel->next) {
        if (strcmp(kernel->name, name) != 0) continue;
        if (found != nullptr) fail("two kernels are named %s", name);
        found = kernel;
    }
    return found;
}

void barrier(Place place) { scheduler->barrier(place); }

uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, unsigned source, Place place) {
    return scheduler->meet(meeting, mask, value, source, place);
}

void* shared_memory() { return scheduler->shared_memory; }

void check(bool holds, const char* rule, Place place) {
    if (!holds) fail("%s:%d: %s", place.file, place.line, rule);
}

void fail(const char* format, ...) {
    fflush(stdout);
    fputs("emulation: ", stderr);
    if (scheduler != nullptr && scheduler->kernel != nullptr) {
        const Dim3 block = scheduler->grid.block_index;
        fprintf(stderr, "kernel %s, block (%u, %u, %u): ", scheduler->kernel->name, block.x, block.y, block.z);
    }
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    if (scheduler != nullptr && scheduler->kernel != nullptr) scheduler->list_threads();
    abort();
}

bool describe_crash(const void* address) {
    if (running == nullptr) return false;
    const Worker& thread = current();
    char text[512];
    const Dim3 block = thread.grid->block_index;
    const int length = snprintf(
        text, sizeof text, "emulation: kernel %s, block (%u, %u, %u), thread (%u, %u, %u) %s %p\n",
        scheduler->kernel->name, block.x, block.y, block.z, thread.index.x, thread.index.y, thread.index.z,
        thread.fiber->overflowed(address) ? "overflowed its stack at" : "touched memory that it may not touch, at",
        address);
    return write(2, text, static_cast<size_t>(length)) == length;
}

void run(const Kernel& kernel, Dim3 extent, Dim3 block, size_t shared_bytes, const void* params) {
    // Made when first needed: most threads run no grid.
    static thread_local std::unique_ptr<Scheduler> own;
    if (own == nullptr) own = std::make_unique<Scheduler>();
    scheduler = own.get();
    own->run(kernel, extent, block, shared_bytes, params);
}

}  // namespace emulation
