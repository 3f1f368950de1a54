//! Where sums are taken: one trait, an implementation per kind of memory.
//!
//! Everything above this module works with numbers; pointers into the trainer's memory exist only here. A device is
//! given, per slice, where the slice lies ([`SliceRead`]) and what it is to be compared with, and returns additive sums
//! and sketches. It reads inside the call, or for device memory in the order of the call's [`Stream`], never later,
//! because trainers reuse buffers. What it finds may land later than the call returns: [`Pending`].

pub mod cpu;
pub mod cuda;
mod float8;
mod machine;
mod memory;
mod pending;
mod perturb;
mod probe;
mod segment;
mod strided;
mod sums;
mod values;

pub use cuda::Replays;
pub use machine::Machine;
pub use memory::{DType, Memory, Place, Stream, Writable};
pub use pending::{Lost, Pending};
pub use perturb::{Gather, GatherJob, Perturb, ScatterJob};
pub use probe::{AttentionFound, AttentionJob, AttentionRow, AttentionSource, QueryKey, RowsJob};
pub use segment::{Segment, Span};
pub use strided::Strided;
pub use sums::{DriftSums, GradientSums, PairSums, UpdateSums};
pub use values::{Home, Keeping, Packing, Values};

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
    /// One value per index of `span`, zero where nothing is owned. In memory that the device of the read can reach.
    pub values: &'a Values,
}

/// What one slice's gradient is measured against.
pub struct GradientJob<'a> {
    pub read: SliceRead<'a>,
    /// Exact references, one per reference of the step; `None` where only a sketch is kept.
    pub references: Vec<Option<Kept<'a>>>,
}

/// What was found of one slice's gradient.
#[derive(Debug, Default)]
pub struct GradientFound {
    pub sums: GradientSums,
    /// One per reference of the job.
    pub pairs: Vec<PairSums>,
    /// `layout.buckets` values.
    pub sketch: Vec<f32>,
}

/// A gradient that is added to a reference.
pub struct AccumulateJob<'a> {
    pub read: SliceRead<'a>,
    /// What the gradient is multiplied by first.
    pub scale: f32,
    /// Exact sum of gradients, if one is kept: its span, which contains that of the read, and its values.
    pub sum: Option<(Span, &'a mut Values)>,
}

/// What was found of a gradient that was added to a reference.
#[derive(Debug, Default)]
pub struct AccumulateFound {
    /// Of the gradient as read, before scaling. Elements that only the scale makes infinite are added as zero too, and
    /// counted as non-finite.
    pub sums: GradientSums,
    /// Sketch of this gradient alone, times the job's scale: `layout.buckets` values.
    pub sketch: Vec<f32>,
}

/// A copy of the parameters that the library keeps.
pub struct Copy<'a> {
    /// The span of the read.
    pub span: Span,
    pub values: &'a mut Values,
    /// The copy holds parameters of an earlier moment: the difference to now is the update that is measured.
    pub compare: bool,
    /// The copy takes the parameters as they are now, after everything was measured.
    pub replace: bool,
}

/// What a slice of the parameters is measured against.
pub struct ParameterJob<'a> {
    pub read: SliceRead<'a>,
    pub copy: Option<Copy<'a>>,
    /// The sketch of the update against `copy` is wanted.
    pub update_sketch: bool,
    /// The fp64 sketch of the parameters themselves is wanted.
    pub sketch: bool,
    /// What each earlier task left.
    pub tasks: Vec<TaskJob<'a>>,
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
    /// The sketch of the drift is wanted.
    pub drift_sketch: bool,
}

impl<'a> TaskJob<'a> {
    /// All kept values that are compared with.
    fn kept(&self) -> impl Iterator<Item = &'a Values> {
        [self.reference, self.anchor, self.snapshot].into_iter().flatten().map(|kept| kept.values)
    }
}

/// What was found of a slice of the parameters.
#[derive(Debug, Default)]
pub struct ParameterFound {
    pub update: UpdateSums,
    /// `layout.buckets` values, or none where none was wanted or there was no copy to compare with.
    pub update_sketch: Vec<f32>,
    /// `layout.buckets` values, or none where none was wanted.
    pub sketch: Vec<f64>,
    /// One per task of the job.
    pub tasks: Vec<TaskFound>,
}

/// What was found of a slice of the parameters for one earlier task.
#[derive(Debug, Default)]
pub struct TaskFound {
    /// The update against the copy, paired with the reference.
    pub update: PairSums,
    pub drift: DriftSums,
    /// `layout.buckets` values, or none where none was wanted or there is no snapshot.
    pub drift_sketch: Vec<f32>,
}

/// Takes sums over the memory of one kind of device.
///
/// All memory that one call's jobs name is reached from the same place; [`Machine`] sees to that.
pub trait Device: Send + Sync {
    /// Storage for `len` values, all zero, that reads of `place` can be compared with; `None` if there is no room.
    fn values(&self, place: Place, len: usize, keeping: Keeping, home: Home) -> Option<Values>;

    /// Bytes that such values take.
    fn value_bytes(&self, _place: Place, len: usize, _keeping: Keeping) -> u64 {
        4 * len as u64
    }

    /// Copies `source` into `target` from `at` on. Both are of the same place. `false`: it cannot be done.
    #[must_use]
    fn copy_values(&self, stream: Stream, source: &Values, target: &mut Values, at: usize) -> bool;

    /// Says that `values` were changed for the last time for now: what is known of them as a whole may be kept, and sums may
    /// be kept in fewer bits.
    fn settle(&self, stream: Stream, values: &mut Values);

    /// One fused pass over gradients: norms, inner products with references, conflicts, sketches. One result per job.
    fn gradients(&self, stream: Stream, jobs: Vec<GradientJob>) -> Pending<Vec<GradientFound>>;

    /// Adds gradients to references. One result per job.
    fn accumulate(&self, stream: Stream, jobs: Vec<AccumulateJob>) -> Pending<Vec<AccumulateFound>>;

    /// One fused pass over parameters: update, drift, sketches, copies. One result per job.
    fn parameters(&self, stream: Stream, jobs: Vec<ParameterJob>) -> Pending<Vec<ParameterFound>>;

    /// Copies sampled rows of a tensor: row by row, without gaps.
    fn rows(&self, stream: Stream, job: RowsJob) -> Pending<Vec<f32>>;

    /// Copies or computes sampled rows of attention.
    fn attention(&self, stream: Stream, job: AttentionJob) -> Pending<AttentionFound>;

    /// Bytes of memory of `place` that the library's budget is a share of.
    fn memory_bytes(&self, place: Place) -> u64;
}
