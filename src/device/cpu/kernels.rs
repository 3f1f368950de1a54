//! The inner loops: sums over at most 4,096 fp32 elements, and sketches of them.
//!
//! A kernel works on a block that lies in the first-level cache, in fp32 lanes, and hands one fp64 number up: 64 lanes
//! of at most 64 terms each, so rounding stays near 2⁻²² relative, and everything above a block is fp64. Products are
//! taken of values scaled by powers of two that bring the block's largest magnitude near 1: exact, and neither overflow
//! nor underflow can spoil a sum, whatever the loss scale.
//!
//! The arithmetic of a block takes about as long as fetching it, and the processor's own prefetching ends while a block is
//! being computed on. So two of the kernels ask for the lines of the next block as they go; measured, that is a third.
//!
//! All blocks are whole chunks of 256 elements, filled up with zeros, which add nothing to any sum.

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{LANES, Portable, Vector};
use crate::device::PairSums;
use crate::sketch::{CHUNK, Layout, hash};

/// Elements of a block: 16 KiB of fp32, so that two blocks fit the smallest first-level cache in use.
pub const BLOCK: usize = 4096;

/// For [`Kernels::sketch`], when nothing is known to be next: prefetching an address that is not there does nothing.
pub const NOWHERE: *const u8 = std::ptr::null();

/// Independent accumulators: enough to hide the latency of an addition.
const WIDTH: usize = 4;
const STRIDE: usize = WIDTH * LANES;

/// What the two factors of a product are multiplied by first: see [`normalizers`].
pub type Scales = (f32, f32);

/// The kernels compiled for one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    pub name: &'static str,
    pub peak: fn(&[f32]) -> u32,
    pub squares: fn(&[f32], f32) -> f64,
    pub dot: fn(&[f32], &[f32], Scales) -> f64,
    pub pair: fn(&[f32], &[f32], Scales) -> PairSums,
    pub widen: fn(&[u16], &mut [f32]),
    pub difference: fn(&[f32], &[f32], &mut [f32]),
    pub sketch: fn(&[f32], &Layout, u64, &mut [f32], *const u8),
    pub sketch_f64: fn(&[f32], &Layout, u64, &mut [f64]),
}

impl Kernels {
    /// Every variant that this machine can run, best first. All give the same bits.
    pub fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            // Every processor with these vectors has these too; an emulator might not.
            let common = is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt");
            if common && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                available.push(avx512::KERNELS);
            }
            if common && is_x86_feature_detected!("avx2") {
                available.push(avx2::KERNELS);
            }
        }
        available.push(portable::KERNELS);
        available
    }
}

/// Powers of two by which two factors have to be multiplied before they are multiplied with each other, so that products
/// and squares of products stay in range: 1 where they do anyhow, which is nearly always. An infinite peak (a difference of
/// large numbers) counts as the largest finite one: sums with it are infinite, or NaN where infinities cancel.
#[inline(always)]
pub fn normalizers(x_peak: f32, y_peak: f32) -> Scales {
    // A product of peaks down to 2⁻⁴⁰ has a square of 2⁻⁸⁰: only terms 2²³ times smaller than it underflow.
    const SAFE: i32 = 40;
    let exponent = |peak: f32| ((peak.to_bits() >> 23) & 0xff) as i32 - 127;
    let (x, y) = (exponent(x_peak), exponent(y_peak));
    if (x + y).abs() <= SAFE && x.abs() <= 2 * SAFE {
        return (1.0, 1.0);
    }
    // Subnormal peaks would need a scale beyond 2¹²⁶, and the largest a subnormal one: they are scaled as far as that goes.
    let scale = |exponent: i32| f32::from_bits(((127 - exponent.clamp(-126, 126)) as u32) << 23);
    (scale(x), scale(y))
}

/// The same for the squares of one factor.
#[inline(always)]
pub fn normalizer(peak: f32) -> f32 {
    normalizers(peak, peak).0
}

/// Sum of all lanes of all accumulators: the accumulators in fp32, their lanes in fp64, in a fixed order.
#[inline(always)]
unsafe fn fold<V: Vector>([a, b, c, d]: [V; WIDTH]) -> f64 {
    // SAFETY: the instruction set is the caller's promise.
    let lanes = unsafe { a.add(b).add(c.add(d)).to_array() };
    let mut wide = lanes.map(f64::from);
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for k in 0..width {
            wide[k] += wide[k + width];
        }
    }
    wide[0]
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
        let [a, b, c, d] = accumulators;
        let lanes = a.max_magnitude(b).max_magnitude(c.max_magnitude(d)).to_array();
        lanes.into_iter().map(f32::to_bits).fold(0, u32::max)
    }
}

/// Σ x², for x scaled by `scale`; the result is of the unscaled x.
#[inline(always)]
unsafe fn squares<V: Vector>(x: &[f32], scale: f32) -> f64 {
    // SAFETY: the instruction set is the caller's promise.
    unsafe { if scale == 1.0 { squares_of::<V, false>(x, scale) } else { squares_of::<V, true>(x, scale) } }
}

#[inline(always)]
unsafe fn squares_of<V: Vector, const SCALED: bool>(x: &[f32], scale: f32) -> f64 {
    debug_assert!(x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside `x`, whose length is a multiple of CHUNK.
    unsafe {
        let factor = V::splat(scale);
        let mut accumulators = [V::splat(0.0); WIDTH];
        for start in (0..x.len()).step_by(STRIDE) {
            for (k, accumulator) in accumulators.iter_mut().enumerate() {
                let x = scaled::<V, SCALED>(x.as_ptr().add(start + k * LANES), factor);
                *accumulator = x.mul_add(x, *accumulator);
            }
        }
        fold(accumulators) / (f64::from(scale) * f64::from(scale))
    }
}

/// Sixteen values, multiplied if that is needed: the multiplication is a quarter of the work of a sum.
#[inline(always)]
unsafe fn scaled<V: Vector, const SCALED: bool>(address: *const f32, factor: V) -> V {
    // SAFETY: sixteen readable values and the instruction set are the caller's promise.
    unsafe { if SCALED { V::load(address).mul(factor) } else { V::load(address) } }
}

/// Σ x·y, each scaled by its own factor; the result is of the unscaled values.
#[inline(always)]
unsafe fn dot<V: Vector>(x: &[f32], y: &[f32], scales: Scales) -> f64 {
    // SAFETY: the instruction set is the caller's promise.
    unsafe { if scales == (1.0, 1.0) { dot_of::<V, false>(x, y, scales) } else { dot_of::<V, true>(x, y, scales) } }
}

#[inline(always)]
unsafe fn dot_of<V: Vector, const SCALED: bool>(x: &[f32], y: &[f32], scales: Scales) -> f64 {
    assert!(x.len() == y.len() && x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside both, whose common length is a multiple of CHUNK.
    unsafe {
        let (x_factor, y_factor) = (V::splat(scales.0), V::splat(scales.1));
        let mut accumulators = [V::splat(0.0); WIDTH];
        for start in (0..x.len()).step_by(STRIDE) {
            for (k, accumulator) in accumulators.iter_mut().enumerate() {
                let x = scaled::<V, SCALED>(x.as_ptr().add(start + k * LANES), x_factor);
                let y = scaled::<V, SCALED>(y.as_ptr().add(start + k * LANES), y_factor);
                *accumulator = x.mul_add(y, *accumulator);
            }
        }
        fold(accumulators) / (f64::from(scales.0) * f64::from(scales.1))
    }
}

/// Everything a gradient and a reference have in common: see [`PairSums`]. Asks for what follows `y` in memory.
#[inline(always)]
unsafe fn pair<V: Vector>(x: &[f32], y: &[f32], scales: Scales) -> PairSums {
    // SAFETY: the instruction set is the caller's promise.
    unsafe { if scales == (1.0, 1.0) { pair_of::<V, false>(x, y, scales) } else { pair_of::<V, true>(x, y, scales) } }
}

#[inline(always)]
unsafe fn pair_of<V: Vector, const SCALED: bool>(x: &[f32], y: &[f32], scales: Scales) -> PairSums {
    assert!(x.len() == y.len() && x.len().is_multiple_of(CHUNK));
    // SAFETY: steps of STRIDE stay inside both, whose common length is a multiple of CHUNK.
    unsafe {
        let zero = V::splat(0.0);
        let (x_factor, y_factor) = (V::splat(scales.0), V::splat(scales.1));
        let (mut dots, mut opposing, mut squares) = ([zero; WIDTH], [zero; WIDTH], [zero; WIDTH]);
        let (mut conflicts, mut active) = (0, 0);
        for start in (0..x.len()).step_by(STRIDE) {
            for k in 0..WIDTH {
                V::prefetch(y.as_ptr().wrapping_add(y.len() + start + k * LANES).cast());
                let x = scaled::<V, SCALED>(x.as_ptr().add(start + k * LANES), x_factor);
                let y = scaled::<V, SCALED>(y.as_ptr().add(start + k * LANES), y_factor);
                let product = x.mul(y);
                let (rest, negative, nonzero) = product.take_negative(opposing[k]);
                dots[k] = dots[k].add(product);
                opposing[k] = rest;
                squares[k] = product.mul_add(product, squares[k]);
                conflicts += negative;
                active += nonzero;
            }
        }
        let scale = f64::from(scales.0) * f64::from(scales.1);
        PairSums {
            dot: fold(dots) / scale,
            opposing: fold(opposing) / scale,
            conflicts: u64::from(conflicts),
            active: u64::from(active),
            dot_squares: fold(squares) / (scale * scale),
            // Known of the reference as a whole, and not taken with every gradient.
            reference_squares: 0.0,
        }
    }
}

/// bfloat16 to fp32, which is exact. Plain Rust: the compiler makes vectors of it for each instruction set.
#[inline(always)]
unsafe fn widen<V: Vector>(x: &[u16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32::from_bits(u32::from(*x) << 16);
    }
}

/// `out = x − y`.
#[inline(always)]
unsafe fn difference<V: Vector>(x: &[f32], y: &[f32], out: &mut [f32]) {
    assert!(x.len() == y.len() && x.len() == out.len() && x.len().is_multiple_of(LANES));
    for start in (0..x.len()).step_by(LANES) {
        // SAFETY: steps of LANES stay inside all three.
        unsafe {
            V::load(x.as_ptr().add(start)).sub(V::load(y.as_ptr().add(start))).store(out.as_mut_ptr().add(start))
        };
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
            for word in 0..CHUNK / 64 {
                let signs = hash::signs(layout.seed, index * (CHUNK / 64) as u64 + word as u64);
                for quarter in 0..4 {
                    let group = 4 * word + quarter;
                    let signed = V::load(chunk.as_ptr().add(group * LANES)).negate((signs >> (16 * quarter)) as u16);
                    add(row * CHUNK + (group ^ (flip / LANES)) * LANES, signed.permute(exchange));
                }
            }
        }
    }
}

/// Adds whole chunks, the first numbered `first`, to a sketch of fp32 buckets. Asks for as many bytes from `next` on.
#[inline(always)]
unsafe fn sketch<V: Vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f32], next: *const u8) {
    assert!(buckets.len() == layout.buckets && layout.buckets.is_multiple_of(CHUNK));
    // SAFETY: `place` keeps rows below `layout.rows()`, so a group of buckets lies inside `buckets`.
    unsafe {
        let mut line = next;
        scatter::<V>(x, layout, first, |start, values| {
            V::prefetch(line);
            line = line.wrapping_add(4 * LANES);
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
                dot: entry!([$($feature)?] dot::<$vector>(x: &[f32], y: &[f32], scales: Scales) -> f64),
                pair: entry!([$($feature)?] pair::<$vector>(x: &[f32], y: &[f32], scales: Scales) -> PairSums),
                widen: entry!([$($feature)?] widen::<$vector>(x: &[u16], out: &mut [f32]) -> ()),
                difference: entry!([$($feature)?] difference::<$vector>(x: &[f32], y: &[f32], out: &mut [f32]) -> ()),
                sketch: entry!([$($feature)?] sketch::<$vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f32], next: *const u8) -> ()),
                sketch_f64: entry!([$($feature)?] sketch_f64::<$vector>(x: &[f32], layout: &Layout, first: u64, buckets: &mut [f64]) -> ()),
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
table!(avx512, Avx512, "avx512", "avx512f,avx512dq,fma,popcnt,bmi1,bmi2,lzcnt");
#[cfg(target_arch = "x86_64")]
table!(avx2, Avx2, "avx2", "avx2,fma,popcnt,bmi1,bmi2,lzcnt");
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
                (k.sketch)(&x, &layout, 5, &mut buckets, NOWHERE);
                (k.sketch_f64)(&x, &layout, 5, &mut wide);
                (k.difference)(&x, &y, &mut out);
                let scales = normalizers(f32::from_bits(peak), 1.0);
                let pair = (k.pair)(&x, &y, scales);
                (peak, (k.squares)(&x, scale).to_bits(), (k.dot)(&x, &y, scales).to_bits(), pair, buckets, wide, out)
            })
            .collect();
        for output in &outputs[1..] {
            assert_eq!(output, &outputs[0]);
        }

        let (peak, squares, dot, pair, buckets, wide, out) = &outputs[0];
        let wide_x = x.iter().map(|&v| f64::from(v));
        let products: Vec<f64> = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).collect();
        assert_eq!(f32::from_bits(*peak), x.iter().fold(0.0f32, |m, v| m.max(v.abs())));
        // 64 terms a lane, each rounded once, and four lanes added: at most 68·2⁻²⁴ of the sum of magnitudes.
        let bound = 68.0 * 2f64.powi(-24);
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
        for exponent in [-140, -120, -60, -21, -20, 0, 20, 21, 60, 120, 126, 127] {
            let scale = 2f64.powi(exponent) as f32;
            let x: Vec<f32> = (0..BLOCK).map(|k| if k % 2 == 0 { scale } else { -scale }).collect();
            let y = vec![scale; BLOCK];
            let factor = normalizer(scale);
            let exact = 2f64.powi(2 * exponent) * BLOCK as f64;
            for kernels in Kernels::available() {
                let squares = (kernels.squares)(&x, factor);
                assert!((squares / exact - 1.0).abs() < 1e-6, "{} 2^{exponent}: {squares}", kernels.name);
                let pair = (kernels.pair)(&x, &y, normalizers(scale, scale));
                assert_eq!((pair.conflicts, pair.active), (BLOCK as u64 / 2, BLOCK as u64));
                let dot_squares = 2f64.powi(4 * exponent) * BLOCK as f64;
                assert!((pair.dot_squares / dot_squares - 1.0).abs() < 1e-6, "{} 2^{exponent}", kernels.name);
                assert!((pair.opposing / exact - 0.5).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn infinite_differences_give_infinite_sums() {
        let (mut x, y, mut difference) = (vec![0.0; BLOCK], vec![-3e38; BLOCK], vec![0.0; BLOCK]);
        x[77] = 3e38;
        for kernels in Kernels::available() {
            (kernels.difference)(&x, &y, &mut difference);
            let peak = f32::from_bits((kernels.peak)(&difference));
            assert_eq!(peak, f32::INFINITY);
            let scale = normalizer(peak);
            assert!(scale.is_normal(), "{scale}");
            assert_eq!((kernels.squares)(&difference, scale), f64::INFINITY);
            let ones = vec![1.0; BLOCK];
            for (other, sign) in [(&ones, 1.0), (&y, -1.0)] {
                let scales = normalizers(peak, other[0].abs());
                assert_eq!((kernels.dot)(&difference, other, scales), sign * f64::INFINITY);
                let pair = (kernels.pair)(&difference, other, scales);
                assert_eq!((pair.dot, pair.dot_squares), (sign * f64::INFINITY, f64::INFINITY));
                assert_eq!(pair.opposing, if sign < 0.0 { f64::INFINITY } else { 0.0 });
                assert_eq!(pair.conflicts, if sign < 0.0 { BLOCK as u64 } else { 0 });
            }
            // All but the infinite one are near the end of the range, and their sums are right.
            difference[77] = 0.0;
            let exact = (BLOCK - 1) as f64 * f64::from(3e38f32) * f64::from(3e38f32);
            assert!(((kernels.squares)(&difference, normalizer(3e38)) / exact - 1.0).abs() < 1e-6);
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
