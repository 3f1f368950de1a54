// Hash functions of the sketch: the same words as src/sketch/hash.rs, which says why they are what they are.
#pragma once

#include "kernel.cuh"

__device__ __forceinline__ u64 mix(u64 word)
{
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ word >> 27) * 0x94d049bb133111ebull;
    return word ^ word >> 31;
}

// Signs of the 64 elements 64·word .. 64·word + 64: a set bit negates.
__device__ __forceinline__ u64 signs(u64 seed, u64 word) { return mix(seed + word * 0x9e3779b97f4a7c15ull); }

// Where the 256 elements of a chunk fall: the row of 256 buckets in the high word, and in the low word what their position
// is XORed with inside it.
__device__ __forceinline__ uint2 place(u64 seed, u64 chunk, u32 rows)
{
    const u64 hash = mix(~seed ^ chunk * 0xd1b54a32d192ed03ull);
    return make_uint2(__umulhi((u32)(hash >> 32), rows), (u32)hash & 0xffu);
}
