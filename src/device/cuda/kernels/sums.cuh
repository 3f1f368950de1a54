// The sums of an item: a thread's share in registers, over a tile in fp32 with a common power of two, from there on in fp64;
// and a block's total.
#pragma once

#include "reduce.cuh"
#include "tile.cuh"

namespace {

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

} // namespace
