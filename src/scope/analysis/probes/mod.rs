//! Passes over probes on the drain side: a backlog of layers, and the bases that passes are compared with.
//!
//! The algebra of one layer takes up to a second or two (n = 1,024 tokens, d = 4,096), so a pass is worked off a layer at
//! a time when nothing else waits. Statistics that need several layers come when the last one is done.

mod heads;
mod layer;
mod whole;

use super::{Publisher, Subject};
use crate::ring::{NONE16, NONE32, Record};
use crate::scope::message::{HeadEffect, TaskId};
use crate::scope::probe::{LayerPass, Pass, Purpose};
use crate::scope::schema::{flag, level};
use crate::stats::sample::Sample;
use crate::stats::severity::Predicate;
use crate::stats::subspace::Halves;
use heads::{HeadChange, Judged, TaskNull};
use layer::LayerBase;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Everything that is known of probes.
pub struct Probes {
    dimensions: usize,
    predicate: Predicate,
    waiting: VecDeque<Waiting>,
    going_on: Option<Running>,
    tasks: BTreeMap<TaskId, TaskProbe>,
    /// Of each task, the latest pass's hidden states, as long as they are of the same weights.
    same_weights: BTreeMap<TaskId, BTreeMap<u32, Measured>>,
    same_weights_epoch: u64,
}

enum Waiting {
    Pass(Box<Pass>),
    Effect { effect: HeadEffect, trained: Option<TaskId>, forgetting: f64 },
}

/// A pass of which some layers are done.
struct Running {
    pass: Pass,
    left: BTreeMap<u32, LayerPass>,
    samples: BTreeMap<u32, Measured>,
    heads: Vec<HeadChange>,
    /// What becomes the base, layer by layer.
    base: BTreeMap<u32, LayerBase>,
}

/// A layer's hidden states, with what sampling alone does to their leading subspace.
#[derive(Clone)]
struct Measured {
    sample: Arc<Sample>,
    halves: Option<Halves>,
}

/// What is kept of a task.
#[derive(Default)]
struct TaskProbe {
    base: BTreeMap<u32, LayerBase>,
    null: TaskNull,
    /// Heads as of the latest pass: effects may follow.
    judged: Option<Judged>,
    /// Host memory that the base takes.
    _lease: crate::scope::probe::Lease,
}

impl Probes {
    pub fn new(dimensions: u32, predicate: Predicate) -> Self {
        Self {
            dimensions: dimensions as usize,
            predicate,
            waiting: VecDeque::new(),
            going_on: None,
            tasks: BTreeMap::new(),
            same_weights: BTreeMap::new(),
            same_weights_epoch: 0,
        }
    }

    pub fn has_work(&self) -> bool {
        self.going_on.is_some() || !self.waiting.is_empty()
    }

    pub fn add_pass(&mut self, pass: Pass) {
        self.waiting.push_back(Waiting::Pass(Box::new(pass)));
    }

    /// `forgetting`: how much of the task's loss is forgotten as of now; NaN if nobody said.
    pub fn add_effect(&mut self, effect: HeadEffect, trained: Option<TaskId>, forgetting: f64) {
        self.waiting.push_back(Waiting::Effect { effect, trained, forgetting });
    }

    /// Does one layer of the oldest pass that waits, or what comes after its last layer.
    pub fn work(&mut self, publisher: &mut Publisher) {
        // Taken out first: if a bug makes this panic, the pass is gone and the next one has its turn.
        let Some(mut running) = self.going_on.take() else {
            match self.waiting.pop_front() {
                Some(Waiting::Pass(pass)) => self.going_on = Some(Running::new(*pass)),
                Some(Waiting::Effect { effect, trained, forgetting }) => {
                    self.effect(publisher, effect, trained, forgetting);
                }
                None => {}
            }
            return;
        };
        match running.left.pop_first() {
            Some((number, layer)) => {
                let base = self.tasks.get(&running.pass.task).and_then(|task| task.base.get(&number));
                running.layer(publisher, number, layer, base, self.dimensions);
                self.going_on = Some(running);
            }
            None => self.finish(publisher, running),
        }
    }

    /// All layers are done.
    fn finish(&mut self, publisher: &mut Publisher, running: Running) {
        let task = self.tasks.entry(running.pass.task).or_default();
        running.neighbours(publisher, &task.base);
        let judged = heads::publish(publisher, &running, &mut task.null, &self.predicate);
        self.similarity(publisher, &running);
        let task = self.tasks.entry(running.pass.task).or_default();
        match running.pass.purpose {
            Purpose::Base => {
                *task = TaskProbe { base: running.base, _lease: running.pass.lease, ..TaskProbe::default() };
            }
            Purpose::Later { .. } => task.judged = Some(judged),
            Purpose::Null { .. } => {}
        }
    }
}

impl Running {
    fn new(mut pass: Pass) -> Self {
        let left = std::mem::take(&mut pass.layers);
        Self { pass, left, samples: BTreeMap::new(), heads: Vec::new(), base: BTreeMap::new() }
    }

    /// A record of this pass.
    fn record(&self, publisher: &Publisher, kind: u16, subject: Subject) -> Record {
        let purpose = match self.pass.purpose {
            Purpose::Base => flag::BASE,
            Purpose::Later { .. } => 0,
            Purpose::Null { .. } => flag::CONTINUED,
        };
        Record {
            time_ns: self.pass.time_ns,
            step: self.pass.step,
            task: self.pass.trained.unwrap_or(NONE16),
            reference: self.pass.task,
            flags: purpose,
            ..publisher.record(kind, subject)
        }
    }

    fn is_base(&self) -> bool {
        self.pass.purpose == Purpose::Base
    }

    fn is_continued(&self) -> bool {
        matches!(self.pass.purpose, Purpose::Null { .. })
    }

    /// Updates since the base.
    fn updates(&self) -> f64 {
        match self.pass.purpose {
            Purpose::Base => 0.0,
            Purpose::Later { updates } | Purpose::Null { updates, .. } => updates as f64,
        }
    }
}

fn layer_subject(layer: u32) -> Subject {
    Subject { level: level::LAYER, tensor: NONE32, slice: layer }
}
