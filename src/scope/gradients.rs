//! The pass over gradients of a sampled step.

use super::catalog::Catalog;
use super::draft::{Landing, Repeat};
use super::message::{ReferenceStep, StepSums};
use super::queue::Queue;
use super::storage::Exact;
use super::task::Tasks;
use crate::device::{Device, GradientFound, GradientJob, Lost, Pending, SliceRead};
use std::sync::Arc;

/// A pass over gradients that was asked for.
#[derive(Debug)]
pub struct GradientsDraft {
    measured: Arc<[Measured]>,
    /// One per slice that is measured.
    found: Pending<Vec<GradientFound>>,
}

/// What is measured of one slice.
#[derive(Clone, Debug)]
struct Measured {
    slice: usize,
    /// Per reference of the step: an exact one is there.
    exact: Vec<bool>,
}

impl GradientsDraft {
    /// Asks for norms, sketches, and products with the references of the step.
    pub fn new(
        catalog: &Catalog,
        tasks: &Tasks,
        queue: &Queue,
        references: &[ReferenceStep],
        reads: Vec<Option<SliceRead<'_>>>,
    ) -> Self {
        debug_assert_eq!(reads.len(), catalog.slices.len());
        let earlier = tasks.compared_in(references);
        let (mut measured, mut jobs) = (Vec::new(), Vec::new());
        for (slice, read) in reads.into_iter().enumerate() {
            let Some(read) = read else { continue };
            let references: Vec<_> = earlier.iter().map(|task| task.kept_reference(slice, &read)).collect();
            measured.push(Measured { slice, exact: references.iter().map(Option::is_some).collect() });
            let references = references.into_iter().map(|kept| kept.map(Exact::kept)).collect();
            jobs.push(GradientJob { read, references });
        }
        Self { measured: measured.into(), found: queue.device.gradients(queue.stream, jobs) }
    }

    /// The slices that are measured.
    pub fn slices(&self) -> impl Iterator<Item = usize> {
        self.measured.iter().map(|measured| measured.slice)
    }

    /// The same with other results; `None` if there are none.
    pub fn with(&self, found: &impl Repeat) -> Option<Self> {
        Some(Self { measured: self.measured.clone(), found: found.of(&self.found)? })
    }

    /// Adds what was found to the sums of the step.
    pub fn land(self, sums: &mut StepSums, landing: &mut Landing) -> Result<(), Lost> {
        let found = landing.wait(self.found)?;
        for (Measured { slice, exact }, found) in self.measured.iter().zip(found) {
            let slice = *slice;
            *sums.gradients[slice].get_or_insert_default() += found.sums;
            landing.add(&mut sums.sketch, slice, &found.sketch);
            for ((reference, exact), pair) in sums.references.iter_mut().zip(exact).zip(found.pairs) {
                if *exact {
                    *reference.pairs[slice].get_or_insert_default() += pair;
                }
            }
        }
        Ok(())
    }
}
