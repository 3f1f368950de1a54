//! Traces of a matrix that is only known by products with vectors.
//!
//! For v with independent fair signs E vᵀHv = tr H, with variance 2·Σ_{i≠j} H_ij² (Hutchinson 1989): the spread of a few
//! such samples is the error. E|Hv|² = tr H², so the same products give the effective rank tr²H/tr H². With v∘θ in the
//! place of v the mean is Σ θᵢ²Hᵢᵢ.
//!
//! Hutch++ (Meyer, Musco, Musco & Woodruff 2021) takes the trace of H on the span of a few products HS exactly, and samples
//! only what is left: the error falls with 1/products rather than 1/√products where few eigenvalues dominate.
//!
//! Null: a trace within two errors of zero says nothing of its sign. Units: those of the matrix.

use super::noise::Estimate;
use super::summary;

/// Mean of samples with its standard error; the error of a single sample is NaN, and so is the mean of none.
pub fn mean(samples: &[f64]) -> Estimate {
    let n = samples.len() as f64;
    let value = summary::mean(samples.iter().copied());
    let variance = samples.iter().map(|x| (x - value) * (x - value)).sum::<f64>() / (n - 1.0);
    Estimate { value, error: (variance / n).sqrt() }
}

/// tr²H/tr H² from samples vᵀHv and |Hv|² of the same vectors. NaN where the trace is lost in its noise.
///
/// The square of a noisy mean is too large by the noise's square; the mean of products of different samples is not. The
/// ratio keeps a bias of the order of the samples' relative variance over their number.
pub fn effective_rank(traces: &[f64], squares: &[f64]) -> f64 {
    let n = traces.len() as f64;
    let sum: f64 = traces.iter().sum();
    let own: f64 = traces.iter().map(|x| x * x).sum();
    let trace_squared = (sum * sum - own) / (n * (n - 1.0));
    let squares = summary::mean(squares.iter().copied());
    if trace_squared > 0.0 { summary::ratio(trace_squared, squares) } else { f64::NAN }
}

/// The trace from `captured` = qᵀHq over an orthonormal basis of the span of HS, and `residual` = vᵀHv for random v with
/// that span taken out. Without anything left to sample (`residual` all zero) the trace is exact.
pub fn hutch_plus_plus(captured: &[f64], residual: &[f64]) -> Estimate {
    let rest = mean(residual);
    Estimate { value: captured.iter().sum::<f64>() + rest.value, error: rest.error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::hash::mix;
    use crate::stats::linalg;
    use crate::stats::random::Random;
    use ndarray::{Array2, ArrayView1};
    use proptest::prelude::*;

    type Vector = Vec<f64>;

    fn dot(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    fn signs(seed: u64, n: usize) -> Vector {
        (0..n as u64).map(|k| if mix(mix(seed) ^ k) & 1 == 0 { 1.0 } else { -1.0 }).collect()
    }

    /// H = Σ λ u uᵀ over random orthonormal u.
    struct Matrix(Array2<f64>);

    impl Matrix {
        fn new(eigenvalues: &[f64], seed: u64) -> Self {
            let n = eigenvalues.len();
            let u = linalg::orthonormal(&Random::new(seed).normals(n, n)).unwrap();
            Self((&u * &ArrayView1::from(eigenvalues)).dot(&u.t()))
        }

        fn times(&self, v: &[f64]) -> Vector {
            self.0.dot(&ArrayView1::from(v)).to_vec()
        }
    }

    /// Hutch++ with k products each for the span, the trace on it, and the rest.
    fn sample(matrix: &Matrix, k: usize, seed: u64) -> (Vector, Vector) {
        let n = matrix.0.nrows();
        let mut basis: Vec<Vector> = Vec::new();
        let without = |basis: &[Vector], x: &mut Vector| {
            for _ in 0..2 {
                for q in basis {
                    let c = dot(q, x);
                    x.iter_mut().zip(q).for_each(|(x, q)| *x -= c * q);
                }
            }
        };
        for j in 0..k as u64 {
            let mut w = matrix.times(&signs(seed ^ (j << 32), n));
            let before = dot(&w, &w).sqrt();
            without(&basis, &mut w);
            let norm = dot(&w, &w).sqrt();
            if norm > 1e-10 * before {
                basis.push(w.into_iter().map(|x| x / norm).collect());
            }
        }
        let captured = basis.iter().map(|q| dot(q, &matrix.times(q))).collect();
        let residual = (0..k as u64).map(|j| {
            let mut v = signs(seed ^ (j << 32) ^ 0xffff, n);
            without(&basis, &mut v);
            dot(&v, &matrix.times(&v))
        });
        (captured, residual.collect())
    }

    proptest! {
        #[test]
        fn low_rank_is_exact(n in 24usize..60, rank in 1usize..5, seed: u64) {
            let eigenvalues: Vector = (0..n).map(|k| if k < rank { 10.0 - 3.0 * k as f64 } else { 0.0 }).collect();
            let exact: f64 = eigenvalues.iter().sum();
            let (captured, residual) = sample(&Matrix::new(&eigenvalues, seed), rank + 2, seed);
            let found = hutch_plus_plus(&captured, &residual);
            // The span of rank + 2 products holds all of the range, up to rounding of its basis, unless three of the sign
            // vectors repeat others: 2⁻²³ for each pair.
            prop_assert!((found.value - exact).abs() < 1e-6 && found.error < 1e-6, "{found:?} {exact}");
        }
    }

    #[test]
    fn both_are_unbiased_and_know_their_error() {
        let n = 60;
        let eigenvalues: Vector = (0..n).map(|k| if k < 3 { 20.0 + k as f64 } else { 0.02 * k as f64 - 0.3 }).collect();
        let trace: f64 = eigenvalues.iter().sum();
        let squares: f64 = eigenvalues.iter().map(|x| x * x).sum();
        let matrix = Matrix::new(&eigenvalues, 5);
        let (trials, samples) = (200, 12);
        let (mut plain, mut better, mut ranks) = (Vec::new(), Vec::new(), Vec::new());
        for trial in 0..trials {
            let products: Vec<(f64, f64)> = (0..samples as u64)
                .map(|j| {
                    let v = signs(mix(trial) ^ (j << 40), n);
                    let w = matrix.times(&v);
                    (dot(&v, &w), dot(&w, &w))
                })
                .collect();
            let (traces, norms): (Vector, Vector) = products.into_iter().unzip();
            plain.push(mean(&traces));
            ranks.push(effective_rank(&traces, &norms));
            let (captured, residual) = sample(&matrix, samples / 3, mix(trial ^ 77));
            better.push(hutch_plus_plus(&captured, &residual));
        }
        for (name, estimates) in [("Hutchinson", &plain), ("Hutch++", &better)] {
            let found = mean(&estimates.iter().map(|e| e.value).collect::<Vector>());
            // Four standard errors of the mean over the trials: wrong by chance once in 16,000.
            assert!((found.value - trace).abs() < 4.0 * found.error, "{name}: {found:?} {trace}");
        }
        // Student's t with 11 degrees: two errors cover 93 %; of 200 trials 99.99 % have at least 171.
        let covered = plain.iter().filter(|e| (e.value - trace).abs() <= 2.0 * e.error).count();
        assert!(covered >= 171, "{covered}");
        let spread = |estimates: &[Estimate]| mean(&estimates.iter().map(|e| e.value).collect::<Vector>()).error;
        assert!(spread(&better) < spread(&plain) / 2.0, "as many products, far less error");
        // The ratio's bias is of the order of its relative variance over the samples: (0.5)²/12.
        let rank = mean(&ranks).value;
        assert!((rank / (trace * trace / squares) - 1.0).abs() < 0.1, "{rank} {}", trace * trace / squares);
    }

    #[test]
    fn undefined_is_nan() {
        assert!(mean(&[]).value.is_nan() && mean(&[1.0]).error.is_nan());
        assert!(effective_rank(&[1.0], &[1.0]).is_nan());
        assert!(effective_rank(&[1.0, -1.0], &[1.0, 1.0]).is_nan(), "no trace to speak of");
        assert!(mean(&[f64::NAN, 1.0]).value.is_nan());
        assert_eq!(hutch_plus_plus(&[2.0, 3.0], &[0.0, 0.0]), Estimate { value: 5.0, error: 0.0 });
    }
}
