//! What the device has to find, in fp64 from the same fp32 values, and how far it may be from it.
//!
//! A thread sums up to 16 terms in fp32 by fused multiply-adds, then goes on in fp64. Each term has been rounded at most
//! twice before (a product, or the square of a product), each addition rounds once more by 2⁻²⁴ of a partial sum that is at
//! most the sum of magnitudes: (16 + 2)·2⁻²⁴ of that in all. Before, values are scaled by powers of two, which is exact;
//! what underflows then is below 2⁻¹⁴⁸ where the largest product is near 1.

use forgetscope::device::{GradientSums, PairSums, Span};
use forgetscope::sketch::Layout;

/// Relative to the sum of magnitudes.
pub const BOUND: f64 = 18.0 / (1u64 << 24) as f64;

/// The same of the CPU device: 64 terms a lane, and the lanes of four accumulators.
pub const CPU_BOUND: f64 = 68.0 / (1u64 << 24) as f64;

/// Rounding of fp32 and fp64 buckets.
pub const NARROW: f64 = 1.0 / (1u64 << 24) as f64;
pub const WIDE: f64 = 1.0 / (1u64 << 53) as f64;

/// Half the smallest positive fp32 number, twice over.
const UNDERFLOW: f64 = f64::from_bits((1023 - 148) << 52);

/// (index in the slice, value) of what is read.
pub type Elements = Vec<(u64, f32)>;

/// Values that are compared with, over a span of indices.
#[derive(Clone, Debug)]
pub struct KeptValues {
    pub span: Span,
    pub values: Vec<f32>,
}

impl KeptValues {
    /// At an index; zero where nothing is kept.
    pub fn at(&self, index: u64) -> f32 {
        let is_inside = (self.span.start..self.span.end).contains(&index);
        if is_inside { self.values[(index - self.span.start) as usize] } else { 0.0 }
    }
}

/// The power of two that brings a magnitude near 1.
fn normalizer(peak: f32) -> f64 {
    let field = 254 - i64::from(peak.abs().to_bits() >> 23);
    2f64.powi(field.clamp(1, 254) as i32 - 127)
}

fn peak(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |most: f32, x| most.max(x.abs()))
}

/// Asserts that a sum is near the terms' own.
pub fn assert_sum(what: &str, found: f64, terms: impl Iterator<Item = f64> + Clone, bound: f64, underflow: f64) {
    let (exact, magnitude): (f64, f64) = (terms.clone().sum(), terms.clone().map(f64::abs).sum());
    let room = bound * magnitude + underflow * terms.count() as f64;
    assert!((found - exact).abs() <= room, "{what}: {found:e}, should be {exact:e} ± {room:e}");
}

/// The values, zero in the place of NaN and infinity; and how many of those there are.
pub fn cleaned(elements: &Elements) -> (Elements, u64) {
    let clean = elements.iter().map(|&(index, x)| (index, if x.is_finite() { x } else { 0.0 })).collect();
    (clean, elements.iter().filter(|(_, x)| !x.is_finite()).count() as u64)
}

pub fn check_gradient(found: &GradientSums, elements: &Elements, bound: f64) {
    let (clean, non_finite) = cleaned(elements);
    assert_eq!((found.count, found.non_finite), (elements.len() as u64, non_finite));
    assert_eq!(found.peak, peak(clean.iter().map(|(_, x)| *x)));
    check_squares("Σ g²", found.squares, clean.iter().map(|(_, x)| *x), bound);
}

/// Σ x².
pub fn check_squares(what: &str, found: f64, values: impl Iterator<Item = f32> + Clone, bound: f64) {
    let scale = normalizer(peak(values.clone()));
    assert_sum(what, found, values.map(|x| f64::from(x) * f64::from(x)), bound, UNDERFLOW / scale / scale);
}

/// Σ x·y.
pub fn check_dot(what: &str, found: f64, pairs: impl Iterator<Item = (f32, f32)> + Clone, bound: f64) {
    let scale = normalizer(peak(pairs.clone().map(|(x, _)| x))) * normalizer(peak(pairs.clone().map(|(_, y)| y)));
    assert_sum(what, found, pairs.map(|(x, y)| f64::from(x) * f64::from(y)), bound, UNDERFLOW / scale);
}

/// Everything about `d` and a reference over the same elements.
pub fn check_pair(found: &PairSums, d: &Elements, reference: &KeptValues, bound: f64) {
    let pairs = d.iter().map(|&(index, d)| (d, reference.at(index)));
    let scale = normalizer(peak(pairs.clone().map(|(d, _)| d))) * normalizer(peak(pairs.clone().map(|(_, r)| r)));
    let products = pairs.clone().map(|(d, r)| f64::from(d) * f64::from(r));
    check_dot("Σ d·r", found.dot, pairs.clone(), bound);
    let opposing = products.clone().map(|p| (-p).max(0.0));
    assert_sum("Σ |d·r| of opposing", found.opposing, opposing, bound, UNDERFLOW / scale);
    let squares = products.clone().map(|p| p * p);
    assert_sum("Σ (d·r)²", found.dot_squares, squares, bound, UNDERFLOW / scale / scale);
    check_squares("Σ r²", found.reference_squares, pairs.map(|(_, r)| r), bound);
    // Exact but for products that underflow even when they are scaled.
    let count = |least: f64, is_opposing: bool| {
        let counts = |p: &f64| p.abs() > least && (!is_opposing || *p < 0.0);
        products.clone().filter(counts).count() as u64
    };
    for (what, found, is_opposing) in [("conflicts", found.conflicts, true), ("active", found.active, false)] {
        let (least, most) = (count(UNDERFLOW / scale, is_opposing), count(0.0, is_opposing));
        assert!((least..=most).contains(&found), "{what}: {found}, should be {least} to {most}");
    }
}

/// A sketch of `elements`, whose buckets were added up with a relative error of `rounding` for each addition.
pub fn check_sketch<T: Copy + Into<f64>>(found: &[T], layout: &Layout, elements: &Elements, rounding: f64) {
    assert_eq!(found.len(), layout.buckets);
    let mut buckets = vec![(0.0f64, 0.0f64, 0u32); layout.buckets];
    for &(index, x) in elements {
        let (bucket, sign) = layout.locate(index);
        let (sum, magnitude, count) = &mut buckets[bucket];
        *sum += f64::from(sign * x);
        *magnitude += f64::from(x.abs());
        *count += 1;
    }
    for (number, (&found, (exact, magnitude, count))) in found.iter().zip(buckets).enumerate() {
        let (found, additions) = (found.into(), if layout.identity { 0 } else { count });
        let room = f64::from(additions) * (rounding + WIDE) * magnitude;
        assert!((found - exact).abs() <= room, "bucket {number}: {found:e}, should be {exact:e} ± {room:e}");
    }
}
