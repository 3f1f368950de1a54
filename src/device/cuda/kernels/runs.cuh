// Finding elements of a slice in the trainer's memory.
#pragma once

#include "tables.cuh"

// Where the element `index` of the slice lies, if a run has it.
__device__ __forceinline__ bool find(const Run* runs, u32 count, u64 index, i64& at)
{
    for (u32 r = 0; r < count; ++r) {
        const Run run = runs[r];
        if (index < run.index) continue;
        const u64 from = index - run.index;
        u64 row = 0, column = from;
        if (run.rows > 1) {
            // Division of 64 bits takes three times as long.
            row = (from | run.index_step) >> 32 ? from / run.index_step : (u32)from / (u32)run.index_step;
            column = from - row * run.index_step;
        }
        if (row < run.rows && column < run.length) {
            at = run.offset + (i64)row * run.row_step + (i64)column * run.column_step;
            return true;
        }
    }
    return false;
}
