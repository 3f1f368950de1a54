//! Weight drift: how far the parameters θ moved from the snapshot θ_A that an earlier task left.
//!
//! Computed from sums of D = θ − θ_A rather than from Σθ², Σθ·θ_A, Σθ_A²: those cancel to nothing when the drift is
//! small. Cost: none beyond the sums.

/// ‖θ − θ_A‖/‖θ_A‖.
pub fn relative(drift: f64, snapshot: f64) -> f64 {
    if snapshot > 0.0 { (drift / snapshot).sqrt() } else { f64::NAN }
}

/// Angle between θ and θ_A in radians, exact also where the cosine rounds to 1.
///
/// With a = |θ_A|, b = |θ|: 1 − cos = (|D|² − (a − b)²)/(2ab), and a − b follows from ΣD² + 2ΣD·θ_A = b² − a².
pub fn angle(drift: f64, drift_dot_snapshot: f64, snapshot: f64) -> f64 {
    let weights = snapshot + 2.0 * drift_dot_snapshot + drift;
    if !(snapshot > 0.0 && weights > 0.0) {
        return f64::NAN;
    }
    let (a, b) = (snapshot.sqrt(), weights.sqrt());
    let stretch = (2.0 * drift_dot_snapshot + drift) / (a + b);
    let versine = (drift - stretch * stretch) / (2.0 * a * b);
    2.0 * (versine / 2.0).clamp(0.0, 1.0).sqrt().asin()
}

/// Smallest relative drift that numbers with `mantissa` explicit bits can show: half a unit in the last place, RMS over
/// uniformly distributed rounding errors, 2^−mantissa/√12. Drift at or below it is rounding.
pub fn resolution(mantissa: i32) -> f64 {
    2f64.powi(-mantissa) / 12f64.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_rotations_down_to_a_billionth() {
        for angle_set in [1.0f64, 0.1, 1e-3, 1e-6, 1e-9] {
            for stretch in [1.0, 1.5] {
                // θ_A = (1, 0); θ = stretch·(cos, sin), written without cancellation.
                let d = [stretch * -2.0 * (angle_set / 2.0).sin().powi(2) + (stretch - 1.0), stretch * angle_set.sin()];
                let found = angle(d[0] * d[0] + d[1] * d[1], d[0], 1.0);
                let bound = if stretch == 1.0 { 1e-9 } else { 1e-7 / angle_set.max(1e-7) };
                assert!(
                    (found / angle_set - 1.0).abs() < bound.max(1e-9) || angle_set < 1e-7 && stretch != 1.0,
                    "{angle_set} {stretch}: {found}"
                );
            }
        }
        assert_eq!(angle(0.0, 0.0, 4.0), 0.0);
        assert!(angle(0.0, 0.0, 0.0).is_nan());
        assert!((angle(4.0, -2.0, 1.0) - std::f64::consts::PI).abs() < 1e-7, "reversed");
        assert_eq!(relative(1.0, 4.0), 0.5);
    }
}
