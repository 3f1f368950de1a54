//! The life of one step on the calling side: which passes are made, and what they leave for the drain thread.
//!
//! A step that is not sampled costs a comparison per call. A sampled step makes up to three passes over local memory:
//! gradients, parameters before the update, parameters after it. All reading is over when the call returns.

use super::catalog::{Catalog, Data};
use super::message::{DriftStep, ExactPair, Message, ReferenceStep, StepSums, UpdateStep};
use super::movement::{Before, move_on};
use super::schema::{Fault, flag};
use super::shard::Shard;
use super::storage::{Budget, Exact};
use super::task::{Task, Tasks};
use super::{Error, Front, Result, error::invalid};
use crate::device::{
    Copy, Device, GradientJob, GradientSums, PairSums, ParameterJob, SliceRead, Span, TaskJob, UpdateSums,
};
use crate::ring::monotonic_ns;

/// Where the scope is in the life of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between steps.
    Idle,
    /// After `fgs_step_begin`.
    Begun,
    /// After `fgs_gradients_ready`.
    Ready,
}

/// The step that is going on.
#[derive(Debug)]
pub struct StepState {
    pub phase: Phase,
    pub number: u64,
    /// Highest step that was begun so far.
    highest: Option<u64>,
    /// What a sampled step has measured so far.
    sums: Option<Box<Measured>>,
}

/// A sampled step under way.
#[derive(Debug)]
struct Measured {
    sums: StepSums,
    /// Which tensors are due in this step.
    due: Vec<bool>,
    /// Tensors that were fed and need not be read again.
    fed: Vec<bool>,
    /// Parameters were read before the update, and of which slices.
    before_taken: bool,
    taken: Vec<bool>,
    spent_ns: u64,
}

impl Default for StepState {
    fn default() -> Self {
        Self { phase: Phase::Idle, number: 0, highest: None, sums: None }
    }
}

impl Front {
    /// A step begins. Any number is legal: trainers go back and skip.
    pub fn step_begin(&mut self, step: u64) -> Result<()> {
        if self.step.phase != Phase::Idle {
            self.fault(Fault::Abandoned);
            self.give_up_step();
            // Nobody said whether the weights were updated: better to take them for changed.
            self.updates += 1;
        }
        self.give_up_batch();
        self.give_up_pass();
        self.give_up_curvature();
        let rerun = self.step.highest.is_some_and(|highest| step <= highest);
        self.step.highest = self.step.highest.max(Some(step));
        self.step.number = step;
        self.step.phase = Phase::Begun;
        if !self.schedules.iter().any(|schedule| schedule.is_due(step)) {
            return Ok(());
        }
        if !self.drain.has_room() {
            self.fault(Fault::Overrun);
            return Ok(());
        }
        let due: Vec<bool> = self.catalog.tensors.iter().map(|t| t.counts() && t.schedule.is_due(step)).collect();
        let slices = self.catalog.slices.len();
        let sums = StepSums {
            step,
            time_ns: monotonic_ns(),
            flags: if rerun { flag::RERUN } else { 0 },
            gradients: vec![None; slices],
            updates: vec![None; slices],
            sketch: vec![0.0; self.catalog.buckets],
            references: self.earlier_tasks(),
            ..StepSums::default()
        };
        let fed = vec![false; due.len()];
        self.step.sums =
            Some(Box::new(Measured { sums, due, fed, before_taken: false, taken: Vec::new(), spent_ns: 0 }));
        Ok(())
    }

    /// Ends the step that is going on without its statistics. What was already seen of the parameters is kept: their
    /// copies have moved on.
    pub fn give_up_step(&mut self) {
        self.step.phase = Phase::Idle;
        if let Some(measured) = self.step.sums.take().filter(|measured| measured.before_taken) {
            self.drain.send(Message::Moved(Box::new(measured.sums.movement)));
        }
    }

    /// After a bug: whatever was half done is given up, and the parameters are put back.
    pub fn give_up_everything(&mut self) {
        self.give_up_step();
        self.give_up_batch();
        self.give_up_pass();
        self.give_up_curvature();
    }

    /// Brings the copies up to the present outside a sampled step, so that paths begin and end where snapshots are.
    pub(super) fn advance_path(&mut self) {
        let references = self.earlier_tasks();
        let Self { catalog, tasks, device, copies, budget, .. } = self;
        let reads = catalog.reads(false, |_, tensor| tensor.schedule.every != 0);
        let movement = move_on(catalog, tasks, &**device, copies, budget, reads, &references);
        self.drain.send(Message::Moved(Box::new(movement)));
    }

    /// What is measured against each earlier task in this step.
    fn earlier_tasks(&mut self) -> Vec<ReferenceStep> {
        let slices = self.catalog.slices.len();
        let device = &*self.device;
        self.tasks.list.iter_mut().for_each(|task| task.measure(device));
        let earlier = self.tasks.earlier().map(|(id, task)| ReferenceStep {
            task: id,
            origin: task.origin(),
            batches: task.reference().map_or(0.0, |reference| f64::from(reference.batches)),
            anchor_batches: task.frozen.as_ref().map_or(0.0, |reference| f64::from(reference.batches)),
            anchor_is_frozen: task.frozen.as_ref().is_some_and(|frozen| task.is_anchor(frozen.epoch)),
            pairs: vec![None; slices],
            updates: vec![None; slices],
            drifts: vec![None; slices],
            drift_sketch: Vec::new(),
        });
        earlier.collect()
    }

    /// One tensor's gradient, given by itself; part of the step that is going on.
    pub fn feed(&mut self, tensor: u32, data: Data, shard: Option<Shard>, scale: f64) -> Result<()> {
        check_scale(scale)?;
        self.expect_begun("fgs_gradient_feed")?;
        self.catalog.tensor(tensor)?;
        let Self { catalog, tasks, device, copies, budget, step, .. } = self;
        let Some(measured) = &mut step.sums else { return Ok(()) };
        let binding = catalog.transient(tensor, data, shard)?;
        if !is_set(&measured.due, tensor as usize) {
            return Ok(());
        }
        measured.expect_scale(scale)?;
        let started = monotonic_ns();
        measured.sums.scale = scale;
        measured.before(catalog, tasks, &**device, copies, budget);
        let mut reads = vec![None; catalog.slices.len()];
        catalog.read(&catalog.tensors[tensor as usize], &binding, &mut reads);
        measured.gradients(catalog, tasks, &**device, reads);
        measured.fed[tensor as usize] = true;
        measured.spent_ns += monotonic_ns() - started;
        Ok(())
    }

    /// All gradients are final. Reads those that are bound and were not fed.
    pub fn gradients_ready(&mut self, scale: f64, unreduced: bool) -> Result<()> {
        check_scale(scale)?;
        self.expect_begun("fgs_gradients_ready")?;
        self.step.sums.as_ref().map_or(Ok(()), |measured| measured.expect_scale(scale))?;
        self.step.phase = Phase::Ready;
        let Self { catalog, tasks, device, copies, budget, step, .. } = self;
        let Some(measured) = &mut step.sums else { return Ok(()) };
        let started = monotonic_ns();
        measured.sums.scale = scale;
        if unreduced {
            measured.sums.flags |= flag::UNREDUCED;
        }
        measured.before(catalog, tasks, &**device, copies, budget);
        let reads = catalog.reads(true, |id, _| is_set(&measured.due, id) && !is_set(&measured.fed, id));
        measured.gradients(catalog, tasks, &**device, reads);
        measured.spent_ns += monotonic_ns() - started;
        Ok(())
    }

    /// The update was made, or skipped.
    pub fn step_end(&mut self, applied: bool) -> Result<()> {
        if self.step.phase == Phase::Idle {
            return Err(Error::WrongPhase("fgs_step_end: no step has begun; call fgs_step_begin first".into()));
        }
        self.step.phase = Phase::Idle;
        self.updates += u64::from(applied);
        let Some(mut measured) = self.step.sums.take() else { return Ok(()) };
        if !measured.before_taken {
            // Neither gradients_ready nor fed: nothing was measured in this step.
            return Ok(());
        }
        let started = monotonic_ns();
        if applied {
            measured.after(&self.catalog, &self.tasks, &*self.device, &mut self.copies);
        } else {
            measured.sums.flags |= flag::SKIPPED;
        }
        measured.sums.applied = applied;
        let measured_tensors = measured.tensors(&self.catalog);
        if measured_tensors < self.catalog.tensors.iter().filter(|tensor| tensor.counts()).count() as u32 {
            measured.sums.flags |= flag::PARTIAL;
        }
        measured.sums.tensors = measured_tensors;
        measured.sums.cost = (measured.spent_ns + monotonic_ns() - started) as f64 * 1e-9;
        self.drain.send(Message::Step(Box::new(measured.sums)));
        Ok(())
    }

    fn expect_begun(&self, function: &str) -> Result<()> {
        match self.step.phase {
            Phase::Begun => Ok(()),
            Phase::Idle => Err(Error::WrongPhase(format!("{function}: no step has begun; call fgs_step_begin first"))),
            Phase::Ready => Err(Error::WrongPhase(format!(
                "{function}: the gradients of this step were ready already; call fgs_step_end first"
            ))),
        }
    }
}

impl Measured {
    /// A step has one scale: that of the first tensor that was fed.
    fn expect_scale(&self, scale: f64) -> Result<()> {
        if self.fed.contains(&true) && self.sums.scale != scale {
            return Err(invalid!("scale: {scale} differs from {}, with which this step began", self.sums.scale));
        }
        Ok(())
    }

    /// Tensors of which a gradient or parameters were measured.
    fn tensors(&self, catalog: &Catalog) -> u32 {
        let seen = |slice: usize| {
            let (gradients, updates) = (&self.sums.gradients, &self.sums.updates);
            gradients.get(slice).is_some_and(Option::is_some) || updates.get(slice).is_some_and(Option::is_some)
        };
        catalog.tensors.iter().filter(|tensor| tensor.slices().any(seen)).count() as u32
    }

    /// The pass over gradients.
    fn gradients(&mut self, catalog: &Catalog, tasks: &Tasks, device: &dyn Device, reads: Vec<Option<SliceRead<'_>>>) {
        let sums = &mut self.sums;
        sums.resize(catalog.slices.len(), catalog.buckets);
        let earlier = tasks.compared_in(&sums.references);
        let mut slices = Vec::new();
        let mut jobs = Vec::new();
        // Each job's exact references, of which the sums of squares are needed again below.
        let mut exact: Vec<Vec<Option<f64>>> = Vec::new();
        for ((slice, read), sketch) in reads.into_iter().enumerate().zip(catalog.split(&mut sums.sketch)) {
            let Some(read) = read else { continue };
            let references: Vec<_> = earlier.iter().map(|task| task.kept_reference(slice, read.segments)).collect();
            let squares = |exact: &Exact| exact.squares_over(read.segments, device);
            slices.push(slice);
            exact.push(references.iter().map(|kept| kept.map(squares)).collect());
            jobs.push(GradientJob {
                read,
                references: references.into_iter().map(|kept| kept.map(Exact::kept)).collect(),
                sketch,
                sums: GradientSums::default(),
                pairs: vec![PairSums::default(); earlier.len()],
            });
        }
        device.gradients(&mut jobs);
        let results: Vec<_> = jobs.into_iter().map(|job| (job.sums, job.pairs)).collect();
        for ((slice, squares), (found, pairs)) in slices.into_iter().zip(exact).zip(results) {
            *sums.gradients[slice].get_or_insert_default() += found;
            for ((reference, pair), squares) in sums.references.iter_mut().zip(pairs).zip(squares) {
                if let Some(squares) = squares {
                    let total = reference.pairs[slice].get_or_insert_default();
                    total.sums += pair;
                    total.reference_squares += squares;
                }
            }
        }
    }

    /// The pass over parameters before the update, once a step.
    fn before(
        &mut self,
        catalog: &Catalog,
        tasks: &Tasks,
        device: &dyn Device,
        copies: &mut Vec<Option<Before>>,
        budget: &mut Budget,
    ) {
        if !std::mem::replace(&mut self.before_taken, true) {
            let due = &self.due;
            let reads = catalog.reads(false, |id, _| is_set(due, id));
            self.taken = reads.iter().map(Option::is_some).collect();
            self.sums.movement = move_on(catalog, tasks, device, copies, budget, reads, &self.sums.references);
        }
    }

    /// The pass over parameters after the update: the update itself, and the drift from every snapshot.
    fn after(&mut self, catalog: &Catalog, tasks: &Tasks, device: &dyn Device, copies: &mut Vec<Option<Before>>) {
        let due = &self.due;
        let reads = catalog.reads(false, |id, _| is_set(due, id));
        let sums = &mut self.sums;
        let slices = catalog.slices.len();
        sums.resize(slices, catalog.buckets);
        copies.resize_with(slices, || None);
        let earlier = tasks.compared_in(&sums.references);
        // Slices without an exact copy or snapshot need the sketch of the parameters themselves.
        let needs_sketch = |(slice, read): (usize, &Option<SliceRead>)| {
            read.is_some_and(|read| {
                let lacks =
                    |task: &&Task| task.snapshot.is_some() && task.kept_snapshot(slice, read.segments).is_none();
                copies[slice].is_none() || earlier.iter().any(lacks)
            })
        };
        let sketched: Vec<bool> = reads.iter().enumerate().map(needs_sketch).collect();
        let wanted = sketched.contains(&true);
        sums.weights_after = vec![0.0; if wanted { catalog.buckets } else { 0 }];
        // Only alignment with earlier tasks looks at the sketch of an update that is compared exactly.
        sums.update_sketch = vec![0.0; if earlier.is_empty() { 0 } else { catalog.buckets }];
        let mut drift_sketches: Vec<_> = Vec::with_capacity(earlier.len());
        for (reference, task) in sums.references.iter_mut().zip(&earlier) {
            reference.drift_sketch = vec![0.0; if task.snapshot.is_some() { catalog.buckets } else { 0 }];
            drift_sketches.push(catalog.split(&mut reference.drift_sketch).into_iter());
        }
        let mut jobs = Vec::new();
        let mut measured = Vec::new();
        let weights = catalog.split(&mut sums.weights_after).into_iter();
        let updates = catalog.split(&mut sums.update_sketch).into_iter();
        let parts = reads.into_iter().zip(copies).enumerate().zip(weights).zip(updates);
        for (((slice, (read, copy)), sketch), update_sketch) in parts {
            let drift: Vec<_> = drift_sketches.iter_mut().map(|parts| parts.next().unwrap_or_default()).collect();
            let Some(read) = read else { continue };
            let segments = read.segments;
            let tasks = earlier.iter().zip(drift).map(|(task, drift_sketch)| {
                let snapshot = task.kept_snapshot(slice, segments).map(Exact::kept);
                TaskJob {
                    reference: task.kept_reference(slice, segments).map(Exact::kept),
                    anchor: task.kept_anchor(slice, segments).map(Exact::kept),
                    snapshot,
                    drift_sketch: if snapshot.is_some() { drift_sketch } else { &mut [] },
                    ..TaskJob::default()
                }
            });
            // A binding that took other elements since then has nothing to compare with.
            let taken = is_set(&self.taken, slice);
            let fits = |exact: &Exact| exact.span == Span::of(segments) && exact.covers(segments);
            let copy = copy.as_mut().filter(|before| taken && fits(&before.exact)).map(|before| {
                let values = &mut before.exact.values[..];
                Copy { span: before.exact.span, values, compare: true, replace: false }
            });
            let sketch = if sketched[slice] { sketch } else { &mut [] };
            let update_sketch = if copy.is_some() { update_sketch } else { &mut [] };
            measured.push((slice, segments, taken));
            let (tasks, update) = (tasks.collect(), UpdateSums::default());
            jobs.push(ParameterJob { read, copy, update_sketch, sketch, tasks, update });
        }
        device.parameters(&mut jobs);
        let results: Vec<_> = jobs
            .into_iter()
            .map(|job| {
                let exact = job.copy.is_some();
                let tasks: Vec<_> = job.tasks.iter().map(|task| (task.update, task.drift)).collect();
                (job.update, exact, tasks)
            })
            .collect();
        for ((slice, segments, taken), (found, exact, found_tasks)) in measured.into_iter().zip(results) {
            let mantissa_bits = catalog.mantissa_bits(slice);
            // Sketches before and after are compared only where there is no copy.
            let compared = exact || taken && is_set(&sums.movement.sketched, slice);
            sums.updates[slice] = Some(UpdateStep { sums: found, compared, exact, mantissa_bits });
            for ((reference, task), (pair, drift)) in sums.references.iter_mut().zip(&earlier).zip(found_tasks) {
                reference.updates[slice] = task
                    .kept_reference(slice, segments)
                    .filter(|_| exact)
                    .map(|kept| ExactPair { sums: pair, reference_squares: kept.squares_over(segments, device) });
                let anchored = task.kept_anchor(slice, segments).is_some();
                reference.drifts[slice] = task.kept_snapshot(slice, segments).map(|snapshot| DriftStep {
                    sums: drift,
                    anchored,
                    mantissa_bits: mantissa_bits.min(snapshot.mantissa_bits),
                });
            }
        }
    }
}

/// Scales come from loss scaling, token counts and clipping: any positive number that fp32 can hold.
pub fn check_scale(scale: f64) -> Result<()> {
    if scale > 0.0 && (scale as f32).is_normal() {
        return Ok(());
    }
    Err(invalid!("scale: {scale} is not a finite number above zero that float32 can hold"))
}

fn is_set(bits: &[bool], id: usize) -> bool {
    bits.get(id).is_some_and(|bit| *bit)
}
