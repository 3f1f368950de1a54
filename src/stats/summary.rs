//! Means, ratios and quantiles as every statistic here takes them.
//!
//! One convention: what is not defined is NaN, and a NaN among the values makes the result NaN. Quantiles interpolate between
//! order statistics (definition 7 of Hyndman & Fan 1996, the default of NumPy and R), so that a bootstrap interval and a
//! percentile of eight splits mean the same. Cost: one pass over the values.

/// Arithmetic mean; NaN of no values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (count, sum) = values.into_iter().fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    ratio(sum, count)
}

/// x/y; NaN unless y is positive, instead of a division by nothing.
pub fn ratio(x: f64, y: f64) -> f64 {
    if y > 0.0 { x / y } else { f64::NAN }
}

/// The value that a share of `sorted` lies below, 0 ≤ share ≤ 1. `sorted` ascends by `f64::total_cmp`. NaN of no values.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    if sorted.iter().any(|value| value.is_nan()) || !(0.0..=1.0).contains(&share) {
        return f64::NAN;
    }
    let position = share * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

/// Participation ratio (Σλ)²/Σλ² of eigenvalues: n if all are equal, 1 if one is all. NaN if all are zero.
pub fn participation_ratio(eigenvalues: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, squares) = eigenvalues.into_iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    ratio(sum * sum, squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_agree_with_numpy() {
        // numpy.quantile([1, 2, 4, 8, 16], …).
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (share, expected) in [(0.0, 1.0), (0.1, 1.4), (0.5, 4.0), (0.95, 14.4), (1.0, 16.0)] {
            // One product and one sum.
            assert!((quantile(&sorted, share) - expected).abs() < 1e-14);
        }
    }

    #[test]
    fn undefined_is_nan() {
        assert!(mean([]).is_nan() && mean([1.0, f64::NAN]).is_nan());
        assert!(ratio(1.0, 0.0).is_nan() && ratio(1.0, -1.0).is_nan() && ratio(1.0, f64::NAN).is_nan());
        assert!(quantile(&[], 0.5).is_nan() && quantile(&[1.0, f64::NAN], 0.0).is_nan());
        assert!(quantile(&[1.0], 1.5).is_nan() && quantile(&[1.0], f64::NAN).is_nan());
        assert!(participation_ratio([]).is_nan() && participation_ratio([0.0, 0.0]).is_nan());
        assert_eq!((mean([1.0, 3.0]), quantile(&[7.0], 0.3), participation_ratio([2.0; 7])), (2.0, 7.0, 7.0));
    }

    proptest! {
        #[test]
        fn quantiles_lie_between_the_extremes_and_rise(
            mut values in prop::collection::vec(-1e3f64..1e3, 1..30), share in 0.0f64..1.0, more in 0.0f64..1.0,
        ) {
            values.sort_by(f64::total_cmp);
            let (low, high) = (quantile(&values, share.min(more)), quantile(&values, share.max(more)));
            // Interpolation rounds at 2⁻⁵³ of values up to 10³.
            prop_assert!(low <= high + 1e-12 && low >= values[0] - 1e-12);
            prop_assert!(high <= values[values.len() - 1] + 1e-12);
        }

        #[test]
        fn participation_is_between_one_and_all(values in prop::collection::vec(0.01f64..10.0, 1..40)) {
            let found = participation_ratio(values.iter().copied());
            prop_assert!((1.0 - 1e-12..=values.len() as f64 * (1.0 + 1e-12)).contains(&found));
        }
    }
}
