//! Hash functions of the sketch: which bucket an element falls into, and with which sign.
//!
//! Everything is derived from one 64-bit seed per slice, and the seed from names alone, so that every process, rank and
//! run that knows a tensor by the same name builds the same sketch. Costs two 64-bit multiplications per 64 elements.

/// Part of every seed. A change of any function in this file must change it, or old sketches would be misread.
pub const VERSION: u64 = 1;

/// Finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that passes BigCrush on counters.
#[inline(always)]
pub const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Seed of the slice `part`/`head` of the tensor called `name`.
pub fn seed(name: &str, part: u32, head: u32) -> u64 {
    const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
    let name = name.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    mix(mix(name ^ VERSION) ^ (u64::from(part) << 32 | u64::from(head)))
}

/// Signs of the 64 elements `64·word .. 64·word + 64`: a set bit negates.
#[inline(always)]
pub const fn signs(seed: u64, word: u64) -> u64 {
    mix(seed.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Where the 256 elements of a chunk fall: the row of 256 buckets, and what their position is XORed with inside it.
#[inline(always)]
pub const fn place(seed: u64, chunk: u64, rows: u32) -> (usize, usize) {
    let hash = mix(!seed ^ chunk.wrapping_mul(0xd1b5_4a32_d192_ed03));
    // The high half chooses the row by multiplication (no bias worth naming: rows is far below 2³²).
    let row = ((hash >> 32) * rows as u64) >> 32;
    (row as usize, (hash & 0xff) as usize)
}
