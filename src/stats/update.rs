//! The update Δθ that the optimizer really made, against the parameters and against an earlier task's reference.
//!
//! Gradients say what the loss wants; momentum, preconditioning, clipping and weight decay decide what happens. So the
//! alignment of the *update* with the reference is measured too. ⟨r, Δθ⟩ is the first-order change of the earlier task's
//! loss in this step: positive means forgetting. Its null is that of the cosine.

/// RMS of the update over RMS of the parameters: the relative step size. Healthy AdamW runs sit near 10⁻³.
pub fn relative_step(updates: f64, weights: f64) -> f64 {
    if weights > 0.0 { (updates / weights).sqrt() } else { f64::NAN }
}
