// Number formats that trainers use, widened to fp32 exactly. No header of CUDA's is needed, so the same code runs on a GPU
// and in the CPU emulation of the tests. Cost: one to six integer or fp32 operations per element.
#pragma once

#include "kernel.cuh"

// Element formats. The numbers are part of the launcher contract (device/cuda/table.rs).
enum Format : u32 {
    FORMAT_NONE = 0,
    FORMAT_F32 = 1,
    FORMAT_F64 = 2,
    FORMAT_BF16 = 3,
    FORMAT_F16 = 4,
    FORMAT_E4M3 = 5, // OCP "fn": no infinity, NaN is 0x7f and 0xff
    FORMAT_E5M2 = 6, // as IEEE 754
};

// Bytes of an element.
__device__ __forceinline__ u32 format_size(u32 format)
{
    return format == FORMAT_F64 ? 8 : format == FORMAT_F32 ? 4 : format <= FORMAT_F16 ? 2 : 1;
}

// The unsigned integer that holds one element.
template <u32 F> struct Bits { using type = u32; };
template <> struct Bits<FORMAT_F64> { using type = u64; };
template <> struct Bits<FORMAT_BF16> { using type = u16; };
template <> struct Bits<FORMAT_F16> { using type = u16; };
template <> struct Bits<FORMAT_E4M3> { using type = u8; };
template <> struct Bits<FORMAT_E5M2> { using type = u8; };

// Two elements that lie side by side, the first on a multiple of their common size.
template <u32 F> struct Couple { using type = u64; };
template <> struct Couple<FORMAT_BF16> { using type = u32; };
template <> struct Couple<FORMAT_F16> { using type = u32; };
template <> struct Couple<FORMAT_E4M3> { using type = u16; };
template <> struct Couple<FORMAT_E5M2> { using type = u16; };

// A format with fewer exponent bits, moved to the top of an fp32 number and multiplied by the difference of the biases:
// subnormal numbers come out right, since the product is exact. `special`: from these bits on, without the sign, it is
// infinity or NaN.
__device__ __forceinline__ float rebias(u32 bits, u32 sign, u32 shift, float factor, u32 special)
{
    const float magnitude = bits >= special ? __uint_as_float(0x7f800000u | bits << shift)
                                            : __uint_as_float(bits << shift) * factor;
    return __uint_as_float(__float_as_uint(magnitude) | sign);
}

template <u32 F> __device__ __forceinline__ float widen(typename Bits<F>::type bits);

template <> __device__ __forceinline__ float widen<FORMAT_F32>(u32 bits) { return __uint_as_float(bits); }

template <> __device__ __forceinline__ float widen<FORMAT_F64>(u64 bits)
{
    return (float)__longlong_as_double((long long)bits);
}

template <> __device__ __forceinline__ float widen<FORMAT_BF16>(u16 bits) { return __uint_as_float((u32)bits << 16); }

template <> __device__ __forceinline__ float widen<FORMAT_F16>(u16 bits)
{
    return rebias(bits & 0x7fffu, (u32)(bits & 0x8000u) << 16, 13, 0x1p112f, 0x7c00u);
}

template <> __device__ __forceinline__ float widen<FORMAT_E4M3>(u8 bits)
{
    return rebias(bits & 0x7fu, (u32)(bits & 0x80u) << 24, 20, 0x1p120f, 0x7fu);
}

template <> __device__ __forceinline__ float widen<FORMAT_E5M2>(u8 bits)
{
    return rebias(bits & 0x7fu, (u32)(bits & 0x80u) << 24, 21, 0x1p112f, 0x7cu);
}

// The element `at` of memory in any format.
__device__ __forceinline__ float read_element(u64 base, u32 format, i64 at)
{
    switch (format) {
    case FORMAT_F32: return ((const float*)base)[at];
    case FORMAT_F64: return (float)((const double*)base)[at];
    case FORMAT_BF16: return widen<FORMAT_BF16>(((const u16*)base)[at]);
    case FORMAT_F16: return widen<FORMAT_F16>(((const u16*)base)[at]);
    case FORMAT_E4M3: return widen<FORMAT_E4M3>(((const u8*)base)[at]);
    default: return widen<FORMAT_E5M2>(((const u8*)base)[at]);
    }
}

// The larger of `peak` and |value|; NaN if one of them is. One instruction, where fmaxf would pass over NaN and integers
// would take two.
__device__ __forceinline__ float larger_magnitude(float peak, float value)
{
#ifdef FGS_EMULATION
    return peak != peak || fabsf(value) <= peak ? peak : fabsf(value);
#else
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(peak), "f"(fabsf(value)));
    return larger;
#endif
}

// fp32 to bfloat16, to nearest, ties to even. The number must be finite.
__device__ __forceinline__ u16 narrow_bf16(float value)
{
    const u32 bits = __float_as_uint(value);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// fp32 to f16. The number must be one of f16's.
__device__ __forceinline__ u16 narrow_f16(float value)
{
    const u32 bits = __float_as_uint(value);
    // Subnormal numbers come out right, since the product is exact.
    return (u16)((bits >> 16 & 0x8000u) | __float_as_uint(fabsf(value) * 0x1p-112f) >> 13);
}

// fp32 to e4m3, to nearest, ties to even; beyond ±448 it saturates. The number must be finite.
__device__ __forceinline__ u8 narrow_e4m3(float value)
{
    const u32 sign = __float_as_uint(value) >> 24 & 0x80u;
    const float magnitude = fminf(fabsf(value), 448.0f);
    if (magnitude < 0x1p-6f) {
        // Subnormal: a multiple of 2⁻⁹. Adding 1.5·2¹⁴ rounds to that grid.
        return (u8)(sign | (__float_as_uint(magnitude + 0x1.8p14f) & 0xfu));
    }
    const u32 bits = __float_as_uint(magnitude);
    const u32 rounded = bits + 0x7ffffu + (bits >> 20 & 1u);
    return (u8)(sign | (min(rounded, 0x43e00000u) - 0x3c000000u) >> 20);
}

// The power of two that brings a number with these magnitude bits near 1, as a multiplier. Exact for every product that
// stays in range, and never zero or infinite itself.
__device__ __forceinline__ float normalizer(u32 magnitude_bits)
{
    const i32 field = 254 - (i32)(magnitude_bits >> 23);
    return __uint_as_float((u32)max(1, min(field, 254)) << 23);
}

// The inverse of a power of two in fp32's normal range, in fp64.
__device__ __forceinline__ double inverse_power(float power)
{
    const u64 field = __float_as_uint(power) >> 23;
    return __longlong_as_double((long long)((1150 - field) << 52));
}
