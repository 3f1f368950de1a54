//! From a step's parameter sums: the update, its alignment with references, drift, predicted loss change.

use super::rollup::Subject;
use super::{Analysis, active, exact_flag};
use crate::device::UpdateSums;
use crate::ring::Record;
use crate::scope::message::{ReferenceStep, StepSums, UpdateStep};
use crate::scope::schema::{flag, kind};
use crate::sketch::algebra::{dot, dot_squares, norm2};
use crate::stats::hypot::hypot;
use crate::stats::{drift, interference, prediction, update};

/// Sums of the update over one or more slices.
#[derive(Clone, Copy, Debug, Default)]
struct Update {
    sums: UpdateSums,
    slices: u32,
    exact: u32,
}

/// Sums of the update and a reference.
#[derive(Clone, Copy, Debug, Default)]
struct Alignment {
    dot: f64,
    dot_sketched: f64,
    updates: f64,
    reference_squares: f64,
    null_variance: f64,
    count: f64,
    slices: u32,
    exact: u32,
    non_finite: u64,
}

/// Sums of the drift from a snapshot.
#[derive(Clone, Copy, Debug, Default)]
struct Drift {
    drift: f64,
    drift_dot_snapshot: f64,
    snapshot: f64,
    first_order: f64,
    first_order_sketched: f64,
    /// What rounding, or the error of the sketch, may contribute to `drift`; upper bounds, which add.
    resolution: f64,
    count: f64,
    slices: u32,
    exact: u32,
    non_finite: u64,
    /// Variance that sketching adds to `first_order`.
    first_order_variance: f64,
}

fn non_finite_flag(count: u64) -> u32 {
    if count > 0 { flag::NON_FINITE } else { 0 }
}

impl Analysis {
    /// Publishes everything about this step's update and the parameters after it.
    pub(super) fn weights(&mut self, sums: &mut StepSums, before: &[f64]) {
        self.complete_updates(sums, before);
        self.updates(&sums.updates);
        let StepSums { updates, update_sketch, weights_after, references, .. } = sums;
        for reference in references {
            self.alignment(reference, updates, update_sketch);
            self.drift(reference, updates, weights_after);
        }
    }

    /// Gives slices without an exact copy their update from the sketches before and after it.
    fn complete_updates(&self, sums: &mut StepSums, before: &[f64]) {
        sums.update_sketch.resize(self.buckets, 0.0);
        for (slice, step) in self.slices.iter().zip(&mut sums.updates) {
            let Some(step) = step.as_mut().filter(|step| step.compared && !step.exact) else { continue };
            let range = slice.buckets();
            let (Some(before), Some(after)) = (before.get(range.clone()), sums.weights_after.get(range.clone())) else {
                continue;
            };
            let sketch = &mut sums.update_sketch[range];
            for ((update, after), before) in sketch.iter_mut().zip(after).zip(before) {
                *update = (after - before) as f32;
            }
            step.sums.updates = norm2(sketch);
        }
    }

    fn updates(&mut self, updates: &[Option<UpdateStep>]) {
        let totals = self.rollup.sum(
            |slice| {
                let step = updates[slice].filter(|step| step.compared)?;
                Some(Update { sums: step.sums, slices: 1, exact: u32::from(step.exact) })
            },
            |total, part| {
                total.sums += part.sums;
                total.slices += part.slices;
                total.exact += part.exact;
            },
        );
        for (subject, total) in totals {
            let mut record = self.publisher.record(kind::UPDATE, subject);
            record.flags |= exact_flag(total.exact, total.slices) | non_finite_flag(total.sums.non_finite);
            let peak = if total.exact == total.slices { f64::from(total.sums.peak) } else { f64::NAN };
            let values = [
                update::relative_step(total.sums.updates, total.sums.weights),
                total.sums.updates,
                total.sums.weights,
                peak,
                total.sums.count as f64,
                total.sums.non_finite as f64,
            ];
            self.publisher.publish(record, &values);
        }
    }

    fn alignment(&mut self, step: &ReferenceStep, updates: &[Option<UpdateStep>], sketch: &[f32]) {
        let Some(state) = self.tasks.get_mut(&step.task) else { return };
        let Some((batches, flags)) = active(state, step.origin) else { return };
        let spread = batches.spread(&self.slices);
        let slices = &self.slices;
        let totals = self.rollup.sum(
            |index| {
                let found = updates[index].filter(|step| step.compared)?;
                let range = slices[index].buckets();
                let (mean, update) = (&spread.mean[range.clone()], &sketch[range]);
                let dot_sketched = dot(mean, update);
                let mut result = Alignment {
                    dot: dot_sketched,
                    dot_sketched,
                    updates: found.sums.updates,
                    reference_squares: spread.mean_squares[index],
                    count: found.sums.count as f64,
                    non_finite: found.sums.non_finite,
                    slices: 1,
                    ..Alignment::default()
                };
                match step.updates[index] {
                    Some(pair) if step.batches > 0.0 => {
                        result.dot = pair.dot / step.batches;
                        result.reference_squares = pair.reference_squares / (step.batches * step.batches);
                        result.null_variance = pair.dot_squares / (step.batches * step.batches);
                        result.exact = 1;
                    }
                    _ => result.null_variance = dot_squares(mean, update),
                }
                Some(result)
            },
            |total, part| {
                total.dot += part.dot;
                total.dot_sketched += part.dot_sketched;
                total.updates += part.updates;
                total.reference_squares += part.reference_squares;
                total.null_variance += part.null_variance;
                total.count += part.count;
                total.slices += part.slices;
                total.exact += part.exact;
                total.non_finite += part.non_finite;
            },
        );
        for (subject, total) in totals {
            let mut record = Record { reference: step.task, ..self.publisher.record(kind::ALIGNMENT, subject) };
            record.flags |= flags | exact_flag(total.exact, total.slices) | non_finite_flag(total.non_finite);
            let values = [
                interference::cosine(total.dot, total.updates, total.reference_squares),
                interference::cosine_null(total.null_variance, total.updates, total.reference_squares),
                total.dot,
                total.updates,
                total.reference_squares,
                total.dot_sketched,
                total.count,
            ];
            self.publisher.publish(record, &values);
        }
    }

    fn drift(&mut self, step: &mut ReferenceStep, updates: &[Option<UpdateStep>], weights: &[f64]) {
        let Some(state) = self.tasks.get_mut(&step.task) else { return };
        let Some(snapshot) = &state.snapshot else { return };
        step.drift_sketch.resize(self.buckets, 0.0);
        // Which reference belongs to the snapshot: the frozen one, else the mean over the last steps before it.
        let (mut anchor, anchor_flag) = match (&mut state.frozen, &mut state.trailing) {
            (Some(frozen), _) if step.anchor_is_frozen => (Some(frozen), flag::FROZEN),
            // Taken at other weights than the snapshot: no flag claims otherwise.
            (Some(frozen), _) => (Some(frozen), 0),
            (None, Some(trailing)) => (Some(trailing), flag::TRAILING),
            (None, None) => (None, 0),
        };
        let slices = &self.slices;
        let mut drifts: Vec<Option<Drift>> = vec![None; slices.len()];
        for (index, slice) in slices.iter().enumerate() {
            let Some(found) = updates[index] else { continue };
            let range = slice.buckets();
            let UpdateSums { count, non_finite, .. } = found.sums;
            let mut result = Drift { count: count as f64, non_finite, slices: 1, ..Drift::default() };
            if let Some(exact) = step.drifts[index] {
                result.drift = exact.sums.drift;
                result.drift_dot_snapshot = exact.sums.drift_dot_snapshot;
                result.snapshot = exact.sums.snapshot;
                result.exact = u32::from(exact.anchored || anchor.is_none());
                result.resolution = drift::resolution(exact.mantissa_bits).powi(2) * result.snapshot;
            } else if snapshot.elements.get(index).is_some_and(|&elements| elements == found.sums.count && elements > 0)
                && let (Some(old), Some(new)) = (snapshot.sketch.get(range.clone()), weights.get(range.clone()))
            {
                let sketch = &mut step.drift_sketch[range.clone()];
                for ((drift, new), old) in sketch.iter_mut().zip(new).zip(old) {
                    *drift = (new - old) as f32;
                }
                result.drift = norm2(sketch);
                result.drift_dot_snapshot = dot(sketch, old);
                result.snapshot = norm2(old);
                // A sketched squared norm has the relative error √(2/m).
                let error = if slice.layout.identity { 0.0 } else { 2.0 / slice.layout.buckets as f64 };
                let rounding = drift::resolution(found.mantissa_bits).powi(2) * result.snapshot;
                result.resolution = rounding.max(result.drift * error.sqrt());
            } else {
                continue;
            }
            if let Some(anchor) = &mut anchor {
                let spread = anchor.spread(slices);
                result.first_order_sketched = dot(&spread.mean[range.clone()], &step.drift_sketch[range]);
                match step.drifts[index] {
                    Some(exact) if exact.anchored && step.anchor_batches > 0.0 => {
                        result.first_order = exact.sums.reference_dot / step.anchor_batches;
                    }
                    _ => {
                        result.first_order = result.first_order_sketched;
                        let squares = spread.mean_squares[index];
                        let error = slice.layout.standard_error(squares, result.drift, result.first_order);
                        result.first_order_variance = error * error;
                    }
                }
            }
            drifts[index] = Some(result);
        }
        let totals = self.rollup.sum(
            |index| drifts[index],
            |total: &mut Drift, part| {
                total.drift += part.drift;
                total.drift_dot_snapshot += part.drift_dot_snapshot;
                total.snapshot += part.snapshot;
                total.first_order += part.first_order;
                total.first_order_sketched += part.first_order_sketched;
                total.resolution += part.resolution;
                total.count += part.count;
                total.slices += part.slices;
                total.exact += part.exact;
                total.non_finite += part.non_finite;
                total.first_order_variance += part.first_order_variance;
            },
        );
        let has_anchor = anchor.is_some();
        let if_anchored = |value: f64| if has_anchor { value } else { f64::NAN };
        for (subject, total) in &totals {
            let mut record = Record { reference: step.task, ..self.publisher.record(kind::DRIFT, *subject) };
            record.flags |= anchor_flag | exact_flag(total.exact, total.slices) | non_finite_flag(total.non_finite);
            let values = [
                drift::relative(total.drift, total.snapshot),
                drift::angle(total.drift, total.drift_dot_snapshot, total.snapshot),
                total.drift,
                total.drift_dot_snapshot,
                total.snapshot,
                if_anchored(total.first_order),
                if_anchored(total.first_order_sketched),
                drift::relative(total.resolution, total.snapshot),
                total.count,
            ];
            self.publisher.publish(record, &values);
        }
        let Some(anchor) = anchor else { return };
        let Some((_, model)) = totals.iter().find(|(subject, _)| *subject == Subject::MODEL) else { return };
        // The sketch of the drift covers only what was measured; zeros elsewhere add nothing to a projection.
        let projections: Vec<f64> = anchor.list().iter().map(|batch| dot(batch, &step.drift_sketch)).collect();
        let examples = anchor.examples;
        let variance = &anchor.spread(slices).variance;
        let sketch_variance = slices.iter().zip(variance).zip(&drifts).filter_map(|((slice, variance), drift)| {
            let drift = drift.as_ref().filter(|_| !slice.layout.identity)?;
            Some(variance * drift.drift / slice.layout.buckets as f64)
        });
        let found =
            prediction::predict(model.first_order, &projections, examples.max(1.0), sketch_variance.sum::<f64>());
        let mut record = Record { reference: step.task, ..self.publisher.record(kind::PREDICTION, Subject::MODEL) };
        record.flags |= anchor_flag | exact_flag(model.exact, model.slices) | non_finite_flag(model.non_finite);
        if state.refreshed.is_some() {
            // The path was summed with references at the weights of the moment.
            record.flags |= flag::REFRESHED;
        }
        if examples == 0.0 {
            record.flags |= flag::UNSCALED;
        }
        let values = [
            found.total(),
            found.first_order,
            hypot(found.first_order_error, model.first_order_variance.sqrt()),
            found.quadratic,
            state.path,
            projections.len() as f64,
            examples,
            state.path_steps as f64,
        ];
        self.publisher.publish(record, &values);
    }
}
