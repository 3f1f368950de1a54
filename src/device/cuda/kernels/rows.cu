// Sampled rows of activations, as fp32, straight into the result slot.
//
// Cost: the rows are read once and cross the bus once.
#include "landing.cuh"
#include "numbers.cuh"

// Launch: one block of 128 threads per row.
KERNEL(fgs_rows, 128, RowsParams)
{
    float* out = (float*)(slot_of(p.landing) + sizeof(SlotHeader)) + blockIdx.x * p.runs * p.length;
    const i64 row = p.rows[blockIdx.x];
    for (u64 run = 0; run < p.runs; ++run)
        for (u64 k = threadIdx.x; k < p.length; k += 128)
            out[run * p.length + k] = read_element(p.base, p.format, row + (i64)run * p.run_step + (i64)k * p.step);
    land(p.landing, true);
}
