//! Spectrum of the empirical Fisher information, from the gradients of a few batches.
//!
//! ```text
//! F = examples · covariance of the batch gradients g_b      (centred, unbiased: over B − 1)
//! ```
//!
//! as in `stats::prediction`. F has as many rows as the model has parameters, but its eigenvalues other than zero are those
//! of examples/(B − 1) times the centred B × B Gram matrix ⟨g_b − ḡ, g_c − ḡ⟩, of which there are at most B − 1. It is the
//! Hessian's stand-in, not the Hessian (Kunstner, Balles & Hennig 2019). *Centred*, because the uncentred one has ḡḡᵀ in
//! it, which away from a minimum is one large eigenvalue that says nothing of curvature.
//!
//! Null: noise alike in all directions, far more of them than batches, gives B − 1 equal eigenvalues: the largest is
//! 1/(B − 1) of the trace and the effective rank is B − 1. The trace is unbiased; eigenvalues one by one are spread by the
//! sample, the largest upwards. Cost: a B × B eigenproblem.

use super::linalg;
use super::summary::{mean, participation_ratio};
use ndarray::Array2;

/// Eigenvalues and what follows from them. Units: of the squared gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Fisher {
    /// Largest first; as many as there are batches, of which at least one is zero.
    pub eigenvalues: Vec<f64>,
    pub trace: f64,
    /// tr²F/tr F², between 1 and B − 1.
    pub effective_rank: f64,
}

/// From the Gram matrix of the batch gradients. `None` for fewer than two batches, or if something is not finite.
pub fn fisher(gram: &Array2<f64>, examples: f64) -> Option<Fisher> {
    let n = gram.nrows();
    if n < 2 {
        return None;
    }
    let means: Vec<f64> = gram.outer_iter().map(|row| mean(row.iter().copied())).collect();
    let all = mean(means.iter().copied());
    let factor = examples / (n - 1) as f64;
    let centred = Array2::from_shape_fn((n, n), |(i, j)| factor * (gram[[i, j]] - means[i] - means[j] + all));
    let mut eigenvalues = linalg::symmetric_eigenvalues(&centred)?.to_vec();
    eigenvalues.reverse();
    Some(Fisher {
        trace: centred.diag().sum(),
        effective_rank: participation_ratio(eigenvalues.iter().copied()),
        eigenvalues,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::hash::mix;
    use proptest::prelude::*;

    fn gram(rows: &[Vec<f64>]) -> Array2<f64> {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        Array2::from_shape_fn((rows.len(), rows.len()), |(i, j)| dot(&rows[i], &rows[j]))
    }

    #[test]
    fn a_covariance_along_axes() {
        // Two of eight batches lie on each of four axes, ±a around a common mean: variance 2a²/7 along it.
        let a = [3.0, 2.0, 1.0, 0.5];
        let row =
            |axis: usize, sign: f64| (0..6).map(|k| 10.0 + if k == axis { sign * a[axis] } else { 0.0 }).collect();
        let rows: Vec<Vec<f64>> = (0..4).flat_map(|axis| [row(axis, 1.0), row(axis, -1.0)]).collect();
        let found = fisher(&gram(&rows), 5.0).unwrap();
        // The mean's square, 600, is taken out of every element: 10⁻¹³ remains of it.
        for (found, a) in found.eigenvalues.iter().zip(a) {
            assert!((found - 5.0 * 2.0 * a * a / 7.0).abs() < 1e-11, "{found}");
        }
        assert!(found.eigenvalues[4..].iter().all(|x| x.abs() < 1e-11));
        assert!((found.trace - 5.0 * 2.0 * (9.0 + 4.0 + 1.0 + 0.25) / 7.0).abs() < 1e-11);
    }

    #[test]
    fn noise_alike_in_all_directions_is_the_null() {
        let p = 20_000;
        let rows: Vec<Vec<f64>> =
            (0..16u64).map(|b| (0..p).map(|k| if mix(mix(b) ^ k) & 1 == 0 { 1.0 } else { -1.0 }).collect()).collect();
        let found = fisher(&gram(&rows), 1.0).unwrap();
        // Marchenko and Pastur: eigenvalues within 1 ± 2√(15/20000) of their mean, effective rank B − 1 up to 15/20000.
        assert!((found.eigenvalues[0] / found.trace * 15.0 - 1.0).abs() < 0.08, "{found:?}");
        assert!((found.effective_rank / 15.0 - 1.0).abs() < 0.01);
    }

    proptest! {
        #[test]
        fn the_trace_is_the_variance(seed: u64, batches in 2usize..12, examples in 1.0f64..100.0) {
            let value = |b: usize, k: u64| (mix(mix(seed ^ b as u64) ^ k) >> 11) as f64 / 2f64.powi(53);
            let rows: Vec<Vec<f64>> = (0..batches).map(|b| (0..20).map(|k| value(b, k)).collect()).collect();
            let n = batches as f64;
            let variance: f64 = (0..20)
                .map(|k| {
                    let mean = rows.iter().map(|row| row[k]).sum::<f64>() / n;
                    rows.iter().map(|row| (row[k] - mean).powi(2)).sum::<f64>() / (n - 1.0)
                })
                .sum();
            let found = fisher(&gram(&rows), examples).unwrap();
            prop_assert!((found.trace - examples * variance).abs() < 1e-10 * examples * n);
            prop_assert!((found.eigenvalues.iter().sum::<f64>() - found.trace).abs() < 1e-9 * examples * n);
            prop_assert!(found.eigenvalues.is_sorted_by(|x, y| x >= y));
            prop_assert!(found.effective_rank >= 1.0 - 1e-9 && found.effective_rank <= n - 1.0 + 1e-9);
        }
    }

    #[test]
    fn undefined_is_none() {
        assert!(fisher(&Array2::zeros((1, 1)), 1.0).is_none());
        assert!(fisher(&Array2::from_elem((3, 3), f64::NAN), 1.0).is_none());
    }
}
