//! Moving parameters and back, and algebra on vectors as long as the model: what measuring curvature needs of a device.
//!
//! Vectors are flat, fp32, and the library's own. Sums are fp64 in a fixed order, so the same vectors give the same bits.
//! This is the only place that writes to the trainer's memory, and it writes nothing but originals plus a multiple of a
//! direction; with an empty direction it writes the originals' bits.

use super::{Segment, SliceRead, Values, Writable};

/// What becomes of values that are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gather {
    /// The bits as they are.
    Copy,
    /// What is read, times the factor.
    Scale(f32),
    /// What was there less what is read times the first factor, all times the second.
    Subtract(f32, f32),
}

/// A slice that is read whole into a part of a vector.
pub struct GatherJob<'a> {
    pub read: SliceRead<'a>,
    pub gather: Gather,
    /// One per index of the slice, from the first on.
    pub values: &'a mut [f32],
}

/// A slice of the parameters that is set to `original + step · direction`.
pub struct ScatterJob<'a> {
    pub target: Writable,
    pub segments: &'a [Segment],
    /// One per index of the slice, from the first on.
    pub original: &'a [f32],
    /// As many, or none: then the originals are written.
    pub direction: &'a [f32],
    pub step: f64,
}

/// Moves parameters, and computes with vectors.
pub trait Perturb {
    /// Reads slices into vectors. Returns how many values are not finite afterwards.
    fn gather(&self, jobs: &mut [GatherJob]) -> u64;

    /// Copies values that the library keeps, wherever they lie. `false`: the device failed.
    fn read(&self, values: &Values, out: &mut [f32]) -> bool;

    /// Writes slices of the parameters. `false`: a device failed, and some may not be written.
    #[must_use]
    fn scatter(&self, jobs: &mut [ScatterJob]) -> bool;

    /// Σ x·y.
    fn dot(&self, x: &[f32], y: &[f32]) -> f64;

    /// y = keep·y + Σ factor·x, each element in fp64 and rounded once.
    fn combine(&self, y: &mut [f32], keep: f64, terms: &[(f64, &[f32])]);

    /// y = y∘x.
    fn multiply(&self, y: &mut [f32], x: &[f32]);

    /// Fair signs times `scale`, by element number and seed alone.
    fn signs(&self, y: &mut [f32], seed: u64, scale: f32);
}
