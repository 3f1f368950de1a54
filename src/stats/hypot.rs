//! √(x² + y²) without overflow or underflow, as LAPACK's `dlapy2` computes it.
//!
//! Not `f64::hypot`: glibc has had a new version of that function since 2.35, and a single call would keep the library, and
//! the Python wheel, off every older system (Red Hat 9 has 2.34). clippy.toml refuses it.

/// Within 2 units in the last place. Infinite if either is infinite, else NaN if either is NaN.
pub fn hypot(x: f64, y: f64) -> f64 {
    let (x, y) = (x.abs(), y.abs());
    if x.is_infinite() || y.is_infinite() {
        return f64::INFINITY;
    }
    let (small, large) = if x < y { (x, y) } else { (y, x) };
    if small == 0.0 {
        // NaN counts as large or small: the sum has it either way.
        return small + large;
    }
    let ratio = small / large;
    large * (1.0 + ratio * ratio).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_finite() {
        assert_eq!(hypot(f64::NEG_INFINITY, f64::NAN), f64::INFINITY);
        assert_eq!(hypot(f64::NAN, f64::INFINITY), f64::INFINITY);
        assert!(hypot(f64::NAN, 0.0).is_nan() && hypot(0.0, f64::NAN).is_nan() && hypot(f64::NAN, 1.0).is_nan());
        assert_eq!(hypot(0.0, -0.0), 0.0);
    }

    #[test]
    fn the_ends_of_the_range() {
        for scale in [1e200, 1e-200] {
            assert!((hypot(3.0 * scale, -4.0 * scale) / (5.0 * scale) - 1.0).abs() <= 2.0 * f64::EPSILON);
        }
        assert_eq!(hypot(5e-324, 0.0), 5e-324);
        assert_eq!(hypot(f64::MAX, f64::MAX), f64::INFINITY);
    }

    proptest! {
        #[test]
        #[allow(clippy::disallowed_methods, reason = "what it is compared with")]
        fn is_that_of_the_mathematical_library(x in any::<f64>(), y in any::<f64>()) {
            let (found, expected) = (hypot(x, y), x.hypot(y));
            if expected.is_normal() {
                prop_assert!((found / expected - 1.0).abs() <= 2.0 * f64::EPSILON, "{found} {expected}");
            } else {
                prop_assert!(found == expected || found.is_nan() && expected.is_nan() || expected.is_subnormal());
            }
        }
    }
}
