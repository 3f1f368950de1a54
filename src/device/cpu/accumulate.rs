//! Adds gradients to references.

use super::Cpu;
use super::block::{Loaded, Staging, blocks, load, units, wave};
use super::kernels::normalizer;
use crate::device::{AccumulateJob, GradientSums, SliceRead, Span};
use rayon::prelude::*;

struct Unit<'a> {
    job: usize,
    read: SliceRead<'a>,
    scale: f32,
    range: Span,
    /// The part of the exact sum that `range` covers.
    sum: Option<&'a mut [f32]>,
}

/// Reads every gradient once and adds it, scaled, to the jobs' exact sums and sketches.
pub(super) fn run(cpu: &Cpu, jobs: &mut [AccumulateJob]) {
    // Apart from the jobs while units hold parts of them.
    let mut sums: Vec<_> = jobs.iter_mut().map(|job| job.sum.take()).collect();
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for ((index, job), sum) in jobs.iter().enumerate().zip(&mut sums) {
        let span = Span::of(job.read.segments);
        debug_assert!(sum.as_ref().is_none_or(|sum| sum.0 == span));
        let mut rest = sum.as_mut().map(|sum| &mut *sum.1);
        for range in units(span) {
            let sum = rest.take().map(|values| {
                let (now, later) = values.split_at_mut(range.len());
                rest = Some(later);
                now
            });
            list.push(Unit { job: index, read: job.read, scale: job.scale, range, sum });
        }
    }
    // What is found is added on the pool's threads too: in their rounding mode, not the trainer's.
    cpu.pool.install(|| {
        let mut rest = &mut list[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(wave(rest.iter().map(|unit| unit.read.layout.buckets)));
            let found: Vec<_> = now.par_iter_mut().map(|unit| unit.add(cpu)).collect();
            for (unit, (sums, sketch)) in now.iter().zip(found) {
                let job = &mut jobs[unit.job];
                job.sums += sums;
                for (total, bucket) in job.sketch.iter_mut().zip(&sketch) {
                    *total += bucket;
                }
            }
            rest = later;
        }
    });
    for (job, sum) in jobs.iter_mut().zip(sums) {
        job.sum = sum;
    }
}

impl Unit<'_> {
    /// Adds to the exact sum; returns the sums over the gradient as read, and the sketch of what was added.
    fn add(&mut self, cpu: &Cpu) -> (GradientSums, Vec<f32>) {
        let (mut staging, mut clean, mut scaled) = (Staging::new(), Staging::new(), Staging::new());
        let mut sums = GradientSums::default();
        let mut sketch = vec![0.0; self.read.layout.buckets];
        for block in blocks(self.range) {
            let Loaded { values, sums: mut found, next } =
                load(block, &self.read, &cpu.kernels, [&mut staging, &mut clean]);
            if found.peak > 0.0 {
                found.squares = (cpu.kernels.squares)(values, normalizer(found.peak));
                let scaled = &mut scaled.0[..values.len()];
                for (scaled, value) in scaled.iter_mut().zip(values) {
                    *scaled = self.scale * value;
                }
                if !(found.peak * self.scale).is_finite() {
                    for value in scaled.iter_mut().filter(|value| !value.is_finite()) {
                        *value = 0.0;
                        found.non_finite += 1;
                    }
                }
                cpu.sketch(&self.read.layout, block, scaled, &mut sketch, next);
                if let Some(sum) = &mut self.sum {
                    let at = (block.start - self.range.start) as usize;
                    for (sum, value) in sum[at..].iter_mut().zip(block.inside(scaled)) {
                        *sum += value;
                    }
                }
            }
            sums += found;
        }
        (sums, sketch)
    }
}
