//! The noise-corrected cosine, from the window of steps and the batches of a reference.

use super::Analysis;
use crate::ring::Record;
use crate::scope::message::TaskId;
use crate::scope::schema::{flag, kind};
use crate::sketch::algebra::dot;
use crate::stats::noise::{Sample, corrected_cosine};

/// Published every so many sampled steps (and at the end of a task): it reads the whole window of sketches.
pub const EVERY: u64 = 8;

/// Fewer steps than this say nothing about their own spread.
const FEWEST: usize = 4;

/// Both samples of one slice, and the variance that sketching adds to the inner product of their means.
#[derive(Default)]
struct Samples {
    steps: Sample,
    batches: Sample,
    sketch_variance: f64,
}

impl Analysis {
    /// Publishes the corrected cosine against every earlier task that has at least two batches.
    pub(super) fn corrected_cosines(&mut self, step: u64) {
        if self.window.len() < FEWEST {
            return;
        }
        let window = self.window.sums(&self.slices);
        let slices = &self.slices;
        let earlier: Vec<TaskId> = self.tasks.keys().copied().filter(|id| Some(*id) != self.publisher.task).collect();
        for task in earlier {
            let Some(state) = self.tasks.get_mut(&task) else { continue };
            let (batches, flags) = match state {
                super::TaskState { refreshed: Some(batches), .. } => (batches, flag::REFRESHED),
                super::TaskState { frozen: Some(batches), .. } => (batches, flag::FROZEN),
                super::TaskState { trailing: Some(batches), .. } => (batches, flag::TRAILING),
                _ => continue,
            };
            if batches.list().len() < 3 {
                continue;
            }
            batches.spread(slices);
            let batches = &*batches;
            let Some(spread) = batches.known_spread() else { continue };
            let totals = self.rollup.sum(
                |index| {
                    let slice = &slices[index];
                    let range = slice.buckets();
                    let (mean, reference) = (&window.mean[range.clone()], &spread.mean[range.clone()]);
                    let steps = Sample {
                        squares: window.squares.iter().map(|squares| squares[index]).collect(),
                        with_sum: window.with_sum.iter().map(|sums| sums[index]).collect(),
                        with_other: self.window.sketches().map(|s| dot(&s[range.clone()], reference)).collect(),
                    };
                    let batches = Sample {
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
