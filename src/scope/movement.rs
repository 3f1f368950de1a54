//! How the parameters move between the moments at which they are read: the path along each task's reference.
//!
//! At every sampled step, and where snapshots are taken, the parameters are compared with the copy of the time before, and
//! a fresh copy is taken: one read of the parameters, one write. Slices for which the budget allows no copy are sketched in
//! fp64 instead, and the drain side takes the difference.

use super::catalog::Catalog;
use super::draft::Landing;
use super::message::{Movement, ReferenceStep, TaskMovement};
use super::queue::Queue;
use super::storage::{Budget, Exact};
use super::task::Tasks;
use crate::device::{Copy, Device, Lost, ParameterFound, ParameterJob, Pending, SliceRead, Span, TaskJob};

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
    measured: Vec<Measured>,
    /// One per slice that is measured.
    found: Pending<Vec<ParameterFound>>,
}

/// What is measured of one slice.
#[derive(Clone, Debug)]
struct Measured {
    slice: usize,
    /// Per task: the difference is exact, and so is the reference.
    exact: Vec<bool>,
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
                *copy = budget.allocate(&queue.device, read).map(|exact| Before { exact, known: false });
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
            let is_known = copy.as_mut().is_some_and(|before| std::mem::replace(&mut before.known, true));
            let compare = is_known || is_captured && copy.is_some();
            unknown.extend((compare && !is_known).then_some(slice));
            let copy = copy.as_mut().map(|before| Copy {
                span: before.exact.span,
                values: &mut before.exact.values,
                compare,
                replace: true,
            });
            movement.compared[slice] = compare;
            measured.push(Measured { slice, exact: references.iter().map(|kept| compare && kept.is_some()).collect() });
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
        Self { movement, measured, unknown, found: queue.device.parameters(queue.stream, jobs) }
    }

    /// The same of the n-th replay of a captured step; `None` if it was not captured.
    pub fn nth(&self, n: u64) -> Option<Self> {
        let Self { movement, measured, unknown, found } = self;
        let (mut movement, mut measured) = (movement.clone(), measured.clone());
        if n == 0 {
            for &slice in unknown {
                movement.compared[slice] = false;
                measured.iter_mut().filter(|of| of.slice == slice).for_each(|of| of.exact.fill(false));
            }
        }
        Some(Self { movement, measured, unknown: Vec::new(), found: found.nth(n)? })
    }

    pub fn land(self, landing: &mut Landing) -> Result<Movement, Lost> {
        let Self { mut movement, measured, found, .. } = self;
        let found = landing.wait(found)?;
        movement.compared.resize(landing.slices(), false);
        movement.sketched.resize(landing.slices(), false);
        movement.tasks.iter_mut().for_each(|task| task.dots = vec![None; landing.slices()]);
        movement.sketch = landing.sketch(true);
        movement.weights = landing.sketch(movement.sketched.contains(&true));
        for (Measured { slice, exact }, found) in measured.into_iter().zip(found) {
            if movement.compared[slice] {
                landing.add(&mut movement.sketch, slice, &found.update_sketch);
            }
            landing.add(&mut movement.weights, slice, &found.sketch);
            for ((task, exact), found) in movement.tasks.iter_mut().zip(exact).zip(found.tasks) {
                task.dots[slice] = exact.then_some(found.update.dot);
            }
        }
        Ok(movement)
    }
}
