// Sampled rows of attention: copied where the trainer has probabilities, computed again from queries and keys where it
// does not (flash attention never stores them): p = exp(scale·q·k − lse), or the softmax if no log-sum-exp is given.
//
// A block takes one row of one head; a warp takes one key at a time, so that a key's elements are read side by side. Cost:
// the visible keys are read once per row and head.
#include "landing.cuh"
#include "numbers.cuh"
#include "reduce.cuh"

namespace {

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / 32;

__device__ __forceinline__ float read(const View& view, u64 a, u64 b, u64 c, u64 d)
{
    const i64 at = (i64)a * view.strides[0] + (i64)b * view.strides[1] + (i64)c * view.strides[2] + (i64)d * view.strides[3];
    return read_element(view.base, view.format, at);
}

__device__ __forceinline__ float add(float a, float b) { return a + b; }

// Of two numbers the larger, of a number and NaN the number.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }

// Logits of the row into `out`.
__device__ __forceinline__ void logits(const AttentionParams& p, const AttentionRow& row, u32 head, float* out)
{
    const u32 lane = threadIdx.x % 32;
    for (u64 k = threadIdx.x / 32; k < row.keys; k += WARPS) {
        float sum = 0.0f;
        for (u64 e = lane; e < p.width; e += 32)
            sum = fmaf(read(p.query, row.sequence, row.position, head, e),
                       read(p.key, row.sequence, row.first_key + k, head / p.group, e), sum);
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        const float logit = p.scale * sum;
        if (lane == 0) out[k] = p.softcap > 0.0f ? p.softcap * tanhf(logit / p.softcap) : logit;
    }
    // The block reads what other warps wrote.
    __syncthreads();
}

} // namespace

// Launch: one block of 128 threads per row and head, heads of a row side by side.
KERNEL(fgs_attention, 128, AttentionParams)
{
    const AttentionRow row = p.rows[blockIdx.x / p.heads];
    const u32 head = blockIdx.x % p.heads;
    const u64 slot = slot_of(p.landing);
    const u64 first = row.out + head * row.keys;
    // Not in the slot, which is host memory: what is read again stays here.
    float* work = (float*)p.scratch + first;
    const bool is_given = p.probabilities.format != FORMAT_NONE;
    const bool has_lse = p.log_sum_exp.format != FORMAT_NONE;
    const float nan = __uint_as_float(0x7fc00000u);
    const float lse = has_lse ? read(p.log_sum_exp, row.sequence, head, row.position, 0) : nan;
    if (!is_given) logits(p, row, head, work);
    __shared__ float warps[WARPS];
    float most = nan;
    for (u64 k = threadIdx.x; k < row.keys; k += THREADS) {
        if (is_given) work[k] = read(p.probabilities, row.sequence, head, row.position, row.first_key + k);
        most = larger(most, work[k]);
    }
    most = reduce(most, warps, larger);
    float sum = 0.0f;
    for (u64 k = threadIdx.x; k < row.keys; k += THREADS) {
        if (!is_given) work[k] = expf(work[k] - (has_lse ? lse : most));
        sum += work[k];
    }
    sum = reduce(sum, warps, add);
    if (!is_given && !has_lse) {
        const float total = sum;
        sum = 0.0f;
        for (u64 k = threadIdx.x; k < row.keys; k += THREADS) sum += work[k] /= total;
        sum = reduce(sum, warps, add);
    }
    float* out = (float*)(slot + p.out_values) + first;
    for (u64 k = threadIdx.x; k < row.keys; k += THREADS) out[k] = work[k];
    if (threadIdx.x == 0) {
        float2* found = (float2*)(slot + p.out_rows) + blockIdx.x;
        *found = make_float2(sum, !is_given ? most : has_lse ? logf(most) + lse : nan);
    }
    land(p.landing, true);
}
