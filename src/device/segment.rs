//! Which elements of a buffer belong to a slice: rectangles of runs.

/// A rectangle of elements: `rows` runs of `length` elements each, with constant steps in the slice and in memory.
///
/// Element `c` of run `r` is element `index + r·index_step + c` of the slice, and lies at
/// `offset + r·row_step + c·column_step` in memory. A head of a row-major Q projection is one run; a head of an output
/// projection is one run per row; a shard that was cut anywhere is up to three rectangles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub index: u64,
    pub index_step: u64,
    pub rows: u64,
    pub length: u64,
    pub offset: i64,
    pub row_step: i64,
    pub column_step: i64,
}

impl Segment {
    /// Elements of the slice that this rectangle reaches: one past the last index.
    pub fn end(&self) -> u64 {
        self.index + (self.rows - 1) * self.index_step + self.length
    }

    /// Elements.
    pub fn numel(&self) -> u64 {
        self.rows * self.length
    }

    /// The elements lie side by side in memory in the order of the slice.
    pub fn is_contiguous(&self) -> bool {
        self.column_step == 1
            && (self.rows == 1 || (self.index_step == self.length && self.row_step == self.length as i64))
    }

    /// The runs that touch the indices `from .. to` of the slice: (first index, offset in memory, length), clipped.
    pub fn runs(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, i64, usize)> + '_ {
        let step = self.index_step.max(1);
        let first = from.saturating_sub(self.index + self.length - 1).div_ceil(step).min(self.rows);
        let last = if to <= self.index { 0 } else { ((to - 1 - self.index) / step + 1).min(self.rows) };
        (first..last).filter_map(move |row| {
            let start = self.index + row * self.index_step;
            let low = start.max(from);
            let high = (start + self.length).min(to);
            let offset =
                self.offset + row as i64 * self.row_step + (low.saturating_sub(start)) as i64 * self.column_step;
            (low < high).then(|| (low, offset, (high - low) as usize))
        })
    }
}

/// A range of indices of a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    /// The smallest range that holds all of `segments`.
    pub fn of(segments: &[Segment]) -> Self {
        let start = segments.iter().map(|segment| segment.index).min().unwrap_or(0);
        let end = segments.iter().map(Segment::end).max().unwrap_or(0);
        Self { start, end }
    }

    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Every index of `other` is in this range.
    pub fn contains(&self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_clipped_and_complete() {
        let segment = Segment { index: 10, index_step: 8, rows: 5, length: 6, offset: 3, row_step: 20, column_step: 2 };
        for from in 0..60 {
            for to in from..60 {
                let mut found = Vec::new();
                for (index, offset, length) in segment.runs(from, to) {
                    found.extend((0..length).map(|k| (index + k as u64, offset + 2 * k as i64)));
                }
                let expected: Vec<_> = (0..5u64)
                    .flat_map(|r| (0..6u64).map(move |c| (10 + 8 * r + c, 3 + 20 * r as i64 + 2 * c as i64)))
                    .filter(|&(index, _)| (from..to).contains(&index))
                    .collect();
                assert_eq!(found, expected, "{from}..{to}");
            }
        }
    }
}
