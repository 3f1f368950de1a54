// What every kernel is written with: how it is declared, the integer types, dynamic shared memory.
//
// The same source is compiled twice: by NVRTC to the PTX that the library carries, and by the host's C++ compiler for
// the CPU (-DFGS_EMULATION, see docs/emulation.md), so that kernels are tested on machines without a GPU. Hence the
// rules: C++17 without any standard header (NVRTC has none), fused multiply-adds written as fmaf (neither compiler
// contracts a*b+c), conversions of bf16, f16 and fp8 in integer code of our own.
//
// A kernel takes exactly one struct by value, named p in its body:
//
//     struct ScaleParams { float* values; u64 count; float factor; };
//
//     KERNEL(scale, 256, ScaleParams) {
//         u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
//         if (i < p.count) p.values[i] *= p.factor;
//     }
#pragma once

#ifdef FGS_EMULATION
#include "cuda_emulation.h"

// Defines the kernel and enters it in the table in which the double of libcuda finds it.
#define KERNEL_MIN(name, threads, min_blocks, Params)                                                       \
    static void name(const Params& p);                                                                      \
    static ::emulation::Kernel name##_kernel{                                                               \
        #name, sizeof(Params), threads, [](const void* bytes) { name(*static_cast<const Params*>(bytes)); } \
    };                                                                                                      \
    static void name(const Params& p)

// The block's dynamic shared memory as an array of `type`, at most 16-byte aligned.
#define SHARED(type, name) type* const name = static_cast<type*>(::emulation::shared_memory())

#else

// __grid_constant__ keeps an indexed parameter in constant memory: without it each thread makes a local copy.
#define KERNEL_MIN(name, threads, min_blocks, Params) \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) name(const __grid_constant__ Params p)

// One symbol for all kernels of a file: extern arrays of one name must have one type.
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define SHARED(type, name) type* const name = reinterpret_cast<type*>(dynamic_shared)

#endif

// A kernel that is launched with at most `threads` threads a block. KERNEL_MIN also asks the compiler to leave room
// for `min_blocks` blocks on a multiprocessor.
#define KERNEL(name, threads, Params) KERNEL_MIN(name, threads, 1, Params)

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

static_assert(sizeof(u8) == 1 && sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "fixed widths");
