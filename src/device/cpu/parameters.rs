//! The fused pass over parameters: update, drift, sketches, copies.

use super::Cpu;
use super::block::{Block, Loaded, Staging, blocks, load, units};
use super::kernels::{NOWHERE, normalizer, normalizers};
use crate::device::{DriftSums, Kept, PairSums, ParameterJob, SliceRead, Span, UpdateSums};
use crate::sketch::Layout;
use rayon::prelude::*;

/// A range of one slice, with its own sketches, so that threads share nothing.
struct Unit<'a> {
    job: usize,
    read: SliceRead<'a>,
    range: Span,
    copy: Option<UnitCopy<'a>>,
    tasks: Vec<UnitTask<'a>>,
    update_sketch: Option<Vec<f32>>,
    sketch: Option<Vec<f64>>,
    update: UpdateSums,
}

/// The part of the library's copy that the unit's range covers.
struct UnitCopy<'a> {
    values: &'a mut [f32],
    compare: bool,
    replace: bool,
}

struct UnitTask<'a> {
    reference: Option<Kept<'a>>,
    anchor: Option<Kept<'a>>,
    snapshot: Option<Kept<'a>>,
    drift_sketch: Option<Vec<f32>>,
    update: PairSums,
    drift: DriftSums,
}

/// Reads every parameter once and fills the jobs' sums, sketches and copies.
pub(super) fn run(cpu: &Cpu, jobs: &mut [ParameterJob]) {
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter_mut().enumerate() {
        let buckets = job.read.layout.buckets;
        let (wants_update, wants_sketch) = (!job.update_sketch.is_empty(), !job.sketch.is_empty());
        let mut rest = job.copy.as_mut().map(|copy| (&mut *copy.values, copy.compare, copy.replace));
        for range in units(Span::of(job.read.segments)) {
            let copy = rest.take().map(|(values, compare, replace)| {
                let (now, later) = values.split_at_mut(range.len());
                rest = Some((later, compare, replace));
                UnitCopy { values: now, compare, replace }
            });
            let tasks = job.tasks.iter().map(|task| UnitTask {
                reference: task.reference,
                anchor: task.anchor,
                snapshot: task.snapshot,
                drift_sketch: (!task.drift_sketch.is_empty()).then(|| vec![0.0; buckets]),
                update: PairSums::default(),
                drift: DriftSums::default(),
            });
            list.push(Unit {
                job: index,
                read: job.read,
                range,
                copy,
                tasks: tasks.collect(),
                update_sketch: wants_update.then(|| vec![0.0; buckets]),
                sketch: wants_sketch.then(|| vec![0.0; buckets]),
                update: UpdateSums::default(),
            });
        }
    }
    cpu.pool.install(|| list.par_iter_mut().for_each(|unit| unit.measure(cpu)));
    let results: Vec<_> = list.into_iter().map(Unit::finish).collect();
    for result in results {
        let job = &mut jobs[result.job];
        job.update += result.update;
        add(job.update_sketch, &result.update_sketch);
        add(job.sketch, &result.sketch);
        for (task, (update, drift, drift_sketch)) in job.tasks.iter_mut().zip(result.tasks) {
            task.update += update;
            task.drift += drift;
            add(task.drift_sketch, &drift_sketch);
        }
    }
}

/// What a unit found, free of its borrows.
struct Finished {
    job: usize,
    update: UpdateSums,
    update_sketch: Option<Vec<f32>>,
    sketch: Option<Vec<f64>>,
    tasks: Vec<(PairSums, DriftSums, Option<Vec<f32>>)>,
}

fn add<T: Copy + std::ops::AddAssign>(total: &mut [T], part: &Option<Vec<T>>) {
    for (total, part) in total.iter_mut().zip(part.iter().flatten()) {
        *total += *part;
    }
}

impl Unit<'_> {
    fn measure(&mut self, cpu: &Cpu) {
        let mut buffers = Buffers::new();
        for block in blocks(self.range) {
            let Loaded { values, sums: found, next } =
                load(block, &self.read, &cpu.kernels, [&mut buffers.staging, &mut buffers.clean]);
            self.update += UpdateSums {
                count: found.count,
                non_finite: found.non_finite,
                weights: (cpu.kernels.squares)(values, normalizer(found.peak)),
                ..UpdateSums::default()
            };
            if let Some(sketch) = &mut self.sketch {
                cpu.sketch_f64(&self.read.layout, block, values, sketch);
            }
            for task in &mut self.tasks {
                task.drift(cpu, &self.read.layout, block, values, &mut buffers.other, &mut buffers.delta);
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
                    self.update.updates += (cpu.kernels.squares)(delta, normalizer(peak));
                    self.update.peak = self.update.peak.max(peak);
                    if let Some(sketch) = &mut self.update_sketch {
                        cpu.sketch(&self.read.layout, block, delta, sketch, next);
                    }
                    for task in &mut self.tasks {
                        if let Some(reference) = &task.reference {
                            let values = block.kept(reference, &mut buffers.other);
                            task.update += (cpu.kernels.pair)(delta, values, normalizers(peak, reference.peak));
                        }
                    }
                }
            }
            if copy.replace {
                kept.copy_from_slice(block.inside(values));
            }
        }
    }

    fn finish(self) -> Finished {
        let tasks = self.tasks.into_iter().map(|task| (task.update, task.drift, task.drift_sketch));
        Finished {
            job: self.job,
            update: self.update,
            update_sketch: self.update_sketch,
            sketch: self.sketch,
            tasks: tasks.collect(),
        }
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

impl UnitTask<'_> {
    fn drift(
        &mut self,
        cpu: &Cpu,
        layout: &Layout,
        block: Block,
        values: &[f32],
        other: &mut Staging,
        delta: &mut Staging,
    ) {
        let Some(snapshot) = &self.snapshot else { return };
        let old = block.kept(snapshot, other);
        let delta = &mut delta.0[..values.len()];
        (cpu.kernels.difference)(values, old, delta);
        self.drift.snapshot += (cpu.kernels.squares)(old, normalizer(snapshot.peak));
        let peak = f32::from_bits((cpu.kernels.peak)(delta));
        if peak == 0.0 {
            return;
        }
        self.drift.drift += (cpu.kernels.squares)(delta, normalizer(peak));
        self.drift.drift_dot_snapshot += (cpu.kernels.dot)(delta, old, normalizers(peak, snapshot.peak));
        if let Some(sketch) = &mut self.drift_sketch {
            cpu.sketch(layout, block, delta, sketch, NOWHERE);
        }
        if let Some(anchor) = &self.anchor {
            let values = block.kept(anchor, other);
            self.drift.reference_dot += (cpu.kernels.dot)(delta, values, normalizers(peak, anchor.peak));
        }
    }
}
