//! How the parameters move between the moments at which they are read: the path along each task's reference.
//!
//! At every sampled step, and where snapshots are taken, the parameters are compared with the copy of the time before, and
//! a fresh copy is taken: one read of the parameters, one write. Slices for which the budget allows no copy are sketched in
//! fp64 instead, and the drain side takes the difference.

use super::catalog::Catalog;
use super::message::{Movement, ReferenceStep, TaskMovement};
use super::storage::{Budget, Exact};
use super::task::Tasks;
use crate::device::{Copy, Device, ParameterJob, SliceRead, Span, TaskJob, UpdateSums};

/// A copy of a slice's parameters as of the latest sampled step.
#[derive(Debug)]
pub struct Before {
    pub exact: Exact,
    /// It holds parameters of an earlier step.
    known: bool,
}

/// Measures how far the parameters moved along each reference since the last time, and takes fresh copies.
pub fn move_on(
    catalog: &Catalog,
    tasks: &Tasks,
    device: &dyn Device,
    copies: &mut Vec<Option<Before>>,
    budget: &mut Budget,
    reads: Vec<Option<SliceRead<'_>>>,
    references: &[ReferenceStep],
) -> Movement {
    let slices = catalog.slices.len();
    copies.resize_with(slices, || None);
    for (slice, (copy, read)) in copies.iter_mut().zip(&reads).enumerate() {
        let Some(read) = read else { continue };
        let mantissa_bits = catalog.mantissa_bits(slice);
        // A copy of other elements, or of another type (parameters, then their masters), is of no use.
        let fits = |copy: &Before| copy.exact.covers(read.segments) && copy.exact.mantissa_bits == mantissa_bits;
        if let Some(old) = copy.take_if(|copy| copy.exact.span != Span::of(read.segments) || !fits(copy)) {
            budget.release([old.exact]);
        }
        if copy.is_none() {
            *copy = budget.allocate(read.segments).map(|exact| Before { exact, known: false });
        }
        if let Some(copy) = copy {
            copy.exact.mantissa_bits = mantissa_bits;
        }
    }
    let earlier = tasks.compared_in(references);
    let lacks_reference =
        |slice: usize, read: &SliceRead| earlier.iter().any(|task| task.kept_reference(slice, read.segments).is_none());
    // The sketch of the difference serves tasks without an exact reference.
    let wanted =
        reads.iter().enumerate().any(|(slice, read)| read.as_ref().is_some_and(|read| lacks_reference(slice, read)));
    let mut movement = Movement {
        compared: vec![false; slices],
        sketched: reads.iter().zip(&*copies).map(|(read, copy)| read.is_some() && copy.is_none()).collect(),
        sketch: vec![0.0; if wanted { catalog.buckets } else { 0 }],
        ..Movement::default()
    };
    movement.weights = vec![0.0; if movement.sketched.contains(&true) { catalog.buckets } else { 0 }];
    let mut jobs = Vec::new();
    let mut measured = Vec::new();
    let sketches = catalog.split(&mut movement.sketch).into_iter().zip(catalog.split(&mut movement.weights));
    for (((slice, read), copy), (update_sketch, sketch)) in
        reads.into_iter().enumerate().zip(copies.iter_mut()).zip(sketches)
    {
        let Some(read) = read else { continue };
        let sketch = if copy.is_none() { sketch } else { &mut [] };
        let references: Vec<_> = earlier.iter().map(|task| task.kept_reference(slice, read.segments)).collect();
        let update_sketch = if references.iter().any(Option::is_none) { update_sketch } else { &mut [] };
        let compare = copy.as_mut().is_some_and(|before| std::mem::replace(&mut before.known, true));
        let copy = copy.as_mut().map(|before| {
            let values = &mut before.exact.values[..];
            Copy { span: before.exact.span, values, compare, replace: true }
        });
        movement.compared[slice] = compare;
        measured.push((slice, references.iter().map(|kept| compare && kept.is_some()).collect::<Vec<_>>()));
        let tasks =
            references.into_iter().map(|kept| TaskJob { reference: kept.map(Exact::kept), ..TaskJob::default() });
        let (update, tasks) = (UpdateSums::default(), tasks.collect());
        jobs.push(ParameterJob { read, copy, update_sketch, sketch, tasks, update });
    }
    device.parameters(&mut jobs);
    movement.tasks = references
        .iter()
        .enumerate()
        .map(|(index, reference)| {
            let mut dots = vec![None; slices];
            for ((slice, exact), job) in measured.iter().zip(&jobs) {
                dots[*slice] = exact[index].then_some(job.tasks[index].update.dot);
            }
            TaskMovement { task: reference.task, origin: reference.origin, batches: reference.batches, dots }
        })
        .collect();
    movement
}
