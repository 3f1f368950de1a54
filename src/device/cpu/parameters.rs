//! The fused pass over parameters: update, drift, sketches, copies.

use super::Cpu;
use super::block::{Block, Loaded, Staging, blocks, load, units, wave};
use super::kernels::{NOWHERE, normalizer, normalizers};
use crate::device::{DriftSums, Kept, PairSums, ParameterJob, Span, TaskJob, UpdateSums};
use crate::sketch::Layout;
use rayon::prelude::*;

/// A range of one slice, and what of the library's copy it may write.
struct Unit<'a> {
    job: usize,
    range: Span,
    copy: Option<UnitCopy<'a>>,
}

/// The part of the library's copy that the unit's range covers.
struct UnitCopy<'a> {
    values: &'a mut [f32],
    compare: bool,
    replace: bool,
}

/// What was found in a unit, apart from the job, so that threads share nothing. Sketches that are not wanted are empty.
struct Found {
    update: UpdateSums,
    update_sketch: Vec<f32>,
    sketch: Vec<f64>,
    tasks: Vec<FoundTask>,
}

struct FoundTask {
    update: PairSums,
    drift: DriftSums,
    drift_sketch: Vec<f32>,
}

/// Reads every parameter once and fills the jobs' sums, sketches and copies.
pub(super) fn run(cpu: &Cpu, jobs: &mut [ParameterJob]) {
    // Apart from the jobs while units hold parts of them.
    let mut copies: Vec<_> = jobs.iter_mut().map(|job| job.copy.take()).collect();
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for ((index, job), copy) in jobs.iter().enumerate().zip(&mut copies) {
        let mut rest = copy.as_mut().map(|copy| (&mut *copy.values, copy.compare, copy.replace));
        for range in units(Span::of(job.read.segments)) {
            let copy = rest.take().map(|(values, compare, replace)| {
                let (now, later) = values.split_at_mut(range.len());
                rest = Some((later, compare, replace));
                UnitCopy { values: now, compare, replace }
            });
            list.push(Unit { job: index, range, copy });
        }
    }
    // What is found is added on the pool's threads too: in their rounding mode, not the trainer's.
    cpu.pool.install(|| {
        let mut rest = &mut list[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(wave(rest.iter().map(|unit| jobs[unit.job].read.layout.buckets)));
            let found: Vec<_> = now.par_iter_mut().map(|unit| unit.measure(cpu, &jobs[unit.job])).collect();
            for (unit, found) in now.iter().zip(found) {
                found.add_to(&mut jobs[unit.job]);
            }
            rest = later;
        }
    });
    for (job, copy) in jobs.iter_mut().zip(copies) {
        job.copy = copy;
    }
}

impl Found {
    fn add_to(self, job: &mut ParameterJob) {
        job.update += self.update;
        add(job.update_sketch, &self.update_sketch);
        add(job.sketch, &self.sketch);
        for (task, found) in job.tasks.iter_mut().zip(self.tasks) {
            task.update += found.update;
            task.drift += found.drift;
            add(task.drift_sketch, &found.drift_sketch);
        }
    }
}

fn add<T: Copy + std::ops::AddAssign>(total: &mut [T], part: &[T]) {
    for (total, part) in total.iter_mut().zip(part) {
        *total += *part;
    }
}

/// An empty sketch of the length of one that is wanted, or of none.
fn zeros<T: Copy + Default>(wanted: &[T]) -> Vec<T> {
    vec![T::default(); wanted.len()]
}

impl Unit<'_> {
    fn measure(&mut self, cpu: &Cpu, job: &ParameterJob) -> Found {
        let layout = &job.read.layout;
        let mut found = Found {
            update: UpdateSums::default(),
            update_sketch: zeros(job.update_sketch),
            sketch: zeros(job.sketch),
            tasks: job.tasks.iter().map(FoundTask::new).collect(),
        };
        let mut buffers = Buffers::new();
        for block in blocks(self.range) {
            let Loaded { values, sums, next } =
                load(block, &job.read, &cpu.kernels, [&mut buffers.staging, &mut buffers.clean]);
            found.update += UpdateSums {
                count: sums.count,
                non_finite: sums.non_finite,
                weights: (cpu.kernels.squares)(values, normalizer(sums.peak)),
                ..UpdateSums::default()
            };
            if !found.sketch.is_empty() {
                cpu.sketch_f64(layout, block, values, &mut found.sketch);
            }
            for (task, found) in job.tasks.iter().zip(&mut found.tasks) {
                found.add_drift(task, cpu, layout, block, values, [&mut buffers.other, &mut buffers.delta]);
            }
            let Some(copy) = &mut self.copy else { continue };
            let at = (block.start - self.range.start) as usize;
            let kept = &mut copy.values[at..at + (block.end - block.start) as usize];
            if copy.compare {
                let before = Kept { span: Span { start: block.start, end: block.end }, values: kept, peak: 0.0 };
                let before = block.kept(&before, &mut buffers.other);
                let delta = &mut buffers.delta.0[..values.len()];
                (cpu.kernels.difference)(values, before, delta);
                let peak = f32::from_bits((cpu.kernels.peak)(delta));
                if peak > 0.0 {
                    found.update.updates += (cpu.kernels.squares)(delta, normalizer(peak));
                    found.update.peak = found.update.peak.max(peak);
                    saturate(delta, peak);
                    if !found.update_sketch.is_empty() {
                        cpu.sketch(layout, block, delta, &mut found.update_sketch, next);
                    }
                    for (task, found) in job.tasks.iter().zip(&mut found.tasks) {
                        if let Some(reference) = &task.reference {
                            let values = block.kept(reference, &mut buffers.other);
                            found.update += (cpu.kernels.pair)(delta, values, normalizers(peak, reference.peak));
                        }
                    }
                }
            }
            if copy.replace {
                kept.copy_from_slice(block.inside(values));
            }
        }
        found
    }
}

/// Puts the largest finite number in the place of infinite differences, whose products with zero and with each other's
/// opposite would be NaN. The squares of the differences, taken before, are infinite.
fn saturate(delta: &mut [f32], peak: f32) {
    if peak == f32::INFINITY {
        delta.iter_mut().for_each(|x| *x = x.clamp(f32::MIN, f32::MAX));
    }
}

/// One buffer per role, since all may be in use at once.
struct Buffers {
    staging: Staging,
    clean: Staging,
    other: Staging,
    delta: Staging,
}

impl Buffers {
    fn new() -> Self {
        Self { staging: Staging::new(), clean: Staging::new(), other: Staging::new(), delta: Staging::new() }
    }
}

impl FoundTask {
    fn new(task: &TaskJob) -> Self {
        Self { update: PairSums::default(), drift: DriftSums::default(), drift_sketch: zeros(task.drift_sketch) }
    }

    fn add_drift(
        &mut self,
        task: &TaskJob,
        cpu: &Cpu,
        layout: &Layout,
        block: Block,
        values: &[f32],
        [other, delta]: [&mut Staging; 2],
    ) {
        let Some(snapshot) = &task.snapshot else { return };
        let old = block.kept(snapshot, other);
        let delta = &mut delta.0[..values.len()];
        (cpu.kernels.difference)(values, old, delta);
        self.drift.snapshot += (cpu.kernels.squares)(old, normalizer(snapshot.peak));
        let peak = f32::from_bits((cpu.kernels.peak)(delta));
        if peak == 0.0 {
            return;
        }
        self.drift.drift += (cpu.kernels.squares)(delta, normalizer(peak));
        saturate(delta, peak);
        self.drift.drift_dot_snapshot += (cpu.kernels.dot)(delta, old, normalizers(peak, snapshot.peak));
        if !self.drift_sketch.is_empty() {
            cpu.sketch(layout, block, delta, &mut self.drift_sketch, NOWHERE);
        }
        if let Some(anchor) = &task.anchor {
            let values = block.kept(anchor, other);
            self.drift.reference_dot += (cpu.kernels.dot)(delta, values, normalizers(peak, anchor.peak));
        }
    }
}
