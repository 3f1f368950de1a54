//! A positive quantity whose logarithm is predicted by Student's t.
//!
//! ```text
//! (ln d − location)/scale  ~  t with f degrees of freedom, f > 0 and not always whole
//! ```
//!
//! So d is predicted with a median of e^location, and is never negative. Cost: an incomplete beta function for a p-value. Its
//! inverse, for a quantile, takes milliseconds; it depends on f alone, so that many predictions share one.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// What d is expected to be.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    location: f64,
    scale: f64,
    student: StudentsT,
}

/// The value that Student's t stays below with this probability. NaN without degrees of freedom.
pub fn student_quantile(degrees: f64, probability: f64) -> f64 {
    StudentsT::new(0.0, 1.0, degrees).map_or(f64::NAN, |student| student.inverse_cdf(probability))
}

impl Prediction {
    /// `None` unless the degrees of freedom are positive. `scale` > 0, of ln d.
    pub fn new(location: f64, scale: f64, degrees: f64) -> Option<Self> {
        let student = StudentsT::new(0.0, 1.0, degrees).ok()?;
        Some(Self { location, scale, student })
    }

    pub fn median(&self) -> f64 {
        self.location.exp()
    }

    /// The value that d stays below with the probability of which `t` is [`student_quantile`] for the same degrees.
    pub fn at(&self, t: f64) -> f64 {
        (self.location + self.scale * t).exp()
    }

    /// Probability of a change at least as large. NaN for what is no change: negative or not finite.
    pub fn p_value(&self, difference: f64) -> f64 {
        if !difference.is_finite() || difference < 0.0 {
            f64::NAN
        } else if difference == 0.0 {
            1.0
        } else {
            self.student.sf((difference.ln() - self.location) / self.scale)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn agrees_with_scipy() {
        // scipy.stats.t.sf and t.ppf(.99): two implementations of the incomplete beta function and its inverse.
        for (degrees, t, tail, quantile) in [
            (1.0, 3.0f64, 0.102_416_382_349_566_72, 31.820_515_953_773_935),
            (5.0, 2.5, 0.027_245_049_671_188_13, 3.364_929_998_907_217_4),
            (127.0, 6.0, 9.606_196_589_184_648e-9, 2.356_068_589_989_023),
            (1000.0, 12.0, 2.162_028_693_387_214_5e-31, 2.330_082_674_755_513),
            (31.0, -1.0, 0.837_473_633_638_233_4, 2.452_824_193_402_645),
        ] {
            let prediction = Prediction::new(0.0, 1.0, degrees).unwrap();
            assert!((prediction.p_value(t.exp()) / tail - 1.0).abs() < 1e-11);
            assert!((student_quantile(degrees, 0.99) / quantile - 1.0).abs() < 1e-11);
        }
    }

    #[test]
    fn undefined_is_nan() {
        assert!(Prediction::new(0.0, 1.0, 0.0).is_none() && Prediction::new(0.0, 1.0, f64::NAN).is_none());
        assert!(student_quantile(0.0, 0.5).is_nan() && student_quantile(f64::NAN, 0.5).is_nan());
        let prediction = Prediction::new(0.0, 1.0, 3.5).unwrap();
        assert!(prediction.p_value(f64::NAN).is_nan() && prediction.p_value(f64::INFINITY).is_nan());
        assert!(prediction.p_value(-1.0).is_nan());
        assert_eq!(prediction.p_value(0.0), 1.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn quantiles_have_their_p_value(location in -9.0f64..3.0, scale in 0.01f64..2.0, degrees in 1.0f64..200.0, p in 0.01f64..0.99) {
            let prediction = Prediction::new(location, scale, degrees).unwrap();
            let high = prediction.at(student_quantile(degrees, p));
            // The inverse is solved to about 10⁻⁹ and ln(exp) rounds at 2⁻⁵³·10 over a scale of 0.01.
            prop_assert!((prediction.p_value(high) - (1.0 - p)).abs() < 1e-7);
            prop_assert!((prediction.p_value(prediction.median()) - 0.5).abs() < 1e-12);
        }
    }
}
