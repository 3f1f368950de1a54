//! Cuts slices into units of work and units into blocks, and brings each block into fp32 lanes.
//!
//! A unit is a fixed range of indices of a slice, whatever the number of threads, so results do not depend on it. A block
//! is up to 4,096 elements on a chunk boundary. fp32 data that lies side by side is used where it is; everything else
//! (other types, strided heads, ragged shards) is staged in a buffer that stays in the first-level cache.

use super::Cpu;
use super::kernels::{BLOCK, Kernels, NOWHERE};
use crate::device::{GradientSums, Kept, SliceRead, Span};
use crate::sketch::CHUNK;

/// Elements of a unit: large enough to outweigh the 64 KiB sketch that it fills, small enough to share out.
pub const UNIT: u64 = 1 << 20;

/// Buckets of the sketches of all units of a wave: 8 MiB of fp32. With matrices that is 128 units, enough that threads
/// seldom wait for the last one.
const WAVE_BUCKETS: usize = 1 << 21;

/// Buffer for one block.
#[repr(align(64))]
pub struct Staging(pub [f32; BLOCK]);

impl Staging {
    pub fn new() -> Self {
        Self([0.0; BLOCK])
    }
}

/// The units of a slice, in order.
pub fn units(span: Span) -> impl Iterator<Item = Span> {
    let first = span.start / UNIT;
    let last = span.end.div_ceil(UNIT);
    (first..last).map(move |unit| Span { start: (unit * UNIT).max(span.start), end: ((unit + 1) * UNIT).min(span.end) })
}

/// How many of the units whose sketches have so many buckets are measured at once. Each fills a sketch of its own, which
/// is added to the slice's after them all, in their order: so memory does not grow with the model, nor results depend on
/// the number of threads. At least one.
pub fn wave(buckets: impl Iterator<Item = usize>) -> usize {
    let mut room = WAVE_BUCKETS;
    let fits = |buckets: &usize| {
        let fits = *buckets <= room;
        room = room.saturating_sub(*buckets);
        fits
    };
    buckets.take_while(fits).count().max(1)
}

/// The blocks of a unit, in order.
pub fn blocks(unit: Span) -> impl Iterator<Item = Block> {
    let size = BLOCK as u64;
    (unit.start / size..unit.end.div_ceil(size))
        .map(move |block| Block { start: (block * size).max(unit.start), end: ((block + 1) * size).min(unit.end) })
}

/// Values that are kept in host memory.
#[derive(Clone, Copy)]
pub struct HostKept<'a> {
    /// Indices of the slice that `values` covers.
    pub span: Span,
    pub values: &'a [f32],
    /// Largest magnitude of `values`: keeps products of products inside the range of fp32.
    pub peak: f32,
    /// Σ v² over all of `values`.
    squares: f64,
}

impl<'a> HostKept<'a> {
    /// `None` for values in other memory, which nobody hands to this device.
    pub fn new(kept: Kept<'a>) -> Option<Self> {
        let host = kept.values.host()?;
        Some(Self { span: kept.span, values: &host.values, peak: host.peak, squares: host.squares })
    }

    /// Σ v² over a part of the span: known of the whole, taken anew of less.
    pub fn squares_over(&self, span: Span, cpu: &Cpu) -> f64 {
        if span == self.span {
            return self.squares;
        }
        let start = (span.start - self.span.start) as usize;
        cpu.norm(&self.values[start..start + span.len()]).0
    }
}

/// Adds a part of a sketch to the whole. The first part becomes the whole.
pub fn add<T: Copy + std::ops::AddAssign>(total: &mut Vec<T>, part: Vec<T>) {
    if total.is_empty() {
        *total = part;
    } else {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
}

/// A range of indices inside one aligned stretch of 4,096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub start: u64,
    pub end: u64,
}

impl Block {
    /// First chunk that the block touches.
    pub fn first_chunk(self) -> u64 {
        self.start / CHUNK as u64
    }

    /// The block with both ends on chunk boundaries.
    fn whole_chunks(self) -> Span {
        let chunk = CHUNK as u64;
        Span { start: self.start / chunk * chunk, end: self.end.next_multiple_of(chunk) }
    }

    fn is_whole(self) -> bool {
        self.whole_chunks() == Span { start: self.start, end: self.end }
    }

    /// The block's elements of the trainer's memory in fp32, filled up to whole chunks with zeros; how many were read; and
    /// the address of what is likely to be read next.
    pub fn read<'s>(
        self,
        read: &SliceRead<'s>,
        widen: fn(&[u16], &mut [f32]),
        staging: &'s mut Staging,
    ) -> (&'s [f32], u64, *const u8) {
        let mut touching = read.segments.iter().filter(|s| s.index < self.end && s.end() > self.start);
        if let (Some(segment), None, true) = (touching.next(), touching.next(), self.is_whole())
            && segment.is_contiguous()
            && segment.index <= self.start
            && segment.end() >= self.end
        {
            let offset = segment.offset + (self.start - segment.index) as i64;
            let length = (self.end - self.start) as usize;
            let next = read.memory.address_of(offset + length as i64);
            // SAFETY: the segment covers the block, and segments reach readable elements only (Memory::new).
            if let Some(values) = unsafe { read.memory.in_place(offset, length) } {
                return (values, length as u64, next);
            }
            let values = &mut staging.0[..length];
            // SAFETY: as above.
            unsafe { read.memory.gather(offset, 1, widen, values) };
            return (values, length as u64, next);
        }
        let whole = self.whole_chunks();
        let values = &mut staging.0[..whole.len()];
        values.fill(0.0);
        let (mut count, mut next) = (0, NOWHERE);
        for segment in read.segments {
            for (index, offset, length) in segment.runs(self.start, self.end) {
                let at = (index - whole.start) as usize;
                next = read.memory.address_of(offset + length as i64);
                // SAFETY: the run is part of the segment, which reaches readable elements only (Memory::new).
                unsafe { read.memory.gather(offset, segment.column_step, widen, &mut values[at..at + length]) };
                count += length as u64;
            }
        }
        (values, count, next)
    }

    /// The block's elements of kept values, filled up to whole chunks with zeros.
    pub fn kept<'s>(self, kept: &HostKept<'s>, staging: &'s mut Staging) -> &'s [f32] {
        let whole = self.whole_chunks();
        if whole.start >= kept.span.start && whole.end <= kept.span.end {
            let at = (whole.start - kept.span.start) as usize;
            return &kept.values[at..at + whole.len()];
        }
        let (low, high) = (self.start.max(kept.span.start), self.end.min(kept.span.end));
        let values = &mut staging.0[..whole.len()];
        values.fill(0.0);
        if low < high {
            let source = &kept.values[(low - kept.span.start) as usize..(high - kept.span.start) as usize];
            values[(low - whole.start) as usize..][..source.len()].copy_from_slice(source);
        }
        values
    }

    /// The block's own values, filled up to whole chunks with zeros.
    pub fn filled_up<'s>(self, own: &'s [f32], staging: &'s mut Staging) -> &'s [f32] {
        let kept = HostKept { span: Span { start: self.start, end: self.end }, values: own, peak: 0.0, squares: 0.0 };
        self.kept(&kept, staging)
    }

    /// The part of `values` (whole chunks) that belongs to the block itself.
    pub fn inside(self, values: &[f32]) -> &[f32] {
        let from = (self.start - self.whole_chunks().start) as usize;
        &values[from..from + (self.end - self.start) as usize]
    }
}

/// Replaces NaN and infinities by zero if `peak` says that there are any. Returns clean values, their peak, the count.
pub fn sanitize<'s>(
    values: &'s [f32],
    peak: impl Fn(&[f32]) -> u32,
    staging: &'s mut Staging,
) -> (&'s [f32], f32, u64) {
    let bits = peak(values);
    if bits < f32::INFINITY.to_bits() {
        return (values, f32::from_bits(bits), 0);
    }
    let clean = &mut staging.0[..values.len()];
    let mut bad = 0;
    for (clean, value) in clean.iter_mut().zip(values) {
        *clean = if value.is_finite() { *value } else { 0.0 };
        bad += u64::from(!value.is_finite());
    }
    let peak = f32::from_bits(peak(clean));
    (clean, peak, bad)
}

/// A block of the trainer's memory, ready for the kernels.
pub struct Loaded<'s> {
    /// Clean: no NaN, no infinity.
    pub values: &'s [f32],
    /// Counts and peak; no squares yet.
    pub sums: GradientSums,
    /// Address of what is likely to be read next.
    pub next: *const u8,
}

/// Reads a block and cleans it.
pub fn load<'s>(
    block: Block,
    read: &SliceRead<'s>,
    kernels: &Kernels,
    [staging, clean]: [&'s mut Staging; 2],
) -> Loaded<'s> {
    let (values, count, next) = block.read(read, kernels.widen, staging);
    let (values, peak, non_finite) = sanitize(values, kernels.peak, clean);
    Loaded { values, sums: GradientSums { count, non_finite, squares: 0.0, peak }, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_bounded_and_advance() {
        let matrix = 16_384;
        assert_eq!(wave(std::iter::repeat_n(matrix, 1000)), WAVE_BUCKETS / matrix);
        assert_eq!(wave(std::iter::repeat_n(matrix, 3)), 3);
        assert_eq!(wave([1, WAVE_BUCKETS, 1].into_iter()), 1);
        assert_eq!(wave([2 * WAVE_BUCKETS, 1].into_iter()), 1);
    }
}
