//! What a completed run hands to the drain thread: a few numbers per vector, from which the statistics follow.

use crate::scope::message::TaskId;
use crate::stats::spectrum::Recurrence;

/// Everything that a run found.
#[derive(Debug, Default)]
pub struct CurvatureSums {
    pub task: TaskId,
    pub step: u64,
    /// BASE, PARTIAL.
    pub flags: u32,
    /// Parameters that were moved.
    pub elements: f64,
    /// Relative error of a product by differences.
    pub resolution: f64,
    pub gradient_norm: f64,
    pub loss: f64,
    /// One per starting vector.
    pub lanczos: Vec<Recurrence>,
    /// Eigenvalues that are published one by one.
    pub eigenvalues: usize,
    /// vᵀHv and |Hv|² of vectors of signs.
    pub traces: Vec<f64>,
    pub squares: Vec<f64>,
    /// The same as `traces` for signs times weights.
    pub relative: Vec<f64>,
    /// Along the drift; `None` where there is no drift, or no exact snapshot to know it from.
    pub along_drift: Option<f64>,
    /// Along the eigenvectors kept at the base.
    pub along_old: Vec<f64>,
    /// Position on the line from the snapshot (0) to the weights (1), and the loss there.
    pub path: Vec<(f64, f64)>,
    /// Length of that line.
    pub distance: f64,
    pub blocks: Vec<BlockSums>,
}

/// The same of one tensor by itself.
#[derive(Debug, Default)]
pub struct BlockSums {
    pub tensor: u32,
    pub gradient_norm: f64,
    pub lanczos: Recurrence,
    /// qᵀHq over the directions that were taken out, and vᵀHv of samples of the rest.
    pub captured: Vec<f64>,
    pub residual: Vec<f64>,
}
