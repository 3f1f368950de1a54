//! References and snapshots: what is kept of an earlier task.

use super::catalog::{Catalog, Data};
use super::draft::Landing;
use super::message::{Message, Origin, ReferenceBatch, SnapshotSketch, TaskId};
use super::queue::Queue;
use super::schema::{Fault, TaskEvent};
use super::secant::SecantDraft;
use super::shard::Shard;
use super::step::check_scale;
use super::storage::{Budget, Exact, elements};
use super::task::ExactReference;
use super::{Front, Result, error::invalid};
use crate::device::{
    AccumulateFound, AccumulateJob, Copy, Device, Keeping, Lost, ParameterFound, ParameterJob, Pending, SliceRead, Span,
};

/// A batch of a reference that is being fed tensor by tensor.
#[derive(Debug)]
pub struct PendingBatch {
    task: TaskId,
    origin: Origin,
    first: bool,
    fed: Vec<bool>,
    /// Slices of which something was added.
    begun: Vec<bool>,
    parts: Vec<PartDraft>,
}

/// Gradients of a batch that are being added: all of it, or what was fed in one call.
#[derive(Debug)]
struct PartDraft {
    slices: Vec<usize>,
    /// One per slice.
    found: Pending<Vec<AccumulateFound>>,
}

/// A batch of a reference that is complete, but for what is still being added.
#[derive(Debug)]
pub struct ReferenceDraft {
    pub task: TaskId,
    pub step: u64,
    pub origin: Origin,
    pub first: bool,
    batches: u32,
    examples: f64,
    parts: Vec<PartDraft>,
    secant: Option<SecantDraft>,
}

impl ReferenceDraft {
    /// The batch, and how many of its parts had values that are not finite.
    pub fn land(self, landing: &mut Landing) -> std::result::Result<(ReferenceBatch, usize), Lost> {
        let Self { task, step, origin, first, batches, examples, parts, secant } = self;
        let mut sketch = landing.sketch(true);
        let mut not_finite = 0;
        for part in parts {
            let found = landing.wait(part.found)?;
            not_finite += usize::from(found.iter().any(|found| found.sums.non_finite > 0));
            for (slice, found) in part.slices.into_iter().zip(found) {
                landing.add(&mut sketch, slice, &found.sketch);
            }
        }
        let secant = secant.map(|secant| secant.land(landing)).transpose()?.map(Box::new);
        Ok((ReferenceBatch { task, step, origin, first, batches, examples, sketch, secant }, not_finite))
    }
}

/// A snapshot that was asked for. The exact part of it stays with the calling side.
#[derive(Debug)]
pub struct SnapshotDraft {
    pub task: TaskId,
    pub step: u64,
    slices: Vec<usize>,
    /// Elements of each slice of the model that are sketched.
    elements: Vec<u64>,
    /// One per slice that is read.
    found: Pending<Vec<ParameterFound>>,
}

impl SnapshotDraft {
    pub fn land(self, landing: &mut Landing) -> std::result::Result<SnapshotSketch, Lost> {
        let found = landing.wait(self.found)?;
        let mut sketch = landing.sketch(self.elements.iter().any(|&count| count > 0));
        for (slice, found) in self.slices.into_iter().zip(found) {
            landing.add(&mut sketch, slice, &found.sketch);
        }
        Ok(SnapshotSketch { task: self.task, sketch, elements: self.elements })
    }
}

impl Front {
    /// The gradients that are bound now belong to the reference of `task`: one batch of its data.
    pub fn reference_add(&mut self, task: &str, examples: u64, scale: f64) -> Result<()> {
        check_scale(scale)?;
        self.before_change();
        self.expect_idle("fgs_reference_add")?;
        if self.schedules.iter().all(|schedule| schedule.every == 0) {
            // Nothing is ever sampled, so there is nothing to compare with either.
            return Ok(());
        }
        let is_bound = |tensor: &super::catalog::Tensor| tensor.has_gradient() && tensor.schedule.every != 0;
        if self.pending.is_none() && !self.catalog.tensors.iter().any(is_bound) {
            return Err(invalid!("fgs_reference_add: no gradient is bound; call fgs_bind with FGS_GRAD first"));
        }
        self.drain.wait_for_batches();
        let mut batch = self.batch(task)?;
        let task = batch.task;
        let reads = self
            .catalog
            .reads(true, |id, tensor| tensor.schedule.every != 0 && !batch.fed.get(id).is_some_and(|fed| *fed));
        let reference = reference(&mut self.tasks.list[usize::from(task)], &batch);
        let dropped = accumulate(&self.catalog, &self.queue, &mut self.budget, reference, &mut batch, reads, scale);
        reference.count_batch();
        let batches = reference.batches;
        if dropped {
            self.fault(Fault::Dropped);
        }
        let secant = self.secant(task, batch.origin, batches);
        self.drain.send(Message::Reference(Box::new(ReferenceDraft {
            task,
            step: self.step.number,
            origin: batch.origin,
            first: batch.first,
            batches,
            examples: examples as f64,
            parts: batch.parts,
            secant,
        })));
        Ok(())
    }

    /// One tensor's gradient of a reference batch, given by itself. `reference_add` completes the batch.
    pub fn reference_feed(
        &mut self,
        task: &str,
        tensor: u32,
        data: Data,
        shard: Option<Shard>,
        scale: f64,
    ) -> Result<()> {
        check_scale(scale)?;
        self.before_change();
        self.expect_idle("fgs_reference_feed")?;
        let binding = self.catalog.transient(tensor, data, shard)?;
        let mut batch = self.batch(task)?;
        let task = batch.task;
        let measured = &self.catalog.tensors[tensor as usize];
        if measured.counts() && measured.schedule.every != 0 {
            let mut reads = vec![None; self.catalog.slices.len()];
            self.catalog.read(measured, &binding, &mut reads);
            let reference = reference(&mut self.tasks.list[usize::from(task)], &batch);
            if accumulate(&self.catalog, &self.queue, &mut self.budget, reference, &mut batch, reads, scale) {
                self.fault(Fault::Dropped);
            }
        }
        batch.fed.resize(self.catalog.tensors.len(), false);
        batch.fed[tensor as usize] = true;
        self.pending = Some(batch);
        Ok(())
    }

    /// A step begins while a batch is half fed: what was added of it cannot be told from whole batches any more, so the
    /// exact sums are given up; the sketches do not have it yet.
    pub(super) fn give_up_batch(&mut self) {
        let Some(batch) = self.pending.take() else { return };
        self.changed();
        let reference = reference(&mut self.tasks.list[usize::from(batch.task)], &batch);
        self.budget.release(reference.sums.drain(..).flatten());
        self.fault(Fault::Dropped);
    }

    /// The batch of `task` that is being fed, or a new one.
    fn batch(&mut self, task: &str) -> Result<PendingBatch> {
        let fed = self.pending.as_ref().map(|pending| &self.tasks.list[usize::from(pending.task)].name);
        if let Some(name) = fed.filter(|name| *name != task) {
            return Err(invalid!("task: a batch of '{name}' is being fed; complete it with fgs_reference_add first"));
        }
        let task = self.task(task)?;
        if let Some(pending) = self.pending.take() {
            return Ok(pending);
        }
        let (epoch, is_current) = (self.updates, self.tasks.current == Some(task));
        let state = &mut self.tasks.list[usize::from(task)];
        let origin = state.origin_at(epoch, is_current);
        if !is_current {
            // A task that is not trained here: its reference is at home where it was first taken.
            state.anchor.get_or_insert(epoch);
        }
        let (_, first) = state.reference_for(origin, epoch, &mut self.budget);
        Ok(PendingBatch { task, origin, first, fed: Vec::new(), begun: Vec::new(), parts: Vec::new() })
    }

    /// Keeps the parameters as they are now.
    pub(super) fn take_snapshot(&mut self, task: TaskId) {
        self.advance_path();
        let Self { catalog, tasks, queue, budget, .. } = self;
        let reads = catalog.reads(false, |_, tensor| tensor.schedule.every != 0);
        if reads.iter().all(Option::is_none) {
            return;
        }
        let state = &mut tasks.list[usize::from(task)];
        if let Some(old) = state.snapshot.take() {
            budget.release(old.into_iter().flatten());
        }
        let mut kept: Vec<Option<Exact>> = reads
            .iter()
            .map(|read| {
                read.as_ref().and_then(|read| budget.allocate(&queue.device, read, Keeping::Copy(read.memory.dtype)))
            })
            .collect();
        let sketched = reads.iter().zip(&kept).map(|(read, kept)| match (read, kept) {
            (Some(read), None) => elements(read.segments),
            _ => 0,
        });
        let sketched: Vec<u64> = sketched.collect();
        let (mut slices, mut jobs) = (Vec::new(), Vec::new());
        for ((slice, read), kept) in reads.into_iter().enumerate().zip(&mut kept) {
            let Some(read) = read else { continue };
            let sketch = kept.is_none();
            let copy = kept.as_mut().map(|exact| Copy {
                span: exact.span,
                values: &mut exact.values,
                compare: false,
                replace: true,
            });
            slices.push(slice);
            jobs.push(ParameterJob { read, copy, update_sketch: false, sketch, tasks: Vec::new() });
        }
        let found = queue.device.parameters(queue.stream, jobs);
        for (slice, exact) in kept.iter_mut().enumerate() {
            let Some(exact) = exact else { continue };
            budget.settle(queue, exact);
            exact.mantissa_bits = catalog.mantissa_bits(slice);
        }
        if found.is_refused() {
            // Nothing was copied.
            budget.release(kept.into_iter().flatten());
            state.snapshot = None;
        } else {
            state.snapshot = Some(kept);
        }
        state.anchor = Some(self.updates);
        let snapshot = SnapshotDraft { task, step: self.step.number, slices, elements: sketched, found };
        self.drain.send(Message::Snapshot(Box::new(snapshot)));
        self.event(task, TaskEvent::Snapshot);
    }
}

/// The exact reference that a batch belongs to.
fn reference<'a>(task: &'a mut super::task::Task, batch: &PendingBatch) -> &'a mut ExactReference {
    let slot = match batch.origin {
        Origin::Frozen => &mut task.frozen,
        Origin::Refreshed => &mut task.refreshed,
    };
    slot.get_or_insert_default()
}

/// Adds gradients to a reference: a part of the batch. Whether an exact sum did not cover the indices of this batch and was
/// given up.
fn accumulate(
    catalog: &Catalog,
    queue: &Queue,
    budget: &mut Budget,
    reference: &mut ExactReference,
    batch: &mut PendingBatch,
    reads: Vec<Option<SliceRead<'_>>>,
    scale: f64,
) -> bool {
    let mut dropped = false;
    reference.sums.resize_with(catalog.slices.len(), || None);
    batch.begun.resize(catalog.slices.len(), false);
    let is_first_batch = reference.batches == 0;
    let (mut slices, mut jobs) = (Vec::new(), Vec::new());
    for (((slice, read), sum), begun) in reads.into_iter().enumerate().zip(&mut reference.sums).zip(&mut batch.begun) {
        let Some(read) = read else { continue };
        let span = Span::of(read.segments);
        let is_first_part = !std::mem::replace(begun, true);
        if is_first_batch && is_first_part {
            *sum = budget.allocate(&queue.device, &read, Keeping::Sum);
        } else if is_first_batch && let Some(old) = sum.take() {
            // Another part of a slice that is fed shard by shard.
            *sum = budget.extend(queue, old, &read);
        }
        // A sum over other elements cannot take this batch: without it the mean would be wrong.
        if let Some(old) = sum.take_if(|sum| !sum.span.contains(span) || !is_first_batch && !sum.covers(&read)) {
            budget.release([old]);
            dropped = true;
        }
        let sum = sum.as_mut().map(|sum| (sum.span, &mut sum.values));
        slices.push(slice);
        jobs.push(AccumulateJob { read, scale: scale as f32, sum });
    }
    let found = queue.device.accumulate(queue.stream, jobs);
    if found.is_refused() {
        // The sums lack this batch.
        budget.release(reference.sums.drain(..).flatten());
        dropped = true;
    }
    batch.parts.push(PartDraft { slices, found });
    dropped
}
