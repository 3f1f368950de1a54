// Says which kernel and thread crashed, before the process ends by the signal as it would have.
#pragma once

namespace emulation {

// Handles SIGSEGV and SIGBUS of kernels from now on; those of other code go where they went before. Called again, it
// does nothing.
void report_crashes();

// A stack of its own for signal handlers of this thread: one that overflowed its own can still report it.
void give_signal_stack();

}  // namespace emulation
