//! forgetscope: a live instrument for catastrophic forgetting, built into the trainer.
//!
//! ```text
//! abi ──▶ scope ──▶ device   sums over the trainer's memory
//!               ├─▶ sketch   the linear sketch: hashing, layout, algebra
//!               ├─▶ stats    what the numbers mean
//!               └─▶ ring     records in shared memory
//! control ────────▶ ring     commands to a running instrument, beside its ring
//! ```
//!
//! Arrows go one way. The C surface is `abi`; Rust programs of this project use `ring` to read, `scope::schema` for the
//! meaning of records, and `control` to say something to whoever drives a scope. Start at `scope` for how a step is measured,
//! at `docs/` for the mathematics.

pub mod abi;
pub mod control;
pub mod device;
pub mod ring;
pub mod scope;
pub mod sketch;
pub mod stats;
pub mod thread;
