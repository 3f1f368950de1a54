// How results reach the host: see Landing in tables.cuh.
#pragma once

#include "tables.cuh"

// The launch is a captured one and this replay is not measured.
__device__ __forceinline__ bool is_idle(const Control* control) { return control && !control->active; }

// Where this launch's results go.
__device__ __forceinline__ u64 slot_of(const Landing& landing)
{
    return landing.slot + (landing.control ? landing.control->slot * landing.slot_bytes : 0);
}

// Every thread of every block calls this when its results are written. The last block says that the slot is complete,
// unless another launch completes it.
__device__ __forceinline__ void land(const Landing& landing, bool is_last)
{
    // What this thread wrote is visible to the host before its block counts as done.
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x != 0 || atomicAdd(landing.done, 1u) != gridDim.x - 1) return;
    *landing.done = 0;
    if (!is_last) return;
    __threadfence_system();
    SlotHeader* header = (SlotHeader*)slot_of(landing);
    const u64 number = landing.control ? landing.control->number : 0;
    header->replay = landing.control ? landing.control->replay : 0;
    __threadfence_system();
    *(volatile u64*)&header->sequence = landing.sequence + number;
}
