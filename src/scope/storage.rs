//! What is kept exactly, within a budget; beyond it only sketches are kept.

use super::queue::Queue;
use crate::device::{Device, Home, Keeping, Kept, Place, Segment, SliceRead, Span, Values};
use std::collections::BTreeMap;

/// Bytes that may be spent on exact references, snapshots and copies: so many in each place that tensors lie in.
#[derive(Debug)]
pub struct Budget {
    limit: Limit,
    accounts: BTreeMap<Place, Account>,
    /// What a CUDA device has no room for may be kept in pinned host memory.
    spills: bool,
}

/// How much may be spent in one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Bytes(u64),
    /// Of the memory of the place: 0 to 1.
    Share(f64),
}

/// Bytes of one place.
#[derive(Debug)]
struct Account {
    limit: u64,
    used: u64,
}

impl Account {
    /// On failure nothing is taken, and the bytes that are missing are returned.
    fn take(&mut self, bytes: u64) -> Result<(), u64> {
        let room = self.limit.saturating_sub(self.used);
        if bytes > room {
            return Err(bytes - room);
        }
        self.used += bytes;
        Ok(())
    }
}

impl Budget {
    pub fn new(limit: Limit) -> Self {
        Self { limit, accounts: BTreeMap::new(), spills: false }
    }

    /// The same; what does not fit into a CUDA device's memory goes to pinned host memory.
    pub fn with_spills(self, spills: bool) -> Self {
        Self { spills, ..self }
    }

    /// The device is asked for its memory when a place first occurs.
    fn account(&mut self, device: &dyn Device, place: Place) -> &mut Account {
        let limit = self.limit;
        self.accounts.entry(place).or_insert_with(|| {
            let limit = match limit {
                Limit::Bytes(bytes) => bytes,
                Limit::Share(share) => (device.memory_bytes(place) as f64 * share) as u64,
            };
            Account { limit, used: 0 }
        })
    }

    /// Storage for the elements of a slice that are read, all zero, where they can be compared with it, if the budget and
    /// the device allow it.
    pub fn allocate(&mut self, device: &dyn Device, read: &SliceRead, keeping: Keeping) -> Option<Exact> {
        self.allocate_span(device, read.memory.place, Span::of(read.segments), elements(read.segments), keeping)
    }

    /// Sets bytes of host memory aside. On failure nothing is taken, and the bytes that are missing are returned.
    pub fn reserve(&mut self, device: &dyn Device, bytes: u64) -> Result<(), u64> {
        self.account(device, Place::Host).take(bytes)
    }

    /// Gives back bytes of host memory that were set aside.
    pub fn give_back(&mut self, bytes: u64) {
        self.give_back_to(Place::Host, bytes);
    }

    fn give_back_to(&mut self, place: Place, bytes: u64) {
        if let Some(account) = self.accounts.get_mut(&place) {
            account.used -= bytes;
        }
    }

    fn allocate_span(
        &mut self,
        device: &dyn Device,
        place: Place,
        span: Span,
        elements: u64,
        keeping: Keeping,
    ) -> Option<Exact> {
        let bytes = device.value_bytes(place, span.len(), keeping);
        let homes = [(Home::Near, place), (Home::Pinned, Place::Host)];
        let homes = &homes[..if self.spills && place != Place::Host { 2 } else { 1 }];
        homes.iter().find_map(|&(home, charged)| {
            self.account(device, charged).take(bytes).ok()?;
            let values = device.values(place, span.len(), keeping, home);
            if values.is_none() {
                self.give_back_to(charged, bytes);
            }
            values.map(|values| Exact { span, elements, mantissa_bits: 23, values, charged, bytes })
        })
    }

    /// Says that values stay as they are for now, and charges what they take then.
    pub fn settle(&mut self, queue: &Queue, exact: &mut Exact) {
        queue.device.settle(queue.stream, &mut exact.values);
        let bytes = exact.values.bytes();
        if let Some(account) = self.accounts.get_mut(&exact.charged) {
            account.used = account.used - exact.bytes + bytes;
            exact.bytes = bytes;
        }
    }

    /// Storage that reaches over what is read as well, with the same values, if the budget allows it; else the old is
    /// released.
    pub fn extend(&mut self, queue: &Queue, old: Exact, read: &SliceRead) -> Option<Exact> {
        let part = Span::of(read.segments);
        let span = Span { start: old.span.start.min(part.start), end: old.span.end.max(part.end) };
        let elements = old.elements + elements(read.segments);
        let is_there = old.values.place() == read.memory.place;
        let mut new = is_there
            .then(|| self.allocate_span(&queue.device, read.memory.place, span, elements, Keeping::Sum))
            .flatten();
        let start = (old.span.start - span.start) as usize;
        let copy = |new: &mut Exact| queue.device.copy_values(queue.stream, &old.values, &mut new.values, start);
        let is_copied = new.as_mut().is_none_or(copy);
        self.release([old]);
        if !is_copied {
            self.release(new.take());
        }
        new
    }

    /// Returns the bytes of storage that is no longer needed.
    pub fn release(&mut self, exact: impl IntoIterator<Item = Exact>) {
        for exact in exact {
            self.give_back_to(exact.charged, exact.bytes);
        }
    }
}

/// Elements that segments reach.
pub fn elements(segments: &[Segment]) -> u64 {
    segments.iter().map(Segment::numel).sum()
}

/// Values of one slice, over the indices that this rank owns.
#[derive(Debug)]
pub struct Exact {
    pub span: Span,
    /// Elements inside the span that are really there; the others are holes.
    elements: u64,
    /// Explicit mantissa bits of what was copied.
    pub mantissa_bits: i32,
    pub values: Values,
    /// Whose budget they are on, and with how many bytes.
    charged: Place,
    bytes: u64,
}

impl Exact {
    /// Everything that is read is there, where it can be compared with it, and no hole is taken for a value. Shards are told
    /// apart by their span and their number of elements.
    pub fn covers(&self, read: &SliceRead) -> bool {
        let (span, count) = (Span::of(read.segments), elements(read.segments));
        // Neither of the two has holes, so a part of the one is all of the other.
        let are_dense = self.elements == self.span.len() as u64 && count == span.len() as u64;
        let is_there = self.values.place() == read.memory.place;
        is_there && ((span, count) == (self.span, self.elements) || are_dense && self.span.contains(span))
    }

    /// It holds all of a slice of so many elements.
    pub fn is_whole(&self, elements: usize) -> bool {
        (self.span.start, self.span.len(), self.elements) == (0, elements, elements as u64)
    }

    /// The values as a device reads them.
    pub fn kept(&self) -> Kept<'_> {
        Kept { span: self.span, values: &self.values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::{DType, Machine, Memory};
    use crate::sketch::Layout;

    fn queue() -> Queue {
        Queue::new(Machine::new(Cpu::new(1).unwrap()))
    }

    fn run(start: u64, end: u64) -> [Segment; 1] {
        let length = end - start;
        [Segment { index: start, index_step: 0, rows: 1, length, offset: 0, row_step: 0, column_step: 1 }]
    }

    fn read(segments: &[Segment]) -> SliceRead<'_> {
        // SAFETY: nothing is read.
        let memory = unsafe { Memory::new(std::ptr::null(), DType::F32) };
        SliceRead { layout: Layout::new(100, 100, 1), memory, segments }
    }

    #[test]
    fn the_budget_is_kept() {
        let device = &queue().device;
        let mut budget = Budget::new(Limit::Bytes(100));
        let first = budget.allocate(device, &read(&run(5, 25)), Keeping::Sum).unwrap();
        assert!(budget.allocate(device, &read(&run(0, 6)), Keeping::Sum).is_none());
        assert!(budget.allocate(device, &read(&run(0, 5)), Keeping::Sum).is_some());
        budget.release([first]);
        assert!(budget.allocate(device, &read(&run(0, 20)), Keeping::Sum).is_some());
        assert!(budget.allocate(device, &read(&run(0, 1)), Keeping::Sum).is_none());
    }

    #[test]
    fn bytes_are_set_aside_or_the_missing_ones_named() {
        let device = &queue().device;
        let mut budget = Budget::new(Limit::Bytes(100));
        assert_eq!(budget.reserve(device, 60), Ok(()));
        assert_eq!(budget.reserve(device, 50), Err(10));
        budget.give_back(20);
        assert_eq!(budget.reserve(device, 60), Ok(()));
        assert!(budget.allocate(device, &read(&run(0, 1)), Keeping::Sum).is_none());
    }

    #[test]
    fn each_place_has_its_own_limit() {
        let device = &queue().device;
        let mut budget = Budget::new(Limit::Share(1e-6));
        let limit = (device.memory_bytes(Place::Host) as f64 * 1e-6) as u64;
        assert_eq!(budget.reserve(device, limit + 7), Err(7));
        let mut budget = Budget::new(Limit::Bytes(100));
        assert_eq!(budget.reserve(device, 100), Ok(()));
        let segments = run(0, 10);
        // SAFETY: nothing is read.
        let memory = unsafe { Memory::on_device(std::ptr::null(), DType::F32, 3) };
        let elsewhere = SliceRead { memory, ..read(&segments) };
        // There is room, but no device that could keep anything there: nothing is taken.
        assert!(budget.allocate(device, &elsewhere, Keeping::Sum).is_none());
        assert_eq!(budget.account(device, memory.place).take(100), Ok(()));
    }

    #[test]
    fn values_of_another_place_are_of_no_use() {
        let mut budget = Budget::new(Limit::Bytes(1000));
        let segments = run(0, 10);
        let here = budget.allocate(&queue().device, &read(&segments), Keeping::Sum).unwrap();
        // SAFETY: nothing is read.
        let memory = unsafe { Memory::on_device(std::ptr::null(), DType::F32, 0) };
        assert!(here.covers(&read(&segments)) && !here.covers(&SliceRead { memory, ..read(&segments) }));
    }

    #[test]
    fn holes_are_not_taken_for_values() {
        let device = &queue().device;
        let mut budget = Budget::new(Limit::Bytes(1000));
        // Columns 0..2 of rows of 4: half of the span is holes.
        let columns = [Segment { index: 0, index_step: 4, rows: 5, length: 2, offset: 0, row_step: 4, column_step: 1 }];
        let covers = |exact: &Exact, segments: &[Segment]| exact.covers(&read(segments));
        let shard = budget.allocate(device, &read(&columns), Keeping::Sum).unwrap();
        assert!(covers(&shard, &columns));
        assert!(!covers(&shard, &run(0, 18)) && !covers(&shard, &run(4, 8)));
        let whole = budget.allocate(device, &read(&run(0, 20)), Keeping::Sum).unwrap();
        assert!(covers(&whole, &run(3, 7)) && !covers(&whole, &run(10, 21)));
        // Between the columns, the whole has values and what is read has none.
        assert!(!covers(&whole, &columns));
    }

    #[test]
    fn parts_grow_together() {
        let queue = queue();
        let mut budget = Budget::new(Limit::Bytes(1000));
        let mut first = budget.allocate(&queue.device, &read(&run(10, 20)), Keeping::Sum).unwrap();
        first.values.host_mut().unwrap().values.fill(1.0);
        let both = budget.extend(&queue, first, &read(&run(0, 10))).unwrap();
        assert!(both.covers(&read(&run(0, 20))));
        let values = &both.values.host().unwrap().values;
        assert_eq!((values[9], values[10]), (0.0, 1.0));
    }
}
