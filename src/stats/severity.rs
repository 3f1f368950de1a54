//! Which heads changed more than continued training on their own task would have changed them.
//!
//! Every update moves every head, also updates on task A itself. So the null is not "no change" but "continue on A", fitted in
//! [`super::continuation`], and a head's p-value is the probability of a change as large after as many updates there.
//!
//! q-values are those of Benjamini & Hochberg 1995 over all heads of a pass: among the heads with q ≤ 5 %, no more than 5 %
//! are expected to be there by chance. A change of representation need not matter, so that *severe* also asks for a measured
//! effect on the loss. [`Predicate`] says what each class takes.
//!
//! Cost: a few operations per head and pass.

use super::continuation::Continuation;

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

/// Verdicts on all heads of one pass after `updates`, in the order of the null's heads. `effects` may be shorter: effects
/// that are missing are unknown. `forgetting`: rise of the task's loss since the base, in the units of the effects.
pub fn classify(
    predicate: &Predicate,
    null: &Continuation,
    updates: f64,
    differences: &[f64],
    effects: &[Effect],
    forgetting: f64,
) -> Vec<Verdict> {
    let verdict = |(head, &difference): (usize, &f64)| {
        let expected = null.predict(head, updates);
        Verdict {
            null_median: expected.map_or(f64::NAN, |prediction| prediction.median()),
            null_high: expected.map_or(f64::NAN, |prediction| prediction.quantile(predicate.quantile)),
            p_value: expected.map_or(f64::NAN, |prediction| prediction.p_value(difference)),
            q_value: f64::NAN,
            severity: None,
        }
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
    use crate::stats::continuation::Pass;
    use crate::stats::continuation::tests::passes;
    use crate::stats::contribution::{HeadOutputs, compare};
    use crate::stats::random::Random;
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    const HEADS: usize = 32;
    const TRIALS: usize = 1000;
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

    fn judge(null: &Continuation, updates: f64, differences: &[f64]) -> Vec<Verdict> {
        classify(&Predicate::default(), null, updates, differences, &[], f64::NAN)
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
            let null = Continuation::fit(&UPDATES.map(&mut pass));
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
            let null = Continuation::fit(&UPDATES.map(|updates| layer.pass(updates, &[])));
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
        let null = Continuation::fit(&passes());
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
            let null = Continuation::fit(passes);
            assert!(!null.is_determined());
            let verdicts = judge(&null, 60.0, &[0.05, 0.1, 0.4]);
            assert!(verdicts.iter().all(|v| v.severity.is_none() && v.number().is_nan() && v.q_value.is_nan()));
        }
        let null = Continuation::fit(&all);
        let verdicts = judge(&null, 60.0, &[f64::NAN, 0.0, 0.4, 9.0]);
        assert!(verdicts[0].severity.is_none() && verdicts[0].null_median > 0.0, "its change is not known");
        assert_eq!((verdicts[1].p_value, verdicts[1].severity), (1.0, Some(Severity::Unchanged)));
        assert!(verdicts[3].severity.is_none(), "a head that the null has never seen");
        assert!(judge(&null, 0.0, &[0.1])[0].p_value.is_nan() && judge(&null, f64::NAN, &[0.1])[0].p_value.is_nan());
        let same = Pass { updates: 10.0, differences: vec![0.1; 3] };
        assert!(!Continuation::fit(&[same.clone(), same]).is_determined(), "no spread at all is not a variance");
    }

    proptest! {
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
