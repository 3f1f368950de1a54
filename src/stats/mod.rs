//! What the numbers mean: pure functions from sums, Gram matrices and sketches' inner products to statistics.
//!
//! Nothing here knows a pointer, a device, a thread or a ring. Every function gives a value together with what is needed
//! to judge it: a standard error, the value under a null hypothesis, or a sample size. Undefined is NaN, never a guess.

pub mod drift;
pub mod fisher;
pub mod flattening;
pub mod forgetting;
pub mod hutchinson;
pub mod interference;
pub mod linalg;
pub mod noise;
pub mod prediction;
pub mod projection;
pub mod secant;
pub mod spectrum;
pub mod tridiagonal;
pub mod update;
