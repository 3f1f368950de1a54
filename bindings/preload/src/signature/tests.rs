//! Made-up trainers, of which it is known where steps begin.

use super::*;
use proptest::prelude::*;

const ALL: Communicator = Communicator { handle: 7, rank: 0, size: 2, first: Some(0) };

fn reduce(count: u64, address: usize) -> Event {
    Event { kind: Kind::Reduce, is_scattered: false, communicator: ALL, count, dtype: 1, address }
}

fn gather(count: u64, address: usize) -> Event {
    Event { kind: Kind::Gather, ..reduce(count, address) }
}

/// Buckets of these sizes at addresses of their own.
fn buckets(counts: &[u64]) -> Vec<Event> {
    counts.iter().enumerate().map(|(n, &count)| reduce(count, 4096 * (n + 1))).collect()
}

fn signature() -> Signature {
    Signature::new(Prior::default())
}

/// Gives whole steps to a signature and says how each was taken: its number, or `None`. Every step must be taken as a whole
/// and in order, or not at all.
fn steps<'a>(signature: &mut Signature, steps: impl IntoIterator<Item = &'a [Event]>) -> Vec<Option<u64>> {
    let steps = steps.into_iter();
    steps
        .map(|step| {
            let verdicts: Vec<Verdict> = step.iter().map(|&event| signature.observe(event)).collect();
            match verdicts[0] {
                Verdict::Part { step, .. } => {
                    let whole = (0..verdicts.len()).map(|position| Verdict::Part { step, position });
                    assert_eq!(verdicts, whole.collect::<Vec<_>>());
                    Some(step)
                }
                _ => {
                    assert!(!verdicts.iter().any(|verdict| matches!(verdict, Verdict::Part { .. })), "{verdicts:?}");
                    None
                }
            }
        })
        .collect()
}

/// The number of the first step that was taken, if all after it were, with consecutive numbers.
#[track_caller]
fn taken_from(taken: &[Option<u64>]) -> Option<(usize, u64)> {
    let first = taken.iter().position(Option::is_some)?;
    let number = taken[first].unwrap();
    for (n, &step) in taken[first..].iter().enumerate() {
        assert_eq!(step, Some(number + n as u64), "the step {n} after the first that was taken");
    }
    Some((first, number))
}

#[test]
fn persistent_buckets_are_a_step() {
    let step = buckets(&[5000, 4000, 4000, 9000, 1500, 1500, 1500, 1500]);
    let mut signature = signature();
    let taken = steps(&mut signature, vec![&step[..]; 20]);
    assert_eq!(taken_from(&taken), Some((2, 2)));
    assert_eq!(signature.news(), None);
    assert_eq!(signature.period().unwrap().events(), step);
}

#[test]
fn one_flat_buffer_is_a_step_after_a_while() {
    let step = buckets(&[1_000_000]);
    assert_eq!(taken_from(&steps(&mut signature(), vec![&step[..]; 40])), Some((16, 16)));
}

#[test]
fn a_step_begins_with_the_first_reduction_after_the_gathers() {
    let mut step = buckets(&[5000, 4000]);
    step.extend([gather(5000, 1), gather(4000, 2)]);
    // Parameters are spread first, by other calls and by the same.
    let mut signature = signature();
    assert_eq!(signature.observe(gather(9000, 0)), Verdict::Outside);
    steps(&mut signature, [&step[2..]]);
    let taken = steps(&mut signature, vec![&step[..]; 12]);
    assert_eq!(taken_from(&taken), Some((4, 4)));
    assert_eq!(signature.period().unwrap().events(), step);
}

#[test]
fn equal_layers_in_one_staging_buffer_are_no_steps() {
    let mut step = vec![reduce(5000, 4096); 12];
    step.push(reduce(80_000, 4096));
    assert_eq!(taken_from(&steps(&mut signature(), vec![&step[..]; 20])), Some((2, 2)));
}

/// More equal collectives than a first guess takes: the guess breaks, and the next one needs more evidence.
#[test]
fn a_wrong_guess_is_corrected() {
    let mut step = vec![reduce(5000, 4096); 24];
    step.push(reduce(80_000, 4096));
    let mut signature = signature();
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(step.iter().map(|&event| signature.observe(event)).collect::<Vec<_>>());
    }
    assert_eq!(signature.period().unwrap().len(), 25);
    let whole = |verdicts: &Vec<Verdict>| {
        (0..25).all(|n| matches!(verdicts[n], Verdict::Part { position, .. } if position == n))
    };
    assert!(taken[2..].iter().all(whole), "{:?}", taken[2]);
    assert_eq!(signature.step(), 10, "wrong steps are not counted");
}

#[test]
fn micro_batches_that_are_reduced_belong_to_one_step() {
    let mut step: Vec<Event> = (0..10).flat_map(|_| buckets(&[5000, 4000, 4000])).collect();
    step.extend([gather(5000, 1), gather(4000, 2), gather(4000, 3)]);
    let mut signature = signature();
    for _ in 0..12 {
        step.iter().for_each(|&event| _ = signature.observe(event));
    }
    assert_eq!(signature.period().unwrap().len(), 33);
}

/// Buffers that are allocated anew: addresses never come again.
fn fresh(counts: &[u64], address: &mut usize) -> Vec<Event> {
    let mut next = || {
        *address += 4096;
        *address
    };
    counts.iter().map(|&count| reduce(count, next())).collect()
}

#[test]
fn buffers_that_move_are_told_by_their_sizes() {
    let mut counts = vec![5000; 12];
    counts.push(80_000);
    let mut address = 0;
    let all: Vec<Vec<Event>> = (0..60).map(|_| fresh(&counts, &mut address)).collect();
    let mut signature = signature();
    let (first, number) = taken_from(&steps(&mut signature, all.iter().map(Vec::as_slice))).unwrap();
    assert_eq!((first as u64, first), (number, 40), "512 collectives");
    assert_eq!(signature.period().unwrap().len(), 13);
}

#[test]
fn a_buffer_that_moves_later_is_found_again() {
    let mut step = buckets(&[5000, 4000, 4000, 9000]);
    let mut signature = signature();
    steps(&mut signature, vec![&step[..]; 10]);
    let generation = signature.generation();
    step[2].address = 77;
    // The first time it may be anything of that size.
    let verdicts: Vec<Verdict> = step.iter().map(|&event| signature.observe(event)).collect();
    let part = |position| Verdict::Part { step: 10, position };
    assert_eq!(verdicts, [part(0), part(1), Verdict::Outside, Verdict::Lost]);
    assert_eq!(taken_from(&steps(&mut signature, vec![&step[..]; 3])), Some((0, 11)));
    assert_eq!((signature.period().unwrap().events(), signature.generation()), (&step[..], generation));
}

/// An average of weights is reduced after every 50 steps: of the same size as the flat gradient, in a buffer of its own.
#[test]
fn another_buffer_of_the_same_size_is_no_bucket() {
    let mut signature = signature();
    let mut number = 0;
    for n in 0..2000 {
        match signature.observe(reduce(8192, 1)) {
            Verdict::Part { step, .. } => number = step,
            verdict => assert!(verdict == Verdict::Outside && n < 16 || verdict == Verdict::Lost && n == 15, "{n}"),
        }
        if n % 50 == 49 {
            assert_eq!(signature.observe(reduce(8192, 2)), Verdict::Outside);
        }
    }
    assert_eq!(number, 1999);
    // The gradient itself moves.
    assert_eq!(signature.observe(reduce(8192, 3)), Verdict::Outside);
    assert_eq!(signature.observe(reduce(8192, 3)), Verdict::Part { step: 2001, position: 0 });
}

/// Which rank this process is decides what is measured: another communicator with the handle of one that was freed.
#[test]
fn a_handle_that_comes_again_is_another_communicator() {
    let step = buckets(&[5000, 4000]);
    let mut signature = signature();
    steps(&mut signature, vec![&step[..]; 20]);
    let generation = signature.generation();
    let again: Vec<Event> =
        step.iter().map(|&event| Event { communicator: Communicator { rank: 1, ..ALL }, ..event }).collect();
    let taken = steps(&mut signature, vec![&again[..]; 40]);
    assert!(taken[0].is_none() && taken[39].is_some() && signature.generation() > generation, "{taken:?}");
}

/// Where nothing repeats, nothing is looked for most of the time; a sequence that begins later is found all the same.
#[test]
fn a_sequence_that_begins_late_is_found() {
    let mut signature = signature();
    (0..5 * BURST).for_each(|n| _ = signature.observe(reduce(1000 + n, n as usize)));
    let step = buckets(&[5000, 4000, 4000]);
    for _ in 0..5 * BURST / 3 {
        step.iter().for_each(|&event| _ = signature.observe(event));
    }
    assert_eq!(signature.period().map(Period::len), Some(3));
}

#[test]
fn rebuilt_buckets_are_found_anew() {
    let (first, rebuilt) = (buckets(&[5000, 4000, 4000]), fresh(&[9000, 4000], &mut 99_999));
    let mut signature = signature();
    steps(&mut signature, [&first[..]]);
    let taken = steps(&mut signature, vec![&rebuilt[..]; 20]);
    assert_eq!(taken_from(&taken), Some((8, 8)));
    // Much later once more: the count goes on.
    let taken = steps(&mut signature, vec![&rebuilt[..]; 1000]);
    assert_eq!(taken_from(&taken), Some((0, 20)));
    let taken = steps(&mut signature, vec![&first[..]; 60]);
    assert_eq!(taken_from(&taken), Some((22, 1042)), "beyond doubt after 64 collectives");
}

#[test]
fn the_number_of_collectives_may_be_given() {
    // Three micro-batches of one buffer: only the user knows that they are one step.
    let step = [reduce(5000, 1); 3];
    let mut signature = Signature::new(Prior { length: Some(3), buckets: None });
    assert_eq!(taken_from(&steps(&mut signature, vec![&step[..]; 5])), Some((2, 2)));
}

#[test]
fn a_layout_needs_one_step() {
    let counts = vec![5000, 4000, 4000];
    let mut step = buckets(&counts);
    let mut signature = Signature::new(Prior { length: None, buckets: Some(counts) });
    signature.observe(gather(5000, 1));
    // The first step, of which only sizes are known.
    assert_eq!(steps(&mut signature, [&step[..]]), [None]);
    for event in [gather(5000, 1), gather(8000, 2)] {
        assert_eq!(signature.observe(event), Verdict::Outside);
        step.push(event);
    }
    assert_eq!(taken_from(&steps(&mut signature, vec![&step[..]; 5])), Some((0, 1)));
    assert_eq!(signature.period().unwrap().events(), step);
}

#[test]
fn a_step_of_a_layout_that_is_cut_short_is_lost() {
    let counts = vec![5000, 4000, 3000];
    let step = buckets(&counts);
    let mut signature = Signature::new(Prior { length: None, buckets: Some(counts) });
    for event in [step[0], reduce(2222, 9), step[2]] {
        assert_eq!(signature.observe(event), Verdict::Outside);
    }
    assert_eq!(taken_from(&steps(&mut signature, vec![&step[..]; 3])), Some((1, 1)), "the first whole one is 0");
}

#[test]
fn a_layout_that_does_not_fit_is_said_and_left() {
    let step = buckets(&[5000, 4000, 3000]);
    let mut signature = Signature::new(Prior { length: None, buckets: Some(vec![5000, 4000, 2000]) });
    for _ in 0..10 {
        step.iter().for_each(|&event| _ = signature.observe(event));
    }
    let misfit = News::Misfit { expected: vec![5000, 4000, 2000], seen: vec![5000, 4000, 3000] };
    assert_eq!(signature.news(), Some(misfit));
    assert_eq!(signature.news(), None);
    assert_eq!(taken_from(&steps(&mut signature, vec![&step[..]; 3])).map(|taken| taken.0), Some(0));
}

#[test]
fn what_does_not_repeat_is_said_once() {
    let mut signature = signature();
    for n in 0..3 * PATIENCE {
        assert_eq!(signature.observe(reduce(1000 + n, n as usize)), Verdict::Outside);
    }
    assert!(matches!(signature.news(), Some(News::Nothing { events, .. }) if events == PATIENCE + 1));
    assert_eq!(signature.news(), None);
}

/// Nothing tells validation that comes after every 22 steps alike from a part of a step with 22 micro-batches, until the
/// steps between have earned trust; the number of collectives does.
#[test]
fn validation_as_regular_as_steps_needs_the_number_of_collectives() {
    let step = buckets(&[5000, 4000, 4000, 9000]);
    let round = || (0..3).map(|n| reduce(100 + n, 7)).chain((0..22).flat_map(|_| step.iter().copied()));
    let mut unknown = signature();
    (0..8).flat_map(|_| round()).for_each(|event| _ = unknown.observe(event));
    assert_eq!(unknown.period().unwrap().len(), 22 * 4 + 3);
    let mut known = Signature::new(Prior { length: Some(4), buckets: None });
    (0..8).flat_map(|_| round()).for_each(|event| _ = known.observe(event));
    assert_eq!(known.period().map(Period::len), Some(4));
    assert_eq!(known.step(), 8 * 22);
}

/// A step: reductions, then gathers.
fn any_step() -> impl Strategy<Value = Vec<Event>> {
    let counts = prop::collection::vec(1024u64..5000, 1..30);
    (counts, prop::collection::vec(1024u64..5000, 0..10)).prop_map(|(reduced, gathered)| {
        let mut step = buckets(&reduced);
        step.extend(gathered.iter().enumerate().map(|(n, &count)| gather(count, 1 << 30 | n)));
        step
    })
}

proptest! {
    /// Whatever comes before the first step, it is found within two periods and 16 collectives, and counted from there.
    #[test]
    fn any_sequence_is_found(step in any_step(), before in prop::collection::vec(1024u64..5000, 0..40)) {
        let mut signature = signature();
        for (n, count) in before.into_iter().enumerate() {
            signature.observe(gather(count, 1 << 40 | n));
        }
        let taken = steps(&mut signature, vec![&step[..]; 60]);
        let (first, number) = taken_from(&taken).expect("found");
        prop_assert!(first <= 2 + BY_ADDRESS_STEPS.div_ceil(step.len()), "step {first}");
        prop_assert_eq!(number, first as u64);
        prop_assert_eq!(signature.period().unwrap().events(), &step[..]);
    }

    /// Noise of validation between steps, at any time, never twice the same: a trusted sequence is not disturbed, no step is
    /// ever made up.
    #[test]
    fn validation_does_not_disturb(
        step in any_step(), validations in prop::collection::vec((1usize..40, 1usize..9), 10..60),
    ) {
        let mut signature = signature();
        let (mut total, mut noise) = (0usize, 1 << 50);
        let mut numbers = Vec::new();
        for (count, length) in validations {
            for taken in steps(&mut signature, vec![&step[..]; count]) {
                total += step.len();
                numbers.extend(taken);
                // Twice the probation: the sequence may have been interrupted all through it.
                prop_assert!(taken.is_some() || total < 5 * PROBATION as usize, "after {total} collectives");
            }
            for _ in 0..length {
                noise += 1;
                let verdict = signature.observe(reduce(noise as u64, noise));
                prop_assert!(!matches!(verdict, Verdict::Part { .. }), "{verdict:?}");
            }
        }
        // Before it is trusted a sequence may turn out to be a part of another one, which is then counted from its beginning.
        let wrong = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).count();
        prop_assert!(wrong <= 3, "{:?}", numbers);
    }

    /// After any change the new sequence is found.
    #[test]
    fn changes_are_followed(first in any_step(), second in any_step(), count in 1usize..200) {
        let mut signature = signature();
        steps(&mut signature, vec![&first[..]; count]);
        for event in &second {
            signature.observe(Event { address: event.address + 8, ..*event });
        }
        let moved: Vec<Event> = second.iter().map(|event| Event { address: event.address + 8, ..*event }).collect();
        for _ in 0..2100usize.div_ceil(moved.len()) + 4 {
            moved.iter().for_each(|&event| _ = signature.observe(event));
        }
        prop_assert_eq!(signature.period().map(|period| period.len()), Some(moved.len()));
    }

    /// Nothing that comes makes it panic, or gives places that are not in order.
    #[test]
    fn any_events_give_places_in_order(
        events in prop::collection::vec((0u8..2, 0u64..3, 0usize..3), 0..3000), layout in prop::bool::ANY,
    ) {
        let buckets = layout.then(|| vec![1, 0, 1]);
        let mut signature = Signature::new(Prior { length: None, buckets });
        let mut last: Option<(u64, usize)> = None;
        for (kind, count, address) in events {
            let kind = if kind == 0 { Kind::Reduce } else { Kind::Gather };
            let event = Event { kind, ..reduce(count, address) };
            match signature.observe(event) {
                Verdict::Part { step, position } => {
                    if let Some((before, at)) = last {
                        let is_next = (step, position) == (before, at + 1);
                        prop_assert!(is_next || position == 0 && step >= before, "{:?} {:?}", last, (step, position));
                    } else {
                        prop_assert_eq!(position, 0);
                    }
                    last = Some((step, position));
                }
                Verdict::Lost => last = last.map(|(step, _)| (step, usize::MAX - 1)),
                Verdict::Outside => {}
            }
        }
    }
}

/// Collectives that a period by address has to explain at least.
const BY_ADDRESS_STEPS: usize = 16;
