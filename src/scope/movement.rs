//! How the parameters move between the moments at which they are read: the path along each task's reference.
//!
//! At every sampled step, and where snapshots are taken, the parameters are compared with the copy of the time before, and
//! a fresh copy is taken: one read of the parameters, one write. Slices for which the budget allows no copy are sketched in
//! fp64 instead, and the drain side takes the difference.

use super::catalog::Catalog;
use super::draft::{Landing, Repeat};
use super::message::{Movement, ReferenceStep, TaskMovement};
use super::queue::Queue;
use super::storage::{Budget, Exact};
use super::task::Tasks;
use crate::device::{Copy, Device, Keeping, Lost, ParameterFound, ParameterJob, Pending, SliceRead, Span, TaskJob};
use std::sync::Arc;

/// A copy of a slice's parameters as of the latest sampled step.
#[derive(Debug)]
pub struct Before {
    pub exact: Exact,
    /// It holds parameters of an earlier step.
    known: bool,
}

/// A movement that was asked for.
#[derive(Debug)]
pub struct MovementDraft {
    /// What is known without results: which slices and tasks.
    movement: Movement,
    /// Slices whose copy was empty: the first replay of a captured step compares with nothing.
    unknown: Vec<usize>,
    measured: Arc<[Measured]>,
    /// One per slice that is measured.
    found: Pending<Vec<ParameterFound>>,
}

/// What is measured of one slice.
#[derive(Clone, Debug)]
struct Measured {
    slice: usize,
    /// Per task: the difference is exact, and so is the reference.
    exact: Vec<bool>,
    /// It was compared with a copy, or there is none.
    is_steady: bool,
}

impl MovementDraft {
    /// Asks how far the parameters moved along each reference since the last time, and for fresh copies. `is_captured`: again
    /// and again.
    #[allow(clippy::too_many_arguments)] // parts of the scope, borrowed apart
    pub fn new(
        catalog: &Catalog,
        tasks: &Tasks,
        queue: &Queue,
        copies: &mut Vec<Option<Before>>,
        budget: &mut Budget,
        reads: Vec<Option<SliceRead<'_>>>,
        references: &[ReferenceStep],
        is_captured: bool,
    ) -> Self {
        let slices = catalog.slices.len();
        copies.resize_with(slices, || None);
        for (slice, (copy, read)) in copies.iter_mut().zip(&reads).enumerate() {
            let Some(read) = read else { continue };
            let mantissa_bits = catalog.mantissa_bits(slice);
            // A copy of other elements, or of another type (parameters, then their masters), is of no use.
            let fits = |copy: &Before| copy.exact.covers(read) && copy.exact.mantissa_bits == mantissa_bits;
            if let Some(old) = copy.take_if(|copy| copy.exact.span != Span::of(read.segments) || !fits(copy)) {
                budget.release([old.exact]);
            }
            if copy.is_none() {
                let keeping = Keeping::Copy(read.memory.dtype);
                *copy = budget.allocate(&queue.device, read, keeping).map(|exact| Before { exact, known: false });
            }
            if let Some(copy) = copy {
                copy.exact.mantissa_bits = mantissa_bits;
            }
        }
        let earlier = tasks.compared_in(references);
        let mut movement = Movement {
            compared: vec![false; slices],
            sketched: reads.iter().zip(&*copies).map(|(read, copy)| read.is_some() && copy.is_none()).collect(),
            ..Movement::default()
        };
        let (mut measured, mut jobs, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for ((slice, read), copy) in reads.into_iter().enumerate().zip(copies.iter_mut()) {
            let Some(read) = read else { continue };
            let references: Vec<_> = earlier.iter().map(|task| task.kept_reference(slice, &read)).collect();
            // The sketch of the difference serves tasks without an exact reference.
            let update_sketch = references.iter().any(Option::is_none);
            let sketch = copy.is_none();
            // What is captured has not run yet.
            let is_known = copy.as_ref().is_some_and(|before| before.known);
            if let Some(before) = copy.as_mut() {
                before.known |= !is_captured;
            }
            let compare = is_known || is_captured && copy.is_some();
            unknown.extend((compare && !is_known).then_some(slice));
            let copy = copy.as_mut().map(|before| Copy {
                span: before.exact.span,
                values: &mut before.exact.values,
                compare,
                replace: true,
            });
            movement.compared[slice] = compare;
            let exact = references.iter().map(|kept| compare && kept.is_some()).collect();
            measured.push(Measured { slice, exact, is_steady: compare || copy.is_none() });
            let tasks =
                references.into_iter().map(|kept| TaskJob { reference: kept.map(Exact::kept), ..TaskJob::default() });
            jobs.push(ParameterJob { read, copy, update_sketch, sketch, tasks: tasks.collect() });
        }
        let task = |of: &ReferenceStep| TaskMovement {
            task: of.task,
            origin: of.origin,
            batches: of.batches,
            dots: Vec::new(),
        };
        movement.tasks = references.iter().map(task).collect();
        let found = queue.device.parameters(queue.stream, jobs);
        if found.is_refused() {
            // Copies that were to be filled are not.
            copies.iter_mut().flatten().for_each(|copy| copy.known = false);
        }
        Self { movement, measured: measured.into(), unknown, found }
    }

    /// The same with other results; `None` if there are none.
    pub fn with(&self, found: &impl Repeat) -> Option<Self> {
        let Self { movement, measured, unknown, found: before } = self;
        let found = found.of(before)?;
        Some(Self { movement: movement.clone(), measured: measured.clone(), unknown: unknown.clone(), found })
    }

    /// The copies held nothing before: differences to them are no movement.
    pub fn forget_unknown(&mut self) {
        for slice in std::mem::take(&mut self.unknown) {
            self.movement.compared[slice] = false;
        }
    }

    /// The next pass is the same: every copy that there is was compared with.
    pub fn is_steady(&self) -> bool {
        self.unknown.is_empty() && self.measured.iter().all(|measured| measured.is_steady)
    }

    pub fn land(self, landing: &mut Landing) -> Result<Movement, Lost> {
        let Self { mut movement, measured, found, .. } = self;
        let found = landing.wait(found)?;
        movement.compared.resize(landing.slices(), false);
        movement.sketched.resize(landing.slices(), false);
        movement.tasks.iter_mut().for_each(|task| task.dots = vec![None; landing.slices()]);
        movement.sketch = landing.sketch(true);
        movement.weights = landing.sketch(movement.sketched.contains(&true));
        for (Measured { slice, exact, .. }, found) in measured.iter().zip(found) {
            let slice = *slice;
            if movement.compared[slice] {
                landing.add(&mut movement.sketch, slice, &found.update_sketch);
            }
            landing.add(&mut movement.weights, slice, &found.sketch);
            for ((task, exact), found) in movement.tasks.iter_mut().zip(exact).zip(found.tasks) {
                task.dots[slice] = (*exact && movement.compared[slice]).then_some(found.update.dot);
            }
        }
        Ok(movement)
    }
}
