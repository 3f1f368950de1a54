//! From a step's gradient sums: size, interference, projection, at every level.

use super::rollup::Subject;
use super::{Analysis, active};
use crate::device::GradientSums;
use crate::ring::Record;
use crate::scope::message::{StepSums, TaskId};
use crate::scope::schema::{Fault, flag, kind, level};
use crate::sketch::algebra::{dot, dot_squares, norm2};
use crate::stats::{interference, projection};
use ndarray::Array2;

/// Sums of a gradient and a reference over one or more slices. Everything adds.
#[derive(Clone, Copy, Debug, Default)]
struct Interference {
    /// The best inner product at hand per slice: exact, or sketched.
    dot: f64,
    dot_sketched: f64,
    squares: f64,
    reference_squares: f64,
    conflicts: f64,
    active: f64,
    opposing: f64,
    /// Variance of `dot` under the null of fair signs; with the sketch's own where it is sketched.
    null_variance: f64,
    /// Slices, and how many of them with an exact reference.
    slices: u32,
    exact: u32,
    non_finite: u64,
}

impl Interference {
    fn add(&mut self, other: &Self) {
        self.dot += other.dot;
        self.dot_sketched += other.dot_sketched;
        self.squares += other.squares;
        self.reference_squares += other.reference_squares;
        self.conflicts += other.conflicts;
        self.active += other.active;
        self.opposing += other.opposing;
        self.null_variance += other.null_variance;
        self.slices += other.slices;
        self.exact += other.exact;
        self.non_finite += other.non_finite;
    }

    fn is_exact(&self) -> bool {
        self.exact == self.slices
    }

    fn flags(&self) -> u32 {
        let exact = if self.is_exact() { flag::EXACT } else { 0 };
        exact | if self.non_finite > 0 { flag::NON_FINITE } else { 0 }
    }

    /// Standard deviation of the cosine under its null.
    fn null_error(&self) -> f64 {
        interference::cosine_null(self.null_variance, self.squares, self.reference_squares)
    }
}

/// One earlier task's sums in this step.
struct Compared {
    task: TaskId,
    flags: u32,
    /// Per slice.
    sums: Vec<Option<Interference>>,
    /// Sketch of the mean reference.
    mean: Vec<f32>,
}

impl Analysis {
    /// Publishes everything about this step's gradient.
    pub(super) fn gradients(&mut self, sums: &StepSums) {
        self.gradient_sizes(sums);
        if sums.gradients.iter().all(Option::is_none) {
            return;
        }
        let compared: Vec<Compared> = (0..sums.references.len()).filter_map(|k| self.compare(sums, k)).collect();
        let mut model = Vec::with_capacity(compared.len());
        for with in &compared {
            let totals = self.rollup.sum(|slice| with.sums[slice], Interference::add);
            for (subject, total) in &totals {
                self.publish_interference(*subject, with, total);
            }
            model.push(totals);
        }
        self.projections(sums, &compared, &model);
    }

    fn gradient_sizes(&mut self, sums: &StepSums) {
        let totals = self.rollup.sum(|slice| sums.gradients[slice], |total, part| *total += *part);
        let scale = sums.scale;
        for (subject, total) in &totals {
            let mut record = self.publisher.record(kind::GRADIENT, *subject);
            if total.non_finite > 0 {
                record.flags |= flag::NON_FINITE;
            }
            let squares = total.squares * scale * scale;
            let peak = f64::from(total.peak) * scale;
            let values = [squares.sqrt(), squares, peak, total.non_finite as f64, total.count as f64];
            self.publisher.publish(record, &values);
        }
        let model = totals.iter().find(|(subject, _)| *subject == Subject::MODEL);
        let model = model.map_or(GradientSums::default(), |(_, total)| *total);
        let mut record = self.publisher.record(kind::STEP, Subject::MODEL);
        if model.non_finite > 0 {
            record.flags |= flag::NON_FINITE;
            self.publisher.fault(Fault::NonFinite as u8, sums.step);
        }
        let squares = if totals.is_empty() { f64::NAN } else { model.squares * scale * scale };
        let values = [
            squares.sqrt(),
            squares,
            scale,
            model.non_finite as f64,
            model.count as f64,
            f64::from(sums.tensors),
            f64::from(u8::from(sums.applied)),
            sums.cost,
        ];
        self.publisher.publish(record, &values);
    }

    /// Brings a reference and this step's gradient together, slice by slice; `None` if the task has no reference.
    fn compare(&mut self, sums: &StepSums, index: usize) -> Option<Compared> {
        let step = &sums.references[index];
        let state = self.tasks.get_mut(&step.task)?;
        let (batches, flags) = active(state, step.origin)?;
        let spread = batches.spread(&self.slices);
        let per_slice = self.slices.iter().enumerate().map(|(index, slice)| {
            let gradient = sums.gradients[index]?;
            let range = slice.buckets();
            let scale = sums.scale;
            let squares = gradient.squares * scale * scale;
            let dot_sketched = scale * dot(&sums.sketch[range.clone()], &spread.mean[range]);
            let mut result = Interference {
                dot: dot_sketched,
                dot_sketched,
                squares,
                reference_squares: spread.mean_squares[index],
                slices: 1,
                non_finite: gradient.non_finite,
                ..Interference::default()
            };
            match step.pairs[index] {
                Some(pair) if step.batches > 0.0 => {
                    let factor = scale / step.batches;
                    result.dot = pair.dot * factor;
                    result.reference_squares = pair.reference_squares / (step.batches * step.batches);
                    result.conflicts = pair.conflicts as f64;
                    result.active = pair.active as f64;
                    result.opposing = pair.opposing * factor;
                    result.null_variance = pair.dot_squares * factor * factor;
                    result.exact = 1;
                }
                _ => {
                    let products = dot_squares(&sums.sketch[slice.buckets()], &spread.mean[slice.buckets()]);
                    result.null_variance = products * scale * scale;
                }
            }
            Some(result)
        });
        let sums = per_slice.collect();
        Some(Compared { task: step.task, flags, sums, mean: spread.mean.clone() })
    }

    fn publish_interference(&mut self, subject: Subject, with: &Compared, total: &Interference) {
        let mut record = Record { reference: with.task, ..self.publisher.record(kind::INTERFERENCE, subject) };
        record.flags |= with.flags | total.flags();
        let only_exact = |value: f64| if total.is_exact() { value } else { f64::NAN };
        let values = [
            interference::cosine(total.dot, total.squares, total.reference_squares),
            total.null_error(),
            total.dot,
            total.squares,
            total.reference_squares,
            total.dot_sketched,
            only_exact(interference::conflict_fraction(total.conflicts, total.active)),
            only_exact(total.conflicts),
            only_exact(total.active),
            only_exact(total.opposing),
        ];
        self.publisher.publish(record, &values);
    }

    /// The component against earlier tasks, alone and together. Heads are left out: K² inner products each.
    fn projections(&mut self, sums: &StepSums, compared: &[Compared], totals: &[Vec<(Subject, Interference)>]) {
        let k = compared.len();
        if k == 0 {
            return;
        }
        /// Everything that the span needs, from sketches alone, so that the share cannot leave [0, 1].
        #[derive(Default)]
        struct Products {
            gram: Vec<f64>,
            dots: Vec<f64>,
            /// Variance of each of `dots` under the null of fair signs.
            nulls: Vec<f64>,
            squares: f64,
        }
        let scale = sums.scale;
        let slices = &self.slices;
        let products = self.rollup.sum(
            |index| {
                sums.gradients[index]?;
                let range = slices[index].buckets();
                let mean = |task: usize| &compared[task].mean[range.clone()];
                let gram = (0..k * k).map(|ij| dot(mean(ij / k), mean(ij % k)));
                Some(Products {
                    gram: gram.collect(),
                    dots: compared.iter().map(|with| with.sums[index].map_or(0.0, |s| s.dot_sketched)).collect(),
                    nulls: (0..k)
                        .map(|task| dot_squares(&sums.sketch[range.clone()], mean(task)) * scale * scale)
                        .collect(),
                    squares: norm2(&sums.sketch[range.clone()]) * scale * scale,
                })
            },
            |total, part| {
                total.gram.resize(k * k, 0.0);
                total.dots.resize(k, 0.0);
                total.nulls.resize(k, 0.0);
                total.nulls.iter_mut().zip(&part.nulls).for_each(|(x, y)| *x += y);
                total.gram.iter_mut().zip(&part.gram).for_each(|(x, y)| *x += y);
                total.dots.iter_mut().zip(&part.dots).for_each(|(x, y)| *x += y);
                total.squares += part.squares;
            },
        );
        for (position, (subject, product)) in products.iter().enumerate() {
            if subject.level == level::HEAD {
                continue;
            }
            let Ok(gram) = Array2::from_shape_vec((k, k), product.gram.clone()) else { continue };
            let span = projection::span(&gram, &product.dots, product.squares);
            let null: f64 =
                (0..k).map(|task| product.nulls[task] / (product.squares * product.gram[task * k + task])).sum();
            // The same slices were measured against every task, so subjects come in the same order.
            for (task, with) in compared.iter().enumerate() {
                let total = &totals[task][position].1;
                debug_assert_eq!(totals[task][position].0, *subject);
                let mut record = Record { reference: with.task, ..self.publisher.record(kind::PROJECTION, *subject) };
                record.flags |= with.flags | total.flags();
                let values = [
                    projection::agem(total.dot, total.reference_squares),
                    projection::removed_share(total.dot, total.squares, total.reference_squares),
                    span.as_ref().map_or(f64::NAN, |span| span.share),
                    null,
                    span.as_ref().map_or(f64::NAN, |span| span.coefficients[task]),
                    k as f64,
                ];
                self.publisher.publish(record, &values);
            }
        }
    }
}
