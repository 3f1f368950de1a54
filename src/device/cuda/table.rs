//! The tables and parameters that kernels read: the structs of kernels/tables.cuh, which says what their fields mean.

use crate::device::{DType, Segment};
use bytemuck::{Pod, Zeroable};

/// Elements of a tile.
pub const TILE: u64 = 2048;
/// Chunks of the sketch are 256 buckets wide.
pub const COLUMNS: usize = 256;
/// Blocks that finish an item.
pub const FINISHERS: u32 = 8;
/// References that one item is paired with at most.
pub const PAIRS: usize = 4;

pub const FORMAT_NONE: u32 = 0;
pub const FORMAT_F32: u32 = 1;
pub const BF16: u32 = format(DType::Bf16);
pub const F16: u32 = format(DType::F16);
pub const E4M3: u32 = format(DType::F8E4M3);

/// Number of an element type.
pub const fn format(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => FORMAT_F32,
        DType::F64 => 2,
        DType::Bf16 => 3,
        DType::F16 => 4,
        DType::F8E4M3 => 5,
        DType::F8E5M2 => 6,
    }
}

/// Bits of [`Item::flags`].
pub mod flag {
    pub const DENSE: u32 = 1;
    pub const COMPARE: u32 = 2;
    pub const REPLACE: u32 = 4;
    pub const SCALE: u32 = 8;
    pub const ADD: u32 = 16;
    pub const IDENTITY: u32 = 32;
}

/// Places in a row of sums.
pub mod sum {
    pub const VALUES: usize = 0;
    pub const OTHER: usize = 1;
    pub const DIFFERENCE: usize = 2;
    pub const CROSS: usize = 3;
    pub const NON_FINITE: usize = 4;
    pub const MAX_VALUES: usize = 5;
    pub const MAX_DIFFERENCE: usize = 6;
    pub const FIRST_PAIR: usize = 8;

    pub const PAIR_DOT: usize = 0;
    pub const PAIR_OPPOSING: usize = 1;
    pub const PAIR_SQUARES: usize = 2;
    pub const PAIR_REFERENCE: usize = 3;
    pub const PAIR_CONFLICTS: usize = 4;
    pub const PAIR_ACTIVE: usize = 5;
    pub const OF_A_PAIR: usize = 6;
}

/// Numbers in a row of sums.
pub const SUMS: usize = sum::FIRST_PAIR + PAIRS * sum::OF_A_PAIR;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Run {
    pub index: u64,
    pub index_step: u64,
    pub rows: u64,
    pub length: u64,
    pub offset: i64,
    pub row_step: i64,
    pub column_step: i64,
}

impl From<&Segment> for Run {
    fn from(segment: &Segment) -> Self {
        let &Segment { index, index_step, rows, length, offset, row_step, column_step } = segment;
        Self { index, index_step, rows, length, offset, row_step, column_step }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct KeptEntry {
    pub address: u64,
    pub exponents: u64,
    pub start: u64,
    pub end: u64,
    pub format: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Item {
    pub base: u64,
    pub format: u32,
    pub flags: u32,
    pub start: u64,
    pub end: u64,
    pub first_tile: u64,
    pub first_run: u32,
    pub runs: u32,
    pub first_pair: u32,
    pub pairs: u32,
    pub other: KeptEntry,
    pub unused: u32,
    pub sketch_rows: u32,
    pub seed: u64,
    pub sums: u64,
    pub partial: u64,
    pub first_block: u32,
    pub blocks: u32,
    pub out_sums: u64,
    pub out_sketch: u64,
    pub buckets: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MeasureParams {
    pub items: u64,
    pub runs: u64,
    pub pairs: u64,
    pub sums: u64,
    pub partials: u64,
    pub control: u64,
    pub tiles: u64,
    pub item_count: u32,
    pub blocks: u32,
    pub shared_rows: u32,
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Landing {
    pub slot: u64,
    pub slot_bytes: u64,
    pub sequence: u64,
    pub done: u64,
    pub control: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FinishParams {
    pub landing: Landing,
    pub items: u64,
    pub sums: u64,
    pub partials: u64,
    pub is_wide: u32,
    pub is_last: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TickParams {
    pub control: u64,
    pub consumed: u64,
    pub dropped: u64,
    pub replays: u64,
    pub every: u64,
    pub slots: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Control {
    pub replay: u64,
    pub number: u64,
    pub active: u32,
    pub slot: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SlotHeader {
    pub sequence: u64,
    pub replay: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ViewEntry {
    pub base: u64,
    pub format: u32,
    pub unused: u32,
    pub strides: [i64; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RowsParams {
    pub landing: Landing,
    pub base: u64,
    pub rows: u64,
    pub runs: u64,
    pub run_step: i64,
    pub length: u64,
    pub step: i64,
    pub format: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionRowEntry {
    pub sequence: u64,
    pub position: u64,
    pub first_key: u64,
    pub keys: u64,
    pub out: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionParams {
    pub landing: Landing,
    pub rows: u64,
    pub probabilities: ViewEntry,
    pub query: ViewEntry,
    pub key: ViewEntry,
    pub log_sum_exp: ViewEntry,
    pub width: u64,
    pub group: u64,
    pub out_rows: u64,
    pub out_values: u64,
    pub scratch: u64,
    pub scale: f32,
    pub softcap: f32,
    pub heads: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MoveParams {
    pub base: u64,
    pub runs: u64,
    pub vector: u64,
    pub start: u64,
    pub end: u64,
    pub run_count: u32,
    pub format: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PackParams {
    pub wide: u64,
    pub packed: u64,
    pub exponents: u64,
    pub count: u64,
    pub format: u32,
    pub unused: u32,
}

// The same as in kernels/tables.cuh.
const _: () = assert!(size_of::<Run>() == 56 && size_of::<KeptEntry>() == 40 && size_of::<Item>() == 160);
const _: () =
    assert!(size_of::<MeasureParams>() == 72 && size_of::<Landing>() == 40 && size_of::<FinishParams>() == 72);
const _: () = assert!(size_of::<TickParams>() == 48 && size_of::<Control>() == 24 && size_of::<RowsParams>() == 96);
const _: () = assert!(size_of::<ViewEntry>() == 48 && size_of::<AttentionRowEntry>() == 40);
const _: () = assert!(size_of::<AttentionParams>() == 296 && size_of::<MoveParams>() == 48);
const _: () = assert!(size_of::<PackParams>() == 40);
