//! The noise-corrected cosine, from the window of steps and the batches of a reference.

use super::sketches::Batches;
use super::{Analysis, active};
use crate::ring::Record;
use crate::scope::message::{Origin, TaskId};
use crate::scope::schema::{flag, kind};
use crate::sketch::algebra::dot;
use crate::stats::noise::{Gradients, corrected_cosine};

/// Published every so many sampled steps (and at the end of a task): it reads the whole window of sketches.
pub const EVERY: u64 = 8;

/// Fewer steps or batches than this say nothing about their own spread.
const FEWEST: usize = 4;

/// Both samples of one slice, and the variance that sketching adds to the inner product of their means.
#[derive(Default)]
struct Samples {
    steps: Gradients,
    batches: Gradients,
    sketch_variance: f64,
}

impl Analysis {
    /// Publishes the corrected cosine against every earlier task whose reference has enough batches.
    pub(super) fn corrected_cosines(&mut self, step: u64) {
        if self.window.len() < FEWEST {
            return;
        }
        let window = self.window.sums(&self.slices);
        let slices = &self.slices;
        let earlier: Vec<TaskId> = self.tasks.keys().copied().filter(|id| Some(*id) != self.publisher.task).collect();
        for task in earlier {
            let Some(state) = self.tasks.get_mut(&task) else { continue };
            // A small refresh has no spread of its own; the full reference of before does.
            let is_small = |batches: &Batches| batches.list().len() < FEWEST;
            let mut origin = state.origin;
            if state.refreshed.as_ref().is_some_and(is_small) && state.frozen.is_some() {
                origin = Some(Origin::Frozen);
            }
            let Some((batches, flags)) = active(state, origin) else { continue };
            if is_small(batches) {
                continue;
            }
            batches.spread(slices);
            let batches = &*batches;
            let Some(spread) = batches.known_spread() else { continue };
            let totals = self.rollup.sum(
                |index| {
                    if !self.window.measures(index) {
                        return None;
                    }
                    let slice = &slices[index];
                    let range = slice.buckets();
                    let (mean, reference) = (&window.mean[range.clone()], &spread.mean[range.clone()]);
                    let buckets = if slice.layout.identity { f64::INFINITY } else { slice.layout.buckets as f64 };
                    let steps = Gradients {
                        norm_variance: 2.0 * dot(mean, mean).powi(2) / buckets,
                        squares: window.squares.iter().map(|squares| squares[index]).collect(),
                        with_sum: window.with_sum.iter().map(|sums| sums[index]).collect(),
                        with_other: self.window.sketches().map(|s| dot(&s[range.clone()], reference)).collect(),
                    };
                    let batches = Gradients {
                        norm_variance: 2.0 * spread.mean_squares[index].powi(2) / buckets,
                        squares: spread.squares.iter().map(|squares| squares[index]).collect(),
                        with_sum: spread.with_sum.iter().map(|sums| sums[index]).collect(),
                        with_other: batches.list().iter().map(|b| dot(&b[range.clone()], mean)).collect(),
                    };
                    let error =
                        slice.layout.standard_error(dot(mean, mean), spread.mean_squares[index], dot(mean, reference));
                    Some(Samples { steps, batches, sketch_variance: error * error })
                },
                |total: &mut Samples, part| {
                    total.steps.add(&part.steps);
                    total.batches.add(&part.batches);
                    total.sketch_variance += part.sketch_variance;
                },
            );
            for (subject, samples) in totals {
                let found = corrected_cosine(&samples.steps, &samples.batches, samples.sketch_variance.sqrt());
                let mut record = Record { step, reference: task, ..self.publisher.record(kind::CORRECTED, subject) };
                record.flags |= flags | if found.cosine.value.is_nan() { flag::UNDETERMINED } else { 0 };
                let values = [
                    found.cosine.value,
                    found.cosine.error,
                    found.dot.value,
                    found.dot.error,
                    found.steps_norm2.value,
                    found.steps_norm2.error,
                    found.batches_norm2.value,
                    found.batches_norm2.error,
                    samples.steps.len() as f64,
                    samples.batches.len() as f64,
                ];
                self.publisher.publish(record, &values);
            }
        }
    }
}
