// The fused pass: every slice of a step is read once, and all that is wanted of it is taken in that reading: norms, peaks,
// non-finite counts, inner products and sign conflicts with references, the difference to a copy or snapshot, the sketch.
//
// A block takes a contiguous share of all tiles of the launch, whichever slices they belong to. Buckets of the sketch are
// owned by threads: a thread adds, chunk after chunk, the elements that fall into its columns, so nothing is atomic and the
// order of additions is fixed. A chunk's positions are XORed with one number, which permutes a warp's elements among its
// lanes and warps among themselves, so reading stays coalesced. Sums are taken in fp32 over the 8 or 16 elements that a
// thread has of a tile, scaled by a power of two so that no square leaves fp32's range, and in fp64 from there on.
//
// Cost: one read of the data (and one of each reference), about 1.5 % of that again for partial sketches.
#include "hash.cuh"
#include "landing.cuh"
#include "prefetch.cuh"
#include "sums.cuh"

namespace {

// Bytes of a cache line.
constexpr u32 LINE = 128;

// What is measured of a tile besides the sketch; leaves d, which the sketch is of, in `tile`.
template <u32 V>
__device__ __forceinline__ void measure_tile(const MeasureParams& p, const Item& item, u64 number, const Placed* placed,
                                             Lanes<V> lanes, Tile<V>& tile, Sums& sums)
{
    load<V>(item, p.runs, number, placed, lanes, tile);
    u32 peak = warp_peak(tile.x);
    if (peak >= INFINITE) {
        sums.non_finite += clean(tile.x);
        peak = warp_peak(tile.x);
    }
    sums.peak = max(sums.peak, peak);
    float scale = normalizer(peak);
    sums.values += squares(tile.x, scale);
    // Wide sketches are of the parameters alone.
    if constexpr (V == 1) return;
    float y[Lanes<V>::COUNT];
    if (item.flags & (ITEM_COMPARE | ITEM_ADD)) load<V>(item.other, number, placed, lanes, tile.valid, y);
    if (item.flags & ITEM_COMPARE) {
        const float ys = normalizer(warp_peak(y));
        if (item.flags & ITEM_REPLACE) store<V>(item.other, number, placed, lanes, tile.valid, tile.x);
#pragma unroll
        for (u32 k = 0; k < Lanes<V>::COUNT; ++k) tile.x[k] -= y[k];
        peak = warp_peak(tile.x);
        sums.difference_peak = max(sums.difference_peak, peak);
        if (peak >= INFINITE) {
            // Both ends are finite and their difference is not: its square is infinite, and the other sums take the largest
            // finite number for it, whose products with zero are zero.
            bool is_infinite = false;
#pragma unroll
            for (u32 k = 0; k < Lanes<V>::COUNT; ++k) {
                is_infinite |= magnitude(tile.x[k]) == INFINITE;
                tile.x[k] = fminf(fmaxf(tile.x[k], -0x1.fffffep127f), 0x1.fffffep127f);
            }
            if (is_infinite) sums.difference += (double)__uint_as_float(INFINITE);
            peak = INFINITE - 1;
        }
        scale = normalizer(peak);
        sums.difference += squares(tile.x, scale);
        sums.other += squares(y, ys);
        sums.cross += dot(tile.x, scale, y, ys);
    } else if (item.flags & ITEM_REPLACE) {
        store<V>(item.other, number, placed, lanes, tile.valid, tile.x);
    }
    if (item.flags & ITEM_SCALE) {
#pragma unroll
        for (u32 k = 0; k < Lanes<V>::COUNT; ++k) tile.x[k] *= p.scale;
        peak = warp_peak(tile.x);
        if (peak >= INFINITE) sums.non_finite += clean(tile.x);
    }
    if (item.flags & ITEM_ADD) {
#pragma unroll
        for (u32 k = 0; k < Lanes<V>::COUNT; ++k) y[k] += tile.x[k];
        store<V>(item.other, number, placed, lanes, tile.valid, y);
    }
#pragma unroll 1
    for (u32 k = 0; k < item.pairs; ++k) {
        load<V>(p.pairs[item.first_pair + k], number, placed, lanes, tile.valid, y);
            pair(sums, k, tile.x, scale, y);
    }
}

// Adds a tile to the thread's columns of the buckets.
template <typename Bucket, u32 V>
__device__ __forceinline__ void add(Bucket* buckets, u32 stride, const Placed* placed, Lanes<V> lanes,
                                    const float (&x)[V * TILE_CHUNKS])
{
#pragma unroll
    for (u32 u = 0; u < TILE_CHUNKS; ++u) {
        Bucket* row = buckets + placed[u].row * stride;
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            const u32 position = (lanes.column + k) ^ placed[u].flip;
            const u32 sign = (u32)(placed[u].signs >> (position & 63)) << 31;
            row[k] += (Bucket)__uint_as_float(__float_as_uint(x[u * V + k]) ^ sign);
        }
    }
}

// Asks for memory to come: its reading then waits for the second-level cache only.
__device__ __forceinline__ void prefetch_bytes(u64 first, u64 bytes)
{
    for (u64 at = threadIdx.x * LINE; at < bytes; at += THREADS * LINE) prefetch(first + at);
}

__device__ __forceinline__ void prefetch_kept(const Kept& kept, u64 first, u64 count)
{
    const u32 size = format_size(kept.format);
    if (kept.format != FORMAT_NONE && first >= kept.start && first + count <= kept.end)
        prefetch_bytes(kept.address + (first - kept.start) * size, count * size);
}

// The chunks that are placed next, if they are all there.
__device__ __forceinline__ void prefetch_group(const MeasureParams& p, const Item& item, u64 chunk)
{
    const u64 first = chunk * CHUNK, count = PLACED * CHUNK;
    if (!(item.flags & ITEM_DENSE) || first < item.start || first + count > item.end) return;
    const Run& run = p.runs[item.first_run];
    const u32 size = format_size(item.format);
    prefetch_bytes(item.base + (u64)(run.offset + (i64)(first - run.index)) * size, count * size);
    prefetch_kept(item.other, first, count);
    for (u32 k = 0; k < item.pairs; ++k) prefetch_kept(p.pairs[item.first_pair + k], first, count);
}

// The item that a tile of the launch belongs to.
__device__ __forceinline__ u32 item_of(const Item* items, u32 count, u64 tile)
{
    u32 low = 0, high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (items[middle].first_tile <= tile) low = middle;
        else high = middle;
    }
    return low;
}

// For the warp's columns, of a block whose columns begin at `first_column`.
template <u32 V> __device__ __forceinline__ Placed place_chunk(const Item& item, u64 chunk, u32 first_column)
{
    Placed placed = {0, 0, 0};
    if (item.sketch_rows > 0) {
        const uint2 where = place(item.seed, chunk, item.sketch_rows);
        const u32 word = (first_column + V * 32 * (threadIdx.x / 32)) / 64 ^ where.y / 64;
        placed = {signs(item.seed, chunk * 4 + word), where.x, where.y};
    }
    return placed;
}

template <typename Bucket, u32 V> __device__ __forceinline__ void measure(const MeasureParams& p, Bucket* shared)
{
    if (is_idle(p.control)) return;
    __shared__ Placed all_placed[WARPS][PLACED];
    Placed* const table = all_placed[threadIdx.x / 32];
    constexpr u32 SHARE = Lanes<V>::SHARE;
    constexpr u32 COLUMNS = CHUNK / SHARE;
    const u32 block = blockIdx.x / SHARE;
    const u32 first_column = blockIdx.x % SHARE * COLUMNS;
    const Lanes<V> lanes = {first_column + V * threadIdx.x};
    const u32 lane = threadIdx.x % 32;

    u64 tile = block * p.tiles / p.blocks;
    const u64 end = (block + 1) * p.tiles / p.blocks;
    u32 number = tile < end ? item_of(p.items, p.item_count, tile) : 0;
    for (; tile < end; ++number) {
        const Item& item = p.items[number];
        const u64 first = item.start / TILE;
        const u64 item_end = item.first_tile + (item.end + TILE - 1) / TILE - first;
        const u64 last = item_end < end ? item_end : end;
        const u32 rows = item.sketch_rows;
        const u64 part = block - item.first_block;
        Bucket* partial = (Bucket*)p.partials + item.partial;
        Bucket* own = partial + part * rows * CHUNK + lanes.column;
        const bool in_shared = rows <= p.shared_rows;
        Bucket* cached = shared + V * threadIdx.x;
        for (u32 row = 0; row < rows; ++row)
            for (u32 k = 0; k < V; ++k) {
                if (in_shared) cached[row * COLUMNS + k] = 0;
                else own[row * CHUNK + k] = 0;
            }
        Sums sums = {};
        bool is_first = true;
        for (; tile < last; ++tile) {
            const u64 local = tile - item.first_tile + first;
            const u64 chunk = local * TILE_CHUNKS;
            if (chunk % PLACED == 0 || is_first) {
                __syncwarp();
                table[lane] = place_chunk<V>(item, chunk / PLACED * PLACED + lane, first_column);
                __syncwarp();
                prefetch_group(p, item, chunk / PLACED * PLACED + PLACED);
                is_first = false;
            }
            const Placed* placed = table + chunk % PLACED;
            Tile<V> data;
            measure_tile<V>(p, item, local, placed, lanes, data, sums);
            if (rows > 0) {
                if (in_shared) add<Bucket, V>(cached, COLUMNS, placed, lanes, data.x);
                else add<Bucket, V>(own, CHUNK, placed, lanes, data.x);
            } else if (item.flags & ITEM_IDENTITY) {
#pragma unroll
                for (u32 k = 0; k < Lanes<V>::COUNT; ++k) {
                    const u64 index = local * TILE + k / V * CHUNK + lanes.column + k % V;
                    if (index >= item.start && index < item.end) partial[index] = (Bucket)data.x[k];
                }
            }
        }
        if (in_shared)
            for (u32 row = 0; row < rows; ++row)
                for (u32 k = 0; k < V; ++k) own[row * CHUNK + k] = cached[row * COLUMNS + k];
        flush_sums(sums, item.pairs, p.sums + ((item.sums + part) * SHARE + blockIdx.x % SHARE) * SUMS);
    }
}

} // namespace

// Gradients, updates, drift, references: fp32 buckets.
// Launch: p.blocks blocks of 128 threads, p.shared_rows · 1,024 bytes of dynamic shared memory.
KERNEL_MIN(fgs_measure, 128, 3, MeasureParams)
{
    SHARED(float, buckets);
    measure<float, 2>(p, buckets);
}

// The parameters themselves, whose sketches are subtracted from each other later: fp64 buckets.
// Launch: 2 · p.blocks blocks of 128 threads, p.shared_rows · 1,024 bytes of dynamic shared memory.
KERNEL(fgs_measure_wide, 128, MeasureParams)
{
    SHARED(double, buckets);
    measure<double, 1>(p, buckets);
}
