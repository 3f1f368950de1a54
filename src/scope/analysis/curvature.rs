//! From a curvature run's numbers: the landscape of a task now, and against its base.

use super::Analysis;
use super::publisher::Publisher;
use super::rollup::Subject;
use crate::ring::{NONE32, Record};
use crate::scope::curvature::{BlockSums, CurvatureSums};
use crate::scope::schema::{flag, kind, level};
use crate::stats::flattening::ratio;
use crate::stats::hutchinson::{effective_rank, hutch_plus_plus, mean};
use crate::stats::noise::Estimate;
use crate::stats::spectrum::{Ritz, density};

/// What a later run of the same task is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Landscape {
    largest: f64,
    trace: Estimate,
    relative_trace: Estimate,
    gradient_norm: f64,
}

impl Analysis {
    /// Publishes everything that a run found.
    pub(super) fn curvature(&mut self, sums: &CurvatureSums) {
        let record = |kind, publisher: &Publisher| Record {
            step: sums.step,
            reference: sums.task,
            flags: sums.flags,
            ..publisher.record(kind, Subject::MODEL)
        };
        let runs: Vec<Vec<Ritz>> = sums.lanczos.iter().map(|run| run.ritz(sums.resolution)).collect();
        // Of several runs, the largest that any of them saw: Ritz values of converged ends agree.
        let largest = runs.iter().filter_map(|run| run.last()).map(|ritz| ritz.value).reduce(f64::max);
        let now = Landscape {
            largest: largest.unwrap_or(f64::NAN),
            trace: mean(&sums.traces),
            relative_trace: mean(&sums.relative),
            gradient_norm: sums.gradient_norm,
        };
        let values = [
            now.largest,
            now.trace.value,
            now.trace.error,
            effective_rank(&sums.traces, &sums.squares),
            now.relative_trace.value,
            now.relative_trace.error,
            sums.along_drift.unwrap_or(f64::NAN),
            mean(&sums.along_old).value,
            now.gradient_norm,
            sums.loss,
        ];
        let publisher = &mut self.publisher;
        publisher.publish(record(kind::CURVATURE, publisher), &values);
        let first = runs.first().map_or(&[][..], Vec::as_slice);
        for index in 0..sums.eigenvalues.min(first.len()).max(sums.along_old.len()) {
            let ritz = first.iter().rev().nth(index);
            let values = [
                index as f64,
                ritz.map_or(f64::NAN, |ritz| ritz.value),
                ritz.map_or(f64::NAN, |ritz| ritz.residual),
                sums.along_old.get(index).copied().unwrap_or(f64::NAN),
            ];
            publisher.publish(record(kind::EIGENVALUE, publisher), &values);
        }
        for node in density(&runs, sums.elements) {
            let values = [node.value, node.weight, runs.len() as f64];
            publisher.publish(record(kind::DENSITY, publisher), &values);
        }
        for &(position, loss) in &sums.path {
            publisher.publish(record(kind::LOSS_PATH, publisher), &[position, loss, position * sums.distance]);
        }
        for block in &sums.blocks {
            let subject = Subject { level: level::TENSOR, tensor: block.tensor, slice: NONE32 };
            let Record { level, tensor, slice, .. } = publisher.record(kind::CURVATURE, subject);
            let mut record = Record { level, tensor, slice, ..record(kind::CURVATURE, publisher) };
            record.flags |= flag::BLOCK;
            publisher.publish(record, &block_values(block, sums.resolution));
        }
        let state = self.tasks.entry(sums.task).or_default();
        if sums.flags & flag::BASE != 0 {
            state.landscape = Some(now);
        } else if let Some(base) = state.landscape {
            let exact = |value| Estimate { value, error: 0.0 };
            let trace = ratio(now.trace, base.trace);
            let relative = ratio(now.relative_trace, base.relative_trace);
            let values = [
                ratio(exact(now.largest), exact(base.largest)).value,
                trace.value,
                trace.error,
                relative.value,
                relative.error,
                ratio(exact(now.gradient_norm), exact(base.gradient_norm)).value,
            ];
            let mut record = record(kind::FLATTENING, publisher);
            record.flags |= if trace.value.is_nan() { flag::UNDETERMINED } else { 0 };
            publisher.publish(record, &values);
        }
    }
}

/// A tensor's values; those that only the model has stay NaN.
fn block_values(block: &BlockSums, resolution: f64) -> [f64; 10] {
    let mut values = [f64::NAN; 10];
    let trace = hutch_plus_plus(&block.captured, &block.residual);
    values[0] = block.lanczos.ritz(resolution).last().map_or(f64::NAN, |ritz| ritz.value);
    (values[1], values[2], values[8]) = (trace.value, trace.error, block.gradient_norm);
    values
}
