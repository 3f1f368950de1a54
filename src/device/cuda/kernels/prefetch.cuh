// Asking for memory before it is needed.
#pragma once

#include "kernel.cuh"

// Brings the cache line at `address` into the second-level cache. Nothing waits for it.
__device__ __forceinline__ void prefetch(u64 address)
{
#ifdef FGS_EMULATION
    (void)address;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}
