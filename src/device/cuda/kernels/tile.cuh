// A tile of a slice in registers: which elements a thread has of it, and reading and writing them. Cost: every element is
// read once; lanes exchange places, not memory.
#pragma once

#include "numbers.cuh"
#include "reduce.cuh"
#include "runs.cuh"
#include "tables.cuh"

namespace {

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / 32;
// Chunks that are placed at once, one per lane.
constexpr u32 PLACED = 32;
constexpr u32 INFINITE = 0x7f800000u;

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

} // namespace
