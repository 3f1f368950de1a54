//! Curvature along the drift, when a reference has been refreshed.

use super::rollup::Subject;
use super::{Analysis, exact_flag};
use crate::ring::Record;
use crate::scope::message::{SecantSums, TaskId};
use crate::scope::schema::{flag, kind};
use crate::sketch::algebra::{dot, norm2};
use crate::stats::secant::secant;

impl Analysis {
    /// Publishes what the two references of a task say of the line between their weights.
    pub(super) fn secant(&mut self, task: TaskId, mut sums: SecantSums, step: u64) {
        let Some(state) = self.tasks.get_mut(&task) else { return };
        let (Some(refreshed), Some(frozen), Some(snapshot)) =
            (&mut state.refreshed, &mut state.frozen, &state.snapshot)
        else {
            return;
        };
        let slices = &self.slices;
        sums.sketch.resize(self.buckets, 0.0);
        let (now, then) = (refreshed.spread(slices), frozen.spread(slices));
        let (mut rise, mut squares, mut variance, mut exact, mut count) = (0.0, 0.0, 0.0, 0, 0);
        for (index, slice) in slices.iter().enumerate() {
            let Some(found) = sums.slices.get(index).copied().flatten() else { continue };
            let range = slice.buckets();
            let old = snapshot.sketch.get(range.clone());
            let is_sketched = snapshot.elements.get(index).is_some_and(|&elements| elements > 0);
            if is_sketched {
                // Only what both sketches hold can be compared.
                let new = sums.weights.get(range.clone());
                let (Some(old), Some(new), true) = (old, new, snapshot.elements[index] == found.count) else {
                    continue;
                };
                for ((drift, new), old) in sums.sketch[range.clone()].iter_mut().zip(new).zip(old) {
                    *drift = (new - old) as f32;
                }
            }
            let drift = &sums.sketch[range.clone()];
            let drift_squares = if is_sketched { norm2(drift) } else { found.drift };
            squares += drift_squares;
            count += 1;
            if let Some(slice_rise) = found.rise {
                rise += slice_rise;
                exact += 1;
                continue;
            }
            for (spread, sign) in [(now, 1.0), (then, -1.0)] {
                let end = dot(&spread.mean[range.clone()], drift);
                rise += sign * end;
                variance += slice.layout.standard_error(spread.mean_squares[index], drift_squares, end).powi(2);
            }
        }
        let project = |batches: &[Vec<f32>]| batches.iter().map(|batch| dot(batch, &sums.sketch)).collect::<Vec<_>>();
        let batches = refreshed.list().len();
        let found = secant(rise, &project(refreshed.list()), &project(frozen.list()), variance, squares);
        if found.value.is_nan() {
            return;
        }
        let mut record = Record { step, reference: task, ..self.publisher.record(kind::SECANT, Subject::MODEL) };
        record.flags |= flag::REFRESHED | exact_flag(exact, count);
        self.publisher.publish(record, &[found.value, found.error, squares.sqrt(), batches as f64]);
    }
}
