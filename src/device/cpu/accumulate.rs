//! Adds gradients to references.

use super::Cpu;
use super::block::{Loaded, Staging, blocks, load, units};
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
    sketch: Vec<f32>,
    sums: GradientSums,
}

/// Reads every gradient once and adds it, scaled, to the jobs' exact sums and sketches.
pub(super) fn run(cpu: &Cpu, jobs: &mut [AccumulateJob]) {
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter_mut().enumerate() {
        let mut rest = job.sum.as_mut().map(|(span, values)| (*span, &mut **values));
        debug_assert!(rest.as_ref().is_none_or(|(span, _)| *span == Span::of(job.read.segments)));
        for range in units(Span::of(job.read.segments)) {
            let sum = rest.take().map(|(span, values)| {
                let (now, later) = values.split_at_mut(range.len());
                rest = Some((span, later));
                now
            });
            let (read, scale) = (job.read, job.scale);
            list.push(Unit { job: index, read, scale, range, sum, sketch: Vec::new(), sums: GradientSums::default() });
        }
    }
    cpu.pool.install(|| list.par_iter_mut().for_each(|unit| unit.add(cpu)));
    let results: Vec<_> = list.into_iter().map(|unit| (unit.job, unit.sketch, unit.sums)).collect();
    for (job, sketch, sums) in results {
        let job = &mut jobs[job];
        job.sums += sums;
        for (total, bucket) in job.sketch.iter_mut().zip(&sketch) {
            *total += bucket;
        }
    }
}

impl Unit<'_> {
    fn add(&mut self, cpu: &Cpu) {
        let (mut staging, mut clean, mut scaled) = (Staging::new(), Staging::new(), Staging::new());
        self.sketch = vec![0.0; self.read.layout.buckets];
        for block in blocks(self.range) {
            let Loaded { values, sums: mut found, next } =
                load(block, &self.read, &cpu.kernels, [&mut staging, &mut clean]);
            if found.peak > 0.0 {
                found.squares = (cpu.kernels.squares)(values, normalizer(found.peak));
                let scaled = &mut scaled.0[..values.len()];
                for (scaled, value) in scaled.iter_mut().zip(values) {
                    *scaled = self.scale * value;
                }
                cpu.sketch(&self.read.layout, block, scaled, &mut self.sketch, next);
                if let Some(sum) = &mut self.sum {
                    let at = (block.start - self.range.start) as usize;
                    for (sum, value) in sum[at..].iter_mut().zip(block.inside(scaled)) {
                        *sum += value;
                    }
                }
            }
            self.sums += found;
        }
    }
}
