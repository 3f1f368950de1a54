//! What can be said of a run, and what cannot: numbers and verdicts, no words.
//!
//! A sign is stated only where the data has one. A head is called out only if it is beyond what chance does among as
//! many heads as were looked at.

mod landscape;
mod representation;
mod severity;

pub use landscape::{Flatness, of as flatness};
pub use representation::Representation;
pub use severity::Severities;

use super::data::{Data, Evaluation};
use super::mean::HeadKey;

/// Everything that the headline says.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    pub outcome: Outcome,
    /// The task that the rest is about: the one that is forgotten most, or else the first earlier one.
    pub reference: Option<u16>,
    pub heads: Option<Heads>,
    pub mean_gradients: Verdict,
    pub drift: Option<LayerDrift>,
    pub representation: Option<Representation>,
    pub severity: Option<Severities>,
    pub landscape: Option<Flatness>,
}

/// What evaluations say.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    NotEvaluated,
    /// Nothing was trained before.
    NoEarlierTask,
    /// No earlier task is worse than at its end; how many there are.
    NotWorse {
        metric: u16,
        tasks: usize,
    },
    Forgotten {
        worst: Loss,
        others: Vec<Loss>,
        unharmed: usize,
    },
}

/// What one task has lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    pub task: u16,
    pub metric: u16,
    pub now: f64,
    pub own: f64,
    pub since_own: f64,
    pub maximum: f64,
    /// Evaluations since the task ended, and how many of them are worse than at its end.
    pub evaluations: usize,
    pub worse: usize,
}

/// What heads say of one reference while one task was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    pub task: u16,
    pub looked_at: usize,
    /// Heads whose mean cosine is below −`threshold` null errors, the most negative first.
    pub opposing: Vec<Head>,
    /// How many heads are above as many null errors.
    pub along: usize,
    /// Null errors that chance exceeds in 5 % of runs with as many heads.
    pub threshold: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    pub key: HeadKey,
    pub cosine: f64,
    pub null_error: f64,
    pub steps: u64,
}

/// The sign of a quantity that has an error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Nobody measured it.
    Missing,
    /// Noise hides it: there is no value.
    Undetermined,
    /// There is a value, within two errors of zero.
    NoSign {
        value: f64,
        error: f64,
        steps: f64,
        batches: f64,
    },
    Signed {
        value: f64,
        error: f64,
        steps: f64,
        batches: f64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerDrift {
    pub layer: u32,
    pub relative: f64,
    pub layers: usize,
    /// It is not above twice what the numbers can resolve.
    pub is_unresolved: bool,
}

impl Verdict {
    pub fn of(value: f64, error: f64, steps: f64, batches: f64) -> Self {
        if !value.is_finite() || !error.is_finite() {
            Verdict::Undetermined
        } else if value.abs() <= 2.0 * error {
            Verdict::NoSign { value, error, steps, batches }
        } else {
            Verdict::Signed { value, error, steps, batches }
        }
    }
}

impl Findings {
    pub fn of(data: &Data) -> Self {
        let outcome = outcome(data);
        let worst = match &outcome {
            Outcome::Forgotten { worst, .. } => Some(worst.task),
            _ => None,
        };
        let (task, heads) = data.latest_heads();
        let earlier = data.drift.keys().next().or(heads.first().map(|(reference, _)| reference)).copied();
        let reference = worst.or(earlier);
        let of_reference = heads.iter().find(|(found, _)| Some(*found) == reference);
        let heads = of_reference.zip(task).map(|((_, heads), task)| {
            let all = heads.iter().map(|(key, mean)| {
                let (cosine, null_error, steps) = mean.result();
                Head { key: *key, cosine, null_error, steps }
            });
            opposing(task, all.filter(|head| head.steps > 0 && head.null_error.is_finite()).collect())
        });
        let corrected = reference.and_then(|reference| data.corrected.get(&reference)?.get(&None));
        let mean_gradients = corrected
            .map_or(Verdict::Missing, |found| Verdict::of(found.cosine, found.error, found.steps, found.batches));
        Findings {
            outcome,
            reference,
            heads,
            mean_gradients,
            drift: reference.and_then(|reference| drift(data, reference)),
            representation: reference.and_then(|reference| representation::of(data.representations.get(&reference)?)),
            severity: reference.and_then(|reference| severity::of(data.attention.get(&reference)?)),
            landscape: reference.and_then(|reference| landscape::of(data.landscapes.get(&reference)?)),
        }
    }
}

fn outcome(data: &Data) -> Outcome {
    let Some(metric) = data.main_metric() else { return Outcome::NotEvaluated };
    let mut losses = Vec::new();
    for (&task, evaluations) in &data.evaluations[&metric] {
        let since: Vec<&Evaluation> = evaluations.iter().filter(|evaluation| !evaluation.since_own.is_nan()).collect();
        let Some(latest) = evaluations.last().filter(|latest| !latest.since_own.is_nan()) else { continue };
        losses.push(Loss {
            task,
            metric,
            now: latest.value,
            own: latest.own,
            since_own: latest.since_own,
            maximum: latest.maximum,
            evaluations: since.len(),
            worse: since.iter().filter(|evaluation| evaluation.since_own > 0.0).count(),
        });
    }
    if losses.is_empty() {
        return Outcome::NoEarlierTask;
    }
    let tasks = losses.len();
    losses.retain(|loss| loss.since_own > 0.0);
    losses.sort_by(|a, b| b.since_own.total_cmp(&a.since_own));
    match losses[..] {
        [] => Outcome::NotWorse { metric, tasks },
        [worst, ref others @ ..] => {
            Outcome::Forgotten { worst, others: others.to_vec(), unharmed: tasks - 1 - others.len() }
        }
    }
}

fn opposing(task: u16, all: Vec<Head>) -> Heads {
    let looked_at = all.len();
    let threshold = threshold(looked_at);
    let along = all.iter().filter(|head| head.cosine > threshold * head.null_error).count();
    let mut opposing = all;
    opposing.retain(|head| head.cosine < -threshold * head.null_error);
    opposing.sort_by(|a, b| a.cosine.total_cmp(&b.cosine));
    Heads { task, looked_at, opposing, along, threshold }
}

fn drift(data: &Data, reference: u16) -> Option<LayerDrift> {
    let layers = data.drift.get(&reference)?;
    let latest = layers.iter().filter_map(|(layer, series)| Some((*layer, *series.last()?)));
    let (layer, drift) =
        latest.filter(|(_, drift)| drift.relative.is_finite()).max_by(|a, b| a.1.relative.total_cmp(&b.1.relative))?;
    let is_unresolved = drift.relative <= 2.0 * drift.resolution;
    Some(LayerDrift { layer, relative: drift.relative, layers: layers.len(), is_unresolved })
}

/// How many standard errors the largest of `n` independent normal values exceeds with a probability of 5 %, in either
/// direction (Bonferroni).
pub fn threshold(n: usize) -> f64 {
    let tail = 0.05 / 2.0 / n.max(1) as f64;
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if upper_tail(middle) > tail { low = middle } else { high = middle }
    }
    high
}

/// P(Z > z) of the normal distribution for z ≥ 0, to 1e-7 of itself or better where it matters here: by the continued
/// fraction of the Mills ratio, from far enough inside.
fn upper_tail(z: f64) -> f64 {
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z < 1.0 {
        // The series of the distribution function around zero.
        let (mut term, mut sum, mut k) = (z, z, 1.0);
        while term > 1e-17 {
            term *= z * z / (2.0 * k + 1.0);
            sum += term;
            k += 1.0;
        }
        return 0.5 - density * sum;
    }
    density / (1..=200).rev().fold(z, |ratio, k| z + f64::from(k) / ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::{Corrected, Drift};

    fn evaluation(step: u64, value: f64, own: f64) -> Evaluation {
        Evaluation { step, value, own, maximum: value - own, since_own: value - own }
    }

    #[test]
    fn the_normal_tail_is_right() {
        for (z, tail) in [(0.0, 0.5), (0.5, 0.308_537_54), (1.959_964, 0.025), (3.0, 1.349_898e-3)] {
            assert!((upper_tail(z) / tail - 1.0).abs() < 1e-6, "{z}: {}", upper_tail(z));
        }
        assert!((threshold(1) - 1.96).abs() < 1e-3);
        assert!((threshold(100) - 3.4808).abs() < 1e-3);
    }

    #[test]
    fn a_value_within_two_errors_has_no_sign() {
        assert!(matches!(Verdict::of(-0.1, 0.05, 9.0, 9.0), Verdict::NoSign { .. }));
        assert!(matches!(Verdict::of(-0.11, 0.05, 9.0, 9.0), Verdict::Signed { .. }));
        assert_eq!(Verdict::of(f64::NAN, 0.05, 9.0, 9.0), Verdict::Undetermined);
        assert_eq!(Verdict::of(-0.5, f64::NAN, 9.0, 9.0), Verdict::Undetermined, "a number without its error");
    }

    #[test]
    fn the_worst_task_comes_first() {
        let mut data = Data::default();
        let tasks = data.evaluations.entry(0).or_default();
        tasks.insert(0, vec![evaluation(10, 2.0, 1.9), evaluation(20, 2.1, 1.9)]);
        tasks.insert(1, vec![evaluation(20, 2.5, 1.9)]);
        tasks.insert(2, vec![evaluation(20, 1.0, 1.5)]);
        tasks.insert(3, vec![evaluation(20, 1.0, f64::NAN)]);
        let Outcome::Forgotten { worst, others, unharmed } = Findings::of(&data).outcome else { panic!() };
        assert_eq!((worst.task, others.len(), others[0].task, unharmed), (1, 1, 0, 1));
        assert_eq!((others[0].evaluations, others[0].worse), (2, 2));
    }

    #[test]
    fn without_data_nothing_is_said() {
        let findings = Findings::of(&Data::default());
        assert_eq!(findings.outcome, Outcome::NotEvaluated);
        assert_eq!((findings.heads, findings.mean_gradients, findings.drift), (None, Verdict::Missing, None));
        let mut data = Data::default();
        data.evaluations.entry(0).or_default().insert(0, vec![evaluation(1, 2.0, f64::NAN)]);
        assert_eq!(Findings::of(&data).outcome, Outcome::NoEarlierTask);
    }

    #[test]
    fn the_model_speaks_for_the_mean_gradients() {
        let mut data = Data::default();
        data.drift.entry(0).or_default().insert(1, vec![Drift { step: 1, relative: 1e-8, resolution: 1e-8 }]);
        let corrected = Corrected { step: 1, cosine: f64::NAN, error: f64::NAN, steps: 8.0, batches: 8.0 };
        data.corrected.entry(0).or_default().insert(None, corrected);
        let findings = Findings::of(&data);
        assert_eq!(findings.mean_gradients, Verdict::Undetermined);
        assert!(findings.drift.unwrap().is_unresolved);
    }
}
