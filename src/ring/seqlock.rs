//! The slot protocol: how one producer overwrites a slot while any number of readers copy it.
//!
//! A slot is a sequence word and a payload. For the record with number `n` (the first is 1) the sequence is `2n − 1`
//! while the payload is being written and `2n` once it is complete. A reader that finds the same even sequence before
//! and after its copy holds a complete record; one that finds a larger sequence has been overtaken.
//!
//! ```text
//! producer                              reader
//! W1  sequence ← 2n−1   Relaxed         R1  s ← sequence     Acquire
//! W2  fence             Release         R2  copy payload     Relaxed
//! W3  payload           Relaxed         R3  fence            Acquire
//! W4  sequence ← 2n     Release         R4  sequence = s ?   Relaxed
//! ```
//!
//! Why it holds: R1 reading W4 makes the whole payload of `n` visible to R2. If R2 nevertheless sees one word of a later
//! record, then that word's W3 comes after the fence W2 and its reader before the fence R3, so the two fences
//! synchronise, R4 sees the later W1 at least, and the copy is thrown away. Neither side ever waits.
//!
//! The payload consists of atomic words because a plain copy that races with a store is undefined behaviour, however
//! soon the result is discarded. On x86-64 and AArch64 a relaxed load or store is an ordinary `mov` or `ldr`/`str`.
//!
//! Cost: 17 stores to publish, 17 loads to read, no read-modify-write, no barrier instruction on x86-64. The width `P`
//! is generic only because the model checker needs a payload of two words to finish within seconds.

use super::sync::{AtomicU64, Ordering, fence, load_acquire, store_release};

/// What a reader found in the slot where it expects a certain record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot<const P: usize> {
    /// The record, complete.
    Complete([u64; P]),
    /// The record is not here yet: the slot is unused, holds an earlier record, or is being written.
    Pending,
    /// The record is gone; `sequence` is what stands in its place. It is larger than expected in every honest ring.
    Overtaken { sequence: u64 },
}

/// Writes the record with number `number`, replacing what the slot held. Only one thread at a time may call this.
#[inline]
pub(super) fn write<const P: usize>(sequence: &AtomicU64, payload: &[AtomicU64; P], number: u64, words: &[u64; P]) {
    sequence.store(2 * number - 1, Ordering::Relaxed);
    // No payload store may be seen before the odd sequence.
    fence(Ordering::Release);
    for (target, word) in payload.iter().zip(words) {
        target.store(*word, Ordering::Relaxed);
    }
    store_release(sequence, 2 * number);
}

/// Reads the record with number `number`, if the slot holds it.
#[inline]
pub(super) fn read<const P: usize>(sequence: &AtomicU64, payload: &[AtomicU64; P], number: u64) -> Slot<P> {
    let expected = 2 * number;
    let before = load_acquire(sequence);
    if before < expected {
        return Slot::Pending;
    }
    if before > expected {
        return Slot::Overtaken { sequence: before };
    }
    let words = std::array::from_fn(|i| payload[i].load(Ordering::Relaxed));
    // If any word came from a later record, the load below must see that record's odd sequence.
    fence(Ordering::Acquire);
    let after = sequence.load(Ordering::Relaxed);
    if after == before { Slot::Complete(words) } else { Slot::Overtaken { sequence: after } }
}
