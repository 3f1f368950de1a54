//! A layer's hidden states against those of the same tokens at the task's base pass.
//!
//! | | |
//! |---|---|
//! | debiased CKA | see [`super::cka`] |
//! | biased CKA | ‖XᵀX_A‖²_F / (‖XᵀX‖_F·‖X_AᵀX_A‖_F) over all tokens (Kornblith et al. 2019) |
//! | Procrustes | 2 − 2‖XᵀX_A‖_* for ‖X‖_F = ‖X_A‖_F = 1: squared distance after the best rotation (Schönemann 1966; Ding et al. 2021) |
//! | mean shift | ‖μ − μ_A‖ / √tr Cov_A |
//! | variance shift | ln(tr Cov / tr Cov_A) |
//!
//! X is centred. Both alignments and the nuclear norm are taken of the r × r product of the scores, of which the matrices of
//! hidden states are rotations: 2·n·r² operations for the product, 8/3·r³ for its singular values.

use super::cka::cka;
use super::linalg;
use super::noise::Estimate;
use super::sample::{Axes, Sample};
use super::summary::ratio;

/// One layer, now against base.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Debiased linear CKA with its jackknife standard error: 1 the same up to rotation and scale, 0 unrelated.
    pub cka: Estimate,
    /// Biased linear CKA of all tokens: 0 … 1, above 0 for unrelated states.
    pub cka_biased: f64,
    /// 0 … 2.
    pub procrustes: f64,
    /// Distance of the means in standard deviations of the base: ≥ 0. NaN where widths differ.
    pub mean_shift: f64,
    /// Nats; positive: more spread now.
    pub variance_shift: f64,
    /// Participation ratio now, and at the base.
    pub effective_rank: f64,
    pub effective_rank_base: f64,
    pub tokens: usize,
    pub batches: usize,
}

/// Compares two passes over the same tokens. NaN where either is not valid or their layouts differ.
pub fn compare(base: &Sample, now: &Sample) -> Comparison {
    let mut comparison = Comparison {
        cka: cka(base, now).estimate(),
        cka_biased: f64::NAN,
        procrustes: f64::NAN,
        mean_shift: f64::NAN,
        variance_shift: f64::NAN,
        effective_rank: now.effective_rank(),
        effective_rank_base: base.effective_rank(),
        tokens: now.tokens(),
        batches: now.batches(),
    };
    if let (Some(a), Some(b)) = (&base.axes, &now.axes)
        && base.layout == now.layout
    {
        (comparison.cka_biased, comparison.procrustes) = aligned(a, b);
        comparison.mean_shift = mean_shift(a, b, base.tokens());
        comparison.variance_shift = ratio(b.total(), a.total()).ln();
    }
    comparison
}

/// Biased CKA and Procrustes distance.
fn aligned(base: &Axes, now: &Axes) -> (f64, f64) {
    let Some(cross) = linalg::product(base.scores.t(), now.scores.view()) else { return (f64::NAN, f64::NAN) };
    let squares: f64 = cross.iter().map(|x| x * x).sum();
    let own = |axes: &Axes| axes.squares.iter().map(|x| x * x).sum::<f64>().sqrt();
    let nuclear = linalg::singular_values(cross.view()).map_or(f64::NAN, |values| values.sum());
    let distance = 2.0 - 2.0 * ratio(nuclear, base.total().sqrt() * now.total().sqrt());
    (ratio(squares, own(base) * own(now)), distance.clamp(0.0, 2.0))
}

fn mean_shift(base: &Axes, now: &Axes, tokens: usize) -> f64 {
    if base.mean.len() != now.mean.len() {
        return f64::NAN;
    }
    let distance: f64 = base.mean.iter().zip(&now.mean).map(|(x, y)| (x - y) * (x - y)).sum();
    ratio(distance, base.total() / (tokens - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;
    use ndarray::{Array1, Array2, Axis};
    use proptest::prelude::*;

    fn sample(rows: &Array2<f64>, batch: usize) -> Sample {
        let n = rows.nrows();
        let batches: Vec<usize> = (0..n).step_by(batch).map(|start| batch.min(n - start)).collect();
        Sample::new(&rows.mapv(|x| x as f32), &batches, &(0..n as u32).collect::<Vec<_>>(), 4)
    }

    #[test]
    fn independent_gaussians_show_what_debiasing_is_for() {
        let mut random = Random::new(1);
        let (n, p) = (256, 4096);
        let found = compare(&sample(&random.normals(n, p), n), &sample(&random.normals(n, p), n));
        // Wishart matrices of rank m = n − 1: E tr(AB)/E tr(A²) = p²m/(p²m + pm² + pm) = 1/(1 + (m + 1)/p) = 0.9412; its
        // spread is of the order of 1/√(m²p/n) < 10⁻³.
        assert!((found.cka_biased - 1.0 / (1.0 + n as f64 / p as f64)).abs() < 1e-3, "{found:?}");
        assert!(found.cka.value.abs() < 4.0 * found.cka.error && found.cka.error < 0.05, "{found:?}");
        // Both span almost all of the tokens' space; Procrustes sees likeness there too.
        assert!(found.procrustes < 0.2);
    }

    #[test]
    fn the_same_pass_has_moved_nowhere() {
        for (n, d) in [(40, 100), (100, 40)] {
            let x = sample(&(Random::new(2).normals(n, d) + 5.0), 20);
            let found = compare(&x, &x);
            // Sums of n·r products in fp64.
            assert!((found.cka.value - 1.0).abs() < 1e-14 && found.cka.error < 1e-14);
            assert!((found.cka_biased - 1.0).abs() < 1e-12 && found.procrustes < 1e-12);
            assert_eq!((found.mean_shift, found.variance_shift), (0.0, 0.0));
            assert_eq!((found.tokens, found.batches), (n, n / 20));
        }
    }

    /// From the definitions, on the hidden states themselves.
    #[test]
    fn agrees_with_the_definitions() {
        let mut random = Random::new(3);
        for (n, d) in [(12, 30), (30, 8)] {
            let x = random.normals(n, d).mapv(|x| f64::from(x as f32));
            let y = (&x * 1.5 + random.normals(n, d) + 0.3).mapv(|x| f64::from(x as f32));
            let found = compare(&sample(&x, n), &sample(&y, n));
            let mean = |m: &Array2<f64>| m.mean_axis(Axis(0)).unwrap();
            let (cx, cy) = (&x - &mean(&x), &y - &mean(&y));
            let norm2 = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>();
            let cross = linalg::product(cx.t(), cy.view()).unwrap();
            let own = |m: &Array2<f64>| norm2(&linalg::product(m.t(), m.view()).unwrap()).sqrt();
            let nuclear = linalg::singular_values(cross.view()).unwrap().sum();
            let shift: Array1<f64> = mean(&x) - mean(&y);
            let expected = [
                norm2(&cross) / (own(&cx) * own(&cy)),
                2.0 - 2.0 * nuclear / (norm2(&cx) * norm2(&cy)).sqrt(),
                (shift.iter().map(|x| x * x).sum::<f64>() / (norm2(&cx) / (n - 1) as f64)).sqrt(),
                (norm2(&cy) / norm2(&cx)).ln(),
            ];
            let values = [found.cka_biased, found.procrustes, found.mean_shift, found.variance_shift];
            for (value, expected) in values.iter().zip(expected) {
                // Scores of the Gram know singular values below 10⁻⁸ of the largest only as zero: the one of centring.
                assert!((value - expected).abs() < 1e-7, "{values:?} {expected:?}");
            }
        }
    }

    #[test]
    fn undefined_is_nan() {
        let mut random = Random::new(4);
        let x = sample(&random.normals(20, 6), 10);
        let constant = compare(&sample(&Array2::ones((20, 6)), 10), &x);
        assert!(constant.cka.value.is_nan() && constant.procrustes.is_nan() && constant.mean_shift.is_nan());
        assert!(constant.variance_shift.is_nan() && constant.effective_rank_base.is_nan());
        let other = compare(&sample(&random.normals(20, 6), 5), &x);
        assert!(other.cka_biased.is_nan(), "other minibatches, so perhaps other tokens");
        let wider = compare(&sample(&random.normals(20, 7), 10), &x);
        assert!(wider.mean_shift.is_nan() && !wider.cka_biased.is_nan());
        let mut broken = random.normals(20, 6);
        broken[[0, 5]] = f64::NEG_INFINITY;
        assert!(compare(&x, &sample(&broken, 10)).procrustes.is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn rotation_is_no_change_of_shape(seed: u64, n in 8usize..40, d in 2usize..40, scale in 0.1f64..10.0) {
            let mut random = Random::new(seed);
            let x = random.normals(n, d);
            let q = linalg::orthonormal(&random.normals(d, d)).unwrap();
            let y = linalg::product(x.view(), q.view()).unwrap() * scale;
            let found = compare(&sample(&x, n), &sample(&y, n));
            // fp32 rows: 2⁻²⁴ of each value. CKA and Procrustes are stationary at 1 and 0, so second order in them, but
            // rank that rounding adds in directions without any counts as √: 40 of them at 10⁻⁷.
            prop_assert!((found.cka_biased - 1.0).abs() < 1e-6 && found.procrustes < 1e-5, "{:?}", found);
            prop_assert!((found.variance_shift - 2.0 * scale.ln()).abs() < 1e-5);
        }

        #[test]
        fn ranges(seed: u64, n in 4usize..30, d in 1usize..30) {
            let mut random = Random::new(seed);
            let found = compare(&sample(&random.normals(n, d), n), &sample(&random.normals(n, d), n));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&found.cka_biased) && (0.0..=2.0).contains(&found.procrustes));
            prop_assert!(found.effective_rank >= 1.0 - 1e-12 && found.effective_rank <= n.min(d) as f64 + 1e-9);
        }
    }
}
