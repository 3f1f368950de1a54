//! A step that is known by its buckets: reductions of given sizes, in a given order.
//!
//! The first step is measured as it comes. What else is in it (parameters that are gathered) is known when the second one
//! begins; from then on the whole sequence is followed.

use super::period::{Event, Identity, Kind, Period};

/// Reductions in a row that are not the next bucket, after which a step is given up.
const STRANGERS: usize = 64;

/// The first step of a layout.
#[derive(Debug)]
pub struct Matching {
    /// The buckets; what is not known of those to come is as in the first.
    period: Period,
    /// Buckets that came.
    next: usize,
    /// Everything that belongs to the step.
    seen: Vec<Event>,
    strangers: usize,
}

/// What a collective is to the layout.
#[derive(Debug)]
pub enum Matched {
    /// The bucket with this number.
    Bucket(Matching, usize),
    /// No bucket; the step goes on.
    Nothing(Matching),
    /// The first bucket of the second step.
    Again(Period),
    /// The step will not be completed, or has not begun.
    Lost,
}

impl Matching {
    /// The step begins if the event is its first bucket.
    pub fn begin(buckets: &[u64], event: Event) -> Matched {
        if event.kind != Kind::Reduce || buckets.first() != Some(&event.count) {
            return Matched::Lost;
        }
        let events = buckets.iter().map(|&count| Event { count, ..event }).collect();
        let period = Period::new(events, Identity::Shape);
        Matched::Bucket(Self { period, next: 1, seen: vec![event], strangers: 0 }, 0)
    }

    pub fn period(&self) -> &Period {
        &self.period
    }

    /// The next collective.
    pub fn observe(mut self, event: Event) -> Matched {
        let buckets = self.period.events();
        let is_next = |bucket: &Event| {
            event.kind == Kind::Reduce && event.count == bucket.count && event.communicator == bucket.communicator
        };
        let is_complete = self.next == buckets.len();
        let expected = buckets[self.next % buckets.len()];
        if is_next(&expected) {
            if is_complete {
                return Matched::Again(Period::new(self.seen, Identity::Shape));
            }
            let position = self.next;
            self.next += 1;
            self.seen.push(event);
            self.strangers = 0;
            return Matched::Bucket(self, position);
        }
        if event.kind == Kind::Gather && event.communicator == expected.communicator {
            self.seen.push(event);
            return Matched::Nothing(self);
        }
        self.strangers += 1;
        match buckets.iter().any(is_next) || self.strangers > STRANGERS {
            true => Matched::Lost,
            false => Matched::Nothing(self),
        }
    }
}
