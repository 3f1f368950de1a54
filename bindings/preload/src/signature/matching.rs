//! A step that is known by its buckets: reductions of given sizes, in a given order.
//!
//! What else is in a step (parameters that are gathered), and of what kind each reduction is, is known when the second one
//! begins; from then on the whole sequence is followed.

use super::period::{Event, Identity, Kind, Period};

/// Reductions in a row that are not the next bucket, after which a step is given up.
const STRANGERS: usize = 64;

/// The first step of a layout.
#[derive(Debug)]
pub struct Matching {
    /// Elements of the buckets.
    buckets: Vec<u64>,
    /// Buckets that came.
    next: usize,
    /// Everything that belongs to the step.
    seen: Vec<Event>,
    strangers: usize,
}

/// What a collective is to the layout.
#[derive(Debug)]
pub enum Matched {
    /// The step goes on.
    Part(Matching),
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
        Matched::Part(Self { buckets: buckets.to_vec(), next: 1, seen: vec![event], strangers: 0 })
    }

    /// The next collective.
    pub fn observe(mut self, event: Event) -> Matched {
        let is_same = event.communicator == self.seen[0].communicator;
        let is_bucket = |count: &u64| is_same && event.kind == Kind::Reduce && event.count == *count;
        let is_complete = self.next == self.buckets.len();
        if is_bucket(&self.buckets[self.next % self.buckets.len()]) {
            if is_complete {
                return Matched::Again(Period::new(self.seen, Identity::Shape));
            }
            self.next += 1;
            self.seen.push(event);
            self.strangers = 0;
            return Matched::Part(self);
        }
        if event.kind == Kind::Gather && is_same {
            self.seen.push(event);
            return Matched::Part(self);
        }
        self.strangers += 1;
        match self.buckets.iter().any(is_bucket) || self.strangers > STRANGERS {
            true => Matched::Lost,
            false => Matched::Part(self),
        }
    }
}
