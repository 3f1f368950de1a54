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

/// What a pass says of one head, and which head of the null it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Its place in the differences of the null's passes. `None`: the null has never seen it.
    pub head: Option<usize>,
    /// d_h.
    pub difference: f64,
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
    pub changed: Option<bool>,
}

/// Verdicts on all heads of one pass after `updates`, in their order.
pub fn judge(predicate: &Predicate, null: &Continuation, updates: f64, heads: &[Observed]) -> Vec<Verdict> {
    let t = null.student_quantile(predicate.quantile);
    let verdict = |observed: &Observed| {
        let expected = observed.head.and_then(|head| null.predict(head, updates));
        Verdict {
            null_median: expected.map_or(f64::NAN, |prediction| prediction.median()),
            null_high: expected.map_or(f64::NAN, |prediction| prediction.at(t)),
            p_value: expected.map_or(f64::NAN, |prediction| prediction.p_value(observed.difference)),
            q_value: f64::NAN,
            changed: None,
        }
    };
    let mut verdicts: Vec<Verdict> = heads.iter().map(verdict).collect();
    let q_values = benjamini_hochberg(&verdicts.iter().map(|verdict| verdict.p_value).collect::<Vec<_>>());
    for ((verdict, q_value), observed) in verdicts.iter_mut().zip(q_values).zip(heads) {
        verdict.q_value = q_value;
        let changed = q_value <= predicate.fdr && observed.difference > verdict.null_high;
        verdict.changed = (!q_value.is_nan()).then_some(changed);
    }
    verdicts
}

impl Verdict {
    /// The class of the head, given the effect of its change on the loss. `forgetting`: rise of the task's loss since the
    /// base, in the units of the effect. `None` if undetermined.
    pub fn class(&self, predicate: &Predicate, effect: Effect, forgetting: f64) -> Option<Severity> {
        let harmful = forgetting > 0.0
            && effect.value > predicate.effect_errors * effect.error
            && effect.value >= predicate.effect_share * forgetting;
        self.changed.map(|changed| match (changed, harmful) {
            (false, _) => Severity::Unchanged,
            (true, false) => Severity::Changed,
            (true, true) => Severity::Severe,
        })
    }
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
    use crate::stats::continuation::NullPass;
    use crate::stats::continuation::tests::passes;
    use proptest::prelude::*;

    fn observed(differences: &[f64]) -> Vec<Observed> {
        differences.iter().enumerate().map(|(head, &difference)| Observed { head: Some(head), difference }).collect()
    }

    fn verdicts(null: &Continuation, updates: f64, differences: &[f64]) -> Vec<Verdict> {
        judge(&Predicate::default(), null, updates, &observed(differences))
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

    #[test]
    fn a_head_is_judged_by_its_own_null_wherever_it_stands() {
        let null = Continuation::fit(&passes());
        let all = observed(&[0.05, 0.12, 0.9]);
        let expected = judge(&Predicate::default(), &null, 60.0, &all);
        let turned: Vec<Observed> = all.iter().rev().copied().collect();
        let found = judge(&Predicate::default(), &null, 60.0, &turned);
        assert!(found.iter().rev().eq(&expected));
        // The first head is missing, and one stands there that the null has never seen.
        let stranger = Observed { head: None, difference: 0.05 };
        let found = judge(&Predicate::default(), &null, 60.0, &[stranger, all[1], all[2]]);
        assert!(found[0].changed.is_none() && found[0].null_median.is_nan() && found[0].q_value.is_nan());
        for (found, expected) in found[1..].iter().zip(&expected[1..]) {
            let of = |verdict: &Verdict| (verdict.null_median, verdict.null_high, verdict.p_value);
            assert_eq!(of(found), of(expected));
        }
    }

    #[test]
    fn severe_takes_a_measured_effect() {
        let null = Continuation::fit(&passes());
        let predicate = Predicate::default();
        let found = verdicts(&null, 60.0, &[0.5, 0.02, 0.4]);
        let class = |value: f64, error: f64, forgetting: f64| {
            found[0].class(&predicate, Effect { value, error }, forgetting).unwrap()
        };
        assert_eq!(class(0.1, 0.01, 1.0), Severity::Severe);
        assert_eq!(class(0.1, 0.06, 1.0), Severity::Changed, "within two errors");
        assert_eq!(class(0.04, 0.001, 1.0), Severity::Changed, "4 % of the forgetting");
        assert_eq!(class(0.1, 0.01, -0.1), Severity::Changed, "nothing was forgotten");
        assert_eq!(class(0.1, 0.01, f64::NAN), Severity::Changed);
        assert_eq!(class(f64::NAN, 0.01, 1.0), Severity::Changed);
        assert_eq!(found[0].class(&predicate, Effect::UNKNOWN, 1.0), Some(Severity::Changed));
        let unchanged = found[1].class(&predicate, Effect { value: 1.0, error: 0.0 }, 1.0);
        assert_eq!(unchanged, Some(Severity::Unchanged), "an effect without a change is not the head's");
        assert!(predicate.describe().contains("q ≤ 0.05"));
    }

    #[test]
    fn without_a_null_there_is_no_verdict() {
        let all = passes();
        for passes in [&[][..], &all[..1]] {
            let null = Continuation::fit(passes);
            assert!(!null.is_determined());
            let found = verdicts(&null, 60.0, &[0.05, 0.1, 0.4]);
            assert!(found.iter().all(|v| v.changed.is_none() && v.q_value.is_nan() && v.null_high.is_nan()));
            assert!(found[0].class(&Predicate::default(), Effect { value: 1.0, error: 0.0 }, 1.0).is_none());
        }
        let null = Continuation::fit(&all);
        let found = verdicts(&null, 60.0, &[f64::NAN, 0.0, 0.4, 9.0]);
        assert!(found[0].changed.is_none() && found[0].null_median > 0.0, "its change is not known");
        assert_eq!((found[1].p_value, found[1].changed), (1.0, Some(false)));
        assert!(found[3].changed.is_none(), "a head that the null has never seen");
        assert!(verdicts(&null, 0.0, &[0.1])[0].p_value.is_nan());
        assert!(verdicts(&null, f64::NAN, &[0.1])[0].p_value.is_nan());
        let same = |run| NullPass { updates: 10.0, run, differences: vec![0.1; 3] };
        assert!(!Continuation::fit(&[same(0), same(1)]).is_determined(), "no spread at all is not a variance");
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
