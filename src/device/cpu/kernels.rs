//! The inner loops: sums over at most 4,096 fp32 elements, and sketches of them.
//!
//! A kernel works on a block that lies in the first-level cache, in fp32 lanes, and hands one fp64 number up: 64 lanes
//! of at most 64 terms each, so rounding stays near 2⁻²² relative, and everything above a block is fp64. Products are
//! taken of values scaled by powers of two that bring the block's largest magnitude near 1: exact, and neither overflow
//! nor underflow can spoil a sum, whatever the loss scale.
//!
//! All blocks are whole chunks of 256 elements, filled up with zeros, which add nothing to any sum.

use super::vector::{LANES, Portable, Vector};
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use crate::device::PairSums;
use crate::sketch::{CHUNK, Layout, hash};

/// Elements of a block: 16 KiB of fp32, so that two blocks fit the smallest first-level cache in use.
pub const BLOCK: usize = 4096;

/// Independent accumulators: enough to hide the latency of an addition.
const WIDTH: usize = 4;
const STRIDE: usize = WIDTH * LANES;

/// The kernels compiled for one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    pub name: &'static str,
    pub peak: fn(&[f32]) -> u32,
    pub squares: fn(&[f32], f32) -> f64,
    pub dot: fn(&[f32], &[f32], f32, f32) -> f64,
    pub pair: fn(&[f32], &[f32], f32, f32) -> PairSums,
    pub difference: fn(&[f32], &[f32], &mut [f32]),
    pub sketch: fn(&[f32], &Layout, u64, &mut [f32]),
    pub sketch_f64: fn(&[f32], &Layout, u64, &mut [f64]),
}

impl Kernels {
    /// Every variant that this machine can run, best first. All give the same bits.
    pub fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                available.push(avx512::KERNELS);
            }
            if is_x86_feature_detected!("avx2") {
                available.push(avx2::KERNELS);
            }
        }
        available.push(portable::KERNELS);
        available
    }
}

/// The power of two that brings `peak` into [1, 2): products of scaled values stay in range. `peak` is finite.
#[inline(always)]
pub fn normalizer(peak: f32) -> f32 {
    // Exponents below −126 (subnormal peaks) would need a scale beyond 2¹²⁶: they are scaled as far as that goes.
    let exponent = ((peak.to_bits() >> 23) & 0xff).max(1);
    f32::from_bits((254 - exponent.min(253)) << 23)
}

/// Sum of the lanes of all accumulators in fp64, in a fixed order.
#[inline(always)]
unsafe fn fold<V: Vector>(accumulators: [V; WIDTH]) -> f64 {
    let mut total = 0.0;
    for accumulator in accumulators {
        // SAFETY: the instruction set is the caller's promise.
        for lane in unsafe { accumulator.to_array() } {
            total += f64::from(lane);
        }
    }
    total
}

/// Largest |x| as bits; at or above 0x7f80_0000 if there is an infinity or NaN.
#[inline(always)]
unsafe fn peak<V: Vector>(x: &[f32]) -> u32 {
    debug_assert!(x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside `x`, whose length is a multiple of CHUNK.
    unsafe {
        let mut accumulators = [V::splat(0.0); WIDTH];
        for start in (0..x.len()).step_by(STRIDE) {
            for (k, accumulator) in accumulators.iter_mut().enumerate() {
                *accumulator = V::load(x.as_ptr().add(start + k * LANES)).max_magnitude(*accumulator);
            }
        }
        let bits = |accumulator: V| accumulator.to_array().into_iter().map(f32::to_bits).max().unwrap_or(0);
        accumulators.into_iter().map(bits).max().unwrap_or(0)
    }
}

/// Σ x², for x scaled by `scale`; the result is of the unscaled x.
#[inline(always)]
unsafe fn squares<V: Vector>(x: &[f32], scale: f32) -> f64 {
    debug_assert!(x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside `x`, whose length is a multiple of CHUNK.
    unsafe {
        let factor = V::splat(scale);
        let mut accumulators = [V::splat(0.0); WIDTH];
        for start in (0..x.len()).step_by(STRIDE) {
            for (k, accumulator) in accumulators.iter_mut().enumerate() {
                let x = V::load(x.as_ptr().add(start + k * LANES)).mul(factor);
                *accumulator = accumulator.add(x.mul(x));
            }
        }
        fold(accumulators) / (f64::from(scale) * f64::from(scale))
    }
}

/// Σ x·y, each scaled by its own factor; the result is of the unscaled values.
#[inline(always)]
unsafe fn dot<V: Vector>(x: &[f32], y: &[f32], x_scale: f32, y_scale: f32) -> f64 {
    assert!(x.len() == y.len() && x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside both, whose common length is a multiple of CHUNK.
    unsafe {
        let (x_factor, y_factor) = (V::splat(x_scale), V::splat(y_scale));
        let mut accumulators = [V::splat(0.0); WIDTH];
        for start in (0..x.len()).step_by(STRIDE) {
            for (k, accumulator) in accumulators.iter_mut().enumerate() {
                let x = V::load(x.as_ptr().add(start + k * LANES)).mul(x_factor);
                let y = V::load(y.as_ptr().add(start + k * LANES)).mul(y_factor);
                *accumulator = accumulator.add(x.mul(y));
            }
        }
        fold(accumulators) / (f64::from(x_scale) * f64::from(y_scale))
    }
}

/// Everything a gradient and a reference have in common: see [`PairSums`].
#[inline(always)]
unsafe fn pair<V: Vector>(x: &[f32], y: &[f32], x_scale: f32, y_scale: f32) -> PairSums {
    assert!(x.len() == y.len() && x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside both, whose common length is a multiple of CHUNK.
    unsafe {
        let zero = V::splat(0.0);
        let (x_factor, y_factor) = (V::splat(x_scale), V::splat(y_scale));
        let (mut dots, mut opposing, mut squares) = ([zero; WIDTH], [zero; WIDTH], [zero; WIDTH]);
        let (mut conflicts, mut active) = (0, 0);
        for start in (0..x.len()).step_by(STRIDE) {
            for k in 0..WIDTH {
                let x = V::load(x.as_ptr().add(start + k * LANES)).mul(x_factor);
                let y = V::load(y.as_ptr().add(start + k * LANES)).mul(y_factor);
                let product = x.mul(y);
                let (negative, nonzero) = product.count_negative_and_active();
                dots[k] = dots[k].add(product);
                opposing[k] = opposing[k].sub(product.min(zero));
                squares[k] = squares[k].add(product.mul(product));
                conflicts += negative;
                active += nonzero;
            }
        }
        let scale = f64::from(x_scale) * f64::from(y_scale);
        PairSums {
            dot: fold(dots) / scale,
            opposing: fold(opposing) / scale,
            conflicts: u64::from(conflicts),
            active: u64::from(active),
            dot_squares: fold(squares) / (scale * scale),
        }
    }
}

/// `out = x − y`.
#[inline(always)]
unsafe fn difference<V: Vector>(x: &[f32], y: &[f32], out: &mut [f32]) {
    assert!(x.len() == y.len() && x.len() == out.len() && x.len().is_multiple_of(LANES));
    for start in (0..x.len()).step_by(LANES) {
        // SAFETY: steps of LANES stay inside all three.
        unsafe { V::load(x.as_ptr().add(start)).sub(V::load(y.as_ptr().add(start))).store(out.as_mut_ptr().add(start)) };
    }
}

/// Adds a chunk to its row of buckets: `add(group of buckets, signed and permuted elements)`.
///
/// XOR with `flip` moves whole groups of sixteen (its upper four bits) and lanes within a group (its lower four).
#[inline(always)]
unsafe fn scatter<V: Vector>(x: &[f32], layout: &Layout, first: u64, mut add: impl FnMut(usize, V)) {
    for (k, chunk) in x.chunks_exact(CHUNK).enumerate() {
        let index = first + k as u64;
        let (row, flip) = hash::place(layout.seed, index, layout.rows());
        // SAFETY: the instruction set is the caller's promise; groups of LANES stay inside the chunk.
        unsafe {
            let exchange = V::exchange(flip % LANES);
            for word in 0..CHUNK / 32 {
                let signs = hash::signs(layout.seed, index * (CHUNK / 32) as u64 + word as u64);
                for half in 0..2 {
                    let group = 2 * word + half;
                    let signed = V::load(chunk.as_ptr().add(group * LANES)).negate((signs >> (16 * half)) as u16);
                    add(row * CHUNK + (group ^ (flip / LANES)) * LANES, signed.permute(exchange));
                }
            }
        }
    }
}

/// Adds whole chunks, the first numbered `first`, to a sketch of fp32 buckets.
#[inline(always)]
unsafe fn sketch<V: Vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f32]) {
    assert!(buckets.len() == layout.buckets && layout.buckets.is_multiple_of(CHUNK));
    // SAFETY: `place` keeps rows below `layout.rows()`, so a group of buckets lies inside `buckets`.
    unsafe {
        scatter::<V>(x, layout, first, |start, values| {
            let address = buckets.as_mut_ptr().add(start);
            V::load(address).add(values).store(address);
        });
    }
}

/// Adds whole chunks, the first numbered `first`, to a sketch of fp64 buckets.
#[inline(always)]
unsafe fn sketch_f64<V: Vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f64]) {
    assert!(buckets.len() == layout.buckets && layout.buckets.is_multiple_of(CHUNK));
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        scatter::<V>(x, layout, first, |start, values| {
            for (bucket, value) in buckets[start..start + LANES].iter_mut().zip(values.to_array()) {
                *bucket += f64::from(value);
            }
        });
    }
}


/// One kernel compiled with an instruction set enabled, as a safe function for the table of that set.
macro_rules! entry {
    ([$($feature:literal)?] $kernel:ident::<$vector:ty>($($argument:ident: $type:ty),*) -> $result:ty) => {
        |$($argument: $type),*| {
            $(#[target_feature(enable = $feature)])?
            fn compiled($($argument: $type),*) -> $result {
                // SAFETY: the enclosing function enables what the vector type needs.
                unsafe { super::$kernel::<$vector>($($argument),*) }
            }
            // SAFETY: `Kernels::available` lists a table only where its instruction set was detected.
            #[allow(unused_unsafe)]
            unsafe { compiled($($argument),*) }
        }
    };
}

macro_rules! table {
    ($module:ident, $vector:ty, $name:literal $(, $feature:literal)?) => {
        mod $module {
            use super::*;

            pub const KERNELS: Kernels = Kernels {
                name: $name,
                peak: entry!([$($feature)?] peak::<$vector>(x: &[f32]) -> u32),
                squares: entry!([$($feature)?] squares::<$vector>(x: &[f32], scale: f32) -> f64),
                dot: entry!([$($feature)?] dot::<$vector>(x: &[f32], y: &[f32], x_scale: f32, y_scale: f32) -> f64),
                pair: entry!([$($feature)?] pair::<$vector>(x: &[f32], y: &[f32], x_scale: f32, y_scale: f32) -> PairSums),
                difference: entry!([$($feature)?] difference::<$vector>(x: &[f32], y: &[f32], out: &mut [f32]) -> ()),
                sketch: entry!([$($feature)?] sketch::<$vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f32]) -> ()),
                sketch_f64: entry!([$($feature)?] sketch_f64::<$vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f64]) -> ()),
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
table!(avx512, Avx512, "avx512", "avx512f,avx512dq");
#[cfg(target_arch = "x86_64")]
table!(avx2, Avx2, "avx2", "avx2");
table!(portable, Portable, "portable");

#[cfg(test)]
mod tests {
    use super::*;

    /// Heavy-tailed values with zeros: what gradients look like.
    fn values(seed: u64, length: usize) -> Vec<f32> {
        (0..length as u64)
            .map(|k| {
                let word = hash::mix(seed ^ hash::mix(k));
                let uniform = (word >> 40) as f32 / 16_777_216.0;
                let sign = if word & 1 == 0 { 1.0 } else { -1.0 };
                if word & 0xf0 == 0 { 0.0 } else { sign * (uniform * 12.0 - 20.0).exp2() }
            })
            .collect()
    }

    #[test]
    fn variants_agree_bit_for_bit_and_with_fp64() {
        let (x, y) = (values(1, BLOCK), values(2, BLOCK));
        let layout = Layout::new(1 << 20, 1024, 7);
        let outputs: Vec<_> = Kernels::available()
            .into_iter()
            .map(|k| {
                let peak = (k.peak)(&x);
                let scale = normalizer(f32::from_bits(peak));
                let mut buckets = vec![0.0; 1024];
                let mut wide = vec![0.0; 1024];
                let mut out = vec![0.0; BLOCK];
                (k.sketch)(&x, &layout, 5, &mut buckets);
                (k.sketch_f64)(&x, &layout, 5, &mut wide);
                (k.difference)(&x, &y, &mut out);
                let pair = (k.pair)(&x, &y, scale, 1.0);
                (peak, (k.squares)(&x, scale).to_bits(), (k.dot)(&x, &y, scale, 1.0).to_bits(), pair, buckets, wide, out)
            })
            .collect();
        for output in &outputs[1..] {
            assert_eq!(output, &outputs[0]);
        }

        let (peak, squares, dot, pair, buckets, wide, out) = &outputs[0];
        let wide_x = x.iter().map(|&v| f64::from(v));
        let products: Vec<f64> = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).collect();
        assert_eq!(f32::from_bits(*peak), x.iter().fold(0.0f32, |m, v| m.max(v.abs())));
        // 64 terms a lane: relative error at most 64·2⁻²⁴ of the sum of magnitudes.
        let bound = 64.0 * 2f64.powi(-24);
        let exact: f64 = wide_x.map(|v| v * v).sum();
        assert!((f64::from_bits(*squares) - exact).abs() <= bound * exact);
        let magnitude: f64 = products.iter().map(|p| p.abs()).sum();
        let exact: f64 = products.iter().sum();
        assert!((f64::from_bits(*dot) - exact).abs() <= bound * magnitude);
        assert!((pair.dot - exact).abs() <= bound * magnitude);
        let exact: f64 = products.iter().filter(|&&p| p < 0.0).map(|p| -p).sum();
        assert!((pair.opposing - exact).abs() <= bound * magnitude);
        assert_eq!(pair.conflicts, products.iter().filter(|&&p| p < 0.0).count() as u64);
        assert_eq!(pair.active, products.iter().filter(|&&p| p != 0.0).count() as u64);
        let exact: f64 = products.iter().map(|p| p * p).sum();
        assert!((pair.dot_squares - exact).abs() <= 2.0 * bound * exact);
        assert!(out.iter().zip(&x).zip(&y).all(|((&d, &x), &y)| d == x - y));

        let mut oracle = vec![0.0; 1024];
        crate::sketch::add(&layout, 5 * CHUNK as u64, &x, &mut oracle);
        assert_eq!(wide, &oracle, "same order of fp64 additions");
        assert!(buckets.iter().zip(&oracle).all(|(&b, &o)| (f64::from(b) - o).abs() < 1e-4));
    }

    #[test]
    fn extreme_magnitudes_neither_overflow_nor_vanish() {
        for exponent in [-140, -120, -60, 0, 60, 120] {
            let scale = 2f64.powi(exponent) as f32;
            let x: Vec<f32> = (0..BLOCK).map(|k| if k % 2 == 0 { scale } else { -scale }).collect();
            let y = vec![scale; BLOCK];
            let factor = normalizer(scale);
            let exact = 2f64.powi(2 * exponent) * BLOCK as f64;
            for kernels in Kernels::available() {
                let squares = (kernels.squares)(&x, factor);
                assert!((squares / exact - 1.0).abs() < 1e-6, "{} 2^{exponent}: {squares}", kernels.name);
                let pair = (kernels.pair)(&x, &y, factor, factor);
                assert_eq!((pair.conflicts, pair.active), (BLOCK as u64 / 2, BLOCK as u64));
                assert!((pair.opposing / exact - 0.5).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn one_bad_value_shows_in_the_peak() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(3, BLOCK);
            x[1234] = bad;
            for kernels in Kernels::available() {
                assert!((kernels.peak)(&x) >= f32::INFINITY.to_bits(), "{}", kernels.name);
            }
        }
    }
}
