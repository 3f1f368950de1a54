//! Adds gradients to references.

use super::Cpu;
use super::block::{Loaded, Staging, add, blocks, load, units, wave};
use super::kernels::normalizer;
use crate::device::{AccumulateFound, AccumulateJob, GradientSums, SliceRead, Span};
use rayon::prelude::*;

struct Unit<'a> {
    job: usize,
    read: SliceRead<'a>,
    scale: f32,
    range: Span,
    /// The part of the exact sum that `range` covers.
    sum: Option<&'a mut [f32]>,
}

/// Reads every gradient once and adds it, scaled, to the jobs' exact sums.
pub(super) fn run(cpu: &Cpu, jobs: Vec<AccumulateJob>) -> Vec<AccumulateFound> {
    let mut total: Vec<AccumulateFound> = jobs.iter().map(|_| AccumulateFound::default()).collect();
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for (number, AccumulateJob { read, scale, sum }) in jobs.into_iter().enumerate() {
        let span = Span::of(read.segments);
        let mut rest = sum.and_then(|(of_sum, values)| {
            debug_assert!(of_sum.contains(span));
            let start = (span.start - of_sum.start) as usize;
            values.host_mut().map(|host| &mut host.values[start..start + span.len()])
        });
        for range in units(span) {
            let sum = rest.as_mut().and_then(|rest| rest.split_off_mut(..range.len()));
            list.push(Unit { job: number, read, scale, range, sum });
        }
    }
    // What is found is added on the pool's threads too: in their rounding mode, not the trainer's.
    cpu.pool.install(|| {
        let mut rest = &mut list[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(wave(rest.iter().map(|unit| unit.read.layout.buckets)));
            let found: Vec<_> = now.par_iter_mut().map(|unit| unit.add(cpu)).collect();
            for (unit, found) in now.iter().zip(found) {
                total[unit.job].sums += found.sums;
                add(&mut total[unit.job].sketch, found.sketch);
            }
            rest = later;
        }
    });
    total
}

impl Unit<'_> {
    /// Adds to the exact sum; returns the sums over the gradient as read, and the sketch of what was added.
    fn add(&mut self, cpu: &Cpu) -> AccumulateFound {
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
        AccumulateFound { sums, sketch }
    }
}
