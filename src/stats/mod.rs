//! What the numbers mean: pure functions from sums, Gram matrices and sketches' inner products to statistics.
//!
//! Nothing here knows a pointer, a device, a thread or a ring. Every function gives a value together with what is needed
//! to judge it: a standard error, the value under a null hypothesis, or a sample size. Undefined is NaN, never a guess.

pub mod attention;
#[cfg(test)]
mod calibration;
pub mod cka;
pub mod collapse;
pub mod continuation;
pub mod contribution;
pub mod correlation;
pub mod depth;
pub mod divergence;
pub mod drift;
pub mod fisher;
pub mod flattening;
pub mod forecast;
pub mod forgetting;
pub mod hutchinson;
pub mod hypot;
pub mod interference;
pub mod linalg;
pub mod noise;
pub mod prediction;
pub mod projection;
pub mod random;
pub mod representation;
pub mod router;
pub mod sample;
pub mod secant;
pub mod severity;
pub mod similarity;
pub mod spectrum;
pub mod stage;
pub mod student;
pub mod subspace;
pub mod summary;
pub mod tridiagonal;
pub mod update;
