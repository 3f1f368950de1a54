//! Looking for the period of a sequence of collectives.
//!
//! First by address: buffers that persist make two equal periods in a row good evidence. Else by shape: what is allocated
//! anew in every step cannot be told from another buffer of the same size, and twelve equal layers are not twelve steps, so
//! three periods and many collectives are asked for.
//!
//! A period that turns out to be a part of a longer one (micro-batches before parameters are gathered, say) breaks after
//! some collectives: what it is a part of, or has as a part, must explain twice as many. What explains [`PROBATION`]
//! collectives in all is trusted.

use super::period::{Event, Identity, Kind, Period};
use super::repeats::{LONGEST, Repeats};

/// Collectives that a period has to explain before what does not fit counts as noise.
pub const PROBATION: u64 = 1024;
/// Collectives that a period by address has to explain at least: one flat buffer is seen so often.
const BY_ADDRESS: usize = 16;
/// The same by shape.
const BY_SHAPE: usize = 512;

/// A period, and where in it the sequence is now.
#[derive(Debug)]
pub struct Found {
    pub period: Period,
    /// Whole periods so far.
    pub completed: u64,
    /// The next collective's position.
    pub position: usize,
    /// Collectives that it has explained.
    pub credit: u64,
    /// Steps before the first of them, if that was before the search began.
    pub since: Option<u64>,
}

#[derive(Debug)]
pub struct Search {
    /// The latest collectives, at least [`LONGEST`] once there were as many.
    events: Vec<Event>,
    by_address: Repeats,
    by_shape: Repeats,
    /// Collectives of a step, where the user says so.
    length: Option<usize>,
    /// Collectives that a period has to explain after one that did not last.
    needed: usize,
    before: Option<Before>,
    /// Collectives of it that are remembered, and collectives since.
    seeded: usize,
    fresh: usize,
}

/// The period that was lost.
#[derive(Debug)]
struct Before {
    period: Period,
    /// Collectives that it explains.
    credit: u64,
    /// How often it came since.
    times: u64,
    /// Steps before it.
    since: u64,
}

impl Search {
    pub fn new(length: Option<usize>) -> Self {
        Self {
            events: Vec::new(),
            by_address: Repeats::default(),
            by_shape: Repeats::default(),
            length,
            needed: 0,
            before: None,
            seeded: 0,
            fresh: 0,
        }
    }

    /// After a period that explained the last `credit` collectives, `since` a step, up to `position`; then came something
    /// else.
    pub fn after(period: &Period, position: usize, credit: u64, since: u64, length: Option<usize>) -> Self {
        let before = Some(Before { period: period.clone(), credit, times: 0, since });
        let search = Self { before, ..Self::new(length) };
        if credit > PROBATION {
            // The period was right, and has really changed.
            return search;
        }
        let mut search = Self { needed: 2 * credit as usize, ..search };
        // They may be a part of a longer period.
        let (credit, events) = (credit as usize, period.events());
        let first = position + events.len() - credit % events.len();
        (first..first + credit).for_each(|n| search.remember(events[n % events.len()]));
        (search.seeded, search.fresh) = (search.fresh, 0);
        search
    }

    /// The next collective. What is found belongs to it and those before.
    pub fn push(&mut self, event: Event) -> Option<Found> {
        self.remember(event);
        self.resumed().or_else(|| self.repeated())
    }

    /// A collective that cannot complete a period.
    pub fn remember(&mut self, event: Event) {
        if self.events.len() == 4 * LONGEST {
            self.events.drain(..3 * LONGEST);
        }
        self.events.push(event);
        self.by_address.push(event.key(Identity::Address));
        self.by_shape.push(event.key(Identity::Shape));
        self.fresh += 1;
    }

    /// Elements of the latest collectives.
    pub fn latest(&self, count: usize) -> Vec<u64> {
        let first = self.events.len().saturating_sub(count);
        self.events[first..].iter().map(|event| event.count).collect()
    }

    /// The period that was lost is there again, and has explained enough.
    fn resumed(&mut self) -> Option<Found> {
        let before = self.before.as_mut()?;
        let first = self.events.len().checked_sub(before.period.len())?;
        let last = &self.events[first..];
        if !before.period.is(last) {
            return None;
        }
        before.credit += last.len() as u64;
        before.times += 1;
        let period = Period::new(last.to_vec(), before.period.identity());
        let (credit, completed) = (before.credit, before.times);
        (credit > PROBATION).then_some(Found { period, completed, position: 0, credit, since: None })
    }

    /// The sequence has repeated often enough.
    fn repeated(&self) -> Option<Found> {
        let by_address = |period, run| self.is_enough(period, run, 2, BY_ADDRESS);
        if let Some((period, run)) = self.by_address.shortest(by_address) {
            return self.found(period, run, Identity::Address);
        }
        // Buffers that are coming back in some order: their period may show soon.
        let is_underway = |period: usize, run: usize| run >= 8.max(period / 4) && run < 2 * period;
        if self.length.is_none() && self.by_address.shortest(is_underway).is_some() {
            return None;
        }
        let by_shape = |period, run| self.is_enough(period, run, 3, BY_SHAPE);
        let (period, run) = self.by_shape.shortest(by_shape)?;
        self.found(period, run, Identity::Shape)
    }

    /// The last `period + run` collectives are evidence enough of the period: so many times it, and `least` collectives.
    fn is_enough(&self, period: usize, run: usize, times: usize, least: usize) -> bool {
        let explained = self.explained(period + run);
        if let Some(length) = self.length {
            // What the user says needs no evidence but one repeat.
            return period == length && explained >= 2 * period;
        }
        explained >= (times * period).max(least) && (explained >= self.needed || !self.is_part(period))
    }

    /// One of the last `length` collectives as a cycle, and the period that did not last, is a part of the other.
    fn is_part(&self, length: usize) -> bool {
        let Some(before) = &self.before else { return false };
        let (old, new) = (before.period.events(), &self.events[self.events.len() - length..]);
        let (long, short) = if old.len() > new.len() { (old, new) } else { (new, old) };
        let holds_at = |first: usize| (0..short.len()).all(|n| long[(first + n) % long.len()].is_like(&short[n]));
        (0..long.len()).any(holds_at)
    }

    /// How many of the latest `repeated` collectives are taken to be of one sequence. What came before the search began is
    /// a part of it as a whole, or happens to be like its end.
    fn explained(&self, repeated: usize) -> usize {
        if repeated >= self.fresh + self.seeded { repeated } else { repeated.min(self.fresh) }
    }

    /// The last `length + run` collectives have this period. A step begins with the first reduction after a gather.
    fn found(&self, length: usize, run: usize, identity: Identity) -> Option<Found> {
        let last = &self.events[self.events.len() - length..];
        // `phase`: what the collectives of the repeated part began with, as an index into `last`.
        let explained = self.explained(length + run);
        let phase = (length - explained % length) % length;
        let at = |n: usize| &last[(phase + n) % length];
        let begins = |n: &usize| at(*n).kind == Kind::Reduce && at(n + length - 1).kind == Kind::Gather;
        let lead = match (0..length).find(begins) {
            Some(lead) => lead,
            // All are of one kind; without a reduction there is nothing to measure.
            None if at(0).kind == Kind::Reduce => 0,
            None => return None,
        };
        let events = (lead..lead + length).map(|n| *at(n)).collect();
        let whole = explained - lead;
        Some(Found {
            period: Period::new(events, identity),
            completed: (whole / length) as u64,
            position: whole % length,
            credit: explained as u64,
            since: self.before.as_ref().filter(|_| explained > self.fresh).map(|before| before.since),
        })
    }
}
