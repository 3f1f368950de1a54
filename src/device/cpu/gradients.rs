//! The fused pass over gradients.

use super::Cpu;
use super::block::{Loaded, Staging, blocks, load, units, wave};
use super::kernels::{normalizer, normalizers};
use crate::device::{GradientJob, GradientSums, PairSums, Span};
use rayon::prelude::*;

/// What was found in a unit, apart from the job, so that threads share nothing.
struct Found {
    sums: GradientSums,
    pairs: Vec<PairSums>,
    sketch: Vec<f32>,
}

/// Reads every gradient once, fills the jobs' sums, pairs and sketches. Also what is found is added on the pool's threads:
/// in their rounding mode, not the trainer's.
pub(super) fn run(cpu: &Cpu, jobs: &mut [GradientJob]) {
    cpu.pool.install(|| {
        let of_job =
            |(job, task): (usize, &GradientJob)| units(Span::of(task.read.segments)).map(move |unit| (job, unit));
        let list: Vec<_> = jobs.iter().enumerate().flat_map(of_job).collect();
        let mut rest = &list[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(wave(rest.iter().map(|&(job, _)| jobs[job].read.layout.buckets)));
            let found: Vec<_> = now.par_iter().map(|&(job, unit)| measure(cpu, &jobs[job], unit)).collect();
            for (&(job, _), found) in now.iter().zip(found) {
                let job = &mut jobs[job];
                job.sums += found.sums;
                for (total, pair) in job.pairs.iter_mut().zip(found.pairs) {
                    *total += pair;
                }
                for (total, bucket) in job.sketch.iter_mut().zip(&found.sketch) {
                    *total += bucket;
                }
            }
            rest = later;
        }
    });
}

/// Measures a range of a slice.
fn measure(cpu: &Cpu, job: &GradientJob, unit: Span) -> Found {
    let (mut staging, mut clean, mut other) = (Staging::new(), Staging::new(), Staging::new());
    let mut sums = GradientSums::default();
    let mut pairs = vec![PairSums::default(); job.references.len()];
    let mut sketch = vec![0.0; job.read.layout.buckets];
    for block in blocks(unit) {
        let Loaded { values, sums: mut found, next } = load(block, &job.read, &cpu.kernels, [&mut staging, &mut clean]);
        if found.peak > 0.0 {
            found.squares = (cpu.kernels.squares)(values, normalizer(found.peak));
            cpu.sketch(&job.read.layout, block, values, &mut sketch, next);
            for (pair, reference) in pairs.iter_mut().zip(&job.references) {
                if let Some(reference) = reference {
                    let reference_values = block.kept(reference, &mut other);
                    *pair += (cpu.kernels.pair)(values, reference_values, normalizers(found.peak, reference.peak));
                }
            }
        }
        sums += found;
    }
    Found { sums, pairs, sketch }
}
