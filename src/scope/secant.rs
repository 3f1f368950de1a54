//! The drift at the moment at which a reference is refreshed: what curvature along it is taken from.
//!
//! The parameters move on with every step, so the drift that belongs to a refreshed reference is measured while its batches
//! are added: one pass over the parameters at the 4th, 8th, 16th, … of them.

use super::catalog::Catalog;
use super::message::{Origin, SecantSlice, SecantSums, TaskId};
use super::storage::Exact;
use super::{Front, task::Task};
use crate::device::{Device, ParameterJob, TaskJob, UpdateSums};

/// Fewer batches have next to no spread of their own.
const FEWEST: u32 = 4;

/// A reference is looked at when it has this many batches: often enough to see it grow, seldom enough to cost little.
pub fn is_milestone(batches: u32) -> bool {
    batches >= FEWEST && batches.is_power_of_two()
}

impl Front {
    /// The drift of a task whose reference at other weights has so many batches now; `None` if it is not the moment, or the
    /// frozen reference does not belong to the snapshot.
    pub(super) fn secant(&mut self, task: TaskId, origin: Origin, batches: u32) -> Option<Box<SecantSums>> {
        let state = &mut self.tasks.list[usize::from(task)];
        let is_anchored = state.frozen.as_ref().is_some_and(|frozen| state.is_anchor(frozen.epoch));
        let is_due = origin == Origin::Refreshed && is_milestone(batches) && is_anchored && state.snapshot.is_some();
        is_due.then(|| {
            state.measure(&*self.device);
            Box::new(measure(&self.catalog, &*self.device, state))
        })
    }
}

fn measure(catalog: &Catalog, device: &dyn Device, task: &Task) -> SecantSums {
    let reads = catalog.reads(false, |_, tensor| tensor.schedule.every != 0);
    let lacks_snapshot = |(slice, read): (usize, &Option<crate::device::SliceRead>)| {
        read.is_some_and(|read| task.kept_snapshot(slice, read.segments).is_none())
    };
    let sketched: Vec<bool> = reads.iter().enumerate().map(lacks_snapshot).collect();
    let mut sums = SecantSums {
        sketch: vec![0.0; catalog.buckets],
        weights: vec![0.0; if sketched.contains(&true) { catalog.buckets } else { 0 }],
        slices: vec![None; catalog.slices.len()],
    };
    let mut jobs = Vec::new();
    let mut measured = Vec::new();
    let sketches = catalog.split(&mut sums.sketch).into_iter().zip(catalog.split(&mut sums.weights));
    for ((slice, read), (drift_sketch, sketch)) in reads.into_iter().enumerate().zip(sketches) {
        let Some(read) = read else { continue };
        let snapshot = task.kept_snapshot(slice, read.segments).map(Exact::kept);
        let ends = [task.kept_reference(slice, read.segments), task.kept_anchor(slice, read.segments)];
        // Both ends are compared with the same drift, each in the place of the reference at the snapshot.
        let [now, then] = ends.map(|end| TaskJob { anchor: end.map(Exact::kept), snapshot, ..TaskJob::default() });
        let now = TaskJob { drift_sketch: if snapshot.is_some() { drift_sketch } else { &mut [] }, ..now };
        let sketch = if sketched[slice] { sketch } else { &mut [] };
        measured.push((slice, snapshot.is_some() && ends.iter().all(Option::is_some)));
        jobs.push(ParameterJob {
            read,
            copy: None,
            update_sketch: &mut [],
            sketch,
            tasks: vec![now, then],
            update: UpdateSums::default(),
        });
    }
    device.parameters(&mut jobs);
    let batches =
        |reference: Option<&super::task::ExactReference>| reference.map_or(f64::NAN, |r| f64::from(r.batches));
    let (now, then) = (batches(task.refreshed.as_ref()), batches(task.frozen.as_ref()));
    let found = jobs.iter().map(|job| (job.update.count, job.tasks[0].drift, job.tasks[1].drift.reference_dot));
    let found: Vec<_> = found.collect();
    for ((slice, is_exact), (count, drift, anchor_dot)) in measured.into_iter().zip(found) {
        let rise = drift.reference_dot / now - anchor_dot / then;
        sums.slices[slice] = Some(SecantSlice { count, drift: drift.drift, rise: is_exact.then_some(rise) });
    }
    sums
}
