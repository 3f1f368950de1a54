// What a launch works on: tables in device memory, written by device/cuda/table.rs, which has the same structs.
#pragma once

#include "kernel.cuh"

// Elements of a tile: what a warp looks at between two adjustments of scale. A multiple of the sketch's chunk of 256.
constexpr u32 CHUNK = 256;
constexpr u32 TILE_CHUNKS = 8;
constexpr u32 TILE = CHUNK * TILE_CHUNKS;

// Blocks that finish an item: each adds its share of the buckets.
constexpr u32 FINISHERS = 8;

// References that one item is paired with at most; more take another item.
constexpr u32 PAIRS = 4;

// A rectangle of elements: src/device/segment.rs.
struct Run {
    u64 index, index_step, rows, length;
    i64 offset, row_step, column_step;
};

// Values that the library keeps over the indices start .. end of a slice.
struct Kept {
    u64 address;
    // Block exponents of FORMAT_E4M3: one byte per 32 values, biased by 127. 0: values are not scaled.
    u64 exponents;
    u64 start, end;
    u32 format; // FORMAT_NONE: nothing is kept
    u32 unused;
};

enum ItemFlags : u32 {
    // All that is read is one run without gaps.
    ITEM_DENSE = 1,
    // The difference to `other` is measured, not the values themselves.
    ITEM_COMPARE = 2,
    // `other` takes the values.
    ITEM_REPLACE = 4,
    // The values times the launch's `scale` are sketched.
    ITEM_SCALE = 8,
    // What is sketched is added to `other`.
    ITEM_ADD = 16,
    // The sketch is the slice itself.
    ITEM_IDENTITY = 32,
};

// One slice, measured in one way.
struct Item {
    u64 base; // address of element 0 of the trainer's memory
    u32 format;
    u32 flags;
    u64 start, end;    // indices that are read: between the first and the last there may be gaps
    u64 first_tile;    // number of its first tile in the launch
    u32 first_run, runs;
    u32 first_pair, pairs;
    Kept other;
    u32 unused;
    u32 sketch_rows;   // rows of 256 buckets; 0: no sketch, or ITEM_IDENTITY
    u64 seed;
    u64 sums;          // first of its rows of partial sums: one per block that has a part of the item
    u64 partial;       // first bucket of its partial sketches, likewise; with ITEM_IDENTITY there is one
    u32 first_block, blocks;
    u64 out_sums;      // bytes into the result slot
    u64 out_sketch;
    u64 buckets;
};

// Sums of an item over the tiles of one block: rows of doubles. Maxima are magnitudes.
enum Sum : u32 {
    SUM_VALUES = 0, // Σ x²
    SUM_OTHER,      // Σ y²
    SUM_DIFFERENCE, // Σ d², where d is what is sketched and paired: x, x − y or scale·x
    SUM_CROSS,      // Σ d·y
    SUM_NON_FINITE,
    MAX_VALUES,
    MAX_DIFFERENCE,
    SUM_UNUSED,
    SUM_PAIRS, // PAIR_SUMS for each of up to PAIRS references r
};
enum PairSum : u32 { PAIR_DOT = 0, PAIR_OPPOSING, PAIR_SQUARES, PAIR_REFERENCE, PAIR_CONFLICTS, PAIR_ACTIVE, PAIR_SUMS };
constexpr u32 SUMS = SUM_PAIRS + PAIRS * PAIR_SUMS;

// What decides on the device whether a captured step is measured, and where its results go: tick.cu.
struct Control {
    u64 replay; // replays of the graph so far
    u64 number; // of them measured, this one not included
    u32 active;
    u32 slot;
};

struct MeasureParams {
    const Item* items;
    const Run* runs;
    const Kept* pairs;
    double* sums;
    void* partials;
    const Control* control; // NULL: the launch is not captured
    u64 tiles; // of all items
    u32 item_count;
    u32 blocks;
    u32 shared_rows; // items with more rows than this are sketched in device memory
    float scale;     // of items with ITEM_SCALE: changes from call to call, and is no part of the tables
};

// How the host learns that a result is complete: the last block to be done writes the slot's header. The slot is mapped
// pinned memory, which the host looks at without a CUDA call.
struct Landing {
    u64 slot;       // address of the first result slot
    u64 slot_bytes; // from one slot to the next
    u64 sequence;   // what marks this result as complete
    u32* done;      // blocks that are done; zero between launches
    const Control* control; // NULL: the launch is not captured
};

// The first bytes of a result slot.
struct SlotHeader {
    u64 sequence; // written last
    u64 replay;   // of a captured step
};

struct FinishParams {
    Landing landing;
    const Item* items;
    const double* sums;
    const void* partials;
    u32 is_wide; // buckets are fp64
    u32 is_last; // the slot is complete after this launch
};

struct TickParams {
    Control* control;
    const u64* consumed; // results that the host has taken
    u64* dropped;        // replays that were due and found no free slot
    u64* replays;        // all replays
    u64 every;
    u64 slots;
};

// A tensor with up to four dimensions.
struct View {
    u64 base;
    u32 format; // FORMAT_NONE: it is not given
    u32 unused;
    i64 strides[4];
};

struct RowsParams {
    Landing landing;
    u64 base;
    const i64* rows; // where each row begins, in elements
    u64 runs;        // a row is so many runs
    i64 run_step;
    u64 length;      // of so many elements
    i64 step;
    u32 format;
    u32 unused;
};

// One query, and the keys that it sees.
struct AttentionRow {
    u64 sequence, position, first_key, keys;
    u64 out; // first of its probabilities in the result: head by head, key by key
};

struct AttentionParams {
    Landing landing;
    const AttentionRow* rows;
    View probabilities; // sequences × heads × queries × keys, or not given: then query and key are
    View query;         // sequences × positions × heads × elements
    View key;           // sequences × positions × key heads × elements
    View log_sum_exp;   // sequences × heads × positions, or not given
    u64 width;          // elements of a head
    u64 group;          // query heads that share a key head
    u64 out_rows;       // bytes into the slot: per row and head the sum and the largest logit
    u64 out_values;     // bytes into the slot: the probabilities
    u64 scratch;        // device memory for as many values
    float scale;
    float softcap; // 0: logits are not capped
    u32 heads;
    u32 unused;
};

// Elements of a slice that are moved to or from a vector.
struct MoveParams {
    u64 base;
    const Run* runs;
    float* vector; // one per index from `start` on
    u64 start, end;
    u32 run_count;
    u32 format;
};

// Values in fp32 and packed.
struct PackParams {
    float* wide;
    u64 packed;
    u64 exponents; // one byte per 32 values; 0 unless the format is FORMAT_E4M3
    u64 count;
    u32 format;
    u32 unused;
};

// The same in device/cuda/table.rs.
static_assert(sizeof(Run) == 56 && sizeof(Kept) == 40 && sizeof(Item) == 160 && sizeof(Control) == 24, "tables");
static_assert(sizeof(MeasureParams) == 72 && sizeof(Landing) == 40 && sizeof(FinishParams) == 72, "parameters");
static_assert(sizeof(TickParams) == 48 && sizeof(RowsParams) == 96 && sizeof(AttentionRow) == 40, "parameters");
static_assert(sizeof(View) == 48 && sizeof(AttentionParams) == 296 && sizeof(MoveParams) == 48, "parameters");
static_assert(sizeof(PackParams) == 40, "parameters");
