//! Looking for the period of a sequence of collectives.
//!
//! First by address: buffers that persist make two equal periods in a row good evidence. Else by shape: what is allocated
//! anew in every step cannot be told from another buffer of the same size, and twelve equal layers are not twelve steps, so
//! three periods and many collectives are asked for.
//!
//! A period that turns out to be a part of a longer one (micro-batches before parameters are gathered, say) breaks after
//! some collectives: the next one must explain twice as many. What explains [`PROBATION`] collectives in all is trusted.

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
    /// Collectives since.
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
        search.fresh = 0;
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
        let fits = |period| self.length.is_none_or(|length| length == period);
        // What the user says needs no evidence but one repeat.
        let enough = |least: usize| if self.length.is_some() { 0 } else { least.max(self.needed) };
        let by_address = |period, run| fits(period) && run >= period && period + run >= enough(BY_ADDRESS);
        if let Some((period, run)) = self.by_address.shortest(by_address) {
            return self.found(period, run, Identity::Address);
        }
        // Buffers that are coming back in some order: their period may show soon.
        let is_underway = |period: usize, run: usize| run >= 8.max(period / 4) && run < 2 * period;
        if self.length.is_none() && self.by_address.shortest(is_underway).is_some() {
            return None;
        }
        let periods = if self.length.is_some() { 1 } else { 2 };
        let by_shape = |period, run| fits(period) && run >= periods * period && period + run >= enough(BY_SHAPE);
        let (period, run) = self.by_shape.shortest(by_shape)?;
        self.found(period, run, Identity::Shape)
    }

    /// The last `length + run` collectives have this period. A step begins with the first reduction after a gather.
    fn found(&self, length: usize, run: usize, identity: Identity) -> Option<Found> {
        let last = &self.events[self.events.len() - length..];
        // `phase`: what the collectives of the repeated part began with, as an index into `last`.
        let explained = length + run;
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
