//! Attention heads: their change against what continued training does, their class, lower against upper layers.

use super::{Judged, Probes, Running};
use crate::ring::{NONE16, NONE32, Record, monotonic_ns};
use crate::scope::algebra::Outbox as Publisher;
use crate::scope::analysis::Subject;
use crate::scope::message::{HeadEffect, TaskId};
use crate::scope::probe::Purpose;
use crate::scope::schema::{attention_head_slice, flag, kind, level};
use crate::stats::continuation::{Continuation, Pass};
use crate::stats::contribution::Change;
use crate::stats::depth::depth;
use crate::stats::severity::{Effect, Predicate, Verdict, classify};

/// What a pass says of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadChange {
    pub layer: u32,
    pub head: u32,
    pub change: Change,
}

impl HeadChange {
    fn slice(&self) -> u32 {
        attention_head_slice(self.layer, self.head)
    }
}

/// Passes that were taken while training went on with the task itself.
#[derive(Default)]
pub struct HeadNull {
    /// Heads in the order of the passes' values.
    heads: Vec<u32>,
    passes: Vec<Pass>,
    fitted: Option<Continuation>,
}

impl HeadNull {
    fn add(&mut self, changes: &[HeadChange], updates: f64) {
        if self.passes.is_empty() {
            self.heads = changes.iter().map(HeadChange::slice).collect();
        }
        let differences = self.aligned(changes).iter().map(|change| change.difference).collect();
        self.passes.push(Pass { updates, differences });
        self.fitted = None;
    }

    /// The changes in the order of the null's heads; NaN where a head is missing.
    fn aligned(&self, changes: &[HeadChange]) -> Vec<Change> {
        let missing = Change { difference: f64::NAN, output_cosine: f64::NAN };
        let find = |slice: &u32| changes.iter().find(|change| change.slice() == *slice).map(|found| found.change);
        self.heads.iter().map(|slice| find(slice).unwrap_or(missing)).collect()
    }

    fn fit(&mut self) -> &Continuation {
        let passes = &self.passes;
        self.fitted.get_or_insert_with(|| Continuation::fit(passes))
    }
}

/// Publishes all heads of a pass and lower against upper layers; returns what later effects need.
pub fn publish(publisher: &mut Publisher, running: &Running, null: &mut HeadNull, predicate: &Predicate) -> Judged {
    let updates = running.updates();
    let record = running.record(publisher, kind::HEAD, Subject::MODEL);
    let mut judged = Judged { record, updates, changes: running.heads.clone(), effects: Vec::new() };
    match running.pass.purpose {
        Purpose::Base => return judged,
        Purpose::Null { .. } => null.add(&running.heads, updates),
        Purpose::Later { .. } => {}
    }
    if running.heads.is_empty() {
        return judged;
    }
    // Passes of the null are not judged by themselves.
    let is_later = matches!(running.pass.purpose, Purpose::Later { .. });
    judged.order_like(null);
    let verdicts = if is_later { judged.verdicts(null, predicate, f64::NAN) } else { Vec::new() };
    for index in 0..judged.changes.len() {
        judged.publish(publisher, index, verdicts.get(index), null);
    }
    // Trainers count layers from 0 or from 1, and may hand over some of them only.
    let mut layers: Vec<u32> = running.heads.iter().map(|head| head.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let place = |head: &HeadChange| (layers.partition_point(|layer| *layer < head.layer), head.change.difference);
    let found = depth(layers.len(), &running.heads.iter().map(place).collect::<Vec<_>>());
    let record = running.record(publisher, kind::DEPTH, Subject::MODEL);
    let (lower, upper) = (found.lower_heads as f64, found.upper_heads as f64);
    let values = [found.difference, found.low, found.high, found.lower, found.upper, lower, upper, found.confidence];
    publisher.publish(record, &values);
    judged
}

impl Judged {
    /// Brings the heads into the order of the null, so that verdicts and changes have the same numbers.
    fn order_like(&mut self, null: &HeadNull) {
        let place = |change: &HeadChange| null.heads.iter().position(|slice| *slice == change.slice());
        self.changes.sort_by_key(|change| place(change).unwrap_or(usize::MAX));
        self.effects = vec![Effect::UNKNOWN; self.changes.len()];
    }

    /// Every head's verdict with the effects that are known.
    fn verdicts(&self, null: &mut HeadNull, predicate: &Predicate, forgetting: f64) -> Vec<Verdict> {
        let differences: Vec<f64> = self.changes.iter().map(|head| head.change.difference).collect();
        classify(predicate, null.fit(), self.updates, &differences, &self.effects, forgetting)
    }

    fn publish(&self, publisher: &mut Publisher, index: usize, verdict: Option<&Verdict>, null: &mut HeadNull) {
        let HeadChange { change, .. } = &self.changes[index];
        let mut record = Record { slice: self.changes[index].slice(), ..self.record };
        (record.level, record.tensor) = (level::ATTENTION_HEAD, NONE32);
        if verdict.is_some() && null.fit().extrapolates(self.updates) {
            record.flags |= flag::EXTRAPOLATED;
        }
        let severity = verdict.map_or(f64::NAN, Verdict::number);
        if verdict.is_some() && severity.is_nan() {
            record.flags |= flag::UNDETERMINED;
        }
        let of = |value: fn(&Verdict) -> f64| verdict.map_or(f64::NAN, value);
        let effect = self.effects[index];
        publisher.publish(
            record,
            &[
                change.difference,
                change.output_cosine,
                of(|verdict| verdict.null_median),
                of(|verdict| verdict.null_high),
                of(|verdict| verdict.p_value),
                of(|verdict| verdict.q_value),
                severity,
                effect.value,
                effect.error,
                self.updates,
            ],
        );
    }
}

impl Probes {
    /// The loss with a head's old weights put back: its latest record is published again, with the effect.
    pub fn effect(&mut self, publisher: &mut Publisher, effect: HeadEffect, trained: Option<TaskId>, forgetting: f64) {
        let task = self.tasks.entry(effect.task).or_default();
        let found = Effect { value: effect.loss - effect.restored, error: effect.error };
        let is_head = |change: &HeadChange| (change.layer, change.head) == (effect.layer, effect.head);
        let index = task.judged.as_ref().and_then(|judged| judged.changes.iter().position(is_head));
        if let (Some(judged), Some(index)) = (&mut task.judged, index) {
            judged.effects[index] = found;
            judged.record = Record { step: effect.step, time_ns: monotonic_ns(), ..judged.record };
            let verdicts = judged.verdicts(&mut task.null, &self.predicate, forgetting);
            judged.publish(publisher, index, verdicts.get(index), &mut task.null);
            return;
        }
        // No pass has seen this head: the effect stands alone.
        let slice = attention_head_slice(effect.layer, effect.head);
        let subject = Subject { level: level::ATTENTION_HEAD, tensor: NONE32, slice };
        let record = Record {
            step: effect.step,
            task: trained.unwrap_or(NONE16),
            reference: effect.task,
            flags: flag::UNDETERMINED,
            ..publisher.record(kind::HEAD, subject)
        };
        let mut values = [f64::NAN; 9];
        (values[7], values[8]) = (found.value, found.error);
        publisher.publish(record, &values);
    }
}
