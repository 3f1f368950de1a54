// Kept sums of gradients in fewer bits, and back: bfloat16, or e4m3 in blocks of 32 with one exponent each.
//
// Cost: the values are read once and written once, when a reference is complete and when it is added to again.
#include "numbers.cuh"
#include "tables.cuh"

namespace {

constexpr u32 BLOCK = 32;

} // namespace

// fp32 to the format; a warp takes 32 values. Values that are not there are zeros.
// Launch: any number of blocks of 256 threads.
KERNEL(fgs_pack, 256, PackParams)
{
    const u64 stride = (u64)gridDim.x * 256;
    const u64 end = (p.count + BLOCK - 1) / BLOCK * BLOCK;
    for (u64 at = blockIdx.x * 256ull + threadIdx.x; at < end; at += stride) {
        const float value = at < p.count ? p.wide[at] : 0.0f;
        if (p.format == FORMAT_BF16) {
            if (at < p.count) ((u16*)p.packed)[at] = narrow_bf16(value);
            continue;
        }
        // Infinite sums saturate at the largest exponent. Below 256 times the block's power of two nothing rounds up to more
        // than e4m3 holds.
        const u32 peak = __reduce_max_sync(0xffffffffu, __float_as_uint(value) & 0x7fffffffu);
        const u32 exponent = (u32)max(1, (i32)(peak >> 23) - 7);
        const float scale = __uint_as_float((254u - min(exponent, 253u)) << 23);
        if (at < p.count) ((u8*)p.packed)[at] = narrow_e4m3(value * scale);
        if (at % BLOCK == 0) ((u8*)p.exponents)[at / BLOCK] = (u8)min(exponent, 253u);
    }
}

// The format to fp32.
// Launch: any number of blocks of 256 threads.
KERNEL(fgs_unpack, 256, PackParams)
{
    const u64 stride = (u64)gridDim.x * 256;
    for (u64 at = blockIdx.x * 256ull + threadIdx.x; at < p.count; at += stride) {
        float value = read_element(p.packed, p.format, (i64)at);
        if (p.format == FORMAT_E4M3) value *= __uint_as_float((u32)((const u8*)p.exponents)[at / BLOCK] << 23);
        p.wide[at] = value;
    }
}
