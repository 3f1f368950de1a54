//! What is kept exactly, within a budget; beyond it only sketches are kept.

use crate::device::{Device, Kept, Span};

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

    /// Storage for the values of a slice over `span`, all zero, if the budget allows it.
    pub fn allocate(&mut self, span: Span) -> Option<Exact> {
        let bytes = 4 * span.len() as u64;
        (self.used + bytes <= self.limit).then(|| {
            self.used += bytes;
            Exact { span, values: vec![0.0; span.len()], squares: 0.0, peak: 0.0 }
        })
    }

    /// Storage that reaches over `span` as well, with the same values, if the budget allows it; else the old is released.
    pub fn extend(&mut self, old: Exact, span: Span) -> Option<Exact> {
        let span = Span { start: old.span.start.min(span.start), end: old.span.end.max(span.end) };
        let mut new = self.allocate(span);
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

/// Values of one slice, over the indices that this rank owns.
#[derive(Debug)]
pub struct Exact {
    pub span: Span,
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

    /// The values as a device reads them.
    pub fn kept(&self) -> Kept<'_> {
        Kept { span: self.span, values: &self.values, peak: self.peak }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_kept() {
        let mut budget = Budget::new(100);
        let first = budget.allocate(Span { start: 5, end: 25 }).unwrap();
        assert!(budget.allocate(Span { start: 0, end: 6 }).is_none());
        assert!(budget.allocate(Span { start: 0, end: 5 }).is_some());
        budget.release([first]);
        assert!(budget.allocate(Span { start: 0, end: 20 }).is_some());
        assert!(budget.allocate(Span { start: 0, end: 1 }).is_none());
    }
}
