// Kernels with one bug each, which the emulation has to report (self_test.cpp). `p.n` is the number of threads.
#include "kernel.cuh"

struct FaultParams {
    u32* out;
    u32 n;
};

KERNEL(fault_divergent_barrier, 64, FaultParams) {
    if (threadIdx.x < p.n / 2) __syncthreads();
    p.out[threadIdx.x] = 1;
}

KERNEL(fault_two_barriers, 64, FaultParams) {
    if (threadIdx.x < p.n / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    p.out[threadIdx.x] = 1;
}

KERNEL(fault_lane_ended, 64, FaultParams) {
    if (threadIdx.x % 32 == 7) return;
    p.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
}

KERNEL(fault_lane_elsewhere, 64, FaultParams) {
    if (threadIdx.x % 32 == 7) __syncthreads();
    __syncwarp();
    __syncthreads();
    p.out[threadIdx.x] = 1;
}

KERNEL(fault_not_in_mask, 64, FaultParams) { p.out[threadIdx.x] = __ballot_sync(0x0000ffffu, 1); }

// A block of 48 threads: the second warp has 16 lanes.
KERNEL(fault_lane_absent, 64, FaultParams) {
    if (threadIdx.x < 48) p.out[threadIdx.x] = __reduce_add_sync(0xffffffffu, 1);
}

KERNEL(fault_masks_differ, 64, FaultParams) {
    const u32 mask = threadIdx.x % 32 < 16 ? 0xffffffffu : 0xfffffffeu;
    p.out[threadIdx.x] = __reduce_add_sync(mask, 1);
}

KERNEL(fault_source_not_in_mask, 64, FaultParams) {
    if (threadIdx.x % 32 < 8) p.out[threadIdx.x] = __shfl_sync(0xffu, threadIdx.x, 20);
}

KERNEL(fault_shared_overrun, 64, FaultParams) {
    SHARED(u32, words);
    words[threadIdx.x + 1] = threadIdx.x;
    p.out[threadIdx.x] = words[0];
}

KERNEL(fault_misaligned, 64, FaultParams) {
    const float4* vectors = reinterpret_cast<const float4*>(p.out + 1);
    p.out[0] = u32(vectors[threadIdx.x % 4].x);
}

KERNEL(fault_shift, 64, FaultParams) { p.out[threadIdx.x] = 1u << (p.n + threadIdx.x); }

KERNEL(fault_conversion, 64, FaultParams) { p.out[threadIdx.x] = u32(float(p.n) * 1e30f); }

// Lacks a barrier: right when threads run in the order of their numbers, wrong in most others.
KERNEL(race_without_barrier, 64, FaultParams) {
    SHARED(u32, words);
    words[threadIdx.x] = threadIdx.x;
    p.out[threadIdx.x] = words[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}
