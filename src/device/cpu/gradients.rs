//! The fused pass over gradients.

use super::Cpu;
use super::block::{HostKept, Loaded, Staging, add, blocks, load, units, wave};
use super::kernels::{normalizer, normalizers};
use crate::device::{GradientFound, GradientJob, GradientSums, PairSums, SliceRead, Span};
use rayon::prelude::*;

/// A slice, and the references in host memory.
struct Slice<'a> {
    read: SliceRead<'a>,
    references: Vec<Option<HostKept<'a>>>,
}

/// Reads every gradient once. Also what is found is added on the pool's threads: in their rounding mode, not the trainer's.
pub(super) fn run(cpu: &Cpu, jobs: Vec<GradientJob>) -> Vec<GradientFound> {
    let slices: Vec<Slice> = jobs.into_iter().map(Slice::new).collect();
    cpu.pool.install(|| {
        let of_slice =
            |(number, slice): (usize, &Slice)| units(Span::of(slice.read.segments)).map(move |unit| (number, unit));
        let list: Vec<_> = slices.iter().enumerate().flat_map(of_slice).collect();
        let mut total: Vec<GradientFound> = slices.iter().map(|slice| slice.nothing(cpu)).collect();
        let mut rest = &list[..];
        while !rest.is_empty() {
            let buckets = rest.iter().map(|&(number, _)| slices[number].read.layout.buckets);
            let (now, later) = rest.split_at(wave(buckets));
            let found: Vec<_> = now.par_iter().map(|&(number, unit)| slices[number].measure(cpu, unit)).collect();
            for (&(number, _), found) in now.iter().zip(found) {
                let total = &mut total[number];
                total.sums += found.sums;
                for (total, pair) in total.pairs.iter_mut().zip(found.pairs) {
                    *total += pair;
                }
                add(&mut total.sketch, found.sketch);
            }
            rest = later;
        }
        total
    })
}

impl<'a> Slice<'a> {
    fn new(job: GradientJob<'a>) -> Self {
        let references = job.references.into_iter().map(|kept| kept.and_then(HostKept::new)).collect();
        Self { read: job.read, references }
    }

    /// What is known before anything is read.
    fn nothing(&self, cpu: &Cpu) -> GradientFound {
        let span = Span::of(self.read.segments);
        let squares = |kept: &Option<HostKept>| kept.map_or(0.0, |kept| kept.squares_over(span, cpu));
        let pair = |kept| PairSums { reference_squares: squares(kept), ..PairSums::default() };
        GradientFound { pairs: self.references.iter().map(pair).collect(), ..GradientFound::default() }
    }

    /// Measures a range.
    fn measure(&self, cpu: &Cpu, unit: Span) -> GradientFound {
        let (mut staging, mut clean, mut other) = (Staging::new(), Staging::new(), Staging::new());
        let mut sums = GradientSums::default();
        let mut pairs = vec![PairSums::default(); self.references.len()];
        let mut sketch = vec![0.0; self.read.layout.buckets];
        for block in blocks(unit) {
            let Loaded { values, sums: mut found, next } =
                load(block, &self.read, &cpu.kernels, [&mut staging, &mut clean]);
            if found.peak > 0.0 {
                found.squares = (cpu.kernels.squares)(values, normalizer(found.peak));
                cpu.sketch(&self.read.layout, block, values, &mut sketch, next);
                for (pair, reference) in pairs.iter_mut().zip(&self.references) {
                    if let Some(reference) = reference {
                        let reference_values = block.kept(reference, &mut other);
                        *pair += (cpu.kernels.pair)(values, reference_values, normalizers(found.peak, reference.peak));
                    }
                }
            }
            sums += found;
        }
        GradientFound { sums, pairs, sketch }
    }
}
