//! Curvature along the drift, from the gradients at its two ends.
//!
//! ```text
//! curvature = ⟨ḡ_A(θ_t) − ḡ_A(θ_A), D⟩ / |D|²      D = θ_t − θ_A
//! ```
//!
//! is DᵀHD/|D|² with the Hessian averaged over the line from the snapshot to now: the secant equation of quasi-Newton methods
//! (Dennis & Moré 1977). No product with the Hessian is needed, only a reference that was refreshed. Its error is the spread
//! of the batches at both ends, projected on the drift. Null: 0, for a loss that is linear along the way. Units: of the loss
//! per squared unit of the parameters.

use super::hutchinson::mean;
use super::hypot::hypot;
use super::noise::Estimate;

/// `rise` is ⟨ḡ_A(θ_t) − ḡ_A(θ_A), D⟩ from the best source at hand; `now` and `then` are projections ⟨g_b, D⟩ of single
/// batches, for the error; `variance` is what sketching adds to `rise`; `squares` is |D|². NaN without a drift, and its error
/// with fewer than two batches at either end.
pub fn secant(rise: f64, now: &[f64], then: &[f64], variance: f64, squares: f64) -> Estimate {
    if !(squares > 0.0 && squares.is_finite()) {
        return Estimate { value: f64::NAN, error: f64::NAN };
    }
    let error = hypot(hypot(mean(now).error, mean(then).error), variance.sqrt());
    Estimate { value: rise / squares, error: error / squares }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::hash::mix;

    #[test]
    fn a_quadratic_has_its_own_curvature() {
        // g = Hθ, without noise: DᵀHD/|D|².
        let (h, d) = ([2.0, -1.0, 0.5], [1.0, 2.0, -1.0]);
        let rise: f64 = h.iter().zip(&d).map(|(h, d)| h * d * d).sum();
        let squares: f64 = d.iter().map(|d| d * d).sum();
        let found = secant(rise, &[rise; 4], &[0.0; 4], 0.0, squares);
        assert_eq!(found, Estimate { value: (2.0 - 4.0 + 0.5) / 6.0, error: 0.0 });
    }

    #[test]
    fn the_error_covers_the_noise() {
        let (trials, batches, exact, squares) = (400u64, 8, 3.0, 2.0);
        let covered = (0..trials).filter(|trial| {
            let noise = |k: u64| (mix(mix(trial * 100) ^ k) >> 11) as f64 / 2f64.powi(52) - 1.0;
            let now: Vec<f64> = (0..batches).map(|k| 5.0 + exact * squares + noise(k)).collect();
            let then: Vec<f64> = (0..batches).map(|k| 5.0 + 2.0 * noise(k + 50)).collect();
            let found = secant(mean(&now).value - mean(&then).value, &now, &then, 0.0, squares);
            (found.value - exact).abs() <= 2.0 * found.error
        });
        // Student's t with about 10 degrees: two errors cover 93 %; of 400, five standard deviations below is 346.
        assert!(covered.count() >= 346);
    }

    #[test]
    fn undefined_is_nan() {
        assert!(secant(1.0, &[1.0; 3], &[1.0; 3], 0.0, 0.0).value.is_nan());
        assert!(secant(1.0, &[1.0; 3], &[1.0; 3], 0.0, f64::NAN).value.is_nan());
        assert!(secant(1.0, &[1.0], &[1.0; 3], 0.0, 1.0).error.is_nan());
    }
}
