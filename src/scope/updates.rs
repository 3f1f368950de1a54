//! The pass over parameters after the update of a sampled step: the update itself, and the drift from every snapshot.

use super::catalog::Catalog;
use super::draft::{Landing, Repeat};
use super::message::{DriftStep, ReferenceStep, StepSums, UpdateStep};
use super::movement::Before;
use super::queue::Queue;
use super::storage::Exact;
use super::task::{Task, Tasks};
use crate::device::{Copy, Device, Lost, ParameterFound, ParameterJob, Pending, SliceRead, Span, TaskJob};
use std::sync::Arc;

/// A pass over parameters that was asked for.
#[derive(Debug)]
pub struct UpdatesDraft {
    measured: Arc<[Measured]>,
    /// One per slice that is measured.
    found: Pending<Vec<ParameterFound>>,
    /// The sketch of the parameters themselves is wanted of some slice.
    sketched: bool,
    /// Of each task of the step: there is a snapshot.
    drifts: Vec<bool>,
}

/// What is measured of one slice.
#[derive(Clone, Debug)]
struct Measured {
    slice: usize,
    /// It was read before the update too.
    taken: bool,
    /// It is compared with an exact copy.
    exact: bool,
    mantissa_bits: i32,
    /// One per task of the step.
    tasks: Vec<MeasuredTask>,
}

#[derive(Clone, Debug)]
struct MeasuredTask {
    /// The update is paired with an exact reference.
    paired: bool,
    /// There is an exact reference at the snapshot.
    anchored: bool,
    /// Mantissa bits of the exact snapshot; `None` where there is none.
    snapshot: Option<i32>,
}

impl UpdatesDraft {
    /// `taken`: which slices were read before the update.
    pub fn new(
        catalog: &Catalog,
        tasks: &Tasks,
        queue: &Queue,
        copies: &mut Vec<Option<Before>>,
        references: &[ReferenceStep],
        reads: Vec<Option<SliceRead<'_>>>,
        taken: &[bool],
    ) -> Self {
        copies.resize_with(catalog.slices.len(), || None);
        let earlier = tasks.compared_in(references);
        // Slices without an exact copy or snapshot need the sketch of the parameters themselves.
        let needs_sketch = |slice: usize, read: &SliceRead| {
            let lacks = |task: &&Task| task.snapshot.is_some() && task.kept_snapshot(slice, read).is_none();
            copies[slice].is_none() || earlier.iter().any(lacks)
        };
        let needs_sketch: Vec<bool> =
            reads.iter().enumerate().map(|(slice, read)| read.is_some_and(|read| needs_sketch(slice, &read))).collect();
        let (mut measured, mut jobs) = (Vec::new(), Vec::new());
        for ((slice, read), copy) in reads.into_iter().enumerate().zip(copies) {
            let Some(read) = read else { continue };
            // A binding that took other elements since then has nothing to compare with.
            let taken = taken.get(slice).is_some_and(|taken| *taken);
            let fits = |exact: &Exact| exact.span == Span::of(read.segments) && exact.covers(&read);
            let copy = copy.as_mut().filter(|before| taken && fits(&before.exact)).map(|before| Copy {
                span: before.exact.span,
                values: &mut before.exact.values,
                compare: true,
                replace: false,
            });
            let exact = copy.is_some();
            let mantissa_bits = catalog.mantissa_bits(slice);
            let (tasks, of_tasks) = earlier.iter().map(|task| against(task, slice, &read, exact)).unzip();
            measured.push(Measured { slice, taken, exact, mantissa_bits, tasks: of_tasks });
            // Only alignment with earlier tasks looks at the sketch of an update that is compared exactly.
            let update_sketch = exact && !earlier.is_empty();
            jobs.push(ParameterJob { read, copy, update_sketch, sketch: needs_sketch[slice], tasks });
        }
        Self {
            measured: measured.into(),
            sketched: needs_sketch.contains(&true),
            drifts: earlier.iter().map(|task| task.snapshot.is_some()).collect(),
            found: queue.device.parameters(queue.stream, jobs),
        }
    }

    /// The slices that are measured.
    pub fn slices(&self) -> impl Iterator<Item = usize> {
        self.measured.iter().map(|measured| measured.slice)
    }

    /// The same with other results; `None` if there are none.
    pub fn with(&self, found: &impl Repeat) -> Option<Self> {
        let found = found.of(&self.found)?;
        Some(Self { measured: self.measured.clone(), found, sketched: self.sketched, drifts: self.drifts.clone() })
    }

    /// Adds what was found to the sums of the step, whose movement has landed.
    pub fn land(self, sums: &mut StepSums, landing: &mut Landing) -> Result<(), Lost> {
        let found = landing.wait(self.found)?;
        sums.weights_after = landing.sketch(self.sketched);
        sums.update_sketch = landing.sketch(!sums.references.is_empty());
        for (reference, wanted) in sums.references.iter_mut().zip(self.drifts) {
            reference.drift_sketch = landing.sketch(wanted);
        }
        for (measured, found) in self.measured.iter().zip(found) {
            let &Measured { slice, taken, exact, mantissa_bits, ref tasks } = measured;
            landing.add(&mut sums.weights_after, slice, &found.sketch);
            landing.add(&mut sums.update_sketch, slice, &found.update_sketch);
            // Sketches before and after are compared only where there is no copy.
            let compared = exact || taken && sums.movement.sketched.get(slice).is_some_and(|sketched| *sketched);
            sums.updates[slice] = Some(UpdateStep { sums: found.update, compared, exact, mantissa_bits });
            for ((reference, task), found) in sums.references.iter_mut().zip(tasks).zip(found.tasks) {
                landing.add(&mut reference.drift_sketch, slice, &found.drift_sketch);
                reference.updates[slice] = task.paired.then_some(found.update);
                reference.drifts[slice] = task.snapshot.map(|of_snapshot| DriftStep {
                    sums: found.drift,
                    anchored: task.anchored,
                    mantissa_bits: mantissa_bits.min(of_snapshot),
                });
            }
        }
        Ok(())
    }
}

/// What a slice is measured against for one task. `exact`: the update is compared exactly.
fn against<'a>(task: &'a Task, slice: usize, read: &SliceRead, exact: bool) -> (TaskJob<'a>, MeasuredTask) {
    let reference = task.kept_reference(slice, read);
    let anchor = task.kept_anchor(slice, read);
    let snapshot = task.kept_snapshot(slice, read);
    let measured = MeasuredTask {
        paired: exact && reference.is_some(),
        anchored: anchor.is_some(),
        snapshot: snapshot.map(|snapshot| snapshot.mantissa_bits),
    };
    let [reference, anchor, snapshot] = [reference, anchor, snapshot].map(|kept| kept.map(Exact::kept));
    (TaskJob { reference, anchor, snapshot, drift_sketch: snapshot.is_some() }, measured)
}
