// A grid as it runs on the CPU: the table of kernels, the running thread, and where threads of a block wait for each
// other. grid.cpp has the scheduler.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

struct Dim3 {
    unsigned x, y, z;
    unsigned long long count() const { return static_cast<unsigned long long>(x) * y * z; }
};

// A line of a kernel's source.
struct Place {
    const char* file;
    int line;
};

// What the threads of a warp come together for.
enum class Meeting : uint8_t { sync, shuffle, ballot, add, min, max, conjunction, disjunction, parity };

// What is common to the threads of a grid. `block_index` is the block that runs now.
struct Grid {
    Dim3 extent, block, block_index;
};

// What a thread knows of itself.
struct Thread {
    Dim3 index{};
    const Grid* grid = nullptr;
    unsigned number = 0;  // in the block, x fastest
    unsigned lane() const { return number % 32; }
};

// The CUDA thread that runs on this thread of the operating system; null outside of kernels.
// __thread, not thread_local: kernels read it all the time, and it needs no check whether it has been constructed.
extern __thread Thread* running;

// An entry in the table of kernels. Made by KERNEL, before main or by dlopen.
class Kernel {
public:
    Kernel(const char* kernel_name, size_t bytes, unsigned threads, void (*function)(const void*))
        : name(kernel_name), param_bytes(bytes), max_threads(threads), body(function), next(first) {
        first = this;
    }
    static const Kernel* find(const char* name);

    const char* const name;
    const size_t param_bytes;
    const unsigned max_threads;
    void (*const body)(const void* params);

private:
    const Kernel* const next;
    static const Kernel* first;
};

// Waits until every thread of the block is here. Ends the process if one cannot come.
void barrier(Place place);

// Waits until the lanes of `mask` are here with the same mask, and returns what the meeting gives this lane. Ends the
// process if one cannot come.
uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, unsigned source, Place place);

// The dynamic shared memory of the running block.
void* shared_memory();

// Ends the process with a message unless `holds`.
void check(bool holds, const char* rule, Place place);

// Ends the process with a message that names the running kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Runs all blocks of a grid on this thread, one after another.
void run(const Kernel& kernel, Dim3 extent, Dim3 block, size_t shared_bytes, const void* params);

// Says on stderr which kernel, block and thread touched `address`, if one runs here. Safe in a signal handler.
bool describe_crash(const void* address);

}  // namespace emulation
