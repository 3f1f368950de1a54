//! The linear sketch: one structure for gradients and weights.
//!
//! An exact reference gradient per task is out of the question for a large model. A linear map S into a few thousand
//! buckets keeps what the statistics need: ⟨Sx, Sy⟩ is an unbiased estimate of ⟨x, y⟩ with a known error, and sketches of
//! shards, steps and batches add up. S is a CountSketch in coalesced form. With i the flat index in the unsharded slice:
//!
//! ```text
//! chunk  c    = i >> 8
//! sign   s(i) = bit (i & 63) of signs(seed, i >> 6)
//! bucket b(i) = 256 · row(c) + ((i & 255) XOR flip(c))
//! ```
//!
//! A chunk of 256 consecutive elements meets 256 different buckets, so a pass over memory is coalesced, needs no atomic
//! operation, and adds in a fixed order: results are deterministic.
//!
//! Error: Var⟨Sx, Sy⟩ ≤ (|x|²|y|² + ⟨x,y⟩²)/m for m buckets. For a cosine between sketched vectors that is about 1/√m.
//! Cost of a pass: one read of the data; memory: m numbers per slice.

pub mod algebra;
pub mod hash;
mod layout;

pub use layout::{CHUNK, Layout};

/// Adds `values`, the elements `first ..` of the slice, to `buckets`, by the definition.
///
/// This is the oracle of the fast paths in `device`, and is used where speed does not matter.
pub fn add(layout: &Layout, first: u64, values: &[f32], buckets: &mut [f64]) {
    for (index, value) in (first..).zip(values) {
        let (bucket, sign) = layout.locate(index);
        buckets[bucket] += f64::from(sign * value);
    }
}
