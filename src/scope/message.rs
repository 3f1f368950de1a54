//! What the calling side hands to the drain thread, never pointers: drafts of sums and sketches, and what they become when
//! they land.

use crate::device::{DriftSums, GradientSums, PairSums, UpdateSums};
use crate::ring::{Entry, Record};
use crate::scope::capture::CapturedStep;
use crate::scope::catalog::Slice;
use crate::scope::curvature::CurvatureSums;
use crate::scope::movement::MovementDraft;
use crate::scope::probe::PassDraft;
use crate::scope::references::{ReferenceDraft, SnapshotDraft};
use crate::scope::schema::TaskEvent;
use crate::scope::step::StepDraft;
use std::sync::mpsc::Sender;

/// A task's number: its position in the order of first mention.
pub type TaskId = u16;

/// How a reference came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// At the weights of the task's snapshot.
    Frozen,
    /// At other weights, later.
    Refreshed,
}

/// One message, in the order of the calls.
pub enum Message {
    /// Something for the ring's catalog.
    Name(Entry),
    /// Slices that were added to the catalog.
    Slices(Vec<Slice>),
    /// A metric that evaluations may use from now on.
    Metric {
        id: u16,
        higher_is_better: bool,
        /// It is the loss that `fgs_record_loss` records.
        is_loss: bool,
    },
    Task {
        task: TaskId,
        event: TaskEvent,
        step: u64,
    },
    Reference(Box<ReferenceDraft>),
    Snapshot(Box<SnapshotDraft>),
    /// The parameters were read at a moment that is not a sampled step, but after the step of this number.
    Moved {
        movement: Box<MovementDraft>,
        step: u64,
    },
    Step(Box<StepDraft>),
    /// A step whose passes went into a graph: lands at each replay.
    Captured(Box<CapturedStep>),
    /// A curvature run is complete.
    Curvature(Box<CurvatureSums>),
    Evaluation {
        task: TaskId,
        metric: u16,
        value: f64,
        step: u64,
    },
    /// A complete pass over a probe.
    Probe(Box<PassDraft>),
    HeadEffect(HeadEffect),
    /// Later passes and runs of the task are not compared with what was kept any more.
    ForgetBases(TaskId),
    Fault {
        code: u8,
        step: u64,
    },
    /// What the algebra thread found, for the ring.
    Records(Vec<Record>),
    /// Answered when everything before it is in the ring.
    Flush(Sender<()>),
    /// The algebra thread has done what was before the flush.
    Flushed(Sender<()>),
    /// The algebra thread has done everything and ends.
    AlgebraEnded,
    /// The scope closes; answered by the end of the thread.
    Close,
}

/// What putting a head's old weights back does to a task's loss.
#[derive(Clone, Copy, Debug)]
pub struct HeadEffect {
    pub task: TaskId,
    pub step: u64,
    pub layer: u32,
    pub head: u32,
    /// Loss of the task with the weights of now.
    pub loss: f64,
    /// The same with this head's weights of the base.
    pub restored: f64,
    /// Standard error of the difference; NaN if it is not known.
    pub error: f64,
}

/// One batch gradient of a reference.
pub struct ReferenceBatch {
    pub task: TaskId,
    pub step: u64,
    pub origin: Origin,
    /// The batch begins a new reference, which replaces the one of the same origin.
    pub first: bool,
    /// Batches in the reference, this one included.
    pub batches: u32,
    /// Loss terms that the batch averages over; 0: unknown.
    pub examples: f64,
    /// Sketch of the batch gradient over the whole model.
    pub sketch: Vec<f32>,
    /// The drift, at some batches of a reference that was refreshed.
    pub secant: Option<Box<SecantSums>>,
}

/// The drift of a task at the moment at which its reference was refreshed.
pub struct SecantSums {
    /// Sketch of the drift of slices with an exact snapshot.
    pub sketch: Vec<f32>,
    /// fp64 sketch of the parameters of slices without; empty if there are none.
    pub weights: Vec<f64>,
    /// Per slice; `None` where nothing was measured.
    pub slices: Vec<Option<SecantSlice>>,
}

/// The same of one slice.
#[derive(Clone, Copy, Debug)]
pub struct SecantSlice {
    /// Elements read.
    pub count: u64,
    /// Σ D², where the snapshot is exact.
    pub drift: f64,
    /// ⟨ḡ now − ḡ then, D⟩ where everything is kept exactly.
    pub rise: Option<f64>,
}

/// The parameters at the end of a task, for slices of which no exact snapshot is kept.
pub struct SnapshotSketch {
    pub task: TaskId,
    /// fp64 sketch of the whole model; empty if every snapshot is exact.
    pub sketch: Vec<f64>,
    /// Elements of each slice that `sketch` holds; 0: nothing.
    pub elements: Vec<u64>,
}

/// Everything that was measured in one step.
#[derive(Clone, Debug, Default)]
pub struct StepSums {
    pub step: u64,
    pub time_ns: u64,
    pub scale: f64,
    pub flags: u32,
    pub applied: bool,
    /// Seconds that the step's calls took on the trainer's thread.
    pub cost: f64,
    pub tensors: u32,
    /// Per slice; `None` where nothing was measured.
    pub gradients: Vec<Option<GradientSums>>,
    /// Sketch of the gradient, unscaled, over the whole model.
    pub sketch: Vec<f32>,
    /// Per slice; `None` where nothing was measured.
    pub updates: Vec<Option<UpdateStep>>,
    /// Sketch of the update of slices that are compared exactly.
    pub update_sketch: Vec<f32>,
    /// fp64 sketch of the parameters after the update, of slices that are not; empty if there is none.
    pub weights_after: Vec<f64>,
    /// How the parameters moved up to the beginning of this step.
    pub movement: Movement,
    /// One per earlier task.
    pub references: Vec<ReferenceStep>,
}

/// How the parameters moved since they were read the last time, and what they are now.
#[derive(Clone, Debug, Default)]
pub struct Movement {
    /// Slices with an exact copy that was compared, and the sketch of the difference.
    pub compared: Vec<bool>,
    pub sketch: Vec<f32>,
    /// Slices without an exact copy, and their fp64 sketch; empty if there are none.
    pub sketched: Vec<bool>,
    pub weights: Vec<f64>,
    pub tasks: Vec<TaskMovement>,
}

/// How the parameters moved along one task's reference.
#[derive(Clone, Debug)]
pub struct TaskMovement {
    pub task: TaskId,
    /// As in [`ReferenceStep`].
    pub origin: Option<Origin>,
    pub batches: f64,
    /// ⟨r, difference⟩ of slices where both are exact.
    pub dots: Vec<Option<f64>>,
}

/// What was measured of a slice's parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpdateStep {
    pub sums: UpdateSums,
    /// The parameters were also read before the update; otherwise nothing is known of it.
    pub compared: bool,
    /// `sums.updates` was measured against an exact copy; otherwise it follows from sketches.
    pub exact: bool,
    /// Mantissa bits of the parameters' type.
    pub mantissa_bits: i32,
}

/// What was measured against one earlier task.
#[derive(Clone, Debug, Default)]
pub struct ReferenceStep {
    pub task: TaskId,
    /// How the exact reference came about; `None` where there is none.
    pub origin: Option<Origin>,
    /// Batches in the exact reference that the sums are with; sums have to be divided by it.
    pub batches: f64,
    /// The same for the reference at the snapshot.
    pub anchor_batches: f64,
    /// That reference was taken at the very weights of the snapshot.
    pub anchor_is_frozen: bool,
    /// Per slice, with the exact reference, a sum of batches; `None` where there is none. Unscaled.
    pub pairs: Vec<Option<PairSums>>,
    /// This step's update and the reference, where both are exact.
    pub updates: Vec<Option<PairSums>>,
    /// Per slice; `None` where there is no exact snapshot.
    pub drifts: Vec<Option<DriftStep>>,
    /// Sketch of the drift of slices with an exact snapshot.
    pub drift_sketch: Vec<f32>,
}

/// Sums of the drift from an exact snapshot.
#[derive(Clone, Copy, Debug)]
pub struct DriftStep {
    pub sums: DriftSums,
    /// `sums.reference_dot` is with an exact reference.
    pub anchored: bool,
    /// Mantissa bits of the parameters' type, or of the snapshot's if those are fewer.
    pub mantissa_bits: i32,
}
