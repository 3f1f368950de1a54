//! "Continue on A": how far attention heads move when training simply goes on with their own task.
//!
//! Every update moves every head. So a change under task B is compared with passes that were taken after u further updates on
//! A. Changes are sizes that grow with u and differ between heads by a factor:
//!
//! ```text
//! ln d_h(u) = α_h + β·ln u + ε,     ε ~ N(0, σ²),     0 ≤ β ≤ 1
//! ```
//!
//! by least squares with an intercept for each head, one slope, one variance. β = 1 is drift in one direction, ½ a random walk,
//! 0 a change that has levelled off; estimates outside of 0 … 1 are set to the nearer end. Passes after a single u do not show
//! a slope: then the prediction grows like u beyond that u, and does not shrink before it, which errs on the careful side.
//!
//! A new change is predicted by Student's t with N − heads − 1 degrees of freedom (one more without a slope):
//!
//! ```text
//! t = (ln d − α̂_h − β̂·ln u) / (s·√(1 + 1/n_h + (ln u − mean_h ln u)²/S_xx)),   S_xx = Σ_h Σ (ln u − mean_h ln u)²
//! ```
//!
//! Cost: a few operations per head and pass.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// One pass of the null: further updates on the task itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// Optimizer steps since the base pass, > 0.
    pub updates: f64,
    /// d_h of every head, in the order of all passes. Heads without a positive finite value are left out.
    pub differences: Vec<f64>,
}

/// "Continue on A", fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    heads: Vec<HeadNull>,
    /// β, and S_xx. `None`: all passes have the same number of updates.
    slope: Option<(f64, f64)>,
    /// s.
    deviation: f64,
    degrees: f64,
    largest: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct HeadNull {
    passes: f64,
    mean_ln_updates: f64,
    mean_ln_difference: f64,
}

/// Student's t of ln d of one head after some updates.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    location: f64,
    scale: f64,
    student: StudentsT,
}

impl Continuation {
    /// Fits the passes. Without enough of them for a variance, the null is undetermined and so is every verdict.
    pub fn fit(passes: &[Pass]) -> Self {
        let count = passes.iter().map(|pass| pass.differences.len()).max().unwrap_or(0);
        let points = |head: usize| {
            passes.iter().filter_map(move |pass| {
                let difference = *pass.differences.get(head)?;
                let usable = [pass.updates, difference].iter().all(|x| x.is_finite() && *x > 0.0);
                usable.then(|| (pass.updates.ln(), difference.ln()))
            })
        };
        let mut heads = vec![HeadNull::default(); count];
        let (mut xx, mut xy, mut total, mut used) = (0.0, 0.0, 0.0, 0.0);
        for (head, null) in heads.iter_mut().enumerate() {
            let (n, x, y) = points(head).fold((0.0, 0.0, 0.0), |(n, sx, sy), (x, y)| (n + 1.0, sx + x, sy + y));
            if n > 0.0 {
                *null = HeadNull { passes: n, mean_ln_updates: x / n, mean_ln_difference: y / n };
                total += n;
                used += 1.0;
            }
            for (x, y) in points(head) {
                xx += (x - null.mean_ln_updates) * (x - null.mean_ln_updates);
                xy += (x - null.mean_ln_updates) * (y - null.mean_ln_difference);
            }
        }
        let updates = || passes.iter().map(|pass| pass.updates).filter(|u| u.is_finite() && *u > 0.0);
        let largest = updates().fold(f64::NAN, f64::max);
        let several = xx > 0.0 && updates().any(|u| u != largest);
        let slope = several.then(|| ((xy / xx).clamp(0.0, 1.0), xx));
        let beta = slope.map_or(0.0, |(beta, _)| beta);
        let residual = |head: usize, null: &HeadNull| {
            let null = *null;
            points(head)
                .map(|(x, y)| (y - null.mean_ln_difference - beta * (x - null.mean_ln_updates)).powi(2))
                .sum::<f64>()
        };
        let residuals: f64 = heads.iter().enumerate().map(|(head, null)| residual(head, null)).sum();
        let degrees = total - used - f64::from(u8::from(slope.is_some()));
        let deviation = if degrees >= 1.0 { (residuals / degrees).sqrt() } else { f64::NAN };
        Self { heads, slope, deviation, degrees, largest }
    }

    /// β of the fit. NaN if all passes had the same number of updates.
    pub fn slope(&self) -> f64 {
        self.slope.map_or(f64::NAN, |(beta, _)| beta)
    }

    /// Degrees of freedom of the variance.
    pub fn degrees(&self) -> f64 {
        self.degrees
    }

    /// There is a variance to judge by.
    pub fn is_determined(&self) -> bool {
        self.deviation > 0.0
    }

    /// Beyond the updates of all passes: the slope is trusted further than it was seen.
    pub fn extrapolates(&self, updates: f64) -> bool {
        updates > self.largest
    }

    /// What d of a head is after `updates`. `None` if undetermined: no variance, a head without passes, no such updates.
    pub fn predict(&self, head: usize, updates: f64) -> Option<Prediction> {
        let null = self.heads.get(head).filter(|null| null.passes > 0.0)?;
        if !self.is_determined() || !updates.is_finite() || updates <= 0.0 {
            return None;
        }
        let x = updates.ln() - null.mean_ln_updates;
        let (growth, slope_variance) = self.slope.map_or((x.max(0.0), 0.0), |(beta, xx)| (beta * x, x * x / xx));
        let scale = self.deviation * (1.0 + 1.0 / null.passes + slope_variance).sqrt();
        let student = StudentsT::new(0.0, 1.0, self.degrees).ok()?;
        Some(Prediction { location: null.mean_ln_difference + growth, scale, student })
    }
}

impl Prediction {
    pub fn median(&self) -> f64 {
        self.location.exp()
    }

    /// The value that d stays below with this probability.
    pub fn quantile(&self, probability: f64) -> f64 {
        (self.location + self.scale * self.student.inverse_cdf(probability)).exp()
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
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three heads after 10 to 80 updates.
    pub fn passes() -> Vec<Pass> {
        let d = [[0.010, 0.016, 0.019, 0.031], [0.05, 0.06, 0.11, 0.13], [0.2, 0.33, 0.37, 0.55]];
        let updates = [10.0, 20.0, 40.0, 80.0].into_iter().enumerate();
        updates.map(|(i, updates)| Pass { updates, differences: d.iter().map(|row| row[i]).collect() }).collect()
    }

    #[test]
    fn agrees_with_least_squares_elsewhere() {
        // NumPy's lstsq with a dummy for each head; SciPy's t.sf and t.ppf.
        let null = Continuation::fit(&passes());
        assert!((null.slope() - 0.489_936_341_660_062_17).abs() < 1e-13 && null.degrees() == 8.0);
        let expected = [
            [0.05, 0.025_326_495_188_113_4, 0.035_815_183_716_347_14, 0.000_231_064_863_474_572_8],
            [0.12, 0.116_985_112_679_897_46, 0.165_433_206_276_190_07, 0.418_445_168_774_760_6],
            [0.9, 0.492_088_665_601_802_05, 0.695_881_756_727_731, 0.000_496_819_539_513_452],
        ];
        for (head, [d, median, high, p]) in expected.into_iter().enumerate() {
            let found = null.predict(head, 60.0).unwrap();
            // Two solvers of a well-conditioned system, two implementations of the incomplete beta function.
            assert!((found.median() / median - 1.0).abs() < 1e-12, "{found:?}");
            assert!((found.quantile(0.99) / high - 1.0).abs() < 1e-11 && (found.p_value(d) / p - 1.0).abs() < 1e-10);
        }
        assert!(!null.extrapolates(80.0) && null.extrapolates(81.0));
    }

    #[test]
    fn student_agrees_with_scipy() {
        for (degrees, t, tail, quantile) in [
            (1.0, 3.0, 0.102_416_382_349_566_72, 31.820_515_953_773_935),
            (5.0, 2.5, 0.027_245_049_671_188_13, 3.364_929_998_907_217_4),
            (127.0, 6.0, 9.606_196_589_184_648e-9, 2.356_068_589_989_023),
            (1000.0, 12.0, 2.162_028_693_387_214_5e-31, 2.330_082_674_755_513),
            (31.0, -1.0, 0.837_473_633_638_233_4, 2.452_824_193_402_645),
        ] {
            let student = StudentsT::new(0.0, 1.0, degrees).unwrap();
            assert!(
                (student.sf(t) / tail - 1.0).abs() < 1e-11
                    && (student.inverse_cdf(0.99) / quantile - 1.0).abs() < 1e-11
            );
        }
    }

    #[test]
    fn one_number_of_updates_has_no_slope() {
        let pass = |d: f64| Pass { updates: 10.0, differences: vec![d, 2.0 * d * d] };
        let null = Continuation::fit(&[pass(0.1), pass(0.11), pass(0.12)]);
        assert!(null.slope().is_nan() && null.degrees() == 4.0);
        let median = |updates: f64| null.predict(0, updates).unwrap().median();
        assert!((median(30.0) / median(10.0) - 3.0).abs() < 1e-12 && median(1.0) == median(10.0));
        // Twice the deviation of the first head in the second: s² = (S + 4S)/4 with S = Σ(ln d − mean)² over three passes.
        let logs = [0.1f64.ln(), 0.11f64.ln(), 0.12f64.ln()];
        let mean = logs.iter().sum::<f64>() / 3.0;
        let s2 = logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() * 5.0 / 4.0;
        assert!((null.deviation - s2.sqrt()).abs() < 1e-13);
    }

    #[test]
    fn without_enough_passes_there_is_no_prediction() {
        let all = passes();
        for passes in [&[][..], &all[..1]] {
            let null = Continuation::fit(passes);
            assert!(!null.is_determined() && null.predict(0, 60.0).is_none());
        }
        let null = Continuation::fit(&all);
        assert!(null.predict(3, 60.0).is_none(), "a head that was never seen");
        assert!(null.predict(0, 0.0).is_none() && null.predict(0, f64::NAN).is_none());
        let found = null.predict(0, 60.0).unwrap();
        assert_eq!(found.p_value(0.0), 1.0);
        assert!(
            found.p_value(f64::NAN).is_nan() && found.p_value(f64::INFINITY).is_nan() && found.p_value(-1.0).is_nan()
        );
        let same = Pass { updates: 10.0, differences: vec![0.1; 3] };
        assert!(!Continuation::fit(&[same.clone(), same]).is_determined(), "no spread at all is not a variance");
        let mut silent = all.clone();
        silent.iter_mut().for_each(|pass| pass.differences[1] = 0.0);
        let null = Continuation::fit(&silent);
        assert!(null.predict(1, 60.0).is_none() && null.predict(2, 60.0).is_some() && null.degrees() == 5.0);
    }

    proptest! {
        #[test]
        fn a_larger_change_is_less_likely_and_units_do_not_matter(d in 0.001f64..2.0, more in 1.0f64..3.0, unit in 1e-6f64..1e6, updates in 1.0f64..500.0) {
            let null = Continuation::fit(&passes());
            let p = |null: &Continuation, d: f64| null.predict(0, updates).unwrap().p_value(d);
            prop_assert!(p(&null, d * more) <= p(&null, d) && (0.0..=1.0).contains(&p(&null, d)));
            let mut scaled = passes();
            scaled.iter_mut().for_each(|pass| pass.differences.iter_mut().for_each(|d| *d *= unit));
            // ln(unit) rounds at 2⁻⁵³·14, over a scale of 0.1.
            let (x, y) = (p(&Continuation::fit(&scaled), d * unit), p(&null, d));
            prop_assert!((x - y).abs() <= 1e-11);
        }
    }
}
