//! The slot protocol under the model checker.
//!
//! `src/ring/seqlock.rs` is compiled here five times: as it is, and four times with one of its orderings taken out. The
//! first must pass every interleaving and every value that a relaxed load may return; each of the others must fail.
//! A model that cannot tell a mutant from the original proves nothing about the original.
//!
//! The producer writes several records into one slot, the reader looks for one of them. Two payload words are enough
//! to be torn. Runs under plain `cargo test`, in a few seconds.

#![cfg(test)]
// Compiling one file several times is the point.
#![allow(clippy::duplicate_mod)]

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;

/// A slot with a payload of two words.
#[derive(Default)]
struct Slot {
    sequence: AtomicU64,
    payload: [AtomicU64; 2],
}

/// The payload of record `number`: words that belong together.
fn payload(number: u64) -> [u64; 2] {
    [10 * number, 10 * number + 1]
}

/// One compilation of the protocol, with the given orderings in `super::sync`.
macro_rules! protocol {
    ($name:ident, release: $release:expr, acquire: $acquire:expr, store: $store:expr, load: $load:expr) => {
        #[path = "."]
        mod $name {
            mod sync {
                pub(super) use loom::sync::atomic::{AtomicU64, Ordering};

                pub(super) fn fence(ordering: Ordering) {
                    let present = match ordering {
                        Ordering::Release => $release,
                        Ordering::Acquire => $acquire,
                        _ => unreachable!("the protocol has two kinds of fences"),
                    };
                    if present {
                        loom::sync::atomic::fence(ordering);
                    }
                }

                pub(super) fn store_release(word: &AtomicU64, value: u64) {
                    let ordering = if $store { Ordering::Release } else { Ordering::Relaxed };
                    word.store(value, ordering);
                }

                pub(super) fn load_acquire(word: &AtomicU64) -> u64 {
                    let value = word.load(Ordering::Relaxed);
                    if $load {
                        loom::sync::atomic::fence(Ordering::Acquire);
                    }
                    value
                }
            }

            #[path = "../../../src/ring/seqlock.rs"]
            mod seqlock;

            /// Two records go through one slot of a ring with one slot, while a reader looks for `wanted`.
            fn model(wanted: u64) {
                loom::model(move || {
                    let slot = super::Arc::new(super::Slot::default());
                    let shared = super::Arc::clone(&slot);
                    let producer = loom::thread::spawn(move || {
                        for number in 1..=2 {
                            let words = super::payload(number);
                            seqlock::write(&shared.sequence, &shared.payload, number, &words);
                        }
                    });
                    match seqlock::read(&slot.sequence, &slot.payload, wanted) {
                        seqlock::Slot::Complete(words) => {
                            assert_eq!(words, super::payload(wanted), "torn record")
                        }
                        seqlock::Slot::Pending => {}
                        seqlock::Slot::Overtaken { sequence } => {
                            assert!(wanted == 1 && matches!(sequence, 3 | 4))
                        }
                    }
                    producer.join().unwrap();
                    // Whatever was seen before, everything is visible now.
                    let last = seqlock::read(&slot.sequence, &slot.payload, 2);
                    assert_eq!(last, seqlock::Slot::Complete(super::payload(2)));
                });
            }

            pub(super) fn check() {
                model(1);
                model(2);
            }
        }
    };
}

protocol!(faithful, release: true, acquire: true, store: true, load: true);
protocol!(without_release_fence, release: false, acquire: true, store: true, load: true);
protocol!(without_acquire_fence, release: true, acquire: false, store: true, load: true);
protocol!(without_release_store, release: true, acquire: true, store: false, load: true);
protocol!(without_acquire_load, release: true, acquire: true, store: true, load: false);

#[test]
fn no_interleaving_tears_a_record() {
    faithful::check();
}

#[test]
#[should_panic(expected = "torn record")]
fn the_producer_needs_its_fence() {
    without_release_fence::check();
}

#[test]
#[should_panic(expected = "torn record")]
fn the_reader_needs_its_fence() {
    without_acquire_fence::check();
}

#[test]
#[should_panic(expected = "torn record")]
fn the_reader_needs_its_acquire_load() {
    without_acquire_load::check();
}

#[test]
#[should_panic(expected = "torn record")]
fn the_producer_needs_its_release_store() {
    without_release_store::check();
}
