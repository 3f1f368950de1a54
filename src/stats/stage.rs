//! The stage of a loss curve: plateau, descent or rise.
//!
//! Training losses move in stages, flat ones and steep ones (arXiv 2410.20119). Over the last few evaluations the slope of
//! ln loss against the step is fitted by least squares; it is a descent or a rise if it is beyond two standard errors of
//! that fit, else a plateau. ln, since a loss that falls by a constant share per step is in one stage and not in many.
//!
//! Cost: a few additions. The error takes evaluations for independent given the line; a curve that bends inside the
//! window has a larger error, and so counts as a plateau rather sooner.

/// What the last evaluations say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Change of ln loss per step.
    pub slope: f64,
    /// Standard error of the slope.
    pub error: f64,
    pub trend: Trend,
}

/// Numbers are those of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trend {
    Plateau = 0,
    Descent = 1,
    Rise = 2,
}

/// Fewest evaluations that have a slope with an error.
const FEWEST: usize = 3;

/// The stage that (step, loss) pairs are in. `None` for fewer than three of them, for losses that have no logarithm, and
/// for steps that are all the same.
pub fn stage(evaluations: &[(u64, f64)]) -> Option<Stage> {
    if evaluations.len() < FEWEST || evaluations.iter().any(|&(_, loss)| !(loss.is_finite() && loss > 0.0)) {
        return None;
    }
    let n = evaluations.len() as f64;
    let points = || evaluations.iter().map(|&(step, loss)| (step as f64, loss.ln()));
    let (x_mean, y_mean) = points().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let (xx, xy) = points()
        .fold((0.0, 0.0), |(xx, xy), (x, y)| (xx + (x - x_mean) * (x - x_mean), xy + (x - x_mean) * (y - y_mean)));
    if xx == 0.0 {
        return None;
    }
    let slope = xy / xx;
    let residuals = points().map(|(x, y)| (y - y_mean - slope * (x - x_mean)).powi(2)).sum::<f64>();
    let error = (residuals / (n - 2.0) / xx).sqrt();
    let trend = match slope {
        slope if slope < -2.0 * error => Trend::Descent,
        slope if slope > 2.0 * error => Trend::Rise,
        _ => Trend::Plateau,
    };
    Some(Stage { slope, error, trend })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn curve(loss: impl Fn(f64) -> f64) -> Vec<(u64, f64)> {
        (0..8).map(|k| (20 * k, loss(20.0 * k as f64))).collect()
    }

    #[test]
    fn exponential_decay_is_a_descent_with_its_rate() {
        let found = stage(&curve(|step| 3.0 * (-0.01 * step).exp())).unwrap();
        assert!((found.slope + 0.01).abs() < 1e-15 && found.error < 1e-15);
        assert_eq!(found.trend, Trend::Descent);
        assert_eq!(stage(&curve(|step| 3.0 * (0.01 * step).exp())).unwrap().trend, Trend::Rise);
    }

    #[test]
    fn noise_without_slope_is_a_plateau() {
        // Alternating signs: the slope is 5 % of the residuals' size over the window.
        let found = stage(&curve(|step| 2.0 + 0.1 * (step / 20.0 * std::f64::consts::PI).cos())).unwrap();
        assert_eq!(found.trend, Trend::Plateau);
        assert!(stage(&[(1, 2.0), (2, 2.0)]).is_none());
        assert!(stage(&[(1, 2.0), (1, 2.1), (1, 2.2)]).is_none());
        assert!(stage(&[(1, 2.0), (2, f64::NAN), (3, 2.0)]).is_none());
    }

    /// The closed form of the regression's error, from the textbook identity residuals = yy − xy²/xx.
    #[test]
    fn error_is_that_of_least_squares() {
        let points = [(0u64, 1.0), (10, 1.3), (20, 0.9), (30, 0.8)];
        let found = stage(&points).unwrap();
        let y: Vec<f64> = points.iter().map(|p| f64::ln(p.1)).collect();
        let mean = y.iter().sum::<f64>() / 4.0;
        let x = [-15.0, -5.0, 5.0, 15.0];
        let (xx, xy) = (500.0, x.iter().zip(&y).map(|(x, y)| x * (y - mean)).sum::<f64>());
        let yy: f64 = y.iter().map(|y| (y - mean) * (y - mean)).sum();
        assert!((found.slope - xy / xx).abs() < 1e-15);
        assert!((found.error - ((yy - xy * xy / xx) / 2.0 / xx).sqrt()).abs() < 1e-15);
    }

    proptest! {
        /// Another unit of the loss changes nothing.
        #[test]
        fn scale_does_not_matter(losses in prop::collection::vec(0.1f64..9.0, 3..9), factor in 0.01f64..100.0) {
            let points = |factor: f64| (0..).zip(&losses).map(|(k, loss)| (k, loss * factor)).collect::<Vec<_>>();
            let (one, other) = (stage(&points(1.0)).unwrap(), stage(&points(factor)).unwrap());
            prop_assert!((one.slope - other.slope).abs() < 1e-12 && (one.error - other.error).abs() < 1e-12);
        }
    }
}
