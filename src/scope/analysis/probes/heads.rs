//! Attention heads: their change against what continued training does, their class, lower against upper layers.

use super::{Probes, Running};
use crate::ring::{NONE16, NONE32, Record, monotonic_ns};
use crate::scope::algebra::Outbox;
use crate::scope::analysis::Subject;
use crate::scope::message::{HeadEffect, TaskId};
use crate::scope::probe::Purpose;
use crate::scope::schema::{attention_head_slice, flag, kind, level};
use crate::stats::continuation::{Continuation, NullPass};
use crate::stats::contribution::Change;
use crate::stats::depth::depth;
use crate::stats::severity::{Effect, Observed, Predicate, Verdict, judge};
use std::collections::HashMap;

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
pub struct TaskNull {
    /// Each head's place in the differences of all passes. Passes may hand over different heads.
    places: HashMap<u32, usize>,
    passes: Vec<NullPass>,
    fitted: Option<Continuation>,
}

impl TaskNull {
    fn add(&mut self, changes: &[HeadChange], updates: f64, run: u32) {
        for change in changes {
            let next = self.places.len();
            self.places.entry(change.slice()).or_insert(next);
        }
        let mut differences = vec![f64::NAN; self.places.len()];
        for change in changes {
            differences[self.places[&change.slice()]] = change.change.difference;
        }
        self.passes.push(NullPass { updates, run, differences });
        self.fitted = None;
    }

    fn observed(&self, changes: &[HeadChange]) -> Vec<Observed> {
        let observe = |change: &HeadChange| Observed {
            head: self.places.get(&change.slice()).copied(),
            difference: change.change.difference,
        };
        changes.iter().map(observe).collect()
    }

    fn fit(&mut self) -> &Continuation {
        let passes = &self.passes;
        self.fitted.get_or_insert_with(|| Continuation::fit(passes))
    }
}

/// The heads of a pass as they were judged then. An effect that is measured later changes the class of its head only.
pub struct Judged {
    /// What all its records have in common.
    record: Record,
    updates: f64,
    heads: Vec<JudgedHead>,
    /// Each head's place in `heads`.
    places: HashMap<u32, usize>,
}

struct JudgedHead {
    change: HeadChange,
    /// `None`: passes of the null are not judged by themselves.
    verdict: Option<Verdict>,
    effect: Effect,
}

/// Publishes all heads of a pass and lower against upper layers; returns what later effects need.
pub fn publish(outbox: &mut Outbox, running: &Running, null: &mut TaskNull, predicate: &Predicate) -> Judged {
    let judged = Judged::new(running.record(outbox, kind::HEAD, Subject::MODEL), running, null, predicate);
    if running.is_base() || running.heads.is_empty() {
        return judged;
    }
    for head in &judged.heads {
        judged.publish(outbox, head, predicate, f64::NAN);
    }
    // Trainers count layers from 0 or from 1, and may hand over some of them only.
    let mut layers: Vec<u32> = running.heads.iter().map(|head| head.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let place = |head: &HeadChange| (layers.partition_point(|layer| *layer < head.layer), head.change.difference);
    let found = depth(layers.len(), &running.heads.iter().map(place).collect::<Vec<_>>());
    let record = running.record(outbox, kind::DEPTH, Subject::MODEL);
    let null = null.fit();
    let values = [
        found.difference,
        found.low,
        found.high,
        found.lower,
        found.upper,
        found.lower_heads as f64,
        found.upper_heads as f64,
        found.confidence,
        null.slope(),
        null.degrees(),
    ];
    outbox.publish(record, &values);
    judged
}

impl Judged {
    /// Judges a later pass; a pass of the null joins it.
    fn new(mut record: Record, running: &Running, null: &mut TaskNull, predicate: &Predicate) -> Self {
        let (updates, changes) = (running.updates(), &running.heads);
        let mut verdicts = vec![None; changes.len()];
        match running.pass.purpose {
            Purpose::Base => {}
            Purpose::Null { run, .. } => null.add(changes, updates, run),
            Purpose::Later { .. } => {
                let observed = null.observed(changes);
                let null = null.fit();
                record.flags |= if null.extrapolates(updates) { flag::EXTRAPOLATED } else { 0 };
                verdicts = judge(predicate, null, updates, &observed).into_iter().map(Some).collect();
            }
        }
        let heads = changes.iter().zip(verdicts);
        let heads = heads.map(|(&change, verdict)| JudgedHead { change, verdict, effect: Effect::UNKNOWN }).collect();
        let places = changes.iter().enumerate().map(|(place, change)| (change.slice(), place)).collect();
        Self { record, updates, heads, places }
    }

    /// `forgetting`: how much of the task's loss is forgotten; NaN if nobody said.
    fn publish(&self, outbox: &mut Outbox, head: &JudgedHead, predicate: &Predicate, forgetting: f64) {
        let JudgedHead { change, verdict, effect } = head;
        let mut record = Record { slice: change.slice(), ..self.record };
        (record.level, record.tensor) = (level::ATTENTION_HEAD, NONE32);
        let class = verdict.and_then(|verdict| verdict.class(predicate, *effect, forgetting));
        if verdict.is_some() && class.is_none() {
            record.flags |= flag::UNDETERMINED;
        }
        let of = |value: fn(&Verdict) -> f64| verdict.as_ref().map_or(f64::NAN, value);
        outbox.publish(
            record,
            &[
                change.change.difference,
                change.change.output_cosine,
                of(|verdict| verdict.null_median),
                of(|verdict| verdict.null_high),
                of(|verdict| verdict.p_value),
                of(|verdict| verdict.q_value),
                class.map_or(f64::NAN, |class| f64::from(class as u8)),
                effect.value,
                effect.error,
                self.updates,
            ],
        );
    }
}

impl Probes {
    /// The loss with a head's old weights put back: its latest record is published again, with the effect.
    pub fn effect(&mut self, outbox: &mut Outbox, effect: HeadEffect, trained: Option<TaskId>, forgetting: f64) {
        let task = self.tasks.entry(effect.task).or_default();
        let found = Effect { value: effect.loss - effect.restored, error: effect.error };
        let slice = attention_head_slice(effect.layer, effect.head);
        if let Some(judged) = &mut task.judged
            && let Some(&place) = judged.places.get(&slice)
        {
            judged.heads[place].effect = found;
            judged.record = Record { step: effect.step, time_ns: monotonic_ns(), ..judged.record };
            judged.publish(outbox, &judged.heads[place], &self.predicate, forgetting);
            return;
        }
        // No pass has seen this head: the effect stands alone.
        let subject = Subject { level: level::ATTENTION_HEAD, tensor: NONE32, slice };
        let record = Record {
            step: effect.step,
            task: trained.unwrap_or(NONE16),
            reference: effect.task,
            flags: flag::UNDETERMINED,
            ..outbox.record(kind::HEAD, subject)
        };
        let mut values = [f64::NAN; 9];
        (values[7], values[8]) = (found.value, found.error);
        outbox.publish(record, &values);
    }
}
