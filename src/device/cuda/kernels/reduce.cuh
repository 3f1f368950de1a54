// One number of all threads of a block. Cost: five exchanges within a warp, two barriers.
#pragma once

#include "kernel.cuh"

constexpr u32 ALL_LANES = 0xffffffffu;

// By a fixed tree; in every thread. `warps` is shared memory with a place per warp, and may be used again at once.
template <u32 WARPS, typename T, typename Combine>
__device__ __forceinline__ T reduce(T value, T (&warps)[WARPS], Combine combine)
{
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(ALL_LANES, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    T total = warps[0];
#pragma unroll
    for (u32 warp = 1; warp < WARPS; ++warp) total = combine(total, warps[warp]);
    return total;
}
