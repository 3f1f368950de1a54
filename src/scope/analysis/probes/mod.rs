//! Passes over probes on the algebra thread: what is kept of bases, and what passes are compared with.
//!
//! A layer takes up to two seconds (n = 1,024 tokens, d = 4,096), most of it in LAPACK. Records go out after every layer;
//! what needs several layers comes at the end of the pass.

mod heads;
mod layer;
mod whole;

use super::Subject;
use crate::ring::{NONE16, NONE32, Record};
use crate::scope::algebra::Outbox;
use crate::scope::message::TaskId;
use crate::scope::probe::{Lease, Pass, Purpose};
use crate::scope::schema::{flag, level};
use crate::stats::sample::Sample;
use crate::stats::severity::Predicate;
use crate::stats::subspace::Halves;
use heads::{HeadChange, Judged, TaskNull};
use layer::LayerBase;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything that is known of probes.
pub struct Probes {
    dimensions: usize,
    predicate: Predicate,
    tasks: BTreeMap<TaskId, TaskProbe>,
    /// Of each task, the latest pass's hidden states, as long as they are of the same weights.
    same_weights: BTreeMap<TaskId, SameWeights>,
    same_weights_epoch: u64,
}

/// A pass of which some layers are done.
struct Running {
    pass: Pass,
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

/// A task's hidden states at the weights of now, and the memory that they take.
struct SameWeights {
    samples: BTreeMap<u32, Measured>,
    _lease: Arc<Lease>,
}

/// What is kept of a task.
#[derive(Default)]
struct TaskProbe {
    base: BTreeMap<u32, LayerBase>,
    null: TaskNull,
    /// Heads as of the latest pass: effects may follow.
    judged: Option<Judged>,
    /// Host memory that the base takes.
    _lease: Option<Arc<Lease>>,
}

impl Probes {
    pub fn new(dimensions: u32, predicate: Predicate) -> Self {
        Self {
            dimensions: dimensions as usize,
            predicate,
            tasks: BTreeMap::new(),
            same_weights: BTreeMap::new(),
            same_weights_epoch: 0,
        }
    }

    /// Measures a pass; records go out after every layer.
    pub fn pass(&mut self, mut pass: Pass, outbox: &mut Outbox) {
        let layers = std::mem::take(&mut pass.layers);
        let (samples, heads, base) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut running = Running { pass, samples, heads, base };
        for (number, layer) in layers {
            let base = self.tasks.get(&running.pass.task).and_then(|task| task.base.get(&number));
            running.layer(outbox, number, layer, base, self.dimensions);
            outbox.send();
        }
        self.finish(outbox, running);
    }

    /// The task's weights move with training: what was kept of them is no base any more.
    pub fn forget(&mut self, task: TaskId) {
        self.tasks.remove(&task);
    }

    /// All layers are done.
    fn finish(&mut self, outbox: &mut Outbox, running: Running) {
        let task = self.tasks.entry(running.pass.task).or_default();
        running.neighbours(outbox, &task.base);
        let judged = heads::publish(outbox, &running, &mut task.null, &self.predicate);
        self.similarity(outbox, &running);
        let Running { pass, base, .. } = running;
        let task = self.tasks.entry(pass.task).or_default();
        match pass.purpose {
            Purpose::Base => *task = TaskProbe { base, _lease: Some(pass.lease), ..TaskProbe::default() },
            Purpose::Later { .. } => task.judged = Some(judged),
            Purpose::Null { .. } => {}
        }
    }
}

impl Running {
    /// A record of this pass.
    fn record(&self, outbox: &Outbox, kind: u16, subject: Subject) -> Record {
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
            ..outbox.record(kind, subject)
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
