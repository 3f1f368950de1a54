//! How much of the current gradient g lies against earlier tasks: the component that projection methods would remove.
//!
//! One task: A-GEM (Chaudhry et al. 2019) replaces g by g − (⟨g,r⟩/|r|²)·r whenever ⟨g,r⟩ < 0. Several: the part of g in
//! the span of all references, by a ridge Gram solve, since references of similar tasks are nearly parallel.
//! Cost: K² inner products and a K × K Cholesky factorisation for K tasks.

use super::linalg;
use ndarray::{Array1, Array2};

/// A-GEM's coefficient min(0, ⟨g,r⟩)/|r|²: how much of r it would subtract (as a negative number), 0 if aligned.
pub fn agem(dot: f64, reference_squares: f64) -> f64 {
    if reference_squares > 0.0 { dot.min(0.0) / reference_squares } else { f64::NAN }
}

/// Share of |g|² that A-GEM's projection removes: cos² if the cosine is negative, else 0.
pub fn removed_share(dot: f64, squares: f64, reference_squares: f64) -> f64 {
    let norm = squares * reference_squares;
    if norm > 0.0 { dot.min(0.0).powi(2) / norm } else { f64::NAN }
}

/// The part of g in the span of K references.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Coefficients of the references, least squares.
    pub coefficients: Vec<f64>,
    /// Share of |g|² in the span, in [0, 1]. Under the null of an isotropic g in n dimensions: K/n.
    pub share: f64,
}

/// Ridge relative to the mean of the Gram's diagonal: parallel references stay solvable and cost 10⁻⁶ of accuracy.
pub const RIDGE: f64 = 1e-6;

/// Projects g on the span of the references, from G = ⟨rᵢ, rⱼ⟩ and b = ⟨g, rᵢ⟩. `None` if there is nothing to solve.
///
/// References differ in norm by orders of magnitude, so the system is solved for unit references.
pub fn span(gram: &Array2<f64>, dots: &[f64], squares: f64) -> Option<Span> {
    let norms: Vec<f64> = gram.diag().iter().map(|x| x.sqrt()).collect();
    if norms.is_empty() || squares.is_nan() || squares <= 0.0 || norms.iter().any(|&n| n.is_nan() || n <= 0.0) {
        return None;
    }
    let mut unit = Array2::from_shape_fn(gram.raw_dim(), |(i, j)| gram[[i, j]] / (norms[i] * norms[j]));
    unit.diag_mut().mapv_inplace(|x| x + RIDGE);
    let b: Array1<f64> = dots.iter().zip(&norms).map(|(dot, norm)| dot / norm).collect();
    let x = linalg::solve_positive_definite(&unit, &b)?;
    let share = x.iter().zip(&b).map(|(x, b)| x * b).sum::<f64>() / squares;
    Some(Span { coefficients: x.iter().zip(&norms).map(|(x, norm)| x / norm).collect(), share: share.clamp(0.0, 1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    /// mammoth's A-GEM: `project(gxy, ger) = gxy − (gxy·ger / ger·ger) ger`, applied when the product is negative.
    fn mammoth(g: [f64; 3], r: [f64; 3]) -> [f64; 3] {
        let dot = |x: [f64; 3], y: [f64; 3]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        let corrected = if dot(g, r) < 0.0 { dot(g, r) / dot(r, r) } else { 0.0 };
        std::array::from_fn(|k| g[k] - corrected * r[k])
    }

    #[test]
    fn agrees_with_mammoth() {
        for (g, r) in [([1.0, -2.0, 0.5], [0.5, 1.0, 0.0]), ([1.0, 2.0, 0.5], [0.5, 1.0, 0.0])] {
            let dot: f64 = g.iter().zip(r).map(|(x, y)| x * y).sum();
            let rr: f64 = r.iter().map(|x| x * x).sum();
            let gg: f64 = g.iter().map(|x| x * x).sum();
            let theirs = mammoth(g, r);
            let mut removed = 0.0;
            for k in 0..3 {
                assert!((g[k] - agem(dot, rr) * r[k] - theirs[k]).abs() < 1e-15);
                removed += (g[k] - theirs[k]).powi(2);
            }
            assert!((removed_share(dot, gg, rr) - removed / gg).abs() < 1e-15);
        }
    }

    #[test]
    fn span_of_two_references() {
        // r₁ = (1,0,0), r₂ = (1,1,0)·10, g = (2,3,6): the plane holds 13 of 49.
        let gram = arr2(&[[1.0, 10.0], [10.0, 200.0]]);
        let found = span(&gram, &[2.0, 50.0], 49.0).unwrap();
        assert!((found.share - 13.0 / 49.0).abs() < 1e-5, "{found:?}");
        assert!((found.coefficients[0] + 1.0).abs() < 1e-4 && (found.coefficients[1] - 0.3).abs() < 1e-5);
        // The same task twice: nearly singular, still solved, same share.
        let twice = span(&arr2(&[[1.0, 1.0], [1.0, 1.0]]), &[2.0, 2.0], 49.0).unwrap();
        assert!((twice.share - 4.0 / 49.0).abs() < 1e-6);
        assert!(span(&arr2(&[[0.0]]), &[0.0], 1.0).is_none());
    }
}
