//! The life of one step on the calling side: which passes are made, and what they leave for the drain thread.
//!
//! A step that is not sampled costs a comparison per call. A sampled step makes up to three passes over local memory:
//! gradients, parameters before the update, parameters after it. Host memory is read inside the call, device memory in the
//! order of its stream.

use super::catalog::{Catalog, Data};
use super::draft::{Again, Landing, Nth};
use super::gradients::GradientsDraft;
use super::message::{Message, ReferenceStep, StepSums};
use super::movement::{Before, MovementDraft};
use super::queue::Queue;
use super::schema::{Fault, flag};
use super::shard::Shard;
use super::steady::Steady;
use super::storage::Budget;
use super::task::Tasks;
use super::updates::UpdatesDraft;
use super::{Error, Front, Result, error::invalid};
use crate::device::{Lost, Replays, SliceRead, Stream};
use crate::ring::monotonic_ns;
use std::sync::Arc;

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
    pub(super) measured: Option<Box<Measured>>,
}

/// A sampled step on its way to the drain thread.
#[derive(Debug)]
pub struct StepDraft {
    /// What is known without results.
    pub sums: StepSums,
    pub movement: Option<MovementDraft>,
    /// One per tensor that was fed, and one for what was bound.
    pub gradients: Vec<GradientsDraft>,
    pub updates: Option<UpdatesDraft>,
}

impl StepDraft {
    pub fn step(&self) -> u64 {
        self.sums.step
    }

    /// The step of the n-th measured replay, which counts on from the captured one; `None` if something of it was not
    /// captured.
    pub fn nth(&self, n: u64, replay: u64) -> Option<Self> {
        let step = self.sums.step.wrapping_add(replay.wrapping_sub(1));
        let nth = Nth(n);
        let mut movement = self.movement.as_ref().map_or(Some(None), |movement| movement.with(&nth).map(Some))?;
        if n == 0 {
            movement.iter_mut().for_each(MovementDraft::forget_unknown);
        }
        Some(Self {
            sums: StepSums { step, time_ns: monotonic_ns(), ..self.sums.clone() },
            movement,
            gradients: self.gradients.iter().map(|gradients| gradients.with(&nth)).collect::<Option<_>>()?,
            updates: self.updates.as_ref().map_or(Some(None), |updates| updates.with(&nth).map(Some))?,
        })
    }

    pub fn land(self, landing: &mut Landing) -> std::result::Result<StepSums, Lost> {
        let Self { mut sums, movement, gradients, updates } = self;
        let slices = landing.slices();
        sums.gradients = vec![None; slices];
        sums.updates = vec![None; slices];
        sums.sketch = landing.sketch(true);
        for reference in &mut sums.references {
            reference.pairs = vec![None; slices];
            reference.updates = vec![None; slices];
            reference.drifts = vec![None; slices];
        }
        sums.movement = movement.map(|movement| movement.land(landing)).transpose()?.unwrap_or_default();
        gradients.into_iter().try_for_each(|gradients| gradients.land(&mut sums, landing))?;
        updates.map_or(Ok(()), |updates| updates.land(&mut sums, landing))?;
        Ok(sums)
    }
}

/// A sampled step under way.
#[derive(Debug)]
pub(super) struct Measured {
    pub draft: StepDraft,
    /// Which tensors are due in this step.
    pub due: Arc<[bool]>,
    /// Tensors that were fed and need not be read again.
    fed: Vec<bool>,
    /// Slices whose parameters were read before the update.
    pub taken: Arc<[bool]>,
    spent_ns: u64,
    /// It is made of the same passes as the one before.
    pub steady: bool,
    /// What was bound, registered and kept when it began.
    pub changes: (u64, u64),
    /// The step goes into a graph.
    pub replays: Option<Arc<Replays>>,
}

impl Default for StepState {
    fn default() -> Self {
        Self { phase: Phase::Idle, number: 0, highest: None, measured: None }
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
        let flags = if rerun { flag::RERUN } else { 0 };
        let sums = StepSums { step, time_ns: monotonic_ns(), flags, ..StepSums::default() };
        self.step.measured = Some(Box::new(match self.steady(step) {
            Some(steady) => {
                let sums = StepSums { references: steady.references.clone(), ..sums };
                Measured { steady: true, ..Measured::new(sums, steady.due.clone(), self.changes()) }
            }
            None => {
                let due = self.catalog.tensors.iter().map(|t| t.counts() && t.schedule.is_due(step)).collect();
                Measured::new(StepSums { references: self.earlier_tasks(), ..sums }, due, self.changes())
            }
        }));
        Ok(())
    }

    /// Ends the step that is going on without its statistics. What was already seen of the parameters is kept: their
    /// copies have moved on.
    pub fn give_up_step(&mut self) {
        self.step.phase = Phase::Idle;
        let Some(measured) = self.step.measured.take() else { return };
        if measured.replays.is_some() {
            self.queue.device.end_capture();
        } else if let Some(movement) = measured.draft.movement {
            self.drain.send(Message::Moved { movement: Box::new(movement), step: self.step.number });
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
        self.settle_references();
        let references = self.earlier_tasks();
        let Self { catalog, tasks, queue, copies, budget, .. } = self;
        let reads = catalog.reads(false, |_, tensor| tensor.schedule.every != 0);
        let movement = MovementDraft::new(catalog, tasks, queue, copies, budget, reads, &references, false);
        self.drain.send(Message::Moved { movement: Box::new(movement), step: self.step.number });
    }

    /// Before references are compared with, in a call that has a stream.
    fn settle_references(&mut self) {
        let Self { tasks, queue, budget, .. } = self;
        tasks.list.iter_mut().for_each(|task| task.settle(queue, budget));
    }

    /// What is measured against each earlier task in this step.
    pub(super) fn earlier_tasks(&self) -> Vec<ReferenceStep> {
        let earlier = self.tasks.earlier().map(|(id, task)| ReferenceStep {
            task: id,
            origin: task.origin(),
            batches: task.reference().map_or(0.0, |reference| f64::from(reference.batches)),
            anchor_batches: task.frozen.as_ref().map_or(0.0, |reference| f64::from(reference.batches)),
            anchor_is_frozen: task.frozen.as_ref().is_some_and(|frozen| task.is_anchor(frozen.epoch)),
            ..ReferenceStep::default()
        });
        earlier.collect()
    }

    /// The step may be a captured one, whose passes cannot settle anything; else references are as they stay.
    fn before_pass(&mut self) {
        self.enter_capture();
        self.recheck_steady();
        if self.step.measured.as_ref().is_some_and(|measured| measured.replays.is_none() && !measured.steady) {
            self.settle_references();
        }
    }

    /// One tensor's gradient, given by itself; part of the step that is going on.
    pub fn feed(&mut self, tensor: u32, data: Data, shard: Option<Shard>, scale: f64) -> Result<()> {
        check_scale(scale)?;
        self.expect_begun("fgs_gradient_feed")?;
        self.catalog.tensor(tensor)?;
        self.before_pass();
        let Self { catalog, tasks, queue, copies, budget, step, .. } = self;
        let Some(measured) = &mut step.measured else { return Ok(()) };
        let binding = catalog.transient(tensor, data, shard)?;
        if !is_set(&measured.due, tensor as usize) {
            return Ok(());
        }
        measured.expect_scale(scale)?;
        measured.steady = false;
        let started = monotonic_ns();
        measured.draft.sums.scale = scale;
        measured.before(catalog, tasks, queue, copies, budget);
        let mut reads = vec![None; catalog.slices.len()];
        catalog.read(&catalog.tensors[tensor as usize], &binding, &mut reads);
        measured.gradients(catalog, tasks, queue, reads);
        measured.fed[tensor as usize] = true;
        measured.spent_ns += monotonic_ns() - started;
        Ok(())
    }

    /// All gradients are final. Reads those that are bound and were not fed.
    pub fn gradients_ready(&mut self, scale: f64, unreduced: bool) -> Result<()> {
        check_scale(scale)?;
        self.expect_begun("fgs_gradients_ready")?;
        self.before_pass();
        self.step.measured.as_ref().map_or(Ok(()), |measured| measured.expect_scale(scale))?;
        self.step.phase = Phase::Ready;
        let Self { catalog, tasks, queue, copies, budget, step, steady, .. } = self;
        let Some(measured) = &mut step.measured else { return Ok(()) };
        let started = monotonic_ns();
        measured.draft.sums.scale = scale;
        if unreduced {
            measured.draft.sums.flags |= flag::UNREDUCED;
        }
        if !measured.begin_again(steady.as_ref(), queue.stream) {
            measured.before(catalog, tasks, queue, copies, budget);
            let reads = catalog.reads(true, |id, _| is_set(&measured.due, id) && !is_set(&measured.fed, id));
            measured.gradients(catalog, tasks, queue, reads);
        }
        measured.spent_ns += monotonic_ns() - started;
        Ok(())
    }

    /// The update was made, or skipped.
    pub fn step_end(&mut self, applied: bool) -> Result<()> {
        if self.step.phase == Phase::Idle {
            return Err(Error::WrongPhase("fgs_step_end: no step has begun; call fgs_step_begin first".into()));
        }
        self.step.phase = Phase::Idle;
        self.recheck_steady();
        // A step that is captured runs at replays, which are counted where they are.
        let is_captured = self.step.measured.as_ref().is_some_and(|measured| measured.replays.is_some());
        self.updates += u64::from(applied && !is_captured);
        let Some(mut measured) = self.step.measured.take() else { return Ok(()) };
        if measured.draft.movement.is_none() {
            // Neither gradients_ready nor fed: nothing was measured in this step.
            return Ok(());
        }
        let started = monotonic_ns();
        if !applied {
            measured.draft.sums.flags |= flag::SKIPPED;
        } else if !measured.end_again(self.steady.as_ref(), self.queue.stream) {
            measured.after(&self.catalog, &self.tasks, &self.queue, &mut self.copies);
        }
        measured.draft.sums.applied = applied;
        let known = self.steady.as_ref().filter(|_| measured.steady && applied);
        let (tensors, is_partial) = match known {
            Some(steady) => (steady.tensors, steady.is_partial),
            None => {
                let tensors = measured.tensors(&self.catalog);
                let all = self.catalog.tensors.iter().filter(|tensor| tensor.counts()).count();
                (tensors, tensors < all as u32)
            }
        };
        measured.draft.sums.flags |= if is_partial { flag::PARTIAL } else { 0 };
        measured.draft.sums.tensors = tensors;
        if known.is_none() && applied {
            self.steady = self.new_steady(&measured, is_partial);
        }
        measured.draft.sums.cost = (measured.spent_ns + monotonic_ns() - started) as f64 * 1e-9;
        match measured.replays {
            Some(replays) => self.send_captured(measured.draft, replays),
            None => self.drain.send(Message::Step(Box::new(measured.draft))),
        }
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
    /// `due`: which tensors are.
    pub fn new(sums: StepSums, due: Arc<[bool]>, changes: (u64, u64)) -> Self {
        let draft = StepDraft { sums, movement: None, gradients: Vec::new(), updates: None };
        let (fed, taken) = (vec![false; due.len()], Arc::default());
        Self { draft, due, fed, taken, spent_ns: 0, steady: false, changes, replays: None }
    }

    /// A step has one scale: that of the first tensor that was fed.
    fn expect_scale(&self, scale: f64) -> Result<()> {
        if self.fed.contains(&true) && self.draft.sums.scale != scale {
            return Err(invalid!("scale: {scale} differs from {}, with which this step began", self.draft.sums.scale));
        }
        Ok(())
    }

    /// Tensors of which a gradient or parameters were measured.
    fn tensors(&self, catalog: &Catalog) -> u32 {
        let mut seen = vec![false; catalog.tensors.len()];
        let gradients = self.draft.gradients.iter().flat_map(GradientsDraft::slices);
        for slice in gradients.chain(self.draft.updates.iter().flat_map(UpdatesDraft::slices)) {
            seen[catalog.slices[slice].tensor as usize] = true;
        }
        seen.into_iter().filter(|seen| *seen).count() as u32
    }

    /// The passes before the update as they were made the last time. `false`: they have to be made anew.
    fn begin_again(&mut self, steady: Option<&Steady>, stream: Stream) -> bool {
        self.steady &= self.replays.is_none() && self.draft.movement.is_none();
        let Some(steady) = steady.filter(|_| self.steady) else { return false };
        let again = Again(stream);
        let Some(movement) = steady.movement.with(&again) else { return false };
        self.draft.movement = Some(movement);
        self.taken = steady.taken.clone();
        self.draft.gradients = steady.gradients.with(&again).into_iter().collect();
        true
    }

    /// Likewise that after it.
    fn end_again(&mut self, steady: Option<&Steady>, stream: Stream) -> bool {
        let steady = steady.filter(|_| self.steady);
        self.draft.updates = steady.and_then(|steady| steady.updates.with(&Again(stream)));
        self.draft.updates.is_some()
    }

    /// The pass over gradients.
    fn gradients(&mut self, catalog: &Catalog, tasks: &Tasks, queue: &Queue, reads: Vec<Option<SliceRead<'_>>>) {
        let StepDraft { sums, gradients, .. } = &mut self.draft;
        gradients.push(GradientsDraft::new(catalog, tasks, queue, &sums.references, reads));
    }

    /// The pass over parameters before the update, once a step.
    fn before(
        &mut self,
        catalog: &Catalog,
        tasks: &Tasks,
        queue: &Queue,
        copies: &mut Vec<Option<Before>>,
        budget: &mut Budget,
    ) {
        if self.draft.movement.is_none() {
            let reads = catalog.reads(false, |id, _| is_set(&self.due, id));
            self.taken = reads.iter().map(Option::is_some).collect();
            let references = &self.draft.sums.references;
            self.draft.movement = Some(MovementDraft::new(
                catalog,
                tasks,
                queue,
                copies,
                budget,
                reads,
                references,
                self.replays.is_some(),
            ));
        }
    }

    /// The pass over parameters after the update.
    fn after(&mut self, catalog: &Catalog, tasks: &Tasks, queue: &Queue, copies: &mut Vec<Option<Before>>) {
        let reads = catalog.reads(false, |id, _| is_set(&self.due, id));
        let StepDraft { sums, updates, .. } = &mut self.draft;
        *updates = Some(UpdatesDraft::new(catalog, tasks, queue, copies, &sums.references, reads, &self.taken));
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
