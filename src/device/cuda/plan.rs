//! What one pass launches: the items of its stages, how they are shared out among blocks, where results land.
//!
//! A plan is made of a pass's jobs and nothing else. As long as a trainer's buffers stay where they are, every sampled
//! step has the same plans, whose tables are on the device already.

use super::table::{COLUMNS, FORMAT_NONE, Item, KeptEntry, PAIRS, Run, SUMS, SlotHeader, TILE, flag};
use crate::device::{Segment, SliceRead, Span};
use crate::sketch::Layout;
use std::ops::Range;

/// A launch of its own, with a finishing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// fp32 buckets: nearly everything.
    Narrow,
    /// fp64 buckets: sketches of parameters.
    Wide,
    /// fp32 buckets, after the others: copies that several items compare with are replaced when all have.
    Late,
}

pub const STAGES: [Stage; 3] = [Stage::Narrow, Stage::Wide, Stage::Late];

impl Stage {
    pub const fn is_wide(self) -> bool {
        matches!(self, Self::Wide)
    }

    /// Bytes of a bucket.
    pub const fn bucket(self) -> usize {
        if self.is_wide() { 8 } else { 4 }
    }

    /// Blocks that share a tile, each with its own columns.
    pub const fn share(self) -> u64 {
        if self.is_wide() { 2 } else { 1 }
    }
}

/// An item of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemId {
    stage: Stage,
    index: usize,
}

/// What is measured of one slice.
#[derive(Clone, Copy)]
pub struct Measured<'a> {
    pub read: SliceRead<'a>,
    pub flags: u32,
    pub other: KeptEntry,
    pub with_sketch: bool,
    /// At most [`PAIRS`].
    pub pairs: &'a [KeptEntry],
}

impl<'a> Measured<'a> {
    /// The values themselves, and nothing else.
    pub fn of(read: SliceRead<'a>) -> Self {
        let other = KeptEntry { format: FORMAT_NONE, ..KeptEntry::default() };
        Self { read, flags: 0, other, with_sketch: false, pairs: &[] }
    }
}

/// The tables of a pass, before they are shared out.
#[derive(Debug, Default)]
pub struct Tables {
    items: [Vec<Item>; 3],
    pub runs: Vec<Run>,
    pub pairs: Vec<KeptEntry>,
}

impl Tables {
    pub fn add(&mut self, stage: Stage, measured: &Measured) -> ItemId {
        debug_assert!(measured.pairs.len() <= PAIRS);
        let Measured { read, flags, other, with_sketch, pairs } = measured;
        let Layout { identity, buckets, seed, .. } = read.layout;
        let span = Span::of(read.segments);
        let (first_run, first_pair) = (self.runs.len() as u32, self.pairs.len() as u32);
        self.runs.extend(read.segments.iter().map(Run::from));
        self.pairs.extend_from_slice(pairs);
        let is_dense = read.segments.len() == 1 && read.segments[0].is_contiguous();
        let is_identity = *with_sketch && identity;
        let list = &mut self.items[stage as usize];
        list.push(Item {
            base: read.memory.address() as u64,
            format: super::table::format(read.memory.dtype),
            flags: flags | if is_dense { flag::DENSE } else { 0 } | if is_identity { flag::IDENTITY } else { 0 },
            start: span.start,
            // What is owned of a slice may be nothing: then it has one tile, with no element.
            end: span.end.max(span.start + 1),
            first_tile: 0,
            first_run,
            runs: read.segments.len() as u32,
            first_pair,
            pairs: pairs.len() as u32,
            other: *other,
            unused: 0,
            sketch_rows: if *with_sketch && !identity { (buckets / COLUMNS) as u32 } else { 0 },
            seed,
            sums: 0,
            partial: 0,
            first_block: 0,
            blocks: 0,
            out_sums: 0,
            out_sketch: 0,
            buckets: if *with_sketch { buckets as u64 } else { 0 },
        });
        ItemId { stage, index: list.len() - 1 }
    }
}

/// How the items of one stage are shared out.
#[derive(Clone, Debug, PartialEq)]
pub struct Arranged {
    pub stage: Stage,
    /// Among the items of all stages.
    pub items: Range<usize>,
    pub tiles: u64,
    /// Blocks with tiles of their own; in a wide stage twice as many are launched.
    pub blocks: u32,
    /// Rows of buckets in shared memory.
    pub shared_rows: u32,
    pub sums_bytes: usize,
    pub partial_bytes: usize,
}

/// A plan, ready to be launched.
#[derive(Debug)]
pub struct Plan {
    pub items: Vec<Item>,
    pub runs: Vec<Run>,
    pub pairs: Vec<KeptEntry>,
    pub stages: Vec<Arranged>,
    pub slot_bytes: usize,
    firsts: [usize; 3],
}

/// What a device offers to a stage.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Blocks that run at the same time.
    pub blocks: u32,
    /// Rows of buckets that a block can have in shared memory.
    pub shared_rows: u32,
}

impl Plan {
    /// `room`: what there is for a stage whose largest sketch has so many rows.
    pub fn new<E>(tables: Tables, room: impl Fn(Stage, u32) -> Result<Room, E>) -> Result<Self, E> {
        let Tables { items: lists, runs, pairs } = tables;
        let (mut items, mut stages, mut firsts) = (Vec::new(), Vec::new(), [0; 3]);
        let mut slot_bytes = size_of::<SlotHeader>().next_multiple_of(64);
        for (stage, mut list) in STAGES.into_iter().zip(lists) {
            let first = items.len();
            firsts[stage as usize] = first;
            if list.is_empty() {
                continue;
            }
            let rows = list.iter().map(|item| item.sketch_rows).max().unwrap_or(0);
            let Room { blocks, shared_rows } = room(stage, rows)?;
            let (tiles, blocks, sums, partial) = share_out(&mut list, u64::from(blocks));
            for item in &mut list {
                item.out_sums = slot_bytes as u64;
                slot_bytes += SUMS * 8;
                item.out_sketch = slot_bytes as u64;
                slot_bytes += (item.buckets as usize * stage.bucket()).next_multiple_of(16);
            }
            items.append(&mut list);
            stages.push(Arranged {
                stage,
                items: first..items.len(),
                tiles,
                blocks: blocks as u32,
                shared_rows: shared_rows.min(rows),
                sums_bytes: (sums * stage.share()) as usize * SUMS * 8,
                partial_bytes: partial as usize * stage.bucket(),
            });
        }
        Ok(Self { items, runs, pairs, stages, slot_bytes, firsts })
    }

    /// The tables as they lie in device memory: items, runs, pairs.
    pub fn bytes(&self) -> Vec<u8> {
        let parts: [&[u8]; 3] =
            [bytemuck::cast_slice(&self.items), bytemuck::cast_slice(&self.runs), bytemuck::cast_slice(&self.pairs)];
        parts.concat()
    }

    /// The most of something that a stage has.
    pub fn most(&self, of: impl Fn(&Arranged) -> usize) -> usize {
        self.stages.iter().map(of).max().unwrap_or(0)
    }

    pub fn item(&self, id: ItemId) -> &Item {
        &self.items[self.firsts[id.stage as usize] + id.index]
    }
}

/// Shares the tiles of all items out among at most `blocks` blocks, in contiguous and equal pieces. Returns how many tiles
/// and blocks there are, and how many rows of sums and buckets of partial sketches they fill.
fn share_out(items: &mut [Item], blocks: u64) -> (u64, u64, u64, u64) {
    let mut tiles = 0;
    for item in &mut *items {
        item.first_tile = tiles;
        tiles += item.end.div_ceil(TILE) - item.start / TILE;
    }
    let blocks = blocks.min(tiles).max(1);
    // Block b has the tiles ⌊b·tiles/blocks⌋ and up to, but without, that of block b + 1.
    let block_of = |tile: u64| ((tile + 1) * blocks - 1) / tiles.max(1);
    let (mut sums, mut partial) = (0, 0);
    for item in &mut *items {
        let last_tile = item.first_tile + (item.end.div_ceil(TILE) - item.start / TILE) - 1;
        item.first_block = block_of(item.first_tile) as u32;
        item.blocks = block_of(last_tile) as u32 - item.first_block + 1;
        item.sums = sums;
        item.partial = partial;
        sums += u64::from(item.blocks);
        let copies = if item.flags & flag::IDENTITY != 0 { 1 } else { u64::from(item.blocks) };
        partial += item.buckets * copies;
    }
    (tiles, blocks, sums, partial)
}

/// Elements that segments reach.
pub fn count(segments: &[Segment]) -> u64 {
    segments.iter().map(Segment::numel).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DType, Memory};
    use proptest::prelude::*;

    proptest! {
        /// Every tile belongs to the blocks that its item names, and none is left over.
        #[test]
        fn tiles_are_shared_out_without_gaps(ends in prop::collection::vec((0u64..9000, 1u64..40_000), 1..12), blocks in 1u32..40) {
            let segments: Vec<_> = ends.iter().map(|&(start, length)| [Segment {
                index: start, index_step: 0, rows: 1, length, offset: 0, row_step: 0, column_step: 1,
            }]).collect();
            let mut tables = Tables::default();
            for segments in &segments {
                // SAFETY: nothing is read.
                let memory = unsafe { Memory::on_device(std::ptr::dangling(), DType::F32, 0) };
                let layout = Layout::new(1 << 20, 1024, 1);
                let read = SliceRead { layout, memory, segments };
                tables.add(Stage::Narrow, &Measured { with_sketch: true, ..Measured::of(read) });
            }
            let room = |_, rows| Ok::<_, ()>(Room { blocks, shared_rows: rows });
            let plan = Plan::new(tables, room).unwrap();
            let stage = &plan.stages[0];
            let range = |block: u64| {
                let (blocks, tiles) = (u64::from(stage.blocks), stage.tiles);
                block * tiles / blocks..(block + 1) * tiles / blocks
            };
            let (mut sums, mut partial) = (0, 0);
            for item in &plan.items {
                let tiles = item.first_tile..item.first_tile + item.end.div_ceil(TILE) - item.start / TILE;
                let touching = (0..u64::from(stage.blocks))
                    .filter(|&block| range(block).start < tiles.end && tiles.start < range(block).end);
                let touching: Vec<_> = touching.collect();
                prop_assert_eq!(touching[0], u64::from(item.first_block));
                prop_assert_eq!(touching.len(), item.blocks as usize);
                prop_assert_eq!((item.sums, item.partial), (sums, partial));
                sums += u64::from(item.blocks);
                partial += u64::from(item.blocks) * 1024;
            }
            prop_assert_eq!(range(u64::from(stage.blocks) - 1).end, stage.tiles);
            prop_assert_eq!((stage.sums_bytes, stage.partial_bytes), (sums as usize * SUMS * 8, partial as usize * 4));
        }
    }
}
