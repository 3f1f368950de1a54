// The finishing launch of a pass: adds what blocks found of each item, in their order, and puts the totals where the drain
// thread sees them. Results go to mapped pinned memory; the sequence number, written when every block is done, says that
// they are complete.
//
// Cost: partial sketches are read once, totals cross the bus once.
#include "landing.cuh"
#include "tables.cuh"

namespace {

constexpr u32 THREADS = 256;

// Rows of partial sums that an item has: one per block, and in wide launches two blocks share a tile.
__device__ __forceinline__ void finish_sums(const Item& item, const double* sums, u32 rows, double* out)
{
    const u32 at = threadIdx.x;
    if (at >= SUM_PAIRS + item.pairs * PAIR_SUMS) return;
    double total = 0.0;
    for (u32 row = 0; row < rows; ++row) {
        const double part = sums[(u64)row * SUMS + at];
        total = at == MAX_VALUES || at == MAX_DIFFERENCE ? (part > total ? part : total) : total + part;
    }
    out[at] = at == SUM_UNUSED ? 0.0 : total;
}

template <typename Bucket>
__device__ __forceinline__ void finish_sketch(const Item& item, u32 share, const Bucket* partial, Bucket* out)
{
    const u64 buckets = item.buckets;
    const u64 first = share * THREADS + threadIdx.x;
    constexpr u64 STEP = FINISHERS * THREADS;
    if (item.flags & ITEM_IDENTITY) {
        for (u64 bucket = item.start + first; bucket < item.end; bucket += STEP) out[bucket] = partial[bucket];
    } else if (item.sketch_rows > 0) {
        for (u64 bucket = first; bucket < buckets; bucket += STEP) {
            double total = 0.0;
            for (u32 block = 0; block < item.blocks; ++block) total += (double)partial[block * buckets + bucket];
            out[bucket] = (Bucket)total;
        }
    }
}

} // namespace

// Launch: FINISHERS blocks of 256 threads per item.
KERNEL(fgs_finish, 256, FinishParams)
{
    if (is_idle(p.landing.control)) return;
    const u64 slot = slot_of(p.landing);
    const Item& item = p.items[blockIdx.x / FINISHERS];
    const u32 share = blockIdx.x % FINISHERS;
    const u32 halves = p.is_wide ? 2 : 1;
    const u64 out = slot + item.out_sketch;
    if (share == 0)
        finish_sums(item, p.sums + item.sums * halves * SUMS, item.blocks * halves, (double*)(slot + item.out_sums));
    if (p.is_wide) finish_sketch<double>(item, share, (const double*)p.partials + item.partial, (double*)out);
    else finish_sketch<float>(item, share, (const float*)p.partials + item.partial, (float*)out);
    land(p.landing, p.is_last);
}
