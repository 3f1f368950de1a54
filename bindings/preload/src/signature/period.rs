//! One collective as the search for steps sees it, and the sequence of them that makes a step.

use std::hash::{DefaultHasher, Hash, Hasher};

/// What a collective does to the trainer's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All-reduce or reduce-scatter: gradients.
    Reduce,
    /// All-gather or broadcast: parameters.
    Gather,
}

/// A communicator, and this process in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Communicator {
    /// As a number. A handle that was freed may come again for another communicator.
    pub handle: usize,
    pub rank: u32,
    pub size: u32,
    /// The communicator's first rank, as a rank of the job; `None` where that is not known.
    pub first: Option<u32>,
}

/// A collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub kind: Kind,
    /// A reduction that leaves each rank a part of its own.
    pub is_scattered: bool,
    pub communicator: Communicator,
    /// Elements of all ranks together.
    pub count: u64,
    /// Any number that differs where data types do.
    pub dtype: u32,
    /// Where the result lies.
    pub address: usize,
}

impl Event {
    /// The same at another address.
    pub fn is_like(&self, other: &Self) -> bool {
        Self { address: 0, ..*self } == Self { address: 0, ..*other }
    }

    /// A number that stands for the event, with or without its address.
    pub fn key(&self, identity: Identity) -> u64 {
        let mut hasher = DefaultHasher::new();
        match identity {
            Identity::Address => self.hash(&mut hasher),
            Identity::Shape => Self { address: 0, ..*self }.hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// By what collectives of a period are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Buffers stay where they are.
    Address,
    /// Buffers are allocated anew in every step.
    Shape,
}

/// The collectives of a step. The first one is a reduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    events: Vec<Event>,
    identity: Identity,
}

impl Period {
    pub fn new(events: Vec<Event>, identity: Identity) -> Self {
        Self { events, identity }
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The reductions, in order: buckets of gradients.
    pub fn buckets(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| event.kind == Kind::Reduce)
    }

    /// The event is the one that is expected at `position`.
    pub fn takes(&mut self, position: usize, event: &Event) -> bool {
        let expected = &mut self.events[position];
        let is_taken = match self.identity {
            Identity::Address => expected == event,
            Identity::Shape => expected.is_like(event),
        };
        if is_taken {
            *expected = *event;
        }
        is_taken
    }

    /// The event may be the one that is expected at `position`, in a buffer that has moved: or something else of that size.
    pub fn could_take(&self, position: usize, event: &Event) -> bool {
        self.identity == Identity::Address && self.events[position].is_like(event) && !self.events.contains(event)
    }

    /// The buffer at `position` is where that of the event is.
    pub fn moves(&mut self, position: usize, event: Event) {
        self.events[position] = event;
    }

    /// The event belongs to the period, if not at the position that is expected.
    pub fn knows(&self, event: &Event) -> bool {
        match self.identity {
            Identity::Address => self.events.contains(event),
            Identity::Shape => self.events.iter().any(|known| known.is_like(event)),
        }
    }

    /// The events are one whole period, from its beginning on.
    pub fn is(&self, events: &[Event]) -> bool {
        self.events.len() == events.len()
            && self.events.iter().zip(events).all(|(own, event)| match self.identity {
                Identity::Address => own == event,
                Identity::Shape => own.is_like(event),
            })
    }
}
