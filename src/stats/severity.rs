//! Which heads changed more than continued training on their own task would have changed them.
//!
//! Every update moves every head, also updates on task A itself. So the null is not "no change" but "continue on A": passes
//! that were taken after u further updates on A. Changes are sizes that grow with u and differ between heads by a factor:
//!
//! ```text
//! ln d_h(u) = α_h + β·ln u + ε,     ε ~ N(0, σ²),     0 ≤ β ≤ 1
//! ```
//!
//! by least squares with an intercept for each head, one slope, one variance. β = 1 is drift in one direction, ½ a random walk,
//! 0 a change that has levelled off; estimates outside of 0 … 1 are set to the nearer end. Passes after a single u do not show
//! a slope: then the null grows like u beyond that u, and does not shrink before it, which errs on the careful side.
//!
//! A new change has the one-sided p-value of Student's t for a prediction, with N − heads − 1 degrees of freedom (one more
//! without a slope):
//!
//! ```text
//! t = (ln d − α̂_h − β̂·ln u) / (s·√(1 + 1/n_h + (ln u − mean_h ln u)²/S_xx))
//! ```
//!
//! q-values are those of Benjamini & Hochberg 1995 over all heads of a pass: among the heads with q ≤ 5 %, no more than 5 %
//! are expected to be there by chance. A change of representation need not matter, so that *severe* also asks for a measured
//! effect on the loss. [`Predicate`] says what each class takes.
//!
//! Cost: a few operations per head and pass.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// What a severity class takes. A change of its meaning is a new version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicate {
    pub version: u32,
    /// Largest q-value of a changed head: the false discovery rate.
    pub fdr: f64,
    /// Quantile of the null's prediction that a changed head exceeds.
    pub quantile: f64,
    /// Standard errors that the effect of a severe head exceeds.
    pub effect_errors: f64,
    /// Share of the task's forgetting that the effect of a severe head reaches.
    pub effect_share: f64,
}

impl Default for Predicate {
    fn default() -> Self {
        Self { version: 1, fdr: 0.05, quantile: 0.99, effect_errors: 2.0, effect_share: 0.05 }
    }
}

impl Predicate {
    /// One sentence, for people.
    pub fn describe(&self) -> String {
        format!(
            "severity {}: changed if q ≤ {} against continued training and beyond the null's {} % quantile; severe if \
             restoring the head lowers the loss by more than {} standard errors and at least {} % of the forgetting",
            self.version,
            self.fdr,
            100.0 * self.quantile,
            self.effect_errors,
            100.0 * self.effect_share,
        )
    }
}

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
pub struct Null {
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

/// Severity classes, in the order of their numbers in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Unchanged = 0,
    Changed = 1,
    Severe = 2,
}

/// Loss now minus the loss with the head's old weights restored, with its standard error: positive if the head's change
/// does harm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effect {
    pub value: f64,
    pub error: f64,
}

impl Effect {
    /// Not measured: no head is severe.
    pub const UNKNOWN: Self = Self { value: f64::NAN, error: f64::NAN };
}

/// What is known about one head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Median of the null's prediction at this number of updates, in units of d.
    pub null_median: f64,
    /// The predicate's quantile of the null's prediction.
    pub null_high: f64,
    pub p_value: f64,
    pub q_value: f64,
    /// `None`: there is no null, or the change is not known.
    pub severity: Option<Severity>,
}

impl Verdict {
    /// The class's number, NaN if undetermined.
    pub fn number(&self) -> f64 {
        self.severity.map_or(f64::NAN, |severity| f64::from(severity as u8))
    }
}

impl Null {
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

    /// Location and scale of ln d of a head after `updates`; `None` if undetermined.
    fn predict(&self, head: usize, updates: f64) -> Option<(f64, f64)> {
        let null = self.heads.get(head).filter(|null| null.passes > 0.0)?;
        if !self.is_determined() || !updates.is_finite() || updates <= 0.0 {
            return None;
        }
        let x = updates.ln() - null.mean_ln_updates;
        let (growth, slope_variance) = self.slope.map_or((x.max(0.0), 0.0), |(beta, xx)| (beta * x, x * x / xx));
        let scale = self.deviation * (1.0 + 1.0 / null.passes + slope_variance).sqrt();
        Some((null.mean_ln_difference + growth, scale))
    }
}

/// Verdicts on all heads of one pass after `updates`, in the order of the null's heads. `effects` may be shorter: effects
/// that are missing are unknown. `forgetting`: rise of the task's loss since the base, in the units of the effects.
pub fn classify(
    predicate: &Predicate,
    null: &Null,
    updates: f64,
    differences: &[f64],
    effects: &[Effect],
    forgetting: f64,
) -> Vec<Verdict> {
    let student = StudentsT::new(0.0, 1.0, null.degrees).ok();
    let verdict = |(head, &difference): (usize, &f64)| {
        let (mut null_median, mut null_high, mut p_value) = (f64::NAN, f64::NAN, f64::NAN);
        if let (Some((location, scale)), Some(student)) = (null.predict(head, updates), &student) {
            null_median = location.exp();
            null_high = (location + scale * student.inverse_cdf(predicate.quantile)).exp();
            if difference.is_finite() && difference >= 0.0 {
                p_value = if difference > 0.0 { student.sf((difference.ln() - location) / scale) } else { 1.0 };
            }
        }
        Verdict { null_median, null_high, p_value, q_value: f64::NAN, severity: None }
    };
    let mut verdicts: Vec<Verdict> = differences.iter().enumerate().map(verdict).collect();
    let q_values = benjamini_hochberg(&verdicts.iter().map(|verdict| verdict.p_value).collect::<Vec<_>>());
    for (head, (verdict, q_value)) in verdicts.iter_mut().zip(q_values).enumerate() {
        verdict.q_value = q_value;
        let changed = q_value <= predicate.fdr && differences[head] > verdict.null_high;
        let effect = effects.get(head).copied().unwrap_or(Effect::UNKNOWN);
        let harmful = forgetting > 0.0
            && effect.value > predicate.effect_errors * effect.error
            && effect.value >= predicate.effect_share * forgetting;
        verdict.severity = (!q_value.is_nan()).then_some(match (changed, harmful) {
            (false, _) => Severity::Unchanged,
            (true, false) => Severity::Changed,
            (true, true) => Severity::Severe,
        });
    }
    verdicts
}

/// q-values of Benjamini & Hochberg 1995: for the i-th smallest of m p-values the least of p_j·m/j over j ≥ i. NaN stays NaN
/// and does not count.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).filter(|&i| !p_values[i].is_nan()).collect();
    order.sort_by(|&i, &j| p_values[i].total_cmp(&p_values[j]));
    let count = order.len() as f64;
    let mut q_values = vec![f64::NAN; p_values.len()];
    let mut least = 1.0f64;
    for (rank, &index) in order.iter().enumerate().rev() {
        // The factor first: it is at least 1, so that rounding leaves no q below its p.
        least = least.min(p_values[index] * (count / (rank + 1) as f64));
        q_values[index] = least;
    }
    q_values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::contribution::{HeadOutputs, compare};
    use crate::stats::random::Random;
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    const HEADS: usize = 32;
    const TRIALS: usize = 200;
    const UPDATES: [f64; 8] = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];

    /// Wilson's 95 % interval of a share.
    fn wilson(hits: usize, trials: usize) -> (f64, f64) {
        let (n, z) = (trials as f64, 1.959_963_984_540_054);
        let share = hits as f64 / n;
        let centre = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
        (centre - half, centre + half)
    }

    fn flagged(verdicts: &[Verdict]) -> Vec<usize> {
        (0..verdicts.len()).filter(|&head| verdicts[head].severity >= Some(Severity::Changed)).collect()
    }

    fn judge(null: &Null, updates: f64, differences: &[f64]) -> Vec<Verdict> {
        classify(&Predicate::default(), null, updates, differences, &[], f64::NAN)
    }

    fn passes() -> Vec<Pass> {
        let d = [[0.010, 0.016, 0.019, 0.031], [0.05, 0.06, 0.11, 0.13], [0.2, 0.33, 0.37, 0.55]];
        let updates = [10.0, 20.0, 40.0, 80.0].into_iter().enumerate();
        updates.map(|(i, updates)| Pass { updates, differences: d.iter().map(|row| row[i]).collect() }).collect()
    }

    #[test]
    fn agrees_with_least_squares_elsewhere() {
        // NumPy's lstsq with a dummy for each head; SciPy's t.sf and t.ppf.
        let null = Null::fit(&passes());
        assert!((null.slope() - 0.489_936_341_660_062_17).abs() < 1e-13 && null.degrees() == 8.0);
        let verdicts = judge(&null, 60.0, &[0.05, 0.12, 0.9]);
        let expected = [
            [0.025_326_495_188_113_4, 0.035_815_183_716_347_14, 0.000_231_064_863_474_572_8],
            [0.116_985_112_679_897_46, 0.165_433_206_276_190_07, 0.418_445_168_774_760_6],
            [0.492_088_665_601_802_05, 0.695_881_756_727_731, 0.000_496_819_539_513_452],
        ];
        for (verdict, [median, high, p]) in verdicts.iter().zip(expected) {
            // Two solvers of a well-conditioned system, two implementations of the incomplete beta function.
            assert!((verdict.null_median / median - 1.0).abs() < 1e-12, "{verdict:?}");
            assert!((verdict.null_high / high - 1.0).abs() < 1e-11 && (verdict.p_value / p - 1.0).abs() < 1e-10);
        }
        assert_eq!(flagged(&verdicts), [0, 2]);
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
    fn q_values_agree_with_scipy() {
        // scipy.stats.false_discovery_control; a NaN beside them changes nothing.
        let q = benjamini_hochberg(&[0.01, 0.001, f64::NAN, 0.04, 0.03, 0.5]);
        for (found, expected) in q.iter().zip([0.025, 0.005, f64::NAN, 0.05, 0.05, 0.5]) {
            assert!((found - expected).abs() < 1e-15 || found.is_nan() && expected.is_nan());
        }
        assert!(benjamini_hochberg(&[]).is_empty());
    }

    /// d drawn from the model itself.
    #[test]
    fn continued_training_is_flagged_as_often_as_promised() {
        let mut random = Random::new(1);
        let mut any = 0;
        for _ in 0..TRIALS {
            let offsets: Vec<f64> = (0..HEADS).map(|_| random.normal()).collect();
            let mut pass = |updates: f64| {
                let difference = |offset: &f64| (offset + 0.5 * updates.ln() + 0.3 * random.normal()).exp();
                Pass { updates, differences: offsets.iter().map(difference).collect() }
            };
            let null = Null::fit(&UPDATES.map(&mut pass));
            any += usize::from(!flagged(&judge(&null, 60.0, &pass(60.0).differences)).is_empty());
        }
        let (low, high) = wilson(any, TRIALS);
        println!("any of {HEADS} heads flagged under the null: {any} of {TRIALS}, 95 % interval {low:.3} … {high:.3}");
        assert!(low <= 0.05, "{any} of {TRIALS}");
    }

    /// A layer whose weights wander from pass to pass, each head at its own pace.
    struct Layer {
        random: Random,
        outputs: Array2<f32>,
        projection: Array2<f32>,
        pace: Vec<f64>,
        base: HeadOutputs,
        residual: f64,
    }

    const TOKENS: usize = 24;
    const WIDTH: usize = 4;
    const STREAM: usize = 12;

    impl Layer {
        fn new(seed: u64) -> Self {
            let mut random = Random::new(seed);
            let outputs = random.normals(TOKENS, HEADS * WIDTH).mapv(|x| x as f32);
            let projection = random.normals(STREAM, HEADS * WIDTH).mapv(|x| x as f32);
            // Slow enough that no head loses more than some tenths of itself. A head that does has a quadratic part in its
            // change, more spread than the others, and is flagged more often: 6.6 % of passes with paces e times as far apart.
            let pace = (0..HEADS).map(|_| 0.005 * (0.5 * random.normal()).exp()).collect();
            let base = HeadOutputs::new(outputs.clone(), Some(projection.clone()), HEADS);
            let residual = base.norms().iter().map(|x| x * x).sum::<f64>().sqrt();
            Self { random, outputs, projection, pace, base, residual }
        }

        /// Changes after `updates` random-walk steps; projections of the `scrambled` heads are drawn anew.
        fn pass(&mut self, updates: f64, scrambled: &[usize]) -> Pass {
            let (mut outputs, mut projection) = (self.outputs.clone(), self.projection.clone());
            for head in 0..HEADS {
                let size = self.pace[head] * updates.sqrt() * (0.2 * self.random.normal()).exp();
                let columns = s![.., head * WIDTH..(head + 1) * WIDTH];
                for weights in [&mut outputs, &mut projection] {
                    let rows = weights.nrows();
                    let step = self.random.normals(rows, WIDTH).mapv(|x| (size * x) as f32);
                    weights.slice_mut(columns).zip_mut_with(&step, |x, y| *x += y);
                }
                if scrambled.contains(&head) {
                    projection.slice_mut(columns).assign(&self.random.normals(STREAM, WIDTH).mapv(|x| x as f32));
                }
            }
            let now = HeadOutputs::new(outputs, Some(projection), HEADS);
            let changes = compare(&self.base, &now, self.residual);
            Pass { updates, differences: changes.iter().map(|change| change.difference).collect() }
        }
    }

    /// Through real contributions, whose noise is only roughly that of the model.
    #[test]
    fn scrambled_heads_are_found_and_others_left_alone() {
        let scrambled = [3, 17, 30];
        let (mut any, mut found, mut proportions) = (0, 0, Vec::new());
        for trial in 0..TRIALS {
            let mut layer = Layer::new(trial as u64);
            let null = Null::fit(&UPDATES.map(|updates| layer.pass(updates, &[])));
            let still = layer.pass(60.0, &[]);
            any += usize::from(!flagged(&judge(&null, 60.0, &still.differences)).is_empty());
            let hit = flagged(&judge(&null, 60.0, &layer.pass(60.0, &scrambled).differences));
            found += usize::from(scrambled.iter().all(|head| hit.contains(head)));
            proportions
                .push(hit.iter().filter(|head| !scrambled.contains(head)).count() as f64 / hit.len().max(1) as f64);
        }
        let (low, high) = wilson(any, TRIALS);
        let mean = proportions.iter().sum::<f64>() / TRIALS as f64;
        let spread = proportions.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (TRIALS - 1) as f64;
        let error = (spread / TRIALS as f64).sqrt();
        println!("any of {HEADS} heads flagged under the null: {any} of {TRIALS}, 95 % interval {low:.3} … {high:.3}");
        println!("all three scrambled heads found: {found} of {TRIALS}; false discoveries: {mean:.3} ± {error:.3}");
        assert!(low <= 0.05, "{any} of {TRIALS}");
        assert_eq!(found, TRIALS);
        // Benjamini & Hochberg: on average fdr times the share of heads that did not change.
        let bound = 0.05 * (HEADS - scrambled.len()) as f64 / HEADS as f64;
        assert!(mean - 2.0 * error <= bound, "{mean} ± {error} above {bound}");
    }

    #[test]
    fn severe_takes_a_measured_effect() {
        let null = Null::fit(&passes());
        let judge = |value: f64, error: f64, forgetting: f64| {
            let effects = [Effect { value, error }];
            classify(&Predicate::default(), &null, 60.0, &[0.5, 0.1, 0.4], &effects, forgetting)[0].severity.unwrap()
        };
        assert_eq!(judge(0.1, 0.01, 1.0), Severity::Severe);
        assert_eq!(judge(0.1, 0.06, 1.0), Severity::Changed, "within two errors");
        assert_eq!(judge(0.04, 0.001, 1.0), Severity::Changed, "4 % of the forgetting");
        assert_eq!(judge(0.1, 0.01, -0.1), Severity::Changed, "nothing was forgotten");
        assert_eq!(judge(0.1, 0.01, f64::NAN), Severity::Changed);
        assert_eq!(judge(f64::NAN, 0.01, 1.0), Severity::Changed);
        let unchanged =
            classify(&Predicate::default(), &null, 60.0, &[0.02], &[Effect { value: 1.0, error: 0.0 }], 1.0);
        assert_eq!(unchanged[0].severity, Some(Severity::Unchanged), "an effect without a change is not the head's");
        assert!(Predicate::default().describe().contains("q ≤ 0.05"));
    }

    #[test]
    fn without_a_null_there_is_no_verdict() {
        let all = passes();
        for passes in [&[][..], &all[..1]] {
            let null = Null::fit(passes);
            assert!(!null.is_determined());
            let verdicts = judge(&null, 60.0, &[0.05, 0.1, 0.4]);
            assert!(verdicts.iter().all(|v| v.severity.is_none() && v.number().is_nan() && v.q_value.is_nan()));
        }
        let null = Null::fit(&all);
        let verdicts = judge(&null, 60.0, &[f64::NAN, 0.0, 0.4, 9.0]);
        assert!(verdicts[0].severity.is_none() && verdicts[0].null_median > 0.0, "its change is not known");
        assert_eq!((verdicts[1].p_value, verdicts[1].severity), (1.0, Some(Severity::Unchanged)));
        assert!(verdicts[3].severity.is_none(), "a head that the null has never seen");
        assert!(judge(&null, 0.0, &[0.1])[0].p_value.is_nan() && judge(&null, f64::NAN, &[0.1])[0].p_value.is_nan());
        let same = Pass { updates: 10.0, differences: vec![0.1; 3] };
        assert!(!Null::fit(&[same.clone(), same]).is_determined(), "no spread at all is not a variance");
    }

    #[test]
    fn one_number_of_updates_has_no_slope() {
        let pass = |d: f64| Pass { updates: 10.0, differences: vec![d, 2.0 * d * d] };
        let null = Null::fit(&[pass(0.1), pass(0.11), pass(0.12)]);
        assert!(null.slope().is_nan() && null.degrees() == 4.0);
        let median = |updates: f64| judge(&null, updates, &[0.1, 0.1])[0].null_median;
        assert!((median(30.0) / median(10.0) - 3.0).abs() < 1e-12 && median(1.0) == median(10.0));
        // Twice the deviation of the first head in the second: s² = (S + 4S)/4 with S = Σ(ln d − mean)² over three passes.
        let logs = [0.1f64.ln(), 0.11f64.ln(), 0.12f64.ln()];
        let mean = logs.iter().sum::<f64>() / 3.0;
        let s2 = logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() * 5.0 / 4.0;
        assert!((null.deviation - s2.sqrt()).abs() < 1e-13);
    }

    proptest! {
        #[test]
        fn a_larger_change_is_less_likely_and_units_do_not_matter(d in 0.001f64..2.0, more in 1.0f64..3.0, unit in 1e-6f64..1e6, updates in 1.0f64..500.0) {
            let null = Null::fit(&passes());
            let p = |null: &Null, d: f64| judge(null, updates, &[d])[0].p_value;
            prop_assert!(p(&null, d * more) <= p(&null, d) && (0.0..=1.0).contains(&p(&null, d)));
            let mut scaled = passes();
            scaled.iter_mut().for_each(|pass| pass.differences.iter_mut().for_each(|d| *d *= unit));
            // ln(unit) rounds at 2⁻⁵³·14, over a scale of 0.1.
            let (x, y) = (p(&Null::fit(&scaled), d * unit), p(&null, d));
            prop_assert!((x - y).abs() <= 1e-11);
        }

        #[test]
        fn q_values_are_at_least_p_and_keep_their_order(p in prop::collection::vec(0.0f64..1.0, 1..40)) {
            let q = benjamini_hochberg(&p);
            for i in 0..p.len() {
                prop_assert!(q[i] >= p[i] && q[i] <= 1.0);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || q[i] <= q[j]);
                }
            }
        }
    }
}
