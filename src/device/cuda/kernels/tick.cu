// The step counter of a captured step. A CUDA graph replays its launches with the parameters of the capture, so what
// changes from step to step lives on the device: how many replays there were, whether this one is measured, and which
// result slot it takes. If the host has not taken enough results yet, the step is left out and counted.
//
// Cost: one thread, one read of mapped host memory at a replay that is due.
#include "tables.cuh"

// Launch: one thread, before the first pass of a captured step.
KERNEL(fgs_tick, 1, TickParams)
{
    Control* control = p.control;
    const u64 replay = control->replay + 1;
    control->replay = replay;
    *p.replays = replay;
    const bool was_active = control->active;
    if (was_active) ++control->number;
    control->active = 0;
    if (p.every == 0 || (replay - 1) % p.every != 0) return;
    if (control->number - *(const volatile u64*)p.consumed >= p.slots) {
        ++*p.dropped;
        return;
    }
    control->slot = (u32)(control->number % p.slots);
    control->active = 1;
}
