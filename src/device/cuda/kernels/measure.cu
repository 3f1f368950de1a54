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
#include "numbers.cuh"
#include "prefetch.cuh"
#include "runs.cuh"
#include "tables.cuh"

namespace {

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 ALL_LANES = 0xffffffffu;
// Chunks that are placed at once, one per lane.
constexpr u32 PLACED = 32;
constexpr u32 INFINITE = 0x7f800000u;
// Bytes of a cache line.
constexpr u32 LINE = 128;

// Where a chunk falls, as one warp needs it.
struct Placed {
    u64 signs; // of the 64 positions among which the warp's are
    u32 row;
    u32 flip;
};

// V: columns of a thread. 256 / (V·128) blocks share a tile, each with its own columns.
template <u32 V> struct Lanes {
    u32 column; // first of the thread's columns
    static constexpr u32 SHARE = CHUNK / (V * THREADS);
    static constexpr u32 COUNT = V * TILE_CHUNKS;

    // Position in the chunk of the thread's first column.
    __device__ __forceinline__ u32 position(u32 flip) const { return column ^ (flip & ~(V - 1)); }

    // Index in the slice of the thread's k-th element of a tile.
    __device__ __forceinline__ u64 index(u64 tile, u32 k, const Placed* placed) const
    {
        return tile * TILE + k / V * CHUNK + ((column + k % V) ^ placed[k / V].flip);
    }
};

// The values of a thread's columns in one tile, and which of them are there at all.
template <u32 V> struct Tile {
    float x[V * TILE_CHUNKS];
    u32 valid;
};

__device__ __forceinline__ u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

template <u32 N> __device__ __forceinline__ u32 warp_peak(const float (&x)[N])
{
    float peak = 0.0f;
#pragma unroll
    for (u32 k = 0; k < N; ++k) peak = larger_magnitude(peak, x[k]);
    // As integers, NaN is above infinity and that above numbers.
    return __reduce_max_sync(ALL_LANES, magnitude(peak));
}

// Elements without gaps, the tile's first at `first`, which is a multiple of V elements.
template <u32 F, u32 V>
__device__ __forceinline__ void load_dense(u64 first, const Placed* placed, Lanes<V> lanes, float (&x)[V * TILE_CHUNKS])
{
    using Element = typename Bits<F>::type;
    using Both = typename Couple<F>::type;
    const Element* source = (const Element*)first;
    if constexpr (V == 1) {
#pragma unroll
        for (u32 u = 0; u < TILE_CHUNKS; ++u) x[u] = widen<F>(source[u * CHUNK + lanes.position(placed[u].flip)]);
    } else {
        Both raw[TILE_CHUNKS];
#pragma unroll
        for (u32 u = 0; u < TILE_CHUNKS; ++u)
            raw[u] = *(const Both*)(source + u * CHUNK + lanes.position(placed[u].flip));
#pragma unroll
        for (u32 u = 0; u < TILE_CHUNKS; ++u) {
            const float low = widen<F>((Element)raw[u]);
            const float high = widen<F>((Element)(raw[u] >> (4 * sizeof(Both))));
            const bool is_swapped = placed[u].flip & 1;
            x[2 * u] = is_swapped ? high : low;
            x[2 * u + 1] = is_swapped ? low : high;
        }
    }
}

// The item's values of a tile, zero where there are none. Whole tiles without gaps are the fast way; ragged ends, strided
// heads, fp64 and odd addresses go element by element.
template <u32 V>
__device__ __forceinline__ void load(const Item& item, const Run* runs, u64 tile, const Placed* placed, Lanes<V> lanes,
                                     Tile<V>& out)
{
    const u64 first = tile * TILE;
    const u32 size = format_size(item.format);
    if ((item.flags & ITEM_DENSE) && first >= item.start && first + TILE <= item.end) {
        const i64 at = runs[item.first_run].offset + (i64)(first - runs[item.first_run].index);
        const u64 address = item.base + (u64)at * size;
        if (address % (V * size) == 0 && item.format != FORMAT_F64) {
            out.valid = ~0u;
            switch (item.format) {
            case FORMAT_F32: return load_dense<FORMAT_F32, V>(address, placed, lanes, out.x);
            case FORMAT_BF16: return load_dense<FORMAT_BF16, V>(address, placed, lanes, out.x);
            case FORMAT_F16: return load_dense<FORMAT_F16, V>(address, placed, lanes, out.x);
            case FORMAT_E4M3: return load_dense<FORMAT_E4M3, V>(address, placed, lanes, out.x);
            default: return load_dense<FORMAT_E5M2, V>(address, placed, lanes, out.x);
            }
        }
    }
    // Not in registers, which a loop cannot number.
    float staged[Lanes<V>::COUNT];
    u32 valid = 0;
#pragma unroll 1
    for (u32 k = 0; k < Lanes<V>::COUNT; ++k) {
        const u64 index = lanes.index(tile, k, placed);
        i64 at;
        staged[k] = 0.0f;
        if (index >= item.start && index < item.end && find(runs + item.first_run, item.runs, index, at)) {
            staged[k] = read_element(item.base, item.format, at);
            valid |= 1u << k;
        }
    }
#pragma unroll
    for (u32 k = 0; k < Lanes<V>::COUNT; ++k) out.x[k] = staged[k];
    out.valid = valid;
}

// What the 32 values of a block are multiplied by. 2⁻¹²⁷ is subnormal: a block of so small values is all zeros.
__device__ __forceinline__ float block_scale(const Kept& kept, u64 at)
{
    return __uint_as_float((u32)((const u8*)kept.exponents)[at / 32] << 23);
}

// Kept values of a tile, zero where there are none or the item has none. Their formats are the library's own choice: fp32,
// bf16, f16, e4m3 in blocks.
template <u32 V>
__device__ __forceinline__ void load(const Kept& kept, u64 tile, const Placed* placed, Lanes<V> lanes, u32 valid,
                                     float (&x)[V * TILE_CHUNKS])
{
    const u64 first = tile * TILE;
    constexpr u32 everything = (1u << V * TILE_CHUNKS) - 1;
    const bool is_whole = first >= kept.start && first + TILE <= kept.end && (valid & everything) == everything;
    const u64 at = first - kept.start;
    // Kept values begin at an address of many elements. Every lane of the warp takes the same way.
    if (__all_sync(ALL_LANES, is_whole && kept.start % 32 == 0)) {
        if (kept.format == FORMAT_F32) return load_dense<FORMAT_F32, V>(kept.address + at * 4, placed, lanes, x);
        if (kept.format == FORMAT_BF16) return load_dense<FORMAT_BF16, V>(kept.address + at * 2, placed, lanes, x);
        if (kept.format == FORMAT_F16) return load_dense<FORMAT_F16, V>(kept.address + at * 2, placed, lanes, x);
        load_dense<FORMAT_E4M3, V>(kept.address + at, placed, lanes, x);
#pragma unroll
        for (u32 u = 0; u < TILE_CHUNKS; ++u) {
            const float scale = block_scale(kept, at + u * CHUNK + lanes.position(placed[u].flip));
#pragma unroll
            for (u32 k = 0; k < V; ++k) x[u * V + k] *= scale;
        }
        return;
    }
    float staged[Lanes<V>::COUNT];
#pragma unroll 1
    for (u32 k = 0; k < Lanes<V>::COUNT; ++k) {
        const u64 index = lanes.index(tile, k, placed);
        staged[k] = 0.0f;
        if (valid >> k & 1 && index >= kept.start && index < kept.end) {
            const u64 at = index - kept.start;
            staged[k] = read_element(kept.address, kept.format, (i64)at);
            if (kept.format == FORMAT_E4M3) staged[k] *= block_scale(kept, at);
        }
    }
#pragma unroll
    for (u32 k = 0; k < Lanes<V>::COUNT; ++k) x[k] = staged[k];
}

// Copies are kept in a format that has every value of the parameters'.
__device__ __forceinline__ void write_kept(const Kept& kept, u64 at, float value)
{
    if (kept.format == FORMAT_F32) ((float*)kept.address)[at] = value;
    else if (kept.format == FORMAT_BF16) ((u16*)kept.address)[at] = narrow_bf16(value);
    else ((u16*)kept.address)[at] = narrow_f16(value);
}

template <u32 V>
__device__ __forceinline__ void store(const Kept& kept, u64 tile, const Placed* placed, Lanes<V> lanes, u32 valid,
                                      const float (&x)[V * TILE_CHUNKS])
{
#pragma unroll
    for (u32 k = 0; k < Lanes<V>::COUNT; ++k) {
        const u64 index = lanes.index(tile, k, placed);
        if (valid >> k & 1 && index >= kept.start && index < kept.end)
            write_kept(kept, index - kept.start, x[k]);
    }
}

// A thread's share of an item's sums.
struct Sums {
    double values, other, difference, cross;
    u32 non_finite, peak, difference_peak;
    double dot[PAIRS], opposing[PAIRS], squares[PAIRS], reference[PAIRS];
    u32 conflicts[PAIRS], active[PAIRS];
};

// Puts zero in the place of NaN and infinity, and counts them.
template <u32 N> __device__ __forceinline__ u32 clean(float (&x)[N])
{
    u32 bad = 0;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        const bool is_bad = magnitude(x[k]) >= INFINITE;
        x[k] = is_bad ? 0.0f : x[k];
        bad += is_bad;
    }
    return bad;
}

// Σ x² in fp64; `scale` is the normalizer of the largest.
template <u32 N> __device__ __forceinline__ double squares(const float (&x)[N], float scale)
{
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        const float t = x[k] * scale;
        sum = fmaf(t, t, sum);
    }
    const double inverse = inverse_power(scale);
    return (double)sum * inverse * inverse;
}

template <u32 N> __device__ __forceinline__ double dot(const float (&x)[N], float xs, const float (&y)[N], float ys)
{
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < N; ++k) sum = fmaf(x[k] * xs, y[k] * ys, sum);
    return (double)sum * inverse_power(xs) * inverse_power(ys);
}

// Everything about d and one reference.
template <u32 N>
__device__ __forceinline__ void pair(Sums& sums, u32 k, const float (&d)[N], float ds, const float (&r)[N])
{
    const float rs = normalizer(warp_peak(r));
    float dot = 0.0f, opposing = 0.0f, squares = 0.0f, reference = 0.0f;
    u32 conflicts = 0, active = 0;
#pragma unroll
    for (u32 j = 0; j < N; ++j) {
        const float t = r[j] * rs;
        const float product = d[j] * ds * t;
        dot += product;
        squares = fmaf(product, product, squares);
        reference = fmaf(t, t, reference);
        opposing -= fminf(product, 0.0f);
        conflicts += product < 0.0f;
        active += product != 0.0f;
    }
    const double r_inverse = inverse_power(rs), inverse = inverse_power(ds) * r_inverse;
    // Registers cannot be numbered by a variable, and a copy of this function per reference would be three times as long.
#pragma unroll
    for (u32 j = 0; j < PAIRS; ++j) {
        if (j != k) continue;
        sums.dot[j] += (double)dot * inverse;
        sums.opposing[j] += (double)opposing * inverse;
        sums.squares[j] += (double)squares * inverse * inverse;
        sums.reference[j] += (double)reference * r_inverse * r_inverse;
        sums.conflicts[j] += conflicts;
        sums.active[j] += active;
    }
}

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

// One number of all threads, by a fixed tree; valid in thread 0.
template <typename T, typename Combine>
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

__device__ __forceinline__ void flush_sums(const Sums& sums, u32 pairs, double* out)
{
    __shared__ double warps[WARPS];
    const auto total = [&](u32 at, double value) {
        const double sum = reduce(value, warps, [](double a, double b) { return a + b; });
        if (threadIdx.x == 0) out[at] = sum;
    };
    const auto largest = [&](u32 at, u32 bits) {
        const double most = reduce((double)__uint_as_float(bits), warps, [](double a, double b) { return a > b ? a : b; });
        if (threadIdx.x == 0) out[at] = most;
    };
    total(SUM_VALUES, sums.values);
    total(SUM_OTHER, sums.other);
    total(SUM_DIFFERENCE, sums.difference);
    total(SUM_CROSS, sums.cross);
    total(SUM_NON_FINITE, (double)sums.non_finite);
    largest(MAX_VALUES, sums.peak);
    largest(MAX_DIFFERENCE, sums.difference_peak);
#pragma unroll
    for (u32 k = 0; k < PAIRS; ++k) {
        if (k < pairs) {
            const u32 at = SUM_PAIRS + k * PAIR_SUMS;
            total(at + PAIR_DOT, sums.dot[k]);
            total(at + PAIR_OPPOSING, sums.opposing[k]);
            total(at + PAIR_SQUARES, sums.squares[k]);
            total(at + PAIR_REFERENCE, sums.reference[k]);
            total(at + PAIR_CONFLICTS, (double)sums.conflicts[k]);
            total(at + PAIR_ACTIVE, (double)sums.active[k]);
        }
    }
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
