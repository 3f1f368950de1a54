//! Counters in the header page that any thread of the writer's process may raise.
//!
//! They count what happened to records that never came to be: dropped measurements, non-finite inputs, faults. What
//! each one counts is said by the catalog's `Entry::Counter`. Raising one is a single atomic addition (2 ns,
//! more if threads compete for it), with no ordering relative to the records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{COUNTERS, word};
use super::map::Map;

/// A handle on the counters of a ring. Clones share them, and keep the mapping alive after the writer is gone.
#[derive(Clone, Debug)]
pub struct Counters {
    file: Arc<Map>,
}

impl Counters {
    pub(super) fn new(file: Arc<Map>) -> Self {
        Counters { file }
    }

    /// Adds `n` to the counter. An index of 64 or more does nothing: a wrong counter must not end a training run.
    #[inline]
    pub fn add(&self, index: usize, n: u64) {
        if let Some(counter) = counter(&self.file, index) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The counter's value; 0 for an index of 64 or more.
    pub fn get(&self, index: usize) -> u64 {
        counter(&self.file, index).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// The counter's word, if there is such a counter.
#[inline]
pub(super) fn counter(file: &[AtomicU64], index: usize) -> Option<&AtomicU64> {
    file[word::COUNTERS..word::COUNTERS + COUNTERS].get(index)
}
