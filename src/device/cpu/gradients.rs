//! The fused pass over gradients.

use super::Cpu;
use super::block::{Loaded, Staging, blocks, load, units};
use super::kernels::{normalizer, normalizers};
use crate::device::{GradientJob, GradientSums, Kept, PairSums, SliceRead, Span};
use rayon::prelude::*;

/// A range of one slice, with its own sketch, so that threads share nothing.
struct Unit<'a> {
    job: usize,
    read: SliceRead<'a>,
    references: &'a [Option<Kept<'a>>],
    range: Span,
    sketch: Vec<f32>,
}

/// Reads every gradient once, fills the jobs' sums, pairs and sketches.
pub(super) fn run(cpu: &Cpu, jobs: &mut [GradientJob]) {
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for (job, task) in jobs.iter().enumerate() {
        list.extend(units(Span::of(task.read.segments)).map(|range| Unit {
            job,
            read: task.read,
            references: &task.references,
            range,
            sketch: Vec::new(),
        }));
    }
    let measure = |unit: &mut Unit| unit.measure(cpu);
    let results: Vec<_> = cpu.pool.install(|| list.par_iter_mut().map(measure).collect());
    let sketches: Vec<_> = list.into_iter().map(|unit| (unit.job, unit.sketch)).collect();
    for ((job, sketch), (sums, pairs)) in sketches.into_iter().zip(results) {
        let job = &mut jobs[job];
        job.sums += sums;
        for (total, pair) in job.pairs.iter_mut().zip(pairs) {
            *total += pair;
        }
        for (total, bucket) in job.sketch.iter_mut().zip(&sketch) {
            *total += bucket;
        }
    }
}

impl Unit<'_> {
    fn measure(&mut self, cpu: &Cpu) -> (GradientSums, Vec<PairSums>) {
        let (mut staging, mut clean, mut other) = (Staging::new(), Staging::new(), Staging::new());
        let mut sums = GradientSums::default();
        let mut pairs = vec![PairSums::default(); self.references.len()];
        self.sketch = vec![0.0; self.read.layout.buckets];
        for block in blocks(self.range) {
            let Loaded { values, sums: mut found, next } =
                load(block, &self.read, &cpu.kernels, [&mut staging, &mut clean]);
            if found.peak > 0.0 {
                found.squares = (cpu.kernels.squares)(values, normalizer(found.peak));
                cpu.sketch(&self.read.layout, block, values, &mut self.sketch, next);
                for (pair, reference) in pairs.iter_mut().zip(self.references) {
                    if let Some(reference) = reference {
                        let reference_values = block.kept(reference, &mut other);
                        *pair += (cpu.kernels.pair)(values, reference_values, normalizers(found.peak, reference.peak));
                    }
                }
            }
            sums += found;
        }
        (sums, pairs)
    }
}
