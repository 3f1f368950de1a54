// Kernels that use what CUDA's device language offers, for the emulation's own test (self_test.cpp).
#include "kernel.cuh"

// Sum of floats: strided loop, butterfly in the warp, shared memory between warps, one atomic a block.
struct SumParams {
    const float* values;
    u64 count;
    double* sum;
    u32* blocks_done;
};

KERNEL(test_sum, 256, SumParams) {
    SHARED(double, partial);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double sum = 0;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += u64(gridDim.x) * blockDim.x) {
        sum += double(__ldg(p.values + i));
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (u32 i = 0; i < blockDim.x / 32; i++) total += partial[i];
        atomicAdd(p.sum, total);
        __threadfence();
        atomicInc(p.blocks_done, gridDim.x);
    }
}

// Every warp primitive once, over one block of 64 by 2 threads; `out` has 16 words a thread.
struct WarpParams {
    u32* out;
};

KERNEL(test_warp, 128, WarpParams) {
    const u32 thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread % 32;
    const u32 all = 0xffffffffu;
    u32* out = p.out + thread * 16;
    out[0] = __shfl_sync(all, thread, 5);
    out[1] = __shfl_up_sync(all, thread, 3);
    out[2] = __shfl_down_sync(all, thread, 3);
    out[3] = __shfl_xor_sync(all, thread, 7);
    out[4] = __shfl_sync(all, thread, 1, 8);
    out[5] = __shfl_down_sync(all, thread, 3, 8);
    out[6] = __ballot_sync(all, lane % 3 == 0);
    out[7] = __reduce_add_sync(all, lane);
    out[8] = __reduce_max_sync(all, thread ^ 21);
    out[9] = __reduce_min_sync(all, thread ^ 21);
    out[10] = u32(__any_sync(all, lane == 9)) | u32(__all_sync(all, lane != 9)) << 1;
    out[11] = u32(__shfl_sync(all, u64(thread) << 33, 2) >> 33);
    out[12] = u32(__shfl_xor_sync(all, double(thread), 1));
    // Halves of a warp may go different ways.
    if (lane < 16) {
        out[13] = __reduce_add_sync(0x0000ffffu, 1);
    } else {
        out[13] = __reduce_add_sync(0xffff0000u, 2);
    }
    __syncwarp();
    out[14] = u32(__shfl_xor_sync(all, i32(lane) - 16, 16) + 16);
    out[15] = __float_as_uint(__shfl_sync(all, float(thread), 31));
}

// Threads hand values around a ring through static shared memory, once per round.
struct RingParams {
    u32* out;
    u32 rounds;
};

KERNEL(test_ring, 1024, RingParams) {
    __shared__ u32 slots[1024];
    u32 value = threadIdx.x;
    for (u32 round = 0; round < p.rounds; round++) {
        slots[(threadIdx.x + 1) % blockDim.x] = value;
        __syncthreads();
        value = slots[threadIdx.x];
        __syncthreads();
    }
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// Counts values by their low bits with atomics on shared and on global memory.
struct HistogramParams {
    const uint4* values;
    u32 count;
    u32* histogram;
};

KERNEL_MIN(test_histogram, 128, 2, HistogramParams) {
    SHARED(u32, bins);
    for (u32 i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < p.count; i += blockDim.x) {
        const uint4 v = __ldcs(p.values + i);
        atomicAdd(&bins[v.x & 255], 1u);
        atomicAdd(&bins[v.y & 255], 1u);
        atomicAdd(&bins[v.z & 255], 1u);
        atomicAdd(&bins[v.w & 255], 1u);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(p.histogram + i, bins[i]);
}

// Where the compiler must not contract: x*y+z rounds twice, fmaf once.
struct RoundingParams {
    float x, y, z;
    float* out;
};

KERNEL(test_rounding, 1, RoundingParams) {
    p.out[0] = p.x * p.y + p.z;
    p.out[1] = fmaf(p.x, p.y, p.z);
    p.out[2] = p.x / p.y;
    p.out[4] = __uint_as_float(__byte_perm(0x33221180u, 0x77665544u, 0x8761u));
    p.out[3] = __uint_as_float(1) * 0.5f + __uint_as_float(3);  // denormals are kept
}
