//! Moving parameters and back, and algebra on flat vectors, on the pool's threads.

use super::Cpu;
use super::block::{Staging, blocks, units};
use super::kernels::{BLOCK, normalizers};
use crate::device::{Gather, GatherJob, Perturb, ScatterJob, Span, Values};
use crate::sketch::{CHUNK, hash};
use rayon::prelude::*;

/// Elements that a thread takes at once: whole blocks, and enough of them to be worth the handing over.
const SHARE: usize = 16 * BLOCK;

/// A range of one job, with its part of the vector.
struct Unit<'a> {
    job: usize,
    range: Span,
    values: &'a mut [f32],
}

impl Perturb for Cpu {
    fn gather(&self, jobs: &mut [GatherJob]) -> u64 {
        // Apart from the jobs while units hold parts of them.
        let mut values: Vec<_> = jobs.iter_mut().map(|job| std::mem::take(&mut job.values)).collect();
        let mut list = Vec::new();
        for ((index, job), values) in jobs.iter().enumerate().zip(&mut values) {
            let mut rest = &mut **values;
            for range in units(Span { start: 0, end: Span::of(job.read.segments).end }) {
                let (now, later) = rest.split_at_mut(range.len());
                list.push(Unit { job: index, range, values: now });
                rest = later;
            }
        }
        let jobs_now = &*jobs;
        let bad = self.pool.install(|| {
            let found = list.par_iter_mut().map(|unit| unit.gather(self, &jobs_now[unit.job]));
            found.sum()
        });
        for (job, values) in jobs.iter_mut().zip(values) {
            job.values = values;
        }
        bad
    }

    fn read(&self, values: &Values, out: &mut [f32]) -> bool {
        values.host().map(|host| out.copy_from_slice(&host.values)).is_some()
    }

    fn scatter(&self, jobs: &mut [ScatterJob]) -> bool {
        let list: Vec<(usize, Span)> = jobs
            .iter()
            .enumerate()
            .flat_map(|(job, it)| units(Span::of(it.segments)).map(move |range| (job, range)))
            .collect();
        let jobs = &*jobs;
        self.pool.install(|| list.par_iter().for_each(|(job, range)| scatter(&jobs[*job], *range)));
        true
    }

    fn dot(&self, x: &[f32], y: &[f32]) -> f64 {
        let share = |(x, y): (&[f32], &[f32])| {
            // Only the last block of a vector does not fill its chunks.
            let mut ragged = [Staging::new(), Staging::new()];
            let block = |(x, y): (&[f32], &[f32])| {
                let [x_staging, y_staging] = &mut ragged;
                let (x, y) = (whole_chunks(x, x_staging), whole_chunks(y, y_staging));
                let peak = |values| f32::from_bits((self.kernels.peak)(values));
                (self.kernels.dot)(x, y, normalizers(peak(x), peak(y)))
            };
            x.chunks(BLOCK).zip(y.chunks(BLOCK)).map(block).sum::<f64>()
        };
        self.pool.install(|| {
            let sums: Vec<f64> = x.par_chunks(SHARE).zip(y.par_chunks(SHARE)).map(share).collect();
            sums.into_iter().sum()
        })
    }

    fn combine(&self, y: &mut [f32], keep: f64, terms: &[(f64, &[f32])]) {
        let share = |(index, y): (usize, &mut [f32])| {
            let mut wide = [0.0f64; BLOCK];
            for (block, y) in y.chunks_mut(BLOCK).enumerate() {
                let start = index * SHARE + block * BLOCK;
                let wide = &mut wide[..y.len()];
                // Zero times what was there would keep infinities of a buffer that is used again.
                wide.iter_mut().zip(&*y).for_each(|(w, y)| *w = if keep == 0.0 { 0.0 } else { keep * f64::from(*y) });
                for (factor, x) in terms {
                    wide.iter_mut().zip(&x[start..]).for_each(|(w, x)| *w += factor * f64::from(*x));
                }
                y.iter_mut().zip(wide).for_each(|(y, w)| *y = *w as f32);
            }
        };
        self.pool.install(|| y.par_chunks_mut(SHARE).enumerate().for_each(share));
    }

    fn multiply(&self, y: &mut [f32], x: &[f32]) {
        let share = |(y, x): (&mut [f32], &[f32])| y.iter_mut().zip(x).for_each(|(y, x)| *y *= x);
        self.pool.install(|| y.par_chunks_mut(SHARE).zip(x.par_chunks(SHARE)).for_each(share));
    }

    fn signs(&self, y: &mut [f32], seed: u64, scale: f32) {
        let share = |(index, y): (usize, &mut [f32])| {
            for (word, y) in y.chunks_mut(64).enumerate() {
                let signs = hash::signs(seed, (index * SHARE / 64 + word) as u64);
                y.iter_mut().enumerate().for_each(|(k, y)| *y = if signs >> k & 1 == 0 { scale } else { -scale });
            }
        };
        self.pool.install(|| y.par_chunks_mut(SHARE).enumerate().for_each(share));
    }
}

/// The values, filled up to whole chunks with zeros.
fn whole_chunks<'a>(values: &'a [f32], staging: &'a mut Staging) -> &'a [f32] {
    let length = values.len().next_multiple_of(CHUNK);
    if length == values.len() {
        return values;
    }
    staging.0[..values.len()].copy_from_slice(values);
    &staging.0[..length]
}

impl Unit<'_> {
    fn gather(&mut self, cpu: &Cpu, job: &GatherJob) -> u64 {
        let mut staging = Staging::new();
        let mut bad = 0;
        for block in blocks(self.range) {
            for segment in job.read.segments {
                for (index, offset, length) in segment.runs(block.start, block.end) {
                    let at = (index - self.range.start) as usize;
                    let values = &mut self.values[at..at + length];
                    let read = &mut staging.0[..length];
                    // SAFETY: the run is part of the segment, which reaches readable elements only (Memory::new).
                    unsafe { job.read.memory.gather(offset, segment.column_step, cpu.kernels.widen, read) };
                    match job.gather {
                        Gather::Copy => values.copy_from_slice(read),
                        Gather::Scale(factor) => values.iter_mut().zip(&*read).for_each(|(v, x)| *v = x * factor),
                        Gather::Subtract(scale, factor) => {
                            values.iter_mut().zip(&*read).for_each(|(v, x)| *v = (*v - x * scale) * factor);
                        }
                    }
                    bad += values.iter().map(|v| u64::from(!v.is_finite())).sum::<u64>();
                }
            }
        }
        bad
    }
}

/// Writes a range of a slice.
fn scatter(job: &ScatterJob, range: Span) {
    let mut staging = Staging::new();
    for block in blocks(range) {
        for segment in job.segments {
            for (index, offset, length) in segment.runs(block.start, block.end) {
                let at = index as usize;
                let original = &job.original[at..at + length];
                let values = if job.direction.is_empty() {
                    original
                } else {
                    let moved = &mut staging.0[..length];
                    for ((moved, x), v) in moved.iter_mut().zip(original).zip(&job.direction[at..]) {
                        *moved = (f64::from(*x) + job.step * f64::from(*v)) as f32;
                    }
                    moved
                };
                // SAFETY: the run is part of the segment, which reaches writable elements only (Memory::writable); units
                // are disjoint ranges of indices, and the scope refuses views in which two indices share an element.
                unsafe { job.target.write(offset, segment.column_step, values) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::kernels::Kernels;
    use crate::device::{DType, Memory, Segment, SliceRead};
    use crate::sketch::Layout;

    fn values(key: u64, length: usize) -> Vec<f32> {
        let value = |k| (hash::mix(hash::mix(key) ^ k) >> 40) as f32 / 16_777_216.0 - 0.5;
        (0..length as u64).map(value).collect()
    }

    fn devices() -> Vec<Cpu> {
        let all = Kernels::available().into_iter().map(|kernels| Cpu::with_kernels(2, kernels).unwrap());
        all.chain([Cpu::new(1).unwrap()]).collect()
    }

    /// Same bits from every device; returns them.
    fn agreed<T: PartialEq + std::fmt::Debug>(compute: impl Fn(&Cpu) -> T) -> T {
        let mut all = devices().into_iter().map(|device| compute(&device));
        let first = all.next().unwrap();
        all.for_each(|other| assert_eq!(other, first));
        first
    }

    #[test]
    fn algebra_agrees_with_fp64() {
        let n = 3 * SHARE + 5 * CHUNK + 77;
        let (x, y, z) = (values(1, n), values(2, n), values(3, n));
        let dot = agreed(|device| device.dot(&x, &y).to_bits());
        let products = x.iter().zip(&y).map(|(x, y)| f64::from(*x) * f64::from(*y));
        let (exact, magnitude) = (products.clone().sum::<f64>(), products.map(f64::abs).sum::<f64>());
        // As for every sum of the device: 68 roundings of 2⁻²⁴.
        assert!((f64::from_bits(dot) - exact).abs() <= 68.0 * 2f64.powi(-24) * magnitude);
        let combined = agreed(|device| {
            let mut out = z.clone();
            device.combine(&mut out, -2.0, &[(0.25, &x), (3.0, &y)]);
            out
        });
        for (k, found) in combined.iter().enumerate() {
            let exact = -2.0 * f64::from(z[k]) + 0.25 * f64::from(x[k]) + 3.0 * f64::from(y[k]);
            assert_eq!(*found, exact as f32);
        }
        let mut product = x.clone();
        devices()[0].multiply(&mut product, &y);
        assert!(product.iter().zip(&x).zip(&y).all(|((p, x), y)| *p == x * y));
        let mut fresh = vec![f32::NAN; CHUNK];
        devices()[0].combine(&mut fresh, 0.0, &[(1.0, &x)]);
        assert_eq!(fresh, x[..CHUNK]);
    }

    #[test]
    fn signs_are_fair_and_belong_to_their_place() {
        let n = 2 * SHARE;
        let draw = |seed| {
            agreed(|device| {
                let mut y = vec![0.0; n];
                device.signs(&mut y, seed, 0.5);
                y
            })
        };
        let (one, other) = (draw(1), draw(2));
        assert!(one.iter().all(|x| x.abs() == 0.5));
        // Means of n fair signs: within five of their standard deviation 1/√n.
        let bound = 5.0 / (n as f64).sqrt();
        let mean = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).sum::<f64>() / n as f64;
        assert!(mean(&mut one.iter().map(|x| 2.0 * x)).abs() < bound);
        assert!(mean(&mut one.iter().zip(&other).map(|(x, y)| 4.0 * x * y)).abs() < bound);
        let mut short = vec![0.0; CHUNK];
        devices()[0].signs(&mut short, 1, 0.5);
        assert_eq!(short, one[..CHUNK]);
    }

    #[test]
    fn parameters_move_and_come_back_bit_for_bit() {
        // 3 × 50,000 with padded rows, and the same transposed.
        let (rows, cols, pad) = (3u64, 50_000u64, 7i64);
        for (row_step, column_step) in [(cols as i64 + pad, 1), (1, rows as i64 + pad)] {
            let mut memory = values(4, 600_000);
            memory[5] = -0.0;
            let before = memory.clone();
            let segments =
                [Segment { index: 0, index_step: cols, rows, length: cols, offset: 5, row_step, column_step }];
            let at = |k: usize| {
                let (row, col) = (k as i64 / cols as i64, k as i64 % cols as i64);
                (5 + row * row_step + col * column_step) as usize
            };
            let n = (rows * cols) as usize;
            let layout = Layout::new(n as u64, 256, 1);
            // SAFETY: the segments stay inside the vector, which outlives the calls and is not touched during them.
            let (readable, target) = unsafe {
                let readable = Memory::new(memory.as_mut_ptr().cast(), DType::F32);
                (readable, readable.writable().unwrap())
            };
            let read = SliceRead { layout, memory: readable, segments: &segments };
            let direction = values(5, n);
            for device in devices() {
                let mut original = vec![0.0; n];
                let gather = |gather, values: &mut [f32]| device.gather(&mut [GatherJob { read, gather, values }]);
                assert_eq!(gather(Gather::Copy, &mut original), 0);
                assert!((0..n).all(|k| original[k].to_bits() == before[at(k)].to_bits()));
                let scatter = |direction: &[f32], step| {
                    let done = device.scatter(&mut [ScatterJob {
                        target,
                        segments: &segments,
                        original: &original,
                        direction,
                        step,
                    }]);
                    assert!(done);
                };
                scatter(&direction, 0.5);
                let mut moved = vec![1.0; n];
                assert_eq!(gather(Gather::Scale(2.0), &mut moved), 0);
                let exact = |k: usize| (f64::from(original[k]) + 0.5 * f64::from(direction[k])) as f32;
                assert!((0..n).all(|k| moved[k] == 2.0 * exact(k)));
                assert_eq!(gather(Gather::Subtract(0.5, 4.0), &mut moved), 0);
                assert!((0..n).all(|k| moved[k] == 6.0 * exact(k)), "twice less a half, times four");
                scatter(&[], 0.0);
                let mut now = vec![0.0; n];
                gather(Gather::Copy, &mut now);
                assert!(now.iter().zip(&original).all(|(x, y)| x.to_bits() == y.to_bits()));
            }
            // Padding was never written.
            assert!(memory.iter().zip(&before).all(|(x, y)| x.to_bits() == y.to_bits()));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let mut memory = values(6, 1000);
        (memory[3], memory[700]) = (f32::NAN, 3e38);
        let segments =
            [Segment { index: 0, index_step: 0, rows: 1, length: 1000, offset: 0, row_step: 0, column_step: 1 }];
        // SAFETY: as above.
        let readable = unsafe { Memory::new(memory.as_ptr().cast(), DType::F32) };
        let read = SliceRead { layout: Layout::new(1000, 256, 1), memory: readable, segments: &segments };
        let mut out = vec![0.0; 1000];
        let device = Cpu::new(1).unwrap();
        assert_eq!(device.gather(&mut [GatherJob { read, gather: Gather::Copy, values: &mut out }]), 1);
        let gather = Gather::Scale(10.0);
        assert_eq!(device.gather(&mut [GatherJob { read, gather, values: &mut out }]), 2, "only the factor overflows");
    }
}
