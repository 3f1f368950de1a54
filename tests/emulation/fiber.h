// A fiber: a stack of its own and a way to go on where it stopped. One per CUDA thread that waits for another.
//
// Why: __syncthreads and warp primitives stop a thread in the middle of a function. Operating-system threads would cost
// microseconds a switch; this costs a few nanoseconds on x86-64 (callee-saved registers and the stack pointer) and
// about a microsecond elsewhere (ucontext saves the signal mask by a system call).
//
// A fiber runs only on the operating-system thread that made it.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

// FGS_EMULATION_UCONTEXT takes the portable way on x86-64 too, to test it.
#if defined(__x86_64__) && !defined(FGS_EMULATION_UCONTEXT)
#define EMULATION_SWITCH_X86_64
#else
#include <ucontext.h>
#endif

namespace emulation {

#ifdef EMULATION_SWITCH_X86_64

// Saves the callee-saved registers on the stack and the stack pointer in *from, then goes on with `to`.
extern "C" void emulation_switch(void** from, void* to);

// Where a stopped fiber, or the scheduler, goes on.
struct Resumption {
    void* stack_pointer = nullptr;

    void switch_to(Resumption& other) { emulation_switch(&stack_pointer, other.stack_pointer); }

    // The next switch to this calls entry() at the top of the stack.
    void prepare(char* stack, size_t bytes, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + bytes);
        *--top = nullptr;  // The return address of entry(), which never returns: ends backtraces.
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; i++) *--top = nullptr;  // rbp, rbx, r12 to r15
        stack_pointer = top;
    }
};

#else

struct Resumption {
    ucontext_t context{};

    void switch_to(Resumption& other) { swapcontext(&context, &other.context); }

    void prepare(char* stack, size_t bytes, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};

#endif

// A stack with a page below it that may not be touched, so that an overflow crashes.
class Fiber {
public:
    static constexpr size_t guard = 4096, stack = 128 * 1024;

    // `number` counts the fibers of a scheduler.
    Fiber(void (*entry)(), size_t number) {
        void* memory = mmap(nullptr, guard + stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) {
            perror("emulation: stack of a CUDA thread");
            abort();
        }
        base = static_cast<char*>(memory);
        // Stacks lie whole pages apart: tops at one place of their pages would all fall into the same sets of the cache.
        resumption.prepare(base + guard, stack - number % 61 * 192, entry);
    }
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() { munmap(base, guard + stack); }

    bool overflowed(const void* address) const {
        const char* byte = static_cast<const char*>(address);
        return byte >= base && byte < base + guard;
    }

    Resumption resumption;

private:
    char* base;
};

}  // namespace emulation
