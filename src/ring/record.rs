//! The record: one measurement, 120 bytes, of which the ring knows the size and nothing else.
//!
//! The first 40 bytes say what was measured, where and when; the ten values mean what the catalog's entry for `kind`
//! says. A field that does not apply holds [`NONE16`] or [`NONE32`]; a value that was not measured is NaN, so that a
//! reader that forgets to check sees a hole in its plot and not a zero.

use std::mem::{offset_of, size_of};

/// "None" for the 16-bit ids `task` and `reference`.
pub const NONE16: u16 = u16::MAX;
/// "None" for the 32-bit ids `rank`, `tensor` and `slice`.
pub const NONE32: u32 = u32::MAX;

/// How many values a record carries.
pub const VALUES: usize = 10;
/// A record as 64-bit words: what a slot holds after its sequence.
pub const RECORD_WORDS: usize = 15;

/// One measurement.
///
/// Equality is that of the fields, so a record with a NaN value differs from itself; compare
/// [`to_words`](Record::to_words) to ask whether two records have the same bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`; the ring's header converts it to wall-clock time.
    pub time_ns: u64,
    /// The optimizer step.
    pub step: u64,
    /// Which statistic; names the values by way of the catalog.
    pub kind: u16,
    /// At which granularity, for example head, tensor, layer or model.
    pub level: u8,
    /// Zero.
    pub reserved: u8,
    /// Remarks on the measurement, one bit each; named in the catalog.
    pub flags: u32,
    /// The rank that measured.
    pub rank: u32,
    /// The task that is being trained.
    pub task: u16,
    /// The earlier task that the measurement refers to.
    pub reference: u16,
    /// The tensor, or the layer where `level` says so.
    pub tensor: u32,
    /// The head or slice within the tensor.
    pub slice: u32,
    /// The values; their names are in the catalog's entry for `kind`.
    pub values: [f64; VALUES],
}

// The layout is read by programs in other languages: see docs/ring.md.
const _: () = {
    assert!(size_of::<Record>() == 8 * RECORD_WORDS);
    assert!(offset_of!(Record, time_ns) == 0);
    assert!(offset_of!(Record, step) == 8);
    assert!(offset_of!(Record, kind) == 16);
    assert!(offset_of!(Record, level) == 18);
    assert!(offset_of!(Record, reserved) == 19);
    assert!(offset_of!(Record, flags) == 20);
    assert!(offset_of!(Record, rank) == 24);
    assert!(offset_of!(Record, task) == 28);
    assert!(offset_of!(Record, reference) == 30);
    assert!(offset_of!(Record, tensor) == 32);
    assert!(offset_of!(Record, slice) == 36);
    assert!(offset_of!(Record, values) == 40);
};

impl Default for Record {
    fn default() -> Self {
        Record {
            time_ns: 0,
            step: 0,
            kind: 0,
            level: 0,
            reserved: 0,
            flags: 0,
            rank: NONE32,
            task: NONE16,
            reference: NONE16,
            tensor: NONE32,
            slice: NONE32,
            values: [f64::NAN; VALUES],
        }
    }
}

impl Record {
    /// The record as the words of a slot: its bytes in memory, read as little-endian 64-bit integers.
    #[inline]
    pub fn to_words(&self) -> [u64; RECORD_WORDS] {
        let mut words = [0; RECORD_WORDS];
        words[0] = self.time_ns;
        words[1] = self.step;
        words[2] = u64::from(self.kind)
            | u64::from(self.level) << 16
            | u64::from(self.reserved) << 24
            | u64::from(self.flags) << 32;
        words[3] = u64::from(self.rank) | u64::from(self.task) << 32 | u64::from(self.reference) << 48;
        words[4] = u64::from(self.tensor) | u64::from(self.slice) << 32;
        for (word, value) in words[5..].iter_mut().zip(&self.values) {
            *word = value.to_bits();
        }
        words
    }

    /// The inverse of [`to_words`](Record::to_words). Any words are a record; the shifts drop nothing.
    #[inline]
    pub fn from_words(words: &[u64; RECORD_WORDS]) -> Self {
        Record {
            time_ns: words[0],
            step: words[1],
            kind: words[2] as u16,
            level: (words[2] >> 16) as u8,
            reserved: (words[2] >> 24) as u8,
            flags: (words[2] >> 32) as u32,
            rank: words[3] as u32,
            task: (words[3] >> 32) as u16,
            reference: (words[3] >> 48) as u16,
            tensor: words[4] as u32,
            slice: (words[4] >> 32) as u32,
            values: std::array::from_fn(|i| f64::from_bits(words[5 + i])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_words_survive_the_round_trip(words in any::<[u64; RECORD_WORDS]>()) {
            prop_assert_eq!(Record::from_words(&words).to_words(), words);
        }

        #[test]
        fn the_words_are_the_bytes_in_memory(words in any::<[u64; RECORD_WORDS]>()) {
            let record = Record::from_words(&words);
            // SAFETY: Record is repr(C), 120 bytes without padding (asserted above), and any bits are a valid u64.
            let memory: [u64; RECORD_WORDS] = unsafe { std::mem::transmute(record) };
            prop_assert_eq!(memory, words);
        }
    }

    #[test]
    fn a_default_record_claims_nothing() {
        let record = Record::default();
        assert_eq!((record.task, record.reference), (NONE16, NONE16));
        assert_eq!((record.rank, record.tensor, record.slice), (NONE32, NONE32, NONE32));
        assert!(record.values.iter().all(|value| value.is_nan()));
        assert_eq!((record.time_ns, record.step, record.flags, record.kind), (0, 0, 0, 0));
    }
}
