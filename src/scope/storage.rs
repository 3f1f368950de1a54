//! What is kept exactly, within a budget; beyond it only sketches are kept.

use crate::device::{Device, Kept, Segment, Span};

/// Bytes that may be spent on exact references, snapshots and copies.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    /// Storage for the elements of a slice that `segments` reach, all zero, if the budget allows it.
    pub fn allocate(&mut self, segments: &[Segment]) -> Option<Exact> {
        self.allocate_span(Span::of(segments), elements(segments))
    }

    /// Sets bytes aside. On failure nothing is taken, and the bytes that are missing are returned.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), u64> {
        let room = self.limit.saturating_sub(self.used);
        if bytes > room {
            return Err(bytes - room);
        }
        self.used += bytes;
        Ok(())
    }

    /// Gives back bytes that were set aside.
    pub fn give_back(&mut self, bytes: u64) {
        self.used -= bytes;
    }

    fn allocate_span(&mut self, span: Span, elements: u64) -> Option<Exact> {
        let bytes = 4 * span.len() as u64;
        (self.used + bytes <= self.limit).then(|| {
            self.used += bytes;
            Exact { span, elements, mantissa_bits: 23, values: vec![0.0; span.len()], squares: 0.0, peak: 0.0 }
        })
    }

    /// Storage that reaches over `segments` as well, with the same values, if the budget allows it; else the old is
    /// released.
    pub fn extend(&mut self, old: Exact, segments: &[Segment]) -> Option<Exact> {
        let part = Span::of(segments);
        let span = Span { start: old.span.start.min(part.start), end: old.span.end.max(part.end) };
        let mut new = self.allocate_span(span, old.elements + elements(segments));
        if let Some(new) = &mut new {
            let start = (old.span.start - span.start) as usize;
            new.values[start..start + old.values.len()].copy_from_slice(&old.values);
        }
        self.release([old]);
        new
    }

    /// Returns the bytes of storage that is no longer needed.
    pub fn release(&mut self, exact: impl IntoIterator<Item = Exact>) {
        self.used -= exact.into_iter().map(|exact| 4 * exact.span.len() as u64).sum::<u64>();
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
    pub values: Vec<f32>,
    /// Σ v², as of the last [`measure`](Exact::measure).
    pub squares: f64,
    /// max |v|, likewise.
    pub peak: f32,
}

impl Exact {
    /// Brings `squares` and `peak` up to date.
    pub fn measure(&mut self, device: &dyn Device) {
        (self.squares, self.peak) = device.norm(&self.values);
    }

    /// Everything that `segments` reach is there, and no hole is taken for a value. Shards are told apart by their span and
    /// their number of elements.
    pub fn covers(&self, segments: &[Segment]) -> bool {
        let (span, count) = (Span::of(segments), elements(segments));
        let is_dense = self.elements == self.span.len() as u64;
        (span, count) == (self.span, self.elements) || is_dense && self.span.contains(span)
    }

    /// It holds all of a slice of so many elements.
    pub fn is_whole(&self, elements: usize) -> bool {
        (self.span.start, self.span.len(), self.elements) == (0, elements, elements as u64)
    }

    /// Σ v² over what `segments` reach, after [`measure`](Exact::measure).
    pub fn squares_over(&self, segments: &[Segment], device: &dyn Device) -> f64 {
        let span = Span::of(segments);
        if span == self.span {
            return self.squares;
        }
        let start = (span.start - self.span.start) as usize;
        device.norm(&self.values[start..start + span.len()]).0
    }

    /// The values as a device reads them.
    pub fn kept(&self) -> Kept<'_> {
        Kept { span: self.span, values: &self.values, peak: self.peak }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, end: u64) -> [Segment; 1] {
        let length = end - start;
        [Segment { index: start, index_step: 0, rows: 1, length, offset: 0, row_step: 0, column_step: 1 }]
    }

    #[test]
    fn the_budget_is_kept() {
        let mut budget = Budget::new(100);
        let first = budget.allocate(&run(5, 25)).unwrap();
        assert!(budget.allocate(&run(0, 6)).is_none());
        assert!(budget.allocate(&run(0, 5)).is_some());
        budget.release([first]);
        assert!(budget.allocate(&run(0, 20)).is_some());
        assert!(budget.allocate(&run(0, 1)).is_none());
    }

    #[test]
    fn bytes_are_set_aside_or_the_missing_ones_named() {
        let mut budget = Budget::new(100);
        assert_eq!(budget.reserve(60), Ok(()));
        assert_eq!(budget.reserve(50), Err(10));
        budget.give_back(20);
        assert_eq!(budget.reserve(60), Ok(()));
        assert!(budget.allocate(&run(0, 1)).is_none());
    }

    #[test]
    fn holes_are_not_taken_for_values() {
        let mut budget = Budget::new(1000);
        // Columns 0..2 of rows of 4: half of the span is holes.
        let columns = [Segment { index: 0, index_step: 4, rows: 5, length: 2, offset: 0, row_step: 4, column_step: 1 }];
        let shard = budget.allocate(&columns).unwrap();
        assert!(shard.covers(&columns));
        assert!(!shard.covers(&run(0, 18)) && !shard.covers(&run(4, 8)));
        let whole = budget.allocate(&run(0, 20)).unwrap();
        assert!(whole.covers(&columns) && whole.covers(&run(3, 7)) && !whole.covers(&run(10, 21)));
    }

    #[test]
    fn parts_grow_together() {
        let mut budget = Budget::new(1000);
        let mut first = budget.allocate(&run(10, 20)).unwrap();
        first.values.fill(1.0);
        let both = budget.extend(first, &run(0, 10)).unwrap();
        assert!(both.covers(&run(0, 20)));
        assert_eq!((both.values[9], both.values[10]), (0.0, 1.0));
    }
}
