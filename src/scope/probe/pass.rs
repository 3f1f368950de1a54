//! A pass over a probe: what was copied of each layer, and what the pass is for.

use super::memory::Lease;
use crate::scope::message::TaskId;
use crate::stats::attention::Rows;
use ndarray::Array2;
use std::collections::BTreeMap;

/// What a pass is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It becomes what later passes are compared with.
    Base,
    /// It is compared with the base, this many updates after it.
    Later { updates: u64 },
    /// The same, but the updates went on with the task itself: what change is usual.
    /// Passes of one `run` of such updates are not independent.
    Null { updates: u64, run: u32 },
}

/// One forward pass over all batches of a task's probe.
#[derive(Debug)]
pub struct Pass {
    pub task: TaskId,
    /// The task that was being trained.
    pub trained: Option<TaskId>,
    pub step: u64,
    pub time_ns: u64,
    pub purpose: Purpose,
    /// Updates of the whole run so far: passes with the same number saw the same weights.
    pub epoch: u64,
    /// Sampled tokens per batch.
    pub batches: Vec<usize>,
    /// Per sampled token, the number of its sequence, counted over all batches.
    pub sequences: Vec<u32>,
    /// Per sampled token, its class; negative: none. Empty if there are no labels.
    pub labels: Vec<i32>,
    pub layers: BTreeMap<u32, LayerPass>,
    /// The host memory that all this takes.
    pub lease: Lease,
}

/// What was copied of one layer; rows are the sampled tokens of all batches.
#[derive(Debug, Default)]
pub struct LayerPass {
    pub hidden: Option<Array2<f32>>,
    pub attention: Option<AttentionPass>,
    pub outputs: Option<OutputsPass>,
    pub router: Option<RouterPass>,
}

#[derive(Debug)]
pub struct AttentionPass {
    pub first_head: u32,
    pub rows: Rows,
}

#[derive(Debug)]
pub struct OutputsPass {
    pub first_head: u32,
    pub heads: usize,
    /// Tokens × (heads · head width).
    pub outputs: Array2<f32>,
    /// Model width × (heads · head width); `None` if the output projection is not known.
    pub projection: Option<Array2<f32>>,
}

#[derive(Debug)]
pub struct RouterPass {
    pub top_k: usize,
    /// Tokens × experts.
    pub logits: Array2<f32>,
}
