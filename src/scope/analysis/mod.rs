//! The drain side: turns sums and sketches into statistics and publishes them.
//!
//! One thread owns all of this but [`probes`], in the order of the trainer's calls. It keeps the sketches of references and snapshots,
//! the window of the latest gradients, and the evaluations; it never touches the trainer's memory.

mod corrected;
mod curvature;
mod fisher;
mod gradients;
mod landing;
mod outcomes;
mod probes;
mod publisher;
mod rollup;
mod secant;
mod sketches;
mod weights;
mod window;

use super::Options;
use super::algebra::{Algebra, Results, Work};
use super::catalog::Slice;
use super::message::{Message, Movement, Origin, ReferenceBatch, SnapshotSketch, StepSums, TaskId};
use super::schema::{Fault, TaskEvent, flag, kind};
use super::secant::is_milestone;
use crate::ring::{Record, Writer};
use crate::sketch::algebra::dot;
use crate::stats::severity::Predicate;
use curvature::Landscape;
use outcomes::OutcomeTable;
pub use probes::Probes;
use publisher::Publisher;
use rollup::Rollup;
pub use rollup::Subject;
use sketches::Batches;
use std::collections::BTreeMap;
use std::thread::JoinHandle;
use window::Window;

/// State of the drain thread.
pub struct Analysis {
    publisher: Publisher,
    slices: Vec<Slice>,
    buckets: usize,
    rollup: Rollup,
    tasks: BTreeMap<TaskId, TaskState>,
    window: Window,
    outcomes: OutcomeTable,
    /// Started with the first probe.
    algebra: Option<Algebra>,
    /// The algebra thread, when no more work comes.
    ended: Option<JoinHandle<()>>,
    /// What probes are measured by.
    probes: (u32, Predicate),
    results: Results,
    /// fp64 sketch of the parameters when they were last read, and the slices of which it has something: those without an
    /// exact copy.
    last_weights: Vec<f64>,
    last_sketched: Vec<bool>,
    /// The ring says already what a device said when it failed.
    told_of_device: bool,
}

/// What is kept of a task.
#[derive(Default)]
struct TaskState {
    frozen: Option<Batches>,
    refreshed: Option<Batches>,
    trailing: Option<Batches>,
    /// How the reference of now came about, as of the latest step.
    origin: Option<Origin>,
    /// Sketch of the snapshot for slices of which no exact one is kept.
    snapshot: Option<SnapshotSketch>,
    /// Σ⟨g_A(θ_t), Δθ_t⟩ since the snapshot, and the number of steps it was summed over.
    path: f64,
    path_steps: u64,
    /// Batches of the frozen reference whose Fisher spectrum was published last.
    fisher_batches: usize,
    /// The loss landscape at its base.
    landscape: Option<Landscape>,
}

/// The reference that is used for a task, and the flag that says which it is.
fn active(state: &mut TaskState, origin: Option<Origin>) -> Option<(&mut Batches, u32)> {
    match origin {
        Some(Origin::Refreshed) if state.refreshed.is_some() => {
            state.refreshed.as_mut().map(|batches| (batches, flag::REFRESHED))
        }
        Some(Origin::Refreshed) => state.frozen.as_mut().map(|batches| (batches, flag::REFRESHED)),
        Some(Origin::Frozen) => state.frozen.as_mut().map(|batches| (batches, flag::FROZEN)),
        None => state.trailing.as_mut().map(|batches| (batches, flag::TRAILING)),
    }
}

fn exact_flag(exact: u32, slices: u32) -> u32 {
    if exact == slices { flag::EXACT } else { 0 }
}

impl Analysis {
    pub fn new(writer: Writer, options: &Options, results: Results) -> Self {
        Self {
            publisher: Publisher::new(writer, options.rank),
            slices: Vec::new(),
            buckets: 0,
            rollup: Rollup::default(),
            tasks: BTreeMap::new(),
            window: Window::new(options.window as usize),
            outcomes: OutcomeTable::default(),
            algebra: None,
            ended: None,
            probes: (options.subspace_dimensions, options.severity),
            results,
            last_weights: Vec::new(),
            last_sketched: Vec::new(),
            told_of_device: false,
        }
    }

    pub fn heartbeat(&mut self) {
        self.publisher.heartbeat();
    }

    pub fn close(mut self) {
        self.fisher_due(self.publisher.step);
        if let Some(thread) = self.ended.take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
        self.publisher.close();
    }

    /// No more probes come. Whether the algebra thread has something left to say.
    pub fn finish_algebra(&mut self) -> bool {
        self.ended = self.algebra.take().map(Algebra::finish);
        self.ended.is_some()
    }

    /// Hands work to the algebra thread.
    fn compute(&mut self, work: Work) {
        if self.algebra.is_none() {
            let (dimensions, predicate) = self.probes;
            let probes = Probes::new(dimensions, predicate);
            self.algebra = Algebra::start(probes, self.publisher.rank(), self.results.clone()).ok();
        }
        match &self.algebra {
            Some(algebra) => algebra.send(work),
            // The system has no thread to give.
            None => self.publisher.fault(Fault::ProbeLeftOut as u8, self.publisher.step),
        }
    }

    /// Everything but the end.
    pub fn handle(&mut self, message: Message) {
        match message {
            Message::Name(entry) => self.publisher.name(&entry),
            Message::Slices(slices) => self.grow(slices),
            Message::Metric { id, higher_is_better, is_loss } => {
                self.outcomes.add_metric(id, higher_is_better, is_loss)
            }
            Message::Task { task, event, step } => self.task_event(task, event, step),
            Message::Reference(draft) => self.land_reference(*draft),
            Message::Snapshot(draft) => {
                if let Some(snapshot) = self.land(draft.step, |landing| draft.land(landing)) {
                    self.snapshot(snapshot);
                }
            }
            Message::Curvature(sums) => self.curvature(&sums),
            Message::Moved { movement, step } => {
                if let Some(movement) = self.land(step, |landing| movement.land(landing)) {
                    self.moved(&movement);
                }
            }
            Message::Step(draft) => {
                if let Some(sums) = self.land(draft.step(), |landing| draft.land(landing)) {
                    self.step(sums);
                }
            }
            Message::Evaluation { task, metric, value, step } => {
                self.outcomes.record(&mut self.publisher, task, metric, value, step);
            }
            Message::Fault { code, step } => self.fault(code, step),
            Message::Probe(draft) => self.land_pass(*draft),
            Message::HeadEffect(effect) => {
                let forgetting = self.outcomes.forgetting_of_loss(effect.task);
                let trained = self.publisher.task;
                self.compute(Work::Effect { effect, trained, forgetting });
            }
            Message::ForgetBases(task) => self.forget_bases(task),
            Message::Records(records) => records.into_iter().for_each(|record| self.publisher.write(&record)),
            Message::Flush(answer) => match &self.algebra {
                Some(algebra) => algebra.send(Work::Flush(answer)),
                // Nobody may be waiting any more.
                None => drop(answer.send(())),
            },
            Message::Flushed(answer) => drop(answer.send(())),
            Message::Close | Message::AlgebraEnded | Message::Captured(_) => {
                unreachable!("handled by the thread's loop")
            }
        }
    }

    fn fault(&mut self, code: u8, step: u64) {
        // A step that was given up halfway has left its flags.
        self.publisher.flags = 0;
        self.publisher.fault(code, step);
    }

    /// What was kept of a task is no base any more.
    fn forget_bases(&mut self, task: TaskId) {
        self.tasks.entry(task).or_default().landscape = None;
        if let Some(algebra) = &self.algebra {
            algebra.send(Work::Forget(task));
        }
    }

    fn grow(&mut self, slices: Vec<Slice>) {
        for slice in &slices {
            self.rollup.add(slice);
            self.buckets += slice.layout.buckets;
        }
        self.slices.extend(slices);
        let buckets = self.buckets;
        for state in self.tasks.values_mut() {
            let all = state.frozen.iter_mut().chain(&mut state.refreshed).chain(&mut state.trailing);
            all.for_each(|batches| batches.resize(buckets));
        }
        self.window.resize(buckets, self.slices.len());
    }

    fn task_event(&mut self, task: TaskId, event: TaskEvent, step: u64) {
        match event {
            TaskEvent::Begin => {
                self.fisher_due(step);
                self.window.clear();
                self.outcomes.train(Some(task));
                self.publisher.task = Some(task);
            }
            TaskEvent::End => {
                self.corrected_cosines(step);
                self.fisher_due(step);
                self.outcomes.train(None);
                let state = self.tasks.entry(task).or_default();
                // A reference by sampling is all that a trainer who gives none can have.
                state.trailing = (state.frozen.is_none() && !self.window.is_empty())
                    .then(|| Batches::from_list(self.window.sketches().cloned().collect()));
            }
            TaskEvent::Reference | TaskEvent::Snapshot => {}
        }
        self.publish_event(task, event, 0.0, step);
        if event == TaskEvent::End {
            self.publisher.task = None;
        }
    }

    fn publish_event(&mut self, task: TaskId, event: TaskEvent, batches: f64, step: u64) {
        let record = Record { step, reference: task, ..self.publisher.record(kind::TASK, Subject::MODEL) };
        self.publisher.publish(record, &[f64::from(event as u8), batches]);
    }

    fn reference(&mut self, batch: ReferenceBatch) {
        let buckets = self.buckets;
        let slot = self.reference_of(batch.task, batch.origin, batch.first);
        let batches = slot.get_or_insert_default();
        batches.add(batch.sketch, batch.examples, buckets);
        let is_looked_at = batches.extend_gram() && is_milestone(batches.list().len() as u32);
        self.publish_event(batch.task, TaskEvent::Reference, f64::from(batch.batches), batch.step);
        if is_looked_at {
            self.fisher(batch.task, batch.origin, batch.step);
        }
        if let Some(secant) = batch.secant {
            self.secant(batch.task, *secant, batch.step);
        }
    }

    /// The reference that a batch belongs to. `first`: the batch begins a new one.
    fn reference_of(&mut self, task: TaskId, origin: Origin, first: bool) -> &mut Option<Batches> {
        let state = self.tasks.entry(task).or_default();
        let slot = match origin {
            Origin::Frozen => {
                (state.refreshed, state.trailing) = (None, None);
                &mut state.frozen
            }
            Origin::Refreshed => &mut state.refreshed,
        };
        if first {
            *slot = None;
            if origin == Origin::Frozen {
                state.fisher_batches = 0;
            }
        }
        slot
    }

    fn snapshot(&mut self, snapshot: SnapshotSketch) {
        let state = self.tasks.entry(snapshot.task).or_default();
        (state.path, state.path_steps) = (0.0, 0);
        state.snapshot = Some(snapshot);
    }

    /// Adds what the parameters moved along each task's reference since they were last read.
    fn moved(&mut self, movement: &Movement) {
        self.last_weights.resize(self.buckets, 0.0);
        self.last_sketched.resize(self.slices.len(), false);
        for along in &movement.tasks {
            let Some(state) = self.tasks.get_mut(&along.task) else { continue };
            let mut reference = active(state, along.origin).map(|(batches, _)| batches);
            let mut total = 0.0;
            for (index, slice) in self.slices.iter().enumerate() {
                let range = slice.buckets();
                if let Some(exact) = along.dots[index].filter(|_| along.batches > 0.0) {
                    total += exact / along.batches;
                } else if let Some(reference) = &mut reference {
                    let mean = &reference.spread(&self.slices).mean[range.clone()];
                    if movement.compared[index] {
                        total += dot(mean, &movement.sketch[range]);
                    } else if movement.sketched[index] && self.last_sketched[index] {
                        let (now, before) = (&movement.weights[range.clone()], &self.last_weights[range]);
                        let differences = now.iter().zip(before).map(|(now, before)| now - before);
                        total += differences.zip(mean).map(|(d, g)| d * f64::from(*g)).sum::<f64>();
                    }
                }
            }
            state.path += total;
            state.path_steps += 1;
        }
        for (index, slice) in self.slices.iter().enumerate() {
            if movement.sketched[index] {
                let range = slice.buckets();
                self.last_weights[range.clone()].copy_from_slice(&movement.weights[range]);
                self.last_sketched[index] = true;
            } else if movement.compared[index] {
                self.last_sketched[index] = false;
            }
        }
    }

    /// A sampled step.
    fn step(&mut self, mut sums: StepSums) {
        self.publisher.time_ns = sums.time_ns;
        self.publisher.step = sums.step;
        self.publisher.flags = sums.flags;
        for step in &sums.references {
            self.tasks.entry(step.task).or_default().origin = step.origin;
        }
        let movement = std::mem::take(&mut sums.movement);
        self.moved(&movement);
        self.gradients(&sums);
        if sums.applied {
            self.weights(&mut sums, &movement.weights);
        }
        // A step that overflowed or was skipped is no sample of the task's gradients.
        let non_finite: u64 = sums.gradients.iter().flatten().map(|sums| sums.non_finite).sum();
        let measured: Vec<bool> = sums.gradients.iter().map(Option::is_some).collect();
        if sums.applied && non_finite == 0 && self.window.takes(&measured) {
            let scale = sums.scale as f32;
            sums.sketch.iter_mut().for_each(|bucket| *bucket *= scale);
            self.window.push(sums.sketch, measured, &self.slices);
            if self.window.seen.is_multiple_of(corrected::EVERY) {
                self.corrected_cosines(sums.step);
            }
        }
        self.publisher.flags = 0;
    }
}
