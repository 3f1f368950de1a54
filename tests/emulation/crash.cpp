// See crash.h. The handler itself only formats into a buffer and writes.

#include "crash.h"

#include <signal.h>
#include <stdlib.h>

#include <mutex>

#include "grid.h"

namespace emulation {
namespace {

struct sigaction previous_segv, previous_bus;

void handle(int signal, siginfo_t* information, void* context) {
    const struct sigaction& previous = signal == SIGSEGV ? previous_segv : previous_bus;
    if (running == nullptr) {
        if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, information, context);
        if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
    } else {
        describe_crash(information->si_addr);
    }
    // Back to the instruction, which crashes again: the process ends as if nobody had looked.
    struct sigaction by_default {};
    by_default.sa_handler = SIG_DFL;
    sigaction(signal, &by_default, nullptr);
}

}  // namespace

void report_crashes() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
    });
}

void give_signal_stack() {
    constexpr size_t bytes = 64 * 1024;
    stack_t stack{};
    stack.ss_size = bytes;
    stack.ss_sp = malloc(bytes);  // lives as long as the process: workers are few, and crash at any time
    if (stack.ss_sp != nullptr) sigaltstack(&stack, nullptr);
}

}  // namespace emulation
