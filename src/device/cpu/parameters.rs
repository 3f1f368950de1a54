//! The fused pass over parameters: update, drift, sketches, copies.

use super::Cpu;
use super::block::{Block, HostKept, Loaded, Staging, add, blocks, load, units, wave};
use super::kernels::{NOWHERE, normalizer, normalizers};
use crate::device::{Copy, PairSums, ParameterFound, ParameterJob, SliceRead, Span, TaskFound, TaskJob, UpdateSums};
use crate::sketch::Layout;
use rayon::prelude::*;

/// A slice, what it is measured against in host memory, and the sketches that are wanted.
struct Slice<'a> {
    read: SliceRead<'a>,
    tasks: Vec<Task<'a>>,
    update_sketch: bool,
    sketch: bool,
}

struct Task<'a> {
    reference: Option<HostKept<'a>>,
    anchor: Option<HostKept<'a>>,
    snapshot: Option<HostKept<'a>>,
    drift_sketch: bool,
}

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

/// Reads every parameter once and brings copies up to date.
pub(super) fn run(cpu: &Cpu, jobs: Vec<ParameterJob>) -> Vec<ParameterFound> {
    let mut slices = Vec::with_capacity(jobs.len());
    let mut list: Vec<Unit> = Vec::with_capacity(jobs.len());
    for (number, mut job) in jobs.into_iter().enumerate() {
        let copy = job.copy.take();
        slices.push(Slice::new(job, copy.as_ref().is_some_and(|copy| copy.compare)));
        let mut rest = copy.and_then(|Copy { values, compare, replace, .. }| {
            values.host_mut().map(|host| (&mut host.values[..], compare, replace))
        });
        for range in units(Span::of(slices[number].read.segments)) {
            let copy = rest.as_mut().and_then(|(rest, compare, replace)| {
                let values = rest.split_off_mut(..range.len())?;
                Some(UnitCopy { values, compare: *compare, replace: *replace })
            });
            list.push(Unit { job: number, range, copy });
        }
    }
    // What is found is added on the pool's threads too: in their rounding mode, not the trainer's.
    cpu.pool.install(|| {
        let mut total: Vec<ParameterFound> = slices.iter().map(|slice| slice.nothing(cpu)).collect();
        let mut rest = &mut list[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(wave(rest.iter().map(|unit| slices[unit.job].read.layout.buckets)));
            let found: Vec<_> = now.par_iter_mut().map(|unit| unit.measure(cpu, &slices[unit.job])).collect();
            for (unit, found) in now.iter().zip(found) {
                merge(&mut total[unit.job], found);
            }
            rest = later;
        }
        total
    })
}

fn merge(total: &mut ParameterFound, part: ParameterFound) {
    total.update += part.update;
    add(&mut total.update_sketch, part.update_sketch);
    add(&mut total.sketch, part.sketch);
    for (total, part) in total.tasks.iter_mut().zip(part.tasks) {
        total.update += part.update;
        total.drift += part.drift;
        add(&mut total.drift_sketch, part.drift_sketch);
    }
}

impl<'a> Slice<'a> {
    /// `compared`: there is a copy to compare with.
    fn new(job: ParameterJob<'a>, compared: bool) -> Self {
        let task = |task: TaskJob<'a>| Task {
            // Only the update is paired with it.
            reference: task.reference.filter(|_| compared).and_then(HostKept::new),
            anchor: task.anchor.and_then(HostKept::new),
            snapshot: task.snapshot.and_then(HostKept::new),
            drift_sketch: task.drift_sketch && task.snapshot.is_some(),
        };
        Self {
            read: job.read,
            tasks: job.tasks.into_iter().map(task).collect(),
            update_sketch: job.update_sketch && compared,
            sketch: job.sketch,
        }
    }

    /// What is known before anything is read.
    fn nothing(&self, cpu: &Cpu) -> ParameterFound {
        let span = Span::of(self.read.segments);
        let task = |task: &Task| {
            let reference_squares = task.reference.map_or(0.0, |kept| kept.squares_over(span, cpu));
            TaskFound { update: PairSums { reference_squares, ..PairSums::default() }, ..TaskFound::default() }
        };
        ParameterFound { tasks: self.tasks.iter().map(task).collect(), ..ParameterFound::default() }
    }
}

/// An empty sketch, or none if it is not wanted.
fn zeros<T: Clone + Default>(wanted: bool, layout: &Layout) -> Vec<T> {
    vec![T::default(); if wanted { layout.buckets } else { 0 }]
}

impl Unit<'_> {
    fn measure(&mut self, cpu: &Cpu, slice: &Slice) -> ParameterFound {
        let layout = &slice.read.layout;
        let mut found = ParameterFound {
            update: UpdateSums::default(),
            update_sketch: zeros(slice.update_sketch, layout),
            sketch: zeros(slice.sketch, layout),
            tasks: slice.tasks.iter().map(|task| task.nothing(layout)).collect(),
        };
        let mut buffers = Buffers::new();
        for block in blocks(self.range) {
            let Loaded { values, sums, next } =
                load(block, &slice.read, &cpu.kernels, [&mut buffers.staging, &mut buffers.clean]);
            found.update += UpdateSums {
                count: sums.count,
                non_finite: sums.non_finite,
                weights: (cpu.kernels.squares)(values, normalizer(sums.peak)),
                ..UpdateSums::default()
            };
            if !found.sketch.is_empty() {
                cpu.sketch_f64(layout, block, values, &mut found.sketch);
            }
            for (task, found) in slice.tasks.iter().zip(&mut found.tasks) {
                task.add_drift(found, cpu, layout, block, values, [&mut buffers.other, &mut buffers.delta]);
            }
            let Some(copy) = &mut self.copy else { continue };
            let at = (block.start - self.range.start) as usize;
            let kept = &mut copy.values[at..at + (block.end - block.start) as usize];
            if copy.compare {
                let before = block.filled_up(kept, &mut buffers.other);
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
                    for (task, found) in slice.tasks.iter().zip(&mut found.tasks) {
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

impl Task<'_> {
    fn nothing(&self, layout: &Layout) -> TaskFound {
        TaskFound { drift_sketch: zeros(self.drift_sketch, layout), ..TaskFound::default() }
    }

    fn add_drift(
        &self,
        found: &mut TaskFound,
        cpu: &Cpu,
        layout: &Layout,
        block: Block,
        values: &[f32],
        [other, delta]: [&mut Staging; 2],
    ) {
        let Some(snapshot) = &self.snapshot else { return };
        let old = block.kept(snapshot, other);
        let delta = &mut delta.0[..values.len()];
        (cpu.kernels.difference)(values, old, delta);
        found.drift.snapshot += (cpu.kernels.squares)(old, normalizer(snapshot.peak));
        let peak = f32::from_bits((cpu.kernels.peak)(delta));
        if peak == 0.0 {
            return;
        }
        found.drift.drift += (cpu.kernels.squares)(delta, normalizer(peak));
        saturate(delta, peak);
        found.drift.drift_dot_snapshot += (cpu.kernels.dot)(delta, old, normalizers(peak, snapshot.peak));
        if !found.drift_sketch.is_empty() {
            cpu.sketch(layout, block, delta, &mut found.drift_sketch, NOWHERE);
        }
        if let Some(anchor) = &self.anchor {
            let values = block.kept(anchor, other);
            found.drift.reference_dot += (cpu.kernels.dot)(delta, values, normalizers(peak, anchor.peak));
        }
    }
}
