//! The drift at the moment at which a reference is refreshed: what curvature along it is taken from.
//!
//! The parameters move on with every step, so the drift that belongs to a refreshed reference is measured while its batches
//! are added: one pass over the parameters at the 4th, 8th, 16th, … of them.

use super::Front;
use super::catalog::Catalog;
use super::draft::Landing;
use super::message::{Origin, SecantSlice, SecantSums, TaskId};
use super::queue::Queue;
use super::storage::Exact;
use super::task::{ExactReference, Task};
use crate::device::{Device, Lost, ParameterFound, ParameterJob, Pending, TaskJob};

/// Fewer batches have next to no spread of their own.
const FEWEST: u32 = 4;

/// A reference is looked at when it has this many batches: often enough to see it grow, seldom enough to cost little.
pub fn is_milestone(batches: u32) -> bool {
    batches >= FEWEST && batches.is_power_of_two()
}

impl Front {
    /// The drift of a task whose reference at other weights has so many batches now; `None` if it is not the moment, or the
    /// frozen reference does not belong to the snapshot.
    pub(super) fn secant(&mut self, task: TaskId, origin: Origin, batches: u32) -> Option<SecantDraft> {
        let state = &mut self.tasks.list[usize::from(task)];
        let is_anchored = state.frozen.as_ref().is_some_and(|frozen| state.is_anchor(frozen.epoch));
        let is_due = origin == Origin::Refreshed && is_milestone(batches) && is_anchored && state.snapshot.is_some();
        is_due.then(|| {
            state.settle(&self.queue, &mut self.budget);
            SecantDraft::new(&self.catalog, &self.queue, state)
        })
    }
}

/// The drift of a task that was asked for.
#[derive(Debug)]
pub struct SecantDraft {
    measured: Vec<Measured>,
    /// One per slice that is measured.
    found: Pending<Vec<ParameterFound>>,
    /// Batches of the reference of now, and of that at the snapshot.
    batches: [f64; 2],
}

/// What is measured of one slice.
#[derive(Debug)]
struct Measured {
    slice: usize,
    /// There is no exact snapshot.
    sketched: bool,
    /// Snapshot and both references are exact.
    exact: bool,
}

impl SecantDraft {
    fn new(catalog: &Catalog, queue: &Queue, task: &Task) -> Self {
        let reads = catalog.reads(false, |_, tensor| tensor.schedule.every != 0);
        let (mut measured, mut jobs) = (Vec::new(), Vec::new());
        for (slice, read) in reads.into_iter().enumerate() {
            let Some(read) = read else { continue };
            let snapshot = task.kept_snapshot(slice, &read).map(Exact::kept);
            let ends = [task.kept_reference(slice, &read), task.kept_anchor(slice, &read)];
            let (sketched, exact) = (snapshot.is_none(), snapshot.is_some() && ends.iter().all(Option::is_some));
            measured.push(Measured { slice, sketched, exact });
            // Both ends are compared with the same drift, each in the place of the reference at the snapshot.
            let [now, then] = ends.map(|end| TaskJob { anchor: end.map(Exact::kept), snapshot, ..TaskJob::default() });
            let now = TaskJob { drift_sketch: snapshot.is_some(), ..now };
            jobs.push(ParameterJob {
                read,
                copy: None,
                update_sketch: false,
                sketch: sketched,
                tasks: vec![now, then],
            });
        }
        let batches =
            |reference: Option<&ExactReference>| reference.map_or(f64::NAN, |reference| f64::from(reference.batches));
        Self {
            measured,
            found: queue.device.parameters(queue.stream, jobs),
            batches: [task.refreshed.as_ref(), task.frozen.as_ref()].map(batches),
        }
    }

    pub fn land(self, landing: &mut Landing) -> Result<SecantSums, Lost> {
        let found = landing.wait(self.found)?;
        let [now, then] = self.batches;
        let mut sums = SecantSums {
            sketch: landing.sketch(true),
            weights: landing.sketch(self.measured.iter().any(|measured| measured.sketched)),
            slices: vec![None; landing.slices()],
        };
        for (Measured { slice, exact, .. }, found) in self.measured.into_iter().zip(found) {
            landing.add(&mut sums.weights, slice, &found.sketch);
            let [end, anchor] = &found.tasks[..] else { continue };
            landing.add(&mut sums.sketch, slice, &end.drift_sketch);
            let rise = end.drift.reference_dot / now - anchor.drift.reference_dot / then;
            let (count, drift) = (found.update.count, end.drift.drift);
            sums.slices[slice] = Some(SecantSlice { count, drift, rise: exact.then_some(rise) });
        }
        Ok(sums)
    }
}
