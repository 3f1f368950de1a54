//! Results as they land: slots of mapped pinned memory that kernels write and the drain thread reads.

use super::memory::Buffer;
use super::plan::{ItemId, Plan};
use super::table::{SUMS, SlotHeader};
use crate::device::Lost;
use bytemuck::Pod;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// After so long a result is taken for lost. A device that failed says so to the next call, which comes sooner; this is for
/// trainers that make no other call.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether a device still answers; shared by everything that waits for it.
#[derive(Debug, Default)]
pub struct Health {
    failure: OnceLock<String>,
}

impl Health {
    /// Nothing will land any more, for this reason. The first one stays.
    pub fn fail(&self, reason: &str) {
        self.failure.get_or_init(|| reason.into());
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    pub fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }
}

/// A result slot. Kernels write to it, so it must not be used again before it landed or the device failed.
#[derive(Debug)]
pub struct Slot {
    buffer: Arc<Buffer>,
    /// Where in the buffer it begins, and its length.
    at: usize,
    bytes: usize,
}

impl Slot {
    pub fn new(buffer: Buffer) -> Self {
        let bytes = buffer.bytes();
        Self::at(&Arc::new(buffer), 0, bytes)
    }

    /// Slots of so many bytes, a multiple of 64, side by side.
    pub fn ring(buffer: Buffer, bytes: usize, count: usize) -> Vec<Arc<Self>> {
        assert!(bytes.is_multiple_of(64) && count * bytes <= buffer.bytes());
        let buffer = Arc::new(buffer);
        (0..count).map(|number| Arc::new(Self::at(&buffer, number * bytes, bytes))).collect()
    }

    fn at(buffer: &Arc<Buffer>, at: usize, bytes: usize) -> Self {
        let slot = Self { buffer: buffer.clone(), at, bytes };
        slot.header().store(0, Ordering::Relaxed);
        slot
    }

    /// As the device sees it.
    pub fn address(&self) -> u64 {
        self.buffer.address() + self.at as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn header(&self) -> &AtomicU64 {
        const { assert!(std::mem::offset_of!(SlotHeader, sequence) == 0) };
        // SAFETY: pinned host memory, longer than a header, aligned to 64 bytes, which lives as long as the slot. Host and
        // device write it as one word each.
        unsafe { AtomicU64::from_ptr(self.buffer.host().add(self.at).cast()) }
    }

    /// Number of the latest result that landed here.
    pub fn sequence(&self) -> u64 {
        self.header().load(Ordering::Relaxed)
    }

    /// What was asked for under this number is complete.
    pub fn has(&self, sequence: u64) -> bool {
        let has = self.header().load(Ordering::Relaxed) == sequence;
        if has {
            // What kernels wrote before the header is read after it.
            fence(Ordering::Acquire);
        }
        has
    }

    /// `count` values, so many bytes into the slot.
    pub fn values<T: Pod>(&self, at: usize, count: usize) -> &[T] {
        assert!(at + count * size_of::<T>() <= self.bytes && at.is_multiple_of(align_of::<T>()));
        // SAFETY: inside the slot and aligned, as was just asserted. `has` said that the device is done with it.
        unsafe { std::slice::from_raw_parts(self.buffer.host().add(self.at + at).cast(), count) }
    }
}

/// A result that will land in a slot.
pub struct Landing {
    slot: Arc<Slot>,
    sequence: u64,
    health: Arc<Health>,
    since: Instant,
}

impl Landing {
    pub fn new(slot: Arc<Slot>, sequence: u64, health: Arc<Health>) -> Self {
        Self { slot, sequence, health, since: Instant::now() }
    }

    /// The slot, if it is complete.
    pub fn look(&self) -> Option<Result<&Slot, Lost>> {
        if self.slot.has(self.sequence) {
            return Some(Ok(&self.slot));
        }
        if let Some(reason) = self.health.failure() {
            // It may have landed before the device failed.
            return Some(if self.slot.has(self.sequence) { Ok(&self.slot) } else { Err(Lost(reason)) });
        }
        let waited = self.since.elapsed();
        (waited > PATIENCE).then(|| Err(Lost(format!("no result from the device in {} s", waited.as_secs()))))
    }
}

/// The results of a plan.
pub struct Results<'a> {
    pub plan: &'a Plan,
    pub slot: &'a Slot,
}

impl Results<'_> {
    pub fn sums(&self, id: ItemId) -> &[f64] {
        self.slot.values(self.plan.item(id).out_sums as usize, SUMS)
    }

    /// The sketch of an item that has one. What is not of the item's range of an identity sketch is zero.
    pub fn sketch<T: Pod>(&self, id: ItemId) -> Vec<T> {
        let item = self.plan.item(id);
        let buckets = self.slot.values::<T>(item.out_sketch as usize, item.buckets as usize);
        let mut sketch = buckets.to_vec();
        if item.flags & super::table::flag::IDENTITY != 0 {
            sketch[..item.start as usize].fill(T::zeroed());
            sketch[item.end as usize..].fill(T::zeroed());
        }
        sketch
    }
}
