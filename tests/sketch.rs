//! What the sketch promises: unbiased, error within theory on bad data, shards add up, same everywhere.

use forgetscope::sketch::algebra::dot;
use forgetscope::sketch::hash::{mix, seed};
use forgetscope::sketch::{Layout, add};
use proptest::prelude::*;

/// A heavy-tailed vector: log-uniform magnitudes, and rows and columns of a 256-column matrix that stand out, as weights
/// and gradients of transformers have them. Nearly all energy lies in few coordinates.
fn heavy_tailed(key: u64, length: usize) -> Vec<f32> {
    (0..length as u64)
        .map(|k| {
            let word = mix(mix(key) ^ k);
            let uniform = (word >> 40) as f32 / 16_777_216.0;
            let sign = if word & 1 == 0 { 1.0 } else { -1.0 };
            let (row, col) = (k / 256, k % 256);
            let outlier = if row % 97 == 5 || col == 17 { 30.0 } else { 1.0 };
            sign * outlier * (-8.0 * uniform).exp()
        })
        .collect()
}

fn exact_dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

fn sketch(layout: &Layout, first: u64, values: &[f32]) -> Vec<f64> {
    let mut buckets = vec![0.0; layout.buckets];
    add(layout, first, values, &mut buckets);
    buckets
}

/// Mean and standard deviation over hash seeds of ⟨Sx, Sy⟩ − ⟨x, y⟩.
fn errors(x: &[f32], y: &[f32], buckets: usize, trials: u64) -> (f64, f64) {
    let exact = exact_dot(x, y);
    let errors: Vec<f64> = (0..trials)
        .map(|trial| {
            let layout = Layout::new(x.len() as u64, buckets, mix(trial + 1));
            dot(&sketch(&layout, 0, x), &sketch(&layout, 0, y)) - exact
        })
        .collect();
    let mean = errors.iter().sum::<f64>() / trials as f64;
    let variance = errors.iter().map(|e| (e - mean) * (e - mean)).sum::<f64>() / (trials - 1) as f64;
    (mean, variance.sqrt())
}

#[test]
fn unbiased_with_the_variance_that_theory_gives() {
    let length = 1 << 16;
    let x = heavy_tailed(1, length);
    let noise = heavy_tailed(2, length);
    // A pair with cosine near .5, and an unrelated pair.
    let y: Vec<f32> = x.iter().zip(&noise).map(|(x, n)| x + 1.7 * n).collect();
    for (x, y) in [(&x, &y), (&x, &noise)] {
        for buckets in [1024, 4096] {
            let trials = 200;
            let (mean, deviation) = errors(x, y, buckets, trials);
            let (xx, yy, xy) = (exact_dot(x, x), exact_dot(y, y), exact_dot(x, y));
            let squares: f64 = x.iter().zip(y).map(|(&x, &y)| (f64::from(x) * f64::from(y)).powi(2)).sum();
            let theory = ((xx * yy + xy * xy - 2.0 * squares) / buckets as f64).sqrt();
            // Mean: four standard errors. Deviation: its relative standard error is 1/√(2·trials), times four, and
            // excess kurtosis of the products widens that at most twofold.
            assert!(mean.abs() < 4.0 * theory / (trials as f64).sqrt(), "bias {mean}, one trial {theory}");
            let width = 2.0 * 4.0 / (2.0 * trials as f64).sqrt();
            assert!((deviation / theory - 1.0).abs() < width, "{deviation} against {theory} for {buckets} buckets");
            let bound = Layout::new(length as u64, buckets, 0).standard_error(xx, yy, xy);
            assert!(theory <= bound, "what records carry is an upper bound");
        }
    }
}

#[test]
fn small_slices_are_kept_exactly() {
    let x = heavy_tailed(3, 1000);
    let layout = Layout::new(1000, 1024, 9);
    assert!(layout.identity);
    assert_eq!(sketch(&layout, 0, &x), x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
}

#[test]
fn a_chunk_never_collides_with_itself() {
    let layout = Layout::new(1 << 20, 1024, seed("w", 3, 1));
    for chunk in [0u64, 1, 77, 4095] {
        let mut buckets: Vec<_> = (0..256).map(|k| layout.locate(chunk * 256 + k).0).collect();
        buckets.sort_unstable();
        buckets.dedup();
        assert_eq!(buckets.len(), 256);
    }
}

/// Other processes, ranks and runs must build the same sketch: these numbers are part of the format. If this test fails,
/// `hash::VERSION` has to change.
#[test]
fn seeds_and_buckets_are_the_same_everywhere() {
    let seed = seed("blocks.0.attn.qkv.weight", 3, 2);
    let layout = Layout::new(1 << 20, 1024, seed);
    let located = [0u64, 1, 255, 256, 123_456, (1 << 20) - 1].map(|index| layout.locate(index));
    assert_eq!(seed, GOLDEN_SEED);
    assert_eq!(located, GOLDEN);
}

// From a second implementation of the formulas in `sketch`'s documentation, in Python.
const GOLDEN_SEED: u64 = 5012380385563962886;
const GOLDEN: [(usize, f32); 6] = [(468, 1.0), (469, 1.0), (299, 1.0), (238, 1.0), (281, 1.0), (419, -1.0)];

#[test]
fn seeds_differ_by_name_part_and_head() {
    let mut seeds: Vec<u64> = Vec::new();
    for name in ["a", "b", "ab", "layer.1", "layer.11"] {
        for part in 0..16 {
            seeds.extend((0..64).map(|head| seed(name, part, head)));
        }
    }
    let count = seeds.len();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), count);
}

proptest! {
    /// Linearity: however the elements are dealt out to shards, the shards' sketches add up to that of the whole, to the
    /// rounding of fp64 sums.
    #[test]
    fn shards_add_up(key in 0u64..1000, cuts in prop::collection::vec(0usize..20_000, 0..6), columns in 1usize..64) {
        let length = 20_000;
        let x = heavy_tailed(key, length);
        let layout = Layout::new(length as u64, 1024, mix(key));
        let whole = sketch(&layout, 0, &x);
        let close = |sum: &[f64]| sum.iter().zip(&whole).all(|(s, w)| (s - w).abs() <= 1e-9);

        // Ragged flat ranges, and ranges of rows.
        for unit in [1, columns] {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut / unit * unit).chain([length]).collect();
            ends.sort_unstable();
            let (mut sum, mut start) = (vec![0.0; layout.buckets], 0);
            for end in ends {
                add(&layout, start as u64, &x[start..end], &mut sum);
                start = end;
            }
            prop_assert!(close(&sum));
        }

        // Columns: every rank has some of each row.
        let ranks = 1 + key as usize % 4;
        let mut sum = vec![0.0; layout.buckets];
        for rank in 0..ranks {
            for index in (0..length).filter(|index| index % columns % ranks == rank) {
                add(&layout, index as u64, &x[index..=index], &mut sum);
            }
        }
        prop_assert!(close(&sum));
    }
}
