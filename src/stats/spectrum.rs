//! The spectrum of a large symmetric matrix from the few numbers that Lanczos leaves of it.
//!
//! m Lanczos steps from a unit vector q give a tridiagonal T. Its eigenvalues θ (Ritz values) approach eigenvalues of the
//! matrix, the outermost first. With s the unit eigenvector of T,
//!
//! ```text
//! residual = β_m·|s_m|      an eigenvalue of the matrix lies within it
//! weight   = s_1²           Σ weight·f(θ) = qᵀ f(H) q, exactly for polynomials up to degree 2m − 1
//! ```
//!
//! Over random q, n·weight is an estimate of how many of the n eigenvalues lie near θ: stochastic Lanczos quadrature (Ubaru,
//! Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019 for networks).
//!
//! Where vectors are not kept orthogonal, converged eigenvalues come back as *ghosts*. Copies that coincide are one
//! eigenvalue, and a Ritz value on its way to become a copy has next to no weight: it is an eigenvalue of T without its
//! first row and column too (Cullum & Willoughby 1981). Such a one is dropped unless its residual shows that it is real.
//!
//! Products carry a relative error (the *resolution*) far above that of fp64, which decides what "coincide" means. Cost:
//! m³, on numbers alone.

use super::tridiagonal::Tridiagonal;

/// What m Lanczos steps leave: T has `alphas` on its diagonal and all but the last of `betas` beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recurrence {
    pub alphas: Vec<f64>,
    /// As many; the last is the norm of what was left over, and scales the residuals.
    pub betas: Vec<f64>,
}

/// An eigenvalue as Lanczos sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ritz {
    pub value: f64,
    /// Share of the starting vector's square in its direction; shares add up to 1.
    pub weight: f64,
    /// An eigenvalue lies within this distance.
    pub residual: f64,
}

impl Recurrence {
    /// T.
    pub fn tridiagonal(&self) -> Tridiagonal {
        let beside = self.betas.split_last().map_or(Vec::new(), |(_, beside)| beside.to_vec());
        Tridiagonal { diagonal: self.alphas.clone(), beside }
    }

    /// Genuine Ritz values, ascending, each once. `resolution`: relative error of a product with the matrix.
    pub fn ritz(&self, resolution: f64) -> Vec<Ritz> {
        let t = self.tridiagonal();
        let eigen = t.eigen();
        let norm = t.norm();
        let rest = self.betas.last().map_or(0.0, |beta| beta.abs());
        let all = eigen.values.iter().zip(&eigen.vectors).map(|(&value, vector)| Ritz {
            value,
            weight: vector[0] * vector[0],
            residual: rest * vector[vector.len() - 1].abs(),
        });
        let apart = resolution * norm;
        let mut clusters: Vec<(Ritz, usize)> = Vec::new();
        for ritz in all {
            match clusters.last_mut() {
                Some((cluster, copies)) if ritz.value - cluster.value <= apart => {
                    let weight = cluster.weight + ritz.weight;
                    let best = if ritz.residual < cluster.residual { ritz } else { *cluster };
                    (*cluster, *copies) = (Ritz { weight, ..best }, *copies + 1);
                }
                _ => clusters.push((ritz, 1)),
            }
        }
        let trailing = t.trailing().eigenvalues();
        // The distance to the nearest eigenvalue of the trailing matrix is proportional to the weight, and what rounding
        // brings back of a converged direction has at most the square of the products' error.
        let negligible = resolution * resolution * norm;
        let is_ghost = |(ritz, copies): &(Ritz, usize)| {
            *copies == 1
                && ritz.residual > apart
                && trailing.iter().any(|value| (value - ritz.value).abs() <= negligible)
        };
        clusters.retain(|cluster| !is_ghost(cluster));
        clusters.into_iter().map(|(ritz, _)| ritz).collect()
    }
}

/// A place on the axis of eigenvalues, and about how many eigenvalues lie near it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    pub value: f64,
    pub weight: f64,
}

/// The spectral density of a matrix of `n` rows, from Lanczos runs of independent random starting vectors. Weights add up
/// to n. Null: a matrix without structure (symmetric, independent elements) has a half circle (Wigner 1958).
pub fn density(runs: &[Vec<Ritz>], n: f64) -> Vec<Node> {
    let share = n / runs.len() as f64;
    let node = |ritz: &Ritz| Node { value: ritz.value, weight: share * ritz.weight };
    let mut nodes: Vec<Node> = runs.iter().flatten().map(node).collect();
    nodes.sort_by(|x, y| x.value.total_cmp(&y.value));
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plain Lanczos on a diagonal matrix, each product with a relative error, without any reorthogonalisation.
    fn lanczos(eigenvalues: &[f64], start: &[f64], steps: usize, noise: f64, orthogonal: bool) -> Recurrence {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let norm = dot(start, start).sqrt();
        let mut basis: Vec<Vec<f64>> = vec![start.iter().map(|x| x / norm).collect()];
        let mut found = Recurrence::default();
        let mut state = 1u64;
        for step in 0..steps {
            let q = basis[step].clone();
            let mut w: Vec<f64> = q.iter().zip(eigenvalues).map(|(q, h)| q * h).collect();
            let size = dot(&w, &w).sqrt() / (w.len() as f64).sqrt();
            for w in &mut w {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *w += noise * size * ((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0);
            }
            let alpha = dot(&w, &q);
            let others = if orthogonal { 0 } else { step.saturating_sub(1) };
            for _ in 0..2 {
                for other in &basis[others..] {
                    let c = dot(&w, other);
                    w.iter_mut().zip(other).for_each(|(w, x)| *w -= c * x);
                }
            }
            let beta = dot(&w, &w).sqrt();
            found.alphas.push(alpha);
            found.betas.push(beta);
            basis.push(w.iter().map(|w| w / beta).collect());
        }
        found
    }

    /// A few large eigenvalues over a bulk: what Hessians look like.
    fn spectrum(n: usize) -> Vec<f64> {
        let bulk = (0..n - 3).map(|k| k as f64 / n as f64 - 0.2);
        bulk.chain([6.0, 10.0, 25.0]).collect()
    }

    #[test]
    fn ghosts_are_recognised() {
        let n = 300;
        let eigenvalues = spectrum(n);
        let start: Vec<f64> = (0..n).map(|k| if k % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let resolution = 6e-5;
        for noise in [0.0, resolution] {
            let found = lanczos(&eigenvalues, &start, 120, noise, false);
            let copies = found.tridiagonal().eigenvalues().iter().filter(|x| (*x - 25.0).abs() < 0.1).count();
            assert!(copies >= 2, "so many steps bring the largest eigenvalue back: {copies}");
            let ritz = found.ritz(resolution);
            let large: Vec<f64> = ritz.iter().filter(|r| r.value > 1.5).map(|r| r.value).collect();
            assert_eq!(large.len(), 3, "{large:?}");
            for (found, exact) in large.iter().zip([6.0, 10.0, 25.0]) {
                // Within the error that was put into each product.
                assert!((found - exact).abs() < 3.0 * resolution * 25.0, "{found} {exact}");
            }
            let weight: f64 = ritz.iter().map(|r| r.weight).sum();
            // What is dropped has next to no weight.
            assert!((weight - 1.0).abs() < 1e-6, "{weight}");
        }
    }

    #[test]
    fn a_converged_eigenvalue_is_kept_however_small_its_weight() {
        let n = 200;
        let eigenvalues = spectrum(n);
        let start: Vec<f64> = (0..n).map(|k| if k == n - 1 { 1e-6 } else { 1.0 }).collect();
        let largest = lanczos(&eigenvalues, &start, 40, 0.0, true).ritz(6e-5).last().copied().unwrap();
        assert!((largest.value - 25.0).abs() < 1e-9 && largest.weight < 1e-13, "{largest:?}");
    }

    #[test]
    fn undefined_is_nan_and_nothing_panics() {
        assert!(Recurrence::default().ritz(1e-5).is_empty());
        let bad = Recurrence { alphas: vec![f64::NAN, 1.0], betas: vec![1.0, 1.0] };
        assert!(bad.ritz(1e-5).iter().all(|ritz| ritz.value.is_nan()));
        assert!(density(&[], 10.0).is_empty());
    }

    proptest! {
        #[test]
        fn density_has_the_moments_of_the_matrix(n in 20usize..80, steps in 2usize..12, seed: u64) {
            let eigenvalues = spectrum(n);
            // With ±1 along the eigenvectors qᵀH^k q is tr(H^k)/n exactly, whatever the signs.
            let start: Vec<f64> = (0..n).map(|k| if seed >> (k % 64) & 1 == 0 { 1.0 } else { -1.0 }).collect();
            let ritz = lanczos(&eigenvalues, &start, steps, 0.0, true).ritz(1e-12);
            let nodes = density(&[ritz.clone(), ritz], n as f64);
            for power in 0..2 * steps.min(6) as i32 {
                let found: f64 = nodes.iter().map(|node| node.weight * node.value.powi(power)).sum();
                let exact: f64 = eigenvalues.iter().map(|x| x.powi(power)).sum();
                let size: f64 = eigenvalues.iter().map(|x| x.abs().powi(power)).sum();
                // Merging nodes closer than 10⁻¹² of the norm and rounding, amplified by the power.
                prop_assert!((found - exact).abs() < 1e-9 * size, "{power}: {found} {exact}");
            }
        }
    }
}
