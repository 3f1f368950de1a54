//! What the tests of the ring share: records that prove their own integrity, and a directory in shared memory.

#![allow(dead_code)] // Each test uses a part of it.

use forgetscope::ring::{Poll, Reader, Record};
use tempfile::TempDir;

/// A directory for rings; in shared memory, where rings live, if there is any.
pub fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The record with number `number`: every field follows from it, so that two records never share a word.
pub fn record(number: u64) -> Record {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Record {
        time_ns: !number,
        step: number,
        kind: mixed as u16,
        level: (mixed >> 8) as u8,
        reserved: 0,
        flags: (mixed >> 32) as u32,
        rank: (mixed >> 16) as u32,
        task: (mixed >> 24) as u16,
        reference: (mixed >> 40) as u16,
        tensor: number as u32,
        slice: (mixed >> 28) as u32,
        values: std::array::from_fn(|i| number as f64 + (i + 1) as f64 / 16.0),
    }
}

/// What a reader has seen: the proof that it saw each record once, whole, in order, or was told of its loss.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub received: u64,
    pub lost: u64,
}

impl Tally {
    pub fn total(&self) -> u64 {
        self.received + self.lost
    }

    /// Takes note of a poll of a reader that has been polled through this tally from the first record on.
    ///
    /// Panics if a record is torn, repeated, or out of its place.
    pub fn note(&mut self, poll: Poll) {
        match poll {
            Poll::Record(found) => {
                self.received += 1;
                let expected = record(self.total());
                assert_eq!(found.to_words(), expected.to_words(), "torn or misplaced record");
            }
            Poll::Lost(count) => {
                assert_ne!(count, 0, "a loss of nothing");
                self.lost += count;
            }
            Poll::Empty | Poll::Closed => {}
        }
    }

    /// Polls until the ring has nothing more; returns whether it is closed.
    pub fn drain(&mut self, reader: &mut Reader) -> bool {
        loop {
            let poll = reader.poll().expect("an honest ring");
            self.note(poll);
            match poll {
                Poll::Empty => return false,
                Poll::Closed => return true,
                Poll::Record(_) | Poll::Lost(_) => {}
            }
        }
    }

    /// Polls until the ring is closed.
    pub fn finish(&mut self, reader: &mut Reader) {
        while !self.drain(reader) {
            std::thread::yield_now();
        }
    }
}
