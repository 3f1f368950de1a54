//! Whether the upper or the lower half of the layers changed more.
//!
//! ```text
//! difference = mean d_h over heads of the upper half − mean d_h over heads of the lower half
//! ```
//!
//! d_h as in [`super::contribution`]. Positive: the upper layers, nearer to the output, changed more. Of an odd number of
//! layers the middle one is in neither half.
//!
//! The interval is a percentile bootstrap over heads (Efron 1979), each half by itself. Heads of one layer share their
//! input, so that it is too narrow where whole layers move together. Null: no difference; an interval that holds 0 does not
//! tell one. Cost: [`RESAMPLES`] draws of every head.

use super::random::Random;
use super::summary::{mean, quantile};

/// Bootstrap resamples: the 2.5 % quantile has 50 of them below it.
const RESAMPLES: usize = 2000;

/// Probability that the interval is meant to hold the difference with.
const CONFIDENCE: f64 = 0.95;

const SEED: u64 = 0xdeb7;

/// Upper against lower half of the layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Depth {
    /// `upper` − `lower`, in units of d. NaN if a half is empty.
    pub difference: f64,
    /// Bootstrap interval of the difference. NaN for fewer than two heads in a half.
    pub low: f64,
    pub high: f64,
    /// Mean d of each half.
    pub lower: f64,
    pub upper: f64,
    /// Heads that were averaged over.
    pub lower_heads: usize,
    pub upper_heads: usize,
    /// Of the interval: 0.95.
    pub confidence: f64,
}

/// Compares the halves of `layers` layers. `differences`: (layer, d) of every head; those that are not finite are left out.
pub fn depth(layers: usize, differences: &[(usize, f64)]) -> Depth {
    let half = layers / 2;
    let pick = |within: std::ops::Range<usize>| -> Vec<f64> {
        differences.iter().filter(|(layer, d)| within.contains(layer) && d.is_finite()).map(|&(_, d)| d).collect()
    };
    let (lower, upper) = (pick(0..half), pick(layers - half..layers));
    let (lower_mean, upper_mean) = (mean(lower.iter().copied()), mean(upper.iter().copied()));
    let (mut low, mut high) = (f64::NAN, f64::NAN);
    if lower.len() > 1 && upper.len() > 1 {
        let mut random = Random::new(SEED);
        let mut resample = |values: &[f64]| mean((0..values.len()).map(|_| values[random.below(values.len())]));
        let mut differences: Vec<f64> = (0..RESAMPLES).map(|_| resample(&upper) - resample(&lower)).collect();
        differences.sort_by(f64::total_cmp);
        low = quantile(&differences, (1.0 - CONFIDENCE) / 2.0);
        high = quantile(&differences, (1.0 + CONFIDENCE) / 2.0);
    }
    Depth {
        difference: upper_mean - lower_mean,
        low,
        high,
        lower: lower_mean,
        upper: upper_mean,
        lower_heads: lower.len(),
        upper_heads: upper.len(),
        confidence: CONFIDENCE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_and_their_sign() {
        let heads: Vec<(usize, f64)> =
            (0..5).flat_map(|layer| [(layer, layer as f64), (layer, layer as f64)]).collect();
        let found = depth(5, &heads);
        assert_eq!((found.lower, found.upper, found.difference), (0.5, 3.5, 3.0));
        assert_eq!((found.lower_heads, found.upper_heads), (4, 4), "the middle layer is in neither");
        assert!(found.low > 0.0 && found.low <= 3.0 && found.high >= 3.0);
        assert_eq!(found, depth(5, &heads), "the same numbers every time");
    }

    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let mut random = Random::new(1);
        let trials = 300;
        let covered = (0..trials).filter(|_| {
            let mut heads = |layers: std::ops::Range<usize>, mean: f64| -> Vec<(usize, f64)> {
                layers.flat_map(|layer| [layer; 8]).map(|layer| (layer, mean + 0.2 * random.normal())).collect()
            };
            let found = depth(8, &[heads(0..4, 1.0), heads(4..8, 1.1)].concat());
            found.low <= 0.1 && 0.1 <= found.high
        });
        let covered = covered.count();
        // Percentile intervals of 32 values a side cover 94 % (the bootstrap variance lacks 1/32 of itself); 300 trials, four
        // standard deviations of 4.1 around 282.
        assert!((266..=298).contains(&covered), "{covered} of {trials}");
    }

    #[test]
    fn undefined_is_nan() {
        let found = depth(4, &[(0, 1.0), (0, f64::NAN), (3, 2.0), (3, f64::INFINITY)]);
        assert_eq!((found.difference, found.lower_heads, found.upper_heads), (1.0, 1, 1));
        assert!(found.low.is_nan() && found.high.is_nan(), "one head has no spread");
        assert!(depth(1, &[(0, 1.0)]).difference.is_nan() && depth(0, &[]).difference.is_nan());
        assert!(depth(4, &[(0, 1.0), (1, 1.0)]).upper.is_nan());
    }

    proptest! {
        #[test]
        fn turning_the_stack_over_turns_the_sign(values in prop::collection::vec(0.0f64..10.0, 8..40)) {
            let layers = values.len() / 2;
            let heads: Vec<(usize, f64)> = values.iter().enumerate().map(|(i, &d)| (i % layers, d)).collect();
            let turned: Vec<(usize, f64)> = heads.iter().map(|&(layer, d)| (layers - 1 - layer, d)).collect();
            let (a, b) = (depth(layers, &heads), depth(layers, &turned));
            prop_assert_eq!(a.difference, -b.difference);
            prop_assert!(a.low <= a.high);
        }
    }
}
