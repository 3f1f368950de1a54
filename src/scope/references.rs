//! References and snapshots: what is kept of an earlier task.

use super::catalog::{Catalog, Data};
use super::message::{Message, Origin, ReferenceBatch, SnapshotSketch, TaskId};
use super::schema::{Fault, TaskEvent};
use super::shard::Shard;
use super::step::check_scale;
use super::storage::{Budget, Exact, elements};
use super::task::ExactReference;
use super::{Front, Result, error::invalid};
use crate::device::{AccumulateJob, Copy, Device, GradientSums, ParameterJob, SliceRead, Span, UpdateSums};

/// A batch of a reference that is being fed tensor by tensor.
#[derive(Debug)]
pub struct PendingBatch {
    task: TaskId,
    origin: Origin,
    first: bool,
    fed: Vec<bool>,
    /// Slices of which something was added.
    begun: Vec<bool>,
    sketch: Vec<f32>,
}

impl Front {
    /// The gradients that are bound now belong to the reference of `task`: one batch of its data.
    pub fn reference_add(&mut self, task: &str, examples: u64, scale: f64) -> Result<()> {
        check_scale(scale)?;
        self.expect_idle("fgs_reference_add")?;
        if self.schedules.iter().all(|schedule| schedule.every == 0) {
            // Nothing is ever sampled, so there is nothing to compare with either.
            return Ok(());
        }
        let is_bound = |tensor: &super::catalog::Tensor| tensor.has_gradient() && tensor.schedule.every != 0;
        if self.pending.is_none() && !self.catalog.tensors.iter().any(is_bound) {
            return Err(invalid!("fgs_reference_add: no gradient is bound; call fgs_bind with FGS_GRAD first"));
        }
        let mut batch = self.batch(task)?;
        let task = batch.task;
        let reads = self
            .catalog
            .reads(true, |id, tensor| tensor.schedule.every != 0 && !batch.fed.get(id).is_some_and(|fed| *fed));
        let reference = reference(&mut self.tasks.list[usize::from(task)], &batch);
        let device = &*self.device;
        let found = accumulate(&self.catalog, device, &mut self.budget, reference, &mut batch, reads, scale);
        reference.count_batch();
        let batches = reference.batches;
        self.report(found);
        let secant = self.secant(task, batch.origin, batches);
        self.drain.send(Message::Reference(Box::new(ReferenceBatch {
            task,
            step: self.step.number,
            origin: batch.origin,
            first: batch.first,
            batches,
            examples: examples as f64,
            sketch: batch.sketch,
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
        self.expect_idle("fgs_reference_feed")?;
        let binding = self.catalog.transient(tensor, data, shard)?;
        let mut batch = self.batch(task)?;
        let task = batch.task;
        let measured = &self.catalog.tensors[tensor as usize];
        if measured.counts() && measured.schedule.every != 0 {
            let mut reads = vec![None; self.catalog.slices.len()];
            self.catalog.read(measured, &binding, &mut reads);
            let reference = reference(&mut self.tasks.list[usize::from(task)], &batch);
            let device = &*self.device;
            let found = accumulate(&self.catalog, device, &mut self.budget, reference, &mut batch, reads, scale);
            self.report(found);
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
        let reference = reference(&mut self.tasks.list[usize::from(batch.task)], &batch);
        self.budget.release(reference.sums.drain(..).flatten());
        self.fault(Fault::Dropped);
    }

    fn report(&self, found: Accumulated) {
        if found.non_finite > 0 {
            self.fault(Fault::NonFinite);
        }
        if found.dropped {
            self.fault(Fault::Dropped);
        }
    }

    /// The batch of `task` that is being fed, or a new one.
    fn batch(&mut self, task: &str) -> Result<PendingBatch> {
        let fed = self.pending.as_ref().map(|pending| &self.tasks.list[usize::from(pending.task)].name);
        if let Some(name) = fed.filter(|name| *name != task) {
            return Err(invalid!("task: a batch of '{name}' is being fed; complete it with fgs_reference_add first"));
        }
        let task = self.task(task)?;
        if let Some(mut pending) = self.pending.take() {
            pending.sketch.resize(self.catalog.buckets, 0.0);
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
        let (fed, begun, sketch) = (Vec::new(), Vec::new(), vec![0.0; self.catalog.buckets]);
        Ok(PendingBatch { task, origin, first, fed, begun, sketch })
    }

    /// Keeps the parameters as they are now.
    pub(super) fn take_snapshot(&mut self, task: TaskId) {
        self.advance_path();
        let Self { catalog, tasks, device, budget, .. } = self;
        let reads = catalog.reads(false, |_, tensor| tensor.schedule.every != 0);
        if reads.iter().all(Option::is_none) {
            return;
        }
        let state = &mut tasks.list[usize::from(task)];
        if let Some(old) = state.snapshot.take() {
            budget.release(old.into_iter().flatten());
        }
        let mut kept: Vec<Option<Exact>> =
            reads.iter().map(|read| read.as_ref().and_then(|read| budget.allocate(read.segments))).collect();
        let sketched = reads.iter().zip(&kept).map(|(read, kept)| match (read, kept) {
            (Some(read), None) => elements(read.segments),
            _ => 0,
        });
        let sketched: Vec<u64> = sketched.collect();
        let mut sketch = vec![0.0; if sketched.iter().any(|&count| count > 0) { catalog.buckets } else { 0 }];
        let mut jobs = Vec::new();
        for ((read, kept), sketch) in reads.into_iter().zip(&mut kept).zip(catalog.split(&mut sketch)) {
            let Some(read) = read else { continue };
            let sketch = if kept.is_none() { sketch } else { &mut [] };
            let copy = kept.as_mut().map(|exact| Copy {
                span: exact.span,
                values: &mut exact.values,
                compare: false,
                replace: true,
            });
            let (update_sketch, update) = (<&mut [f32]>::default(), UpdateSums::default());
            jobs.push(ParameterJob { read, copy, update_sketch, sketch, tasks: Vec::new(), update });
        }
        device.parameters(&mut jobs);
        for (slice, exact) in kept.iter_mut().enumerate() {
            let Some(exact) = exact else { continue };
            exact.measure(&**device);
            exact.mantissa_bits = catalog.mantissa_bits(slice);
        }
        state.snapshot = Some(kept);
        state.anchor = Some(self.updates);
        self.drain.send(Message::Snapshot(Box::new(SnapshotSketch { task, sketch, elements: sketched })));
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

/// What went wrong while gradients were added.
struct Accumulated {
    non_finite: u64,
    /// An exact sum did not cover the indices of this batch and was given up.
    dropped: bool,
}

/// Adds gradients to a reference.
fn accumulate(
    catalog: &Catalog,
    device: &dyn Device,
    budget: &mut Budget,
    reference: &mut ExactReference,
    batch: &mut PendingBatch,
    reads: Vec<Option<SliceRead<'_>>>,
    scale: f64,
) -> Accumulated {
    let mut dropped = false;
    reference.sums.resize_with(catalog.slices.len(), || None);
    batch.begun.resize(catalog.slices.len(), false);
    let is_first_batch = reference.batches == 0;
    let mut jobs = Vec::new();
    let slices = reads.into_iter().zip(&mut reference.sums).zip(&mut batch.begun);
    for (((read, sum), begun), sketch) in slices.zip(catalog.split(&mut batch.sketch)) {
        let Some(read) = read else { continue };
        let span = Span::of(read.segments);
        let is_first_part = !std::mem::replace(begun, true);
        if is_first_batch && is_first_part {
            *sum = budget.allocate(read.segments);
        } else if is_first_batch && let Some(old) = sum.take() {
            // Another part of a slice that is fed shard by shard.
            *sum = budget.extend(old, read.segments);
        }
        // A sum over other elements cannot take this batch: without it the mean would be wrong.
        if let Some(old) = sum.take_if(|sum| !sum.span.contains(span) || !is_first_batch && !sum.covers(read.segments))
        {
            budget.release([old]);
            dropped = true;
        }
        let sum = sum.as_mut().map(|sum| {
            let start = (span.start - sum.span.start) as usize;
            (span, &mut sum.values[start..start + span.len()])
        });
        jobs.push(AccumulateJob { read, scale: scale as f32, sum, sketch, sums: GradientSums::default() });
    }
    device.accumulate(&mut jobs);
    Accumulated { non_finite: jobs.iter().map(|job| job.sums.non_finite).sum(), dropped }
}
