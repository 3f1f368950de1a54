// CUDA's device language for the host's C++ compiler: what kernels see of it when they are compiled with
// -DFGS_EMULATION (src/device/cuda/kernels/kernel.cuh includes it).
//
// Why: CI has no GPU, and a kernel that runs on the CPU can be checked for what a GPU does not report: a barrier that
// some threads do not reach, a warp primitive whose mask names a lane that is not there. Both end the process with the
// line of the source. What it costs: a thread that never waits runs straight through; one that waits costs a switch of
// a few nanoseconds each time (fiber.h, grid.cpp).
//
// Floating point is IEEE as on the device: no contraction (the build passes -ffp-contract=off), denormals kept,
// division and square root rounded correctly. Only library functions (expf, logf, tanhf, __expf, rsqrtf) may differ in
// the last places, as they may between two versions of CUDA.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "grid.h"

#define __device__
#define __host__
#define __constant__ static
#define __restrict__ __restrict
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
// Blocks run one after another on a worker thread, so a static array of that thread is what a block shares.
#define __shared__ static thread_local

#define threadIdx (::emulation::running->index)
#define blockIdx (::emulation::running->grid->block_index)
#define blockDim (::emulation::running->grid->block)
#define gridDim (::emulation::running->grid->extent)
static constexpr int warpSize = 32;

// ---- vector types, aligned as on the device ------------------------------------------------------------------------

#define EMULATION_VECTOR2(name, type)                                              \
    struct alignas(2 * sizeof(type)) name {                                        \
        type x, y;                                                                 \
    };                                                                             \
    static inline name make_##name(type x, type y) {                               \
        return name{x, y};                                                         \
    }
#define EMULATION_VECTOR4(name, type)                                              \
    struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name {           \
        type x, y, z, w;                                                           \
    };                                                                             \
    static inline name make_##name(type x, type y, type z, type w) {               \
        return name{x, y, z, w};                                                   \
    }
EMULATION_VECTOR2(uchar2, unsigned char)
EMULATION_VECTOR4(uchar4, unsigned char)
EMULATION_VECTOR2(ushort2, unsigned short)
EMULATION_VECTOR4(ushort4, unsigned short)
EMULATION_VECTOR2(int2, int)
EMULATION_VECTOR4(int4, int)
EMULATION_VECTOR2(uint2, unsigned)
EMULATION_VECTOR4(uint4, unsigned)
EMULATION_VECTOR2(float2, float)
EMULATION_VECTOR4(float4, float)
EMULATION_VECTOR2(double2, double)
EMULATION_VECTOR2(longlong2, long long)
EMULATION_VECTOR2(ulonglong2, unsigned long long)
#undef EMULATION_VECTOR2
#undef EMULATION_VECTOR4

// ---- barriers and warps --------------------------------------------------------------------------------------------
// A default argument is evaluated where the call is written: it is how a report names the line of the kernel.

#define EMULATION_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATION_PLACE ::emulation::Place{file, line}

static inline void __syncthreads(EMULATION_HERE) { ::emulation::barrier(EMULATION_PLACE); }

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_HERE) {
    ::emulation::meet(::emulation::Meeting::sync, mask, 0, 0, EMULATION_PLACE);
}

namespace emulation {

// Values of 4 and 8 bytes pass through a warp as bits.
template <typename T>
inline T shuffle(unsigned mask, T value, unsigned source, Place place) {
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles take 32 or 64 bits");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = meet(Meeting::shuffle, mask, bits, source, place);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// First lane of the part of the warp, `width` lanes wide, that a shuffle stays in.
inline unsigned segment(int width, Place place) {
    check(width > 0 && width <= 32 && (width & (width - 1)) == 0, "width of a shuffle is a power of two to 32", place);
    return running->lane() & ~static_cast<unsigned>(width - 1);
}

}  // namespace emulation

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_HERE) {
    unsigned first = ::emulation::segment(width, EMULATION_PLACE);
    return ::emulation::shuffle(mask, value, first + (static_cast<unsigned>(source) & (width - 1)), EMULATION_PLACE);
}

template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_HERE) {
    unsigned first = ::emulation::segment(width, EMULATION_PLACE), lane = ::emulation::running->lane();
    return ::emulation::shuffle(mask, value, lane - first >= delta ? lane - delta : lane, EMULATION_PLACE);
}

template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_HERE) {
    unsigned first = ::emulation::segment(width, EMULATION_PLACE), lane = ::emulation::running->lane();
    unsigned room = first + width - 1 - lane;
    return ::emulation::shuffle(mask, value, delta <= room ? lane + delta : lane, EMULATION_PLACE);
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_HERE) {
    unsigned first = ::emulation::segment(width, EMULATION_PLACE), lane = ::emulation::running->lane();
    unsigned source = lane ^ static_cast<unsigned>(lanes);
    return ::emulation::shuffle(mask, value, source < first + width ? source : lane, EMULATION_PLACE);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_HERE) {
    return static_cast<unsigned>(::emulation::meet(::emulation::Meeting::ballot, mask, predicate != 0, 0, EMULATION_PLACE));
}
static inline int __any_sync(unsigned mask, int predicate, EMULATION_HERE) {
    return ::emulation::meet(::emulation::Meeting::ballot, mask, predicate != 0, 0, EMULATION_PLACE) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, EMULATION_HERE) {
    return ::emulation::meet(::emulation::Meeting::ballot, mask, predicate != 0, 0, EMULATION_PLACE) == mask;
}

#define EMULATION_REDUCE(name, meeting)                                                                               \
    static inline unsigned name(unsigned mask, unsigned value, EMULATION_HERE) {                                      \
        return static_cast<unsigned>(::emulation::meet(::emulation::Meeting::meeting, mask, value, 0, EMULATION_PLACE));        \
    }
EMULATION_REDUCE(__reduce_add_sync, add)
EMULATION_REDUCE(__reduce_min_sync, min)
EMULATION_REDUCE(__reduce_max_sync, max)
EMULATION_REDUCE(__reduce_and_sync, conjunction)
EMULATION_REDUCE(__reduce_or_sync, disjunction)
EMULATION_REDUCE(__reduce_xor_sync, parity)
#undef EMULATION_REDUCE
#undef EMULATION_PLACE
#undef EMULATION_HERE

// ---- memory --------------------------------------------------------------------------------------------------------
// Kernels of other streams run at the same time, and the host reads mapped memory: atomics are real ones.

#define __trap() ::emulation::fail("%s:%d: __trap", __FILE__, __LINE__)

static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#define EMULATION_LOAD(name)            \
    template <typename T>               \
    inline T name(const T* address) {   \
        return *address;                \
    }
#define EMULATION_STORE(name)                 \
    template <typename T>                     \
    inline void name(T* address, T value) {   \
        *address = value;                     \
    }
EMULATION_LOAD(__ldg)
EMULATION_LOAD(__ldca)
EMULATION_LOAD(__ldcg)
EMULATION_LOAD(__ldcs)
EMULATION_LOAD(__ldcv)
EMULATION_LOAD(__ldlu)
EMULATION_STORE(__stcg)
EMULATION_STORE(__stcs)
EMULATION_STORE(__stwb)
EMULATION_STORE(__stwt)
#undef EMULATION_LOAD
#undef EMULATION_STORE

namespace emulation {

// Replaces *address by f(*address) in one step. Returns what it was.
template <typename T, typename F>
inline T update(T* address, F f) {
    T old, next;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do next = f(old);
    while (!__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

}  // namespace emulation

// CUDA has these for a fixed list of types; the others do not compile there, and not here.
#define EMULATION_ATOMIC(name, type, expression)                                         \
    static inline type name(type* address, type value) {                                 \
        return ::emulation::update(address, [value](type old) -> type { return expression; }); \
    }
EMULATION_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
EMULATION_ATOMIC(atomicAdd, unsigned, old + value)
EMULATION_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATION_ATOMIC(atomicAdd, float, old + value)
EMULATION_ATOMIC(atomicAdd, double, old + value)
EMULATION_ATOMIC(atomicSub, unsigned, old - value)
EMULATION_ATOMIC(atomicMax, int, old > value ? old : value)
EMULATION_ATOMIC(atomicMax, unsigned, old > value ? old : value)
EMULATION_ATOMIC(atomicMax, long long, old > value ? old : value)
EMULATION_ATOMIC(atomicMax, unsigned long long, old > value ? old : value)
EMULATION_ATOMIC(atomicMin, int, old < value ? old : value)
EMULATION_ATOMIC(atomicMin, unsigned, old < value ? old : value)
EMULATION_ATOMIC(atomicMin, unsigned long long, old < value ? old : value)
EMULATION_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
EMULATION_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
EMULATION_ATOMIC(atomicAnd, unsigned, old & value)
EMULATION_ATOMIC(atomicOr, unsigned, old | value)
EMULATION_ATOMIC(atomicOr, unsigned long long, old | value)
EMULATION_ATOMIC(atomicXor, unsigned, old ^ value)
EMULATION_ATOMIC(atomicExch, int, (static_cast<void>(old), value))
EMULATION_ATOMIC(atomicExch, unsigned, (static_cast<void>(old), value))
EMULATION_ATOMIC(atomicExch, unsigned long long, (static_cast<void>(old), value))
EMULATION_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
#undef EMULATION_ATOMIC

#define EMULATION_CAS(type)                                                                \
    static inline type atomicCAS(type* address, type compare, type value) {                \
        return ::emulation::update(address, [=](type old) { return old == compare ? value : old; }); \
    }
EMULATION_CAS(int)
EMULATION_CAS(unsigned)
EMULATION_CAS(unsigned long long)
#undef EMULATION_CAS

// ---- integers and bits ---------------------------------------------------------------------------------------------

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>((static_cast<wide>(a) * b) >> 64);
}
static inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

// Byte i of the result is the byte of y:x that nibble i of the selector names; its highest bit repeats the sign.
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned nibble = selector >> 4 * i & 15;
        const unsigned byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7)) & 255;
        result |= ((nibble & 8) != 0 ? (byte >> 7) * 255 : byte) << 8 * i;
    }
    return result;
}

namespace emulation {

template <typename To, typename From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace emulation

static inline unsigned __float_as_uint(float x) { return ::emulation::bits<unsigned>(x); }
static inline int __float_as_int(float x) { return ::emulation::bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return ::emulation::bits<float>(x); }
static inline float __int_as_float(int x) { return ::emulation::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return ::emulation::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return ::emulation::bits<double>(x); }

// ---- arithmetic ----------------------------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;

#define EMULATION_MINMAX(type)                                        \
    static inline type min(type a, type b) { return b < a ? b : a; }  \
    static inline type max(type a, type b) { return a < b ? b : a; }
EMULATION_MINMAX(int)
EMULATION_MINMAX(unsigned)
EMULATION_MINMAX(long long)
EMULATION_MINMAX(unsigned long long)
#undef EMULATION_MINMAX
// With a number and a NaN, the device's give the number.
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

static inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
static inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
// glibc declares functions of these names, and has none.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
