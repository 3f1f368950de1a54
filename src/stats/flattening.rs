//! How much flatter or sharper the loss of an earlier task has become around the weights since it was learnt.
//!
//! A ratio of the same quantity now and at the task's base. Both are estimates; with relative errors r and s the ratio has
//! the relative error √(r² + s²), to first order. Both are sampled with the same random vectors, so their errors go together
//! and the true error is rather smaller. Null: 1. Below: flatter; above: sharper.

use super::hypot::hypot;
use super::noise::Estimate;

/// now/base with its error. Undetermined (NaN) unless the base is above two of its errors.
pub fn ratio(now: Estimate, base: Estimate) -> Estimate {
    if !base.is_positive() {
        return Estimate { value: f64::NAN, error: f64::NAN };
    }
    let value = now.value / base.value;
    Estimate { value, error: hypot(now.error / base.value, value * base.error / base.value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn errors_propagate(now in -10.0f64..10.0, base in 1.0f64..10.0, scale in 0.1f64..10.0) {
            // The derivative of the ratio, taken as a difference, times each error.
            let (now_error, base_error) = (1e-5, 2e-5);
            let found = ratio(
                Estimate { value: now, error: now_error },
                Estimate { value: base, error: base_error },
            );
            let by_now = (now + now_error) / base - now / base;
            let by_base = now / (base + base_error) - now / base;
            // Second order in errors that are 2·10⁻⁵ of the base at most.
            prop_assert!((found.error - hypot(by_now, by_base)).abs() < 1e-4 * found.error + 1e-12);
            // Units cancel.
            let scaled = ratio(
                Estimate { value: now * scale, error: now_error * scale },
                Estimate { value: base * scale, error: base_error * scale },
            );
            prop_assert!((scaled.value - found.value).abs() < 1e-12 * (1.0 + found.value.abs()));
        }
    }

    #[test]
    fn a_base_in_its_noise_gives_nothing() {
        let now = Estimate { value: 1.0, error: 0.1 };
        for (value, error) in [(0.19, 0.1), (-1.0, 0.1), (0.0, 0.0), (1.0, f64::NAN), (f64::NAN, 0.1)] {
            assert!(ratio(now, Estimate { value, error }).value.is_nan(), "{value} ± {error}");
        }
        assert_eq!(ratio(now, Estimate { value: 2.0, error: 0.0 }), Estimate { value: 0.5, error: 0.05 });
    }
}
