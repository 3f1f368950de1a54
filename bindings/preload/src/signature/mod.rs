//! What is a step: the repeating sequence of a trainer's collectives.
//!
//! A trainer reduces the same buckets of gradients in the same order in every step, and gathers parameters perhaps. That
//! sequence is looked for ([`search`]), or known from a layout file ([`matching`]), and then followed: each collective is
//! compared with the next one that is expected. Pure: events in, places in a step out.
//!
//! Steps are numbered from the first complete period. While the sequence is looked for nothing is measured, but periods are
//! counted once they are known. A sequence that changes (PyTorch's DDP rebuilds its buckets after the first iteration) is
//! lost, looked for anew, and the count goes on.
//!
//! Cost while following: one comparison. While looking: microseconds, of which [`bursts`] says how long.

mod bursts;
mod matching;
mod period;
mod repeats;
mod search;

#[cfg(test)]
pub use period::Identity;
pub use period::{Communicator, Event, Kind, Period};
pub use repeats::LONGEST;

use bursts::{BURST, Bursts, Turn};
use matching::{Matched, Matching};
use search::{PROBATION, Search};

/// Collectives of other kinds in a row, beyond four periods, after which a sequence counts as lost.
const STRANGERS: usize = 64;
/// Collectives without a period after which that is said.
const PATIENCE: u64 = BURST;

/// Where a collective belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In no step that is known.
    Outside,
    /// The collective at `position` of the period, in step `step`. Position 0 begins the step.
    Part { step: u64, position: usize },
    /// In no step, and the step that was going on will not be completed.
    Lost,
}

/// What people should be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The buckets that were found, by elements, are not those of the layout, which is not used any more.
    Misfit { expected: Vec<u64>, seen: Vec<u64> },
    /// So many collectives and no period. The latest counts of elements.
    Nothing { events: u64, latest: Vec<u64> },
}

/// What is known before the first collective.
#[derive(Clone, Debug, Default)]
pub struct Prior {
    /// Collectives of a step.
    pub length: Option<usize>,
    /// Elements of each bucket that is reduced, in order.
    pub buckets: Option<Vec<u64>>,
}

/// The sequence, as far as it is known.
#[derive(Debug)]
pub struct Signature {
    prior: Prior,
    state: State,
    /// Steps that are over; the number of the next one.
    steps: u64,
    /// Changes whenever [`Signature::period`] does.
    generation: u64,
    events: u64,
    /// It was said that there is no period.
    is_hopeless: bool,
    news: Vec<News>,
}

#[derive(Debug)]
enum State {
    Searching(Box<Searching>),
    Following(Following),
}

#[derive(Debug)]
struct Searching {
    search: Search,
    bursts: Bursts,
    /// Buckets of the layout that came one after the other.
    matching: Option<Matching>,
}

#[derive(Debug)]
struct Following {
    period: Period,
    position: usize,
    /// The step that goes on was seen from its beginning.
    is_whole: bool,
    /// Collectives in a row that do not belong to the period.
    strangers: Vec<Event>,
    /// The latest of them may be what was expected, in a buffer that has moved: what comes next tells.
    has_moved: bool,
    /// Collectives in a row that fitted; beyond [`PROBATION`] the period is trusted.
    credit: u64,
    /// Steps before the first of them.
    since: u64,
}

impl Searching {
    fn with(search: Search) -> State {
        State::Searching(Box::new(Self { search, bursts: Bursts::new(), matching: None }))
    }
}

impl Following {
    fn new(period: Period, position: usize, credit: u64, since: u64) -> Self {
        Self { period, position, is_whole: false, strangers: Vec::new(), has_moved: false, credit, since }
    }
}

impl Signature {
    pub fn new(prior: Prior) -> Self {
        let state = Searching::with(Search::new(prior.length));
        Self { prior, state, steps: 0, generation: 0, events: 0, is_hopeless: false, news: Vec::new() }
    }

    /// The sequence that is followed, if one is.
    pub fn period(&self) -> Option<&Period> {
        match &self.state {
            State::Following(following) => Some(&following.period),
            State::Searching(_) => None,
        }
    }

    /// Changes whenever the period does; never when only an address has.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Number of the next step, or of the one that goes on.
    pub fn step(&self) -> u64 {
        self.steps
    }

    /// What has become known since the last call.
    pub fn news(&mut self) -> Option<News> {
        if self.news.is_empty() { None } else { Some(self.news.remove(0)) }
    }

    /// The next collective of this process, in the order of issue.
    pub fn observe(&mut self, event: Event) -> Verdict {
        match &mut self.state {
            State::Following(_) => self.follow(event),
            State::Searching(_) => self.look(event),
        }
    }

    fn follow(&mut self, event: Event) -> Verdict {
        let State::Following(following) = &mut self.state else { return Verdict::Outside };
        let Following { period, position, is_whole, strangers, has_moved, credit, since } = following;
        let has_broken = std::mem::take(has_moved) && {
            let moved = strangers[strangers.len() - 1];
            // It was what was expected if the sequence goes on behind it.
            let behind = (*position + 1) % period.len();
            let goes_on = if behind == *position { event == moved } else { period.takes(behind, &event) };
            if goes_on {
                period.moves(*position, moved);
                *position = behind;
                self.steps += u64::from(behind == 0);
                // It was not looked at while it was there.
                *is_whole = false;
            }
            goes_on
        };
        if period.takes(*position, &event) {
            *credit += 1;
            strangers.clear();
            let place = Verdict::Part { step: self.steps, position: *position };
            *is_whole |= *position == 0;
            let verdict = match *is_whole {
                true => place,
                false if has_broken => Verdict::Lost,
                false => Verdict::Outside,
            };
            *position += 1;
            if *position == period.len() {
                *position = 0;
                self.steps += 1;
            }
            return verdict;
        }
        *has_moved = period.could_take(*position, &event);
        let is_trusted = *credit > PROBATION || *has_moved && strangers.is_empty();
        let is_noise = is_trusted && !period.knows(&event) && strangers.len() < STRANGERS.max(4 * period.len());
        if is_noise {
            strangers.push(event);
            return Verdict::Outside;
        }
        let mut search = Search::after(period, *position, *credit, *since, self.prior.length);
        strangers.iter().for_each(|&stranger| search.remember(stranger));
        self.state = Searching::with(search);
        self.generation += 1;
        // The collective may begin a step of the layout.
        self.look(event);
        Verdict::Lost
    }

    fn look(&mut self, event: Event) -> Verdict {
        let State::Searching(searching) = &mut self.state else { return Verdict::Outside };
        self.events += 1;
        let found = match searching.bursts.next() {
            Turn::Pause => None,
            Turn::Search => searching.search.push(event),
            Turn::SearchAnew => {
                searching.search = Search::new(self.prior.length);
                searching.search.push(event)
            }
        };
        if let Some(buckets) = &self.prior.buckets {
            let matching = searching.matching.take();
            let was_matching = matching.is_some();
            let matched = match matching.map_or(Matched::Lost, |matching| matching.observe(event)) {
                // There is a sequence, and it is not that of the layout.
                Matched::Lost if was_matching && found.is_some() => Matched::Lost,
                // What is no bucket of this step may be the first of the next one.
                Matched::Lost => Matching::begin(buckets, event),
                matched => matched,
            };
            match matched {
                Matched::Part(matching) => {
                    searching.matching = Some(matching);
                    return Verdict::Outside;
                }
                Matched::Again(period) => {
                    // The collective begins the second step.
                    self.steps += 1;
                    self.enter(Following::new(period, 0, PROBATION + 1, self.steps));
                    return self.follow(event);
                }
                Matched::Lost => {}
            }
        }
        let Some(found) = found else {
            if self.events > PATIENCE && !self.is_hopeless {
                self.is_hopeless = true;
                let latest = searching.search.latest(12);
                self.news.push(News::Nothing { events: self.events, latest });
            }
            return Verdict::Outside;
        };
        if let Some(expected) = self.prior.buckets.take() {
            let seen = found.period.buckets().map(|event| event.count).collect();
            self.news.push(News::Misfit { expected, seen });
        }
        let since = found.since.unwrap_or(self.steps);
        self.steps = since + found.completed;
        self.enter(Following::new(found.period, found.position, found.credit, since));
        Verdict::Outside
    }

    fn enter(&mut self, following: Following) {
        self.state = State::Following(following);
        self.generation += 1;
        self.is_hopeless = true;
    }
}

#[cfg(test)]
mod tests;
