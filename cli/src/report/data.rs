//! What the figures need of the records: series by step, and sums over the steps of each task.
//!
//! Records are taken in one by one and not kept, so a recording of any length fits. Kinds and values are found by their
//! names in the catalog; records of other kinds pass by.

use std::collections::BTreeMap;

use forgetscope::ring::{NONE16, Record};

use super::mean::{HeadKey, Mean};
use crate::names::Names;
use crate::recording::catalog::Catalog;

/// Heads and their means.
pub type Means = BTreeMap<HeadKey, Mean>;

/// The kinds that are looked at.
pub const KINDS: [&str; 7] = ["step", "task", "evaluation", "interference", "corrected", "drift", "prediction"];

/// Everything that the report is made from. Tasks are ids.
#[derive(Debug, Default)]
pub struct Data {
    pub source: String,
    pub is_recording: bool,
    /// All ranks of the recording; empty for a ring.
    pub ranks: Vec<u32>,
    pub catalog: Catalog,
    pub steps: Steps,
    /// When which task was trained, in order.
    pub spans: Vec<Span>,
    /// By metric and evaluated task.
    pub evaluations: BTreeMap<u16, BTreeMap<u16, Vec<Evaluation>>>,
    /// By trained task and reference.
    pub heads: BTreeMap<(u16, u16), Means>,
    /// By reference and role.
    pub conflicts: BTreeMap<u16, BTreeMap<u16, Vec<Conflict>>>,
    /// By reference and layer.
    pub drift: BTreeMap<u16, BTreeMap<u32, Vec<Drift>>>,
    /// By reference.
    pub predictions: BTreeMap<u16, Vec<Prediction>>,
    /// The latest, by reference and layer; `None` is the whole model.
    pub corrected: BTreeMap<u16, BTreeMap<Option<u32>, Corrected>>,
    /// What references were made of, by the names of their flags.
    pub origins: BTreeMap<u16, String>,
    /// Earliest and latest step of each task that records name; stands in for events that are lost.
    seen: BTreeMap<u16, (u64, u64)>,
}

/// The steps that were sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    pub sampled: u64,
    pub first: Option<u64>,
    pub last: Option<u64>,
    pub skipped: u64,
    pub non_finite: u64,
    pub cost_seconds: f64,
    /// Nanoseconds since 1970.
    pub first_time: Option<u64>,
    pub last_time: Option<u64>,
}

/// A stretch of training on one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub task: u16,
    pub begin: u64,
    /// `None`: it goes on, or its end is not in the records.
    pub end: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub struct Evaluation {
    pub step: u64,
    pub value: f64,
    /// Value at the end of its own training; NaN before that.
    pub own: f64,
    pub maximum: f64,
    pub since_own: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Conflict {
    pub step: u64,
    pub fraction: f64,
    pub active: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Drift {
    pub step: u64,
    pub relative: f64,
    pub resolution: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    pub step: u64,
    pub predicted: f64,
    pub first_order: f64,
    pub first_order_error: f64,
    pub quadratic: f64,
    pub path: f64,
    pub is_unscaled: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Corrected {
    pub step: u64,
    pub cosine: f64,
    pub error: f64,
    pub steps: f64,
    pub batches: f64,
}

impl Data {
    /// Takes a record in. Its time is in nanoseconds since 1970.
    pub fn absorb(&mut self, names: &Names, record: &Record) {
        if record.task != NONE16 {
            let seen = self.seen.entry(record.task).or_insert((record.step, record.step));
            *seen = (seen.0.min(record.step), seen.1.max(record.step));
        }
        let kind = names.kind(record.kind);
        let value = |name: &str| names.value(record, name);
        let Record { step, reference, .. } = *record;
        let level = names.level(record.level);
        let place = names.place(record);
        match kind.as_str() {
            "step" => self.step(record, value("applied"), value("non_finite"), value("cost_seconds")),
            "task" => self.event(record, value("event")),
            _ if reference == NONE16 => {}
            "evaluation" => {
                let metric = value("metric");
                let metric = if metric >= 0.0 { metric as u16 } else { 0 };
                let evaluation = Evaluation {
                    step,
                    value: value("value"),
                    own: value("own"),
                    maximum: value("forgetting_maximum"),
                    since_own: value("forgetting_since_own"),
                };
                self.evaluations.entry(metric).or_default().entry(reference).or_default().push(evaluation);
            }
            "interference" => match (level.as_str(), place.layer, place.role, place.head) {
                ("head", Some(layer), Some(role), Some(head)) => {
                    let heads = self.heads.entry((record.task, reference)).or_default();
                    heads.entry(HeadKey { role, layer, head }).or_default().add(step, value);
                }
                ("role", _, Some(role), _) => {
                    let conflict = Conflict { step, fraction: value("conflict_fraction"), active: value("active") };
                    self.conflicts.entry(reference).or_default().entry(role).or_default().push(conflict);
                }
                ("model", ..) => {
                    let origin = names
                        .flags(record.flags)
                        .into_iter()
                        .filter(|flag| ["exact", "frozen", "refreshed", "trailing"].contains(&flag.as_str()));
                    self.origins.insert(reference, origin.collect::<Vec<_>>().join(", "));
                }
                _ => {}
            },
            "corrected" if matches!(level.as_str(), "layer" | "model") => {
                let corrected = Corrected {
                    step,
                    cosine: value("cosine"),
                    error: value("error"),
                    steps: value("steps"),
                    batches: value("batches"),
                };
                self.corrected.entry(reference).or_default().insert(place.layer, corrected);
            }
            "drift" if level == "layer" => {
                let drift = Drift { step, relative: value("relative"), resolution: value("resolution") };
                let layer = place.layer.unwrap_or_default();
                self.drift.entry(reference).or_default().entry(layer).or_default().push(drift);
            }
            "prediction" => self.predictions.entry(reference).or_default().push(Prediction {
                step,
                predicted: value("predicted"),
                first_order: value("first_order"),
                first_order_error: value("first_order_error"),
                quadratic: value("quadratic"),
                path: value("path"),
                is_unscaled: names.has_flag(record, "unscaled"),
            }),
            _ => {}
        }
    }

    fn step(&mut self, record: &Record, applied: f64, non_finite: f64, cost: f64) {
        let steps = &mut self.steps;
        steps.sampled += 1;
        steps.skipped += u64::from(applied == 0.0);
        steps.non_finite += u64::from(non_finite > 0.0);
        steps.cost_seconds += if cost.is_finite() { cost } else { 0.0 };
        steps.first = Some(steps.first.map_or(record.step, |first| first.min(record.step)));
        steps.last = Some(steps.last.map_or(record.step, |last| last.max(record.step)));
        steps.first_time = Some(steps.first_time.map_or(record.time_ns, |time| time.min(record.time_ns)));
        steps.last_time = Some(steps.last_time.map_or(record.time_ns, |time| time.max(record.time_ns)));
    }

    /// 0 is a task's begin, 1 its end.
    fn event(&mut self, record: &Record, event: f64) {
        let task = record.reference;
        let open = self.spans.iter_mut().rev().find(|span| span.task == task && span.end.is_none());
        match (event, open) {
            (0.0, None) => self.spans.push(Span { task, begin: record.step, end: None }),
            (1.0, Some(span)) => span.end = Some(record.step),
            _ => {}
        }
    }

    /// To be called after the last record.
    pub fn finish(&mut self) {
        for (&task, &(begin, end)) in &self.seen {
            if !self.spans.iter().any(|span| span.task == task) {
                self.spans.push(Span { task, begin, end: Some(end) });
            }
        }
        self.spans.sort_by_key(|span| span.begin);
    }

    pub fn task(&self, task: u16) -> String {
        self.catalog.names.task(task).unwrap_or_else(|| "no task".into())
    }

    /// The metric that speaks for a run: the loss, or else the first.
    pub fn main_metric(&self) -> Option<u16> {
        let metrics = &self.catalog.names.metrics;
        let is_loss = |metric: &&u16| metrics.get(metric).is_some_and(|metric| metric.name == "loss");
        self.evaluations.keys().find(is_loss).or(self.evaluations.keys().next()).copied()
    }

    /// Heads during the latest task that has any, with that task, by reference.
    pub fn latest_heads(&self) -> (Option<u16>, Vec<(u16, &Means)>) {
        let has_heads = |task: &u16| self.heads.keys().any(|(trained, _)| trained == task);
        let task = self.spans.iter().rev().map(|span| span.task).find(has_heads);
        let of_task = self.heads.iter().filter(|((trained, _), _)| Some(*trained) == task);
        (task, of_task.map(|((_, reference), heads)| (*reference, heads)).collect())
    }

    pub fn is_running(&self) -> bool {
        self.catalog.facts.state == "running"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_events_are_made_up_for() {
        let mut data = Data::default();
        data.absorb(&Names::default(), &Record { task: 3, step: 50, ..Record::default() });
        data.absorb(&Names::default(), &Record { task: 3, step: 20, ..Record::default() });
        data.finish();
        assert_eq!(data.spans, [Span { task: 3, begin: 20, end: Some(50) }]);
    }
}
