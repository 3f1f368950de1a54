//! Predicted change of an earlier task's loss, from what training did to the parameters.
//!
//! With g_A the task's mean gradient at its final weights θ_A and D = θ − θ_A,
//!
//! ```text
//! L_A(θ) − L_A(θ_A) ≈ ⟨g_A, D⟩ + ½ Dᵀ F D
//! ```
//!
//! F is the empirical Fisher information: the covariance of the reference's batch gradients times the number of examples
//! in a batch. It stands in for the Hessian and is *not* the Hessian; the two agree where the model's distribution fits
//! the data (Kunstner et al. 2019 show how they differ). At a minimum g_A ≈ 0 and the second term carries the signal.
//! If references are refreshed at the current weights, Σ⟨g_A(θ_t), Δθ_t⟩ along the path needs no second term.

/// Projections ⟨g_b, D⟩ of each batch gradient of the reference on the drift, reduced to the prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// ⟨g_A, D⟩.
    pub first_order: f64,
    /// Standard error of the first term from the spread of the batches: noise in the reference.
    pub first_order_error: f64,
    /// ½ Dᵀ F D, never negative.
    pub quadratic: f64,
}

impl Prediction {
    /// Predicted change of the loss. Positive: forgetting.
    pub fn total(&self) -> f64 {
        self.first_order + self.quadratic
    }
}

/// Prediction from the batches' projections on the drift.
///
/// `first_order` is ⟨g_A, D⟩ from the best source at hand (exact if there is one). `examples` is the number of loss terms
/// that a batch averages over. `sketch_variance` is the variance that sketching adds to every projection: it inflates
/// their spread and is taken out.
pub fn predict(first_order: f64, projections: &[f64], examples: f64, sketch_variance: f64) -> Prediction {
    let n = projections.len() as f64;
    if n < 2.0 {
        return Prediction { first_order, first_order_error: f64::NAN, quadratic: f64::NAN };
    }
    let mean = projections.iter().sum::<f64>() / n;
    let variance = projections.iter().map(|p| (p - mean) * (p - mean)).sum::<f64>() / (n - 1.0);
    Prediction {
        first_order,
        first_order_error: (variance / n).sqrt(),
        quadratic: 0.5 * examples * (variance - sketch_variance).max(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quadratic_whose_fisher_is_its_hessian() {
        // L = ½ Σ h_k x_k², D = (1, 2); batch gradients ± √(h_k n/(…)) along each axis have covariance h/examples.
        let (h, d) = ([3.0f64, 0.5], [1.0, 2.0]);
        let examples = 10.0;
        let mut projections = Vec::new();
        for k in 0..2 {
            // Two of four batches lie on each axis: variance = 2·a²/(4 − 1) = h/examples.
            let a = (h[k] / examples * 3.0 / 2.0).sqrt();
            projections.extend([a * d[k], -a * d[k]]);
        }
        let prediction = predict(0.0, &projections, examples, 0.0);
        let exact = 0.5 * (h[0] * d[0] * d[0] + h[1] * d[1] * d[1]);
        assert!((prediction.quadratic - exact).abs() < 1e-12, "{prediction:?}");
        assert_eq!(prediction.total(), prediction.quadratic);
    }

    #[test]
    fn one_batch_has_no_spread() {
        assert!(predict(1.0, &[1.0], 1.0, 0.0).quadratic.is_nan());
        assert_eq!(predict(1.0, &[1.0, 1.0], 1.0, 0.5).quadratic, 0.0, "sketch noise is not curvature");
    }
}
