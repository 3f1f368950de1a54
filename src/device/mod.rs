//! Where sums are taken: one trait, an implementation per kind of memory.
//!
//! Everything above this module works with numbers; pointers into the trainer's memory exist only here. A device is
//! given, per slice, where the slice lies ([`SliceRead`]) and what it is to be compared with, and returns additive sums
//! and sketches. It reads inside the call (or, for a stream, inside the stream's order), never later, because trainers
//! reuse buffers.

pub mod cpu;
mod memory;
mod perturb;
mod probe;
mod segment;
mod strided;
mod sums;

pub use memory::{DType, Memory, Writable};
pub use perturb::{Gather, GatherJob, Perturb, ScatterJob};
pub use probe::{AttentionJob, AttentionRow, AttentionSource, QueryKey, RowsJob};
pub use segment::{Segment, Span};
pub use strided::Strided;
pub use sums::{DriftSums, GradientSums, PairSums, UpdateSums};

use crate::sketch::Layout;

/// One slice as a device reads it.
#[derive(Clone, Copy)]
pub struct SliceRead<'a> {
    /// Shape of the slice's sketch.
    pub layout: Layout,
    /// First element of the memory that `segments` count from.
    pub memory: Memory,
    /// Which elements of the memory belong to the slice, and where in it they lie.
    pub segments: &'a [Segment],
}

/// Values of a slice that the library keeps (a reference, a snapshot), over the span of indices that this rank owns.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    /// Indices of the slice that `values` covers.
    pub span: Span,
    /// One value per index of `span`, zero where nothing is owned.
    pub values: &'a [f32],
    /// Largest magnitude of `values`: keeps products of products inside the range of fp32.
    pub peak: f32,
}

/// What one slice's gradient is measured against and where the result goes.
pub struct GradientJob<'a> {
    pub read: SliceRead<'a>,
    /// Exact references, one per reference of the step; `None` where only a sketch is kept.
    pub references: Vec<Option<Kept<'a>>>,
    /// Sketch of the gradient, added to: `read.layout.buckets` zeros.
    pub sketch: &'a mut [f32],
    pub sums: GradientSums,
    /// As many as `references`.
    pub pairs: Vec<PairSums>,
}

/// A gradient that is added to a reference.
pub struct AccumulateJob<'a> {
    pub read: SliceRead<'a>,
    /// What the gradient is multiplied by first.
    pub scale: f32,
    /// Exact sum of gradients, if one is kept.
    pub sum: Option<(Span, &'a mut [f32])>,
    /// Sketch of this gradient alone, times `scale`; added to.
    pub sketch: &'a mut [f32],
    /// Of the gradient as read, before scaling. Elements that only the scale makes infinite are added as zero too, and
    /// counted as non-finite.
    pub sums: GradientSums,
}

/// A copy of the parameters that the library keeps.
pub struct Copy<'a> {
    pub span: Span,
    pub values: &'a mut [f32],
    /// The copy holds parameters of an earlier moment: the difference to now is the update that is measured.
    pub compare: bool,
    /// The copy takes the parameters as they are now, after everything was measured.
    pub replace: bool,
}

/// What a slice of the parameters is measured against and where the result goes.
pub struct ParameterJob<'a> {
    pub read: SliceRead<'a>,
    pub copy: Option<Copy<'a>>,
    /// Sketch of the update against `copy`, added to; empty when it is not wanted.
    pub update_sketch: &'a mut [f32],
    /// fp64 sketch of the parameters themselves, added to; empty when it is not wanted.
    pub sketch: &'a mut [f64],
    /// What each earlier task left.
    pub tasks: Vec<TaskJob<'a>>,
    pub update: UpdateSums,
}

/// What a slice of the parameters is measured against for one earlier task.
#[derive(Default)]
pub struct TaskJob<'a> {
    /// The task's exact reference of now: is paired with the update.
    pub reference: Option<Kept<'a>>,
    /// The task's exact reference at its snapshot: gives ⟨r, D⟩ for the drift.
    pub anchor: Option<Kept<'a>>,
    /// The task's exact snapshot: gives the drift.
    pub snapshot: Option<Kept<'a>>,
    /// Sketch of the drift, added to; empty when it is not wanted.
    pub drift_sketch: &'a mut [f32],
    /// The update against `copy`, paired with `reference`.
    pub update: PairSums,
    pub drift: DriftSums,
}

/// Takes sums over the memory of one kind of device.
pub trait Device: Perturb + Send + Sync {
    /// One fused pass over gradients: norms, inner products with references, conflicts, sketches.
    fn gradients(&self, jobs: &mut [GradientJob]);

    /// Adds gradients to references.
    fn accumulate(&self, jobs: &mut [AccumulateJob]);

    /// One fused pass over parameters: update, drift, sketches, copies.
    fn parameters(&self, jobs: &mut [ParameterJob]);

    /// Copies sampled rows of a tensor.
    fn rows(&self, job: RowsJob);

    /// Copies or computes sampled rows of attention. Returns how far from 1 the sum of a row is at worst; NaN if a sum is
    /// not a number.
    fn attention(&self, job: AttentionJob) -> f32;

    /// Σ v² and max |v| of values that the library keeps.
    fn norm(&self, values: &[f32]) -> (f64, f32);

    /// Bytes of memory that the library's budget is a share of.
    fn memory_bytes(&self) -> u64;
}
