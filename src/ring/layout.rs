//! Where everything is in the file.
//!
//! ```text
//! 0        header page: fixed fields, then each word that changes on a cache line pair of its own, then counters
//! 4096     catalog section (4 MiB by default, sparse until it is used)
//! …        slots of 128 bytes, a power of two of them
//! ```
//!
//! Every field of the header is a little-endian 64-bit word. docs/ring.md is this file in prose, for readers in other
//! languages; what is changed here must be changed there, together with [`LAYOUT_VERSION`].
//!
//! A word that the producer stores for each record shares no 128-byte line with anything else: adjacent-line
//! prefetchers fetch cache lines in pairs, and a reader that polls the heartbeat must not slow the producer down.

use std::sync::atomic::AtomicU64;

use super::error::RingError;
use super::record::RECORD_WORDS;

/// "FGSRING\0" in the first eight bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FGSRING\0");
/// Changes whenever a reader of the previous layout would misread.
pub const LAYOUT_VERSION: u64 = 1;
/// Bytes before the first section.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of a slot: the sequence and a record.
pub const SLOT_BYTES: u64 = 128;
/// Words of a slot.
pub const SLOT_WORDS: usize = 1 + RECORD_WORDS;
/// How many counters the header has.
pub const COUNTERS: usize = 64;

/// Slots that a writer gets unless it asks otherwise: 8 MiB, or a minute of a thousand records a second.
pub const DEFAULT_SLOTS: u64 = 1 << 16;
/// The catalog section that a writer gets unless it asks otherwise.
pub const DEFAULT_CATALOG_BYTES: u64 = 4 << 20;

/// 32 GiB of slots: more is a mistake.
const MAX_SLOTS: u64 = 1 << 28;
const MAX_CATALOG_BYTES: u64 = 1 << 30;
/// No run publishes this many records. A larger count is damage, and below it arithmetic on record numbers and
/// sequences cannot overflow.
pub(super) const MAX_RECORDS: u64 = 1 << 62;

/// Indices of the header's words.
pub(super) mod word {
    pub const MAGIC: usize = 0;
    pub const LAYOUT_VERSION: usize = 1;
    pub const HEADER_BYTES: usize = 2;
    pub const SLOT_BYTES: usize = 3;
    pub const SLOT_COUNT: usize = 4;
    pub const SLOTS_OFFSET: usize = 5;
    pub const CATALOG_OFFSET: usize = 6;
    pub const CATALOG_BYTES: usize = 7;
    pub const FILE_BYTES: usize = 8;
    pub const SCHEMA_HASH: usize = 9;
    pub const INSTANCE: usize = 10; // and 11
    pub const PID: usize = 12;
    pub const PID_START_TIME: usize = 13;
    pub const PID_NAMESPACE: usize = 14;
    pub const RANK: usize = 15;
    pub const WORLD: usize = 16;
    pub const MONOTONIC_NS: usize = 17;
    pub const REALTIME_NS: usize = 18;

    pub const STATE: usize = 1024 / 8;
    pub const PUBLISHED: usize = 1152 / 8;
    pub const HEARTBEAT: usize = 1280 / 8;
    pub const CATALOG_LEN: usize = 1408 / 8;
    pub const COUNTERS: usize = 2048 / 8;
}

/// Values of the header's state word.
pub(super) mod state {
    /// The writer is at work, or was killed.
    pub const OPEN: u64 = 1;
    /// The writer has said that nothing will follow.
    pub const CLOSED: u64 = 2;
    /// The writer was dropped without being closed: its thread panicked, or an error ended it.
    pub const ABANDONED: u64 = 3;
}

const _: () = {
    assert!(SLOT_BYTES == 8 * SLOT_WORDS as u64);
    assert!(8 * (word::COUNTERS + COUNTERS) as u64 <= HEADER_BYTES);
    assert!(cfg!(target_endian = "little"), "the file is little-endian");
};

/// A slot: the sequence, then the payload.
pub(super) type SlotWords = [AtomicU64; SLOT_WORDS];

/// The sections of one file. A value of this type has been checked: its sections lie within `file_bytes`, are aligned
/// and do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub slot_count: u64,
    pub slots_offset: u64,
    pub catalog_offset: u64,
    pub catalog_bytes: u64,
    pub file_bytes: u64,
}

/// Why five numbers are no geometry: the field, its value, and what it would have to be.
pub(super) type Flaw = (&'static str, u64, &'static str);

impl Geometry {
    /// Lays out a new file. Slots are rounded up to a power of two, the catalog to whole pages.
    pub fn new(slots: u64, catalog_bytes: u64) -> Result<Self, RingError> {
        let option = |option, value, requirement| RingError::Option { option, value, requirement };
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(option("slots", slots, "it must be from 1 to 268435456"));
        }
        if catalog_bytes > MAX_CATALOG_BYTES {
            let requirement = "it must be at most 1073741824 (1 GiB)";
            return Err(option("catalog_bytes", catalog_bytes, requirement));
        }
        let slot_count = slots.next_power_of_two();
        let catalog_bytes = catalog_bytes.next_multiple_of(4096);
        let slots_offset = HEADER_BYTES + catalog_bytes;
        Ok(Geometry {
            slot_count,
            slots_offset,
            catalog_offset: HEADER_BYTES,
            catalog_bytes,
            file_bytes: slots_offset + slot_count * SLOT_BYTES,
        })
    }

    /// Accepts the numbers of a header, or names the first that cannot be right.
    pub fn validate(self) -> Result<Self, Flaw> {
        let slots_end = self.slot_count.checked_mul(SLOT_BYTES).and_then(|bytes| bytes.checked_add(self.slots_offset));
        let catalog_end = self.catalog_offset.checked_add(self.catalog_bytes);
        let within = |end: Option<u64>| end.is_some_and(|end| end <= self.file_bytes);

        if !self.slot_count.is_power_of_two() || self.slot_count > MAX_SLOTS {
            let requirement = "it must be a power of two, at most 268435456";
            return Err(("slot_count", self.slot_count, requirement));
        }
        if self.slots_offset < HEADER_BYTES || !self.slots_offset.is_multiple_of(SLOT_BYTES) {
            let requirement = "it must be a multiple of 128 behind the header";
            return Err(("slots_offset", self.slots_offset, requirement));
        }
        if !within(slots_end) {
            return Err(("slots_offset", self.slots_offset, "the slots must end within the file"));
        }
        if self.catalog_offset < HEADER_BYTES || !self.catalog_offset.is_multiple_of(8) {
            let requirement = "it must be a multiple of 8 behind the header";
            return Err(("catalog_offset", self.catalog_offset, requirement));
        }
        if self.catalog_bytes > MAX_CATALOG_BYTES || !self.catalog_bytes.is_multiple_of(8) {
            let requirement = "it must be a multiple of 8, at most 1073741824";
            return Err(("catalog_bytes", self.catalog_bytes, requirement));
        }
        if !within(catalog_end) {
            let requirement = "the catalog must end within the file";
            return Err(("catalog_offset", self.catalog_offset, requirement));
        }
        let apart = catalog_end <= Some(self.slots_offset) || slots_end <= Some(self.catalog_offset);
        if !apart {
            let requirement = "the catalog must not overlap the slots";
            return Err(("catalog_offset", self.catalog_offset, requirement));
        }
        Ok(self)
    }

    /// The slot of the record with number `number`; the first record is 1. `file` is the whole mapped file.
    #[inline]
    pub fn slot<'a>(&self, file: &'a [AtomicU64], number: u64) -> &'a SlotWords {
        let (slots, _) = file[self.slots_offset as usize / 8..].as_chunks::<SLOT_WORDS>();
        &slots[((number - 1) & (self.slot_count - 1)) as usize]
    }

    /// The words of the catalog section. `file` is the whole mapped file.
    pub fn catalog<'a>(&self, file: &'a [AtomicU64]) -> &'a [AtomicU64] {
        let start = self.catalog_offset as usize / 8;
        &file[start..start + self.catalog_bytes as usize / 8]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_rounded_up_and_bounded() {
        let geometry = Geometry::new(1000, 1).unwrap();
        assert_eq!((geometry.slot_count, geometry.catalog_bytes), (1024, 4096));
        assert_eq!(geometry.file_bytes, 4096 + 4096 + 1024 * 128);
        assert!(Geometry::new(0, 0).is_err());
        assert!(Geometry::new(u64::MAX, 0).is_err());
        assert!(Geometry::new(1, u64::MAX).is_err());
        assert!(Geometry::new(1, 0).is_ok());
    }

    /// Numbers of the sizes that matter: small, around the real ones, and near overflow.
    fn field() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..64u64,
            (0..64u64).prop_map(|n| n * 128),
            (0..64u32).prop_map(|n| 1 << n),
            (0..64u32).prop_map(|n| u64::MAX - (1 << n)),
            any::<u64>(),
        ]
    }

    proptest! {
        #[test]
        fn what_a_writer_lays_out_is_valid(slots in 1..=MAX_SLOTS, catalog in 0..=MAX_CATALOG_BYTES) {
            let geometry = Geometry::new(slots, catalog).unwrap();
            prop_assert_eq!(geometry.validate(), Ok(geometry));
        }

        #[test]
        fn what_is_valid_lies_within_the_file(
            slot_count in field(), slots_offset in field(), catalog_offset in field(),
            catalog_bytes in field(), file_bytes in field(),
        ) {
            let geometry = Geometry { slot_count, slots_offset, catalog_offset, catalog_bytes, file_bytes };
            if geometry.validate().is_ok() {
                // In 128 bits nothing overflows, so these are the plain statements.
                let [count, slots, catalog, length, file] =
                    [slot_count, slots_offset, catalog_offset, catalog_bytes, file_bytes].map(u128::from);
                prop_assert!(slots + 128 * count <= file && catalog + length <= file);
                prop_assert!(slots >= 4096 && catalog >= 4096);
                prop_assert!(catalog + length <= slots || slots + 128 * count <= catalog);
            }
        }
    }
}
