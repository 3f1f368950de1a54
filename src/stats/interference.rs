//! Interference between the current gradient g and the reference r of an earlier task: cosine and conflicts.
//!
//! A step along −g changes the earlier task's loss by −η⟨g, r⟩ to first order: a negative cosine means that training
//! undoes the task. Sources: GEM (Lopez-Paz & Ranzato 2017), gradient surgery (Yu et al. 2020) for the sign; arXiv
//! 2601.18699 for its use per head and layer. Cost: none beyond the sums.

/// Cosine Σg·r/√(Σg²·Σr²), in [−1, 1]; NaN if either is zero.
pub fn cosine(dot: f64, squares: f64, reference_squares: f64) -> f64 {
    // The product of roots cannot overflow or vanish where the root of the product could.
    let norm = squares.sqrt() * reference_squares.sqrt();
    if norm > 0.0 { (dot / norm).clamp(-1.0, 1.0) } else { f64::NAN }
}

/// Standard deviation of the cosine if every coordinate's sign of g·r were a fair coin: √Σ(g·r)²/(|g||r|).
///
/// This is the null of "no relation between the directions, given the magnitudes": a cosine within two of these of zero
/// says nothing. For gradients with equal magnitudes everywhere it is 1/√n; heavy tails make it much larger.
pub fn cosine_null(dot_squares: f64, squares: f64, reference_squares: f64) -> f64 {
    let norm = squares.sqrt() * reference_squares.sqrt();
    if norm > 0.0 { dot_squares.sqrt() / norm } else { f64::NAN }
}

/// Share of the coordinates where g and r have opposing sign, of those where both are non-zero. Null: 0.5.
pub fn conflict_fraction(conflicts: f64, active: f64) -> f64 {
    if active > 0.0 { conflicts / active } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        assert_eq!(cosine(3.0, 9.0, 4.0), 0.5);
        assert!(cosine(0.0, 0.0, 1.0).is_nan());
        assert_eq!(cosine(1e-300, 1e-300, 1e-300), 1.0);
        // n equal magnitudes: 1/√n.
        let n: f64 = 400.0;
        assert!((cosine_null(n, n, n) - 1.0 / n.sqrt()).abs() < 1e-15);
        assert_eq!(conflict_fraction(3.0, 4.0), 0.75);
    }
}
