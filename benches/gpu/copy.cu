// What a device's memory gives a kernel that does nothing else: the measure that the library's passes are held against.
//
// Every thread moves 16 bytes at a time, four of them in flight, in a grid that fills the device.
#include "copy.h"
#include "kernel.cuh"

constexpr u32 UNROLL = 4;

__device__ __forceinline__ u32 mixed(uint4 value) { return value.x ^ value.y ^ value.z ^ value.w; }

// Launch: any number of blocks of 256 threads.
KERNEL(bench_copy, 256, CopyParams)
{
    const uint4* from = (const uint4*)p.from;
    uint4* to = (uint4*)p.to;
    const u64 stride = (u64)gridDim.x * 256, first = (u64)blockIdx.x * 256 + threadIdx.x;
    u64 at = first;
    for (; at + (UNROLL - 1) * stride < p.chunks; at += UNROLL * stride) {
        uint4 values[UNROLL];
#pragma unroll
        for (u32 i = 0; i < UNROLL; i++) values[i] = from[at + i * stride];
#pragma unroll
        for (u32 i = 0; i < UNROLL; i++) to[at + i * stride] = values[i];
    }
    for (; at < p.chunks; at += stride) to[at] = from[at];
}

// Reads and writes next to nothing: one word a thread, so that no read can be left out.
// Launch: any number of blocks of 256 threads; `to` holds a word for each thread.
KERNEL(bench_read, 256, CopyParams)
{
    const uint4* from = (const uint4*)p.from;
    const u64 stride = (u64)gridDim.x * 256, first = (u64)blockIdx.x * 256 + threadIdx.x;
    u32 seen = 0;
    u64 at = first;
    for (; at + (UNROLL - 1) * stride < p.chunks; at += UNROLL * stride) {
        uint4 values[UNROLL];
#pragma unroll
        for (u32 i = 0; i < UNROLL; i++) values[i] = from[at + i * stride];
#pragma unroll
        for (u32 i = 0; i < UNROLL; i++) seen ^= mixed(values[i]);
    }
    for (; at < p.chunks; at += stride) seen ^= mixed(from[at]);
    ((u32*)p.to)[first] = seen;
}

// bfloat16 numbers of both signs and eight magnitudes: never NaN, never all alike, since zeros are read faster by some.
// Launch: any number of blocks of 256 threads.
KERNEL(bench_fill, 256, FillParams)
{
    const u64 stride = (u64)gridDim.x * 256;
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < p.count; at += stride) {
        u64 bits = (at + p.seed) * 0x9e3779b97f4a7c15ull;
        bits ^= bits >> 29;
        bits *= 0xbf58476d1ce4e5b9ull;
        bits ^= bits >> 32;
        p.values[at] = (u16)((bits & 0x807full) | (116 + (bits >> 8 & 7)) << 7);
    }
}
