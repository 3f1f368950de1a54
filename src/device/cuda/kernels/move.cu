// Elements of a slice to a vector and back: what curvature runs need of the parameters and gradients. Vectors are pinned
// host memory, where a Krylov basis has room.
//
// Cost: every element crosses the bus once.
#include "numbers.cuh"
#include "runs.cuh"

// The slice's elements as fp32, zero where there are none.
// Launch: any number of blocks of 256 threads.
KERNEL(fgs_gather, 256, MoveParams)
{
    const u64 stride = (u64)gridDim.x * 256;
    for (u64 index = p.start + blockIdx.x * 256ull + threadIdx.x; index < p.end; index += stride) {
        i64 at;
        p.vector[index - p.start] = find(p.runs, p.run_count, index, at) ? read_element(p.base, p.format, at) : 0.0f;
    }
}

// The slice's fp32 elements become those of the vector, bit by bit.
// Launch: any number of blocks of 256 threads.
KERNEL(fgs_scatter, 256, MoveParams)
{
    const u64 stride = (u64)gridDim.x * 256;
    for (u64 index = p.start + blockIdx.x * 256ull + threadIdx.x; index < p.end; index += stride) {
        i64 at;
        if (find(p.runs, p.run_count, index, at)) ((u32*)p.base)[at] = ((const u32*)p.vector)[index - p.start];
    }
}
