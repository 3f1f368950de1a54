//! The atomics that the slot protocol is written against.
//!
//! `seqlock.rs` takes its atomics from `super::sync` and from nowhere else, so that the model checker in `tests/loom`
//! can compile the very same file against loom's atomics, and against copies in which one ordering is missing.

pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// An acquire load that is defined on read-only pages too.
///
/// Readers map the ring without write permission. On such memory Rust defines relaxed loads only (an acquire load could,
/// in principle, be compiled to an instruction that writes), so the ordering comes from a fence. On x86-64 both are a
/// plain `mov`.
#[inline]
pub(crate) fn load_acquire(word: &AtomicU64) -> u64 {
    let value = word.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    value
}

/// A release store; a function only so that the model checker can take the ordering away.
#[inline]
pub(super) fn store_release(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
}
