//! From a strided view of local memory to the elements of each slice.
//!
//! Three orders meet: elements in memory (a strided view), elements of the unsharded tensor (the local view covers one or
//! more flat ranges of it: ZeRO and Megatron's distributed optimizer cut parameters anywhere), and elements of a slice (a
//! band of rows or columns). They are walked once, when a binding changes shape, and compressed into rectangles.

use super::heads::Band;
use super::{Result, error::invalid};
use crate::device::Segment;

/// A strided view of memory with at most two dimensions, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub rows: u64,
    pub cols: u64,
    pub row_step: i64,
    pub col_step: i64,
}

impl View {
    /// Collapses a shape with strides to two dimensions. `None` if it takes more.
    pub fn collapse(shape: &[i64], strides: Option<&[i64]>) -> Option<Self> {
        let mut dims: Vec<(i64, i64)> = Vec::with_capacity(shape.len());
        let mut dense = 1;
        for k in (0..shape.len()).rev() {
            let stride = strides.map_or(dense, |strides| strides[k]);
            dense *= shape[k];
            match dims.last_mut() {
                _ if shape[k] == 1 => {}
                // An outer dimension that continues the inner one is part of it.
                Some((length, inner)) if stride == *length * *inner => *length *= shape[k],
                _ => dims.push((shape[k], stride)),
            }
        }
        match dims[..] {
            [] => Some(Self { rows: 1, cols: 1, row_step: 0, col_step: 1 }),
            [(cols, col_step)] => Some(Self { rows: 1, cols: cols as u64, row_step: 0, col_step }),
            [(cols, col_step), (rows, row_step)] => {
                Some(Self { rows: rows as u64, cols: cols as u64, row_step, col_step })
            }
            _ => None,
        }
    }

    pub fn numel(&self) -> u64 {
        self.rows * self.cols
    }

    /// Offset of a local element, and how many more follow it in its row of the view.
    fn locate(&self, local: u64) -> (i64, u64) {
        let (row, col) = (local / self.cols, local % self.cols);
        (row as i64 * self.row_step + col as i64 * self.col_step, self.cols - col)
    }
}

/// Which elements of the unsharded tensor the local ones are: `runs` runs of `length`, `step` apart, from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub offset: u64,
    pub length: u64,
    pub step: u64,
    pub runs: u64,
}

impl Shard {
    /// The whole tensor.
    pub const fn whole(numel: u64) -> Self {
        Self { offset: 0, length: numel, step: numel, runs: 1 }
    }

    pub fn numel(&self) -> u64 {
        self.length * self.runs
    }

    /// Checks that the shard lies inside a tensor of `numel` elements and fits a view of `local` elements.
    pub fn check(&self, numel: u64, local: u64) -> Result<()> {
        let end = (self.runs.max(1) - 1).checked_mul(self.step).and_then(|x| x.checked_add(self.offset));
        let end = end.and_then(|x| x.checked_add(self.length));
        if self.runs > 1 && self.step < self.length {
            return Err(invalid!("shard.run_step: runs of {} elements, {} apart, overlap", self.length, self.step));
        }
        if end.is_none_or(|end| end > numel) {
            return Err(invalid!(
                "shard: {} runs of {} elements from {} on reach beyond the {numel} elements of the tensor",
                self.runs,
                self.length,
                self.offset
            ));
        }
        if self.length.checked_mul(self.runs) != Some(local) {
            return Err(invalid!(
                "shard: {} runs of {} elements do not match the {local} elements of the data",
                self.runs,
                self.length
            ));
        }
        Ok(())
    }

    /// Flat index of a local element in the unsharded tensor, and how many more follow it in its run.
    fn locate(&self, local: u64) -> (u64, u64) {
        let (run, within) = (local / self.length, local % self.length);
        (self.offset + run * self.step + within, self.length - within)
    }
}

/// The rectangles of each band, for a row-major tensor of `cols` columns. Bands share an axis, in order, without gaps.
pub fn segments(view: &View, shard: &Shard, bands: &[Band], cols: u64) -> Vec<Vec<Segment>> {
    let mut lists = vec![Vec::new(); bands.len()];
    let Some(Band { axis, length, .. }) = bands.first().copied() else { return lists };
    let mut local = 0;
    while local < view.numel() {
        let (flat, in_run) = shard.locate(local);
        let (offset, in_row) = view.locate(local);
        let (row, col) = (flat / cols, flat % cols);
        // Where the element lies in its band, and how far the band continues without a gap.
        let (band, index, in_band) = if axis == 0 {
            let band = row / length;
            let index = flat - band * length * cols;
            (band, index, length * cols - index)
        } else {
            let band = col / length;
            let within = col - band * length;
            (band, row * length + within, length - within)
        };
        let run = in_run.min(in_row).min(in_band);
        append(&mut lists[band as usize], index, offset, run, view.col_step);
        local += run;
    }
    lists
}

/// Adds a run to a list of rectangles, extending the last one if the run continues its pattern.
fn append(list: &mut Vec<Segment>, index: u64, offset: i64, length: u64, column_step: i64) {
    if let Some(last) = list.last_mut() {
        let end = (last.index + last.length, last.offset + last.length as i64 * column_step);
        if last.rows == 1 && (index, offset) == end {
            last.length += length;
            return;
        }
        if last.length == length && last.rows == 1 && index > last.index {
            (last.rows, last.index_step, last.row_step) = (2, index - last.index, offset - last.offset);
            return;
        }
        let next = (last.index + last.rows * last.index_step, last.offset + last.rows as i64 * last.row_step);
        if last.length == length && last.rows > 1 && (index, offset) == next {
            last.rows += 1;
            return;
        }
    }
    list.push(Segment { index, index_step: 0, rows: 1, length, offset, row_step: 0, column_step });
}

#[cfg(test)]
mod tests {
    use super::super::heads::{HeadLayout, HeadMap};
    use super::super::schema::Role;
    use super::*;
    use proptest::prelude::*;

    /// (slice, index in slice) → offset, straight from the definitions.
    fn oracle(view: &View, shard: &Shard, bands: &[Band], cols: u64) -> Vec<(usize, u64, i64)> {
        let mut found: Vec<_> = (0..view.numel())
            .map(|local| {
                let flat = shard.offset + local / shard.length * shard.step + local % shard.length;
                let offset = (local / view.cols) as i64 * view.row_step + (local % view.cols) as i64 * view.col_step;
                let (row, col) = (flat / cols, flat % cols);
                let along = if bands[0].axis == 0 { row } else { col };
                let slice = bands.iter().position(|b| (b.start..b.start + b.length).contains(&along)).unwrap();
                let band = bands[slice];
                let index = if band.axis == 0 {
                    (row - band.start) * cols + col
                } else {
                    row * band.length + (col - band.start)
                };
                (slice, index, offset)
            })
            .collect();
        found.sort_unstable();
        found
    }

    proptest! {
        // Most shards that are drawn reach beyond the tensor; the default allows too few of them.
        #![proptest_config(ProptestConfig { max_global_rejects: 1 << 20, ..ProptestConfig::default() })]
        #[test]
        fn segments_are_the_definition(
            heads in 1u32..5, per_head in 1u64..5, other in 1u64..9, axis in 0u32..2,
            start in 0u64..40, runs in 1u64..6, length in 1u64..30, gap in 0u64..9, padding in 0i64..5, transposed: bool,
        ) {
            let along = u64::from(heads) * per_head;
            let (rows, cols) = if axis == 0 { (along, other) } else { (other, along) };
            let map = HeadMap { layout: HeadLayout::Separate, axis, heads, kv_heads: heads, head_offset: 0, kv_head_offset: 0 };
            let bands = map.bands(Role::Query, rows, cols).unwrap();
            let shard = Shard { offset: start % (rows * cols), length, step: length + gap, runs };
            prop_assume!(shard.check(rows * cols, runs * length).is_ok());
            // The local view: flat, padded rows, or column by column.
            let view = if transposed {
                View { rows: runs, cols: length, row_step: 1, col_step: runs as i64 }
            } else {
                View { rows: runs, cols: length, row_step: length as i64 + padding, col_step: 1 }
            };
            let lists = segments(&view, &shard, &bands, cols);
            let mut found = Vec::new();
            for (slice, list) in lists.iter().enumerate() {
                for s in list {
                    for (index, offset, count) in s.runs(0, u64::MAX / 2) {
                        found.extend((0..count).map(|k| (slice, index + k as u64, offset + k as i64 * s.column_step)));
                    }
                }
            }
            found.sort_unstable();
            prop_assert_eq!(found, oracle(&view, &shard, &bands, cols));
        }
    }

    #[test]
    fn whole_tensors_are_one_rectangle_a_head() {
        let map =
            HeadMap { layout: HeadLayout::Separate, axis: 1, heads: 4, kv_heads: 4, head_offset: 0, kv_head_offset: 0 };
        let bands = map.bands(Role::Output, 100, 64).unwrap();
        let view = View::collapse(&[100, 64], None).unwrap();
        let lists = segments(&view, &Shard::whole(6400), &bands, 64);
        assert!(lists.iter().all(|list| list.len() == 1 && list[0].rows == 100 && list[0].length == 16));
    }

    #[test]
    fn views_collapse() {
        let view = |rows, cols, row_step, col_step| Some(View { rows, cols, row_step, col_step });
        assert_eq!(View::collapse(&[2, 3, 4], None), view(1, 24, 0, 1));
        assert_eq!(View::collapse(&[2, 3, 4], Some(&[24, 8, 1])), view(6, 4, 8, 1));
        assert_eq!(View::collapse(&[3, 4], Some(&[1, 3])), view(3, 4, 1, 3));
        assert_eq!(View::collapse(&[1, 4, 1], Some(&[99, 2, 7])), view(1, 4, 0, 2));
        assert_eq!(View::collapse(&[2, 3, 4], Some(&[100, 10, 2])), None);
        assert_eq!(View::collapse(&[], None), view(1, 1, 0, 1));
    }
}
