//! Shape of one slice's sketch: how many buckets, hashed or not.

use super::hash;

/// Elements that are hashed together. A chunk falls into 256 different buckets, one element each.
pub const CHUNK: usize = 256;

/// Shape and seed of the sketch of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Elements of the unsharded slice.
    pub numel: u64,
    /// Buckets of the sketch. A multiple of [`CHUNK`] unless `identity`.
    pub buckets: usize,
    /// The slice is so small that its sketch is the slice itself: bucket `i` holds element `i`, with no error at all.
    pub identity: bool,
    /// Seed of [`hash::signs`] and [`hash::place`].
    pub seed: u64,
}

impl Layout {
    /// Layout of a slice of `numel` elements with at most `buckets` buckets (rounded up to a multiple of 256).
    ///
    /// A slice that fits is kept exactly.
    pub fn new(numel: u64, buckets: usize, seed: u64) -> Self {
        let buckets = buckets.next_multiple_of(CHUNK).max(CHUNK);
        let identity = numel <= buckets as u64;
        Self { numel, buckets: if identity { numel as usize } else { buckets }, identity, seed }
    }

    /// Rows of 256 buckets.
    #[inline(always)]
    pub const fn rows(&self) -> u32 {
        (self.buckets / CHUNK) as u32
    }

    /// Bucket and sign of one element: the definition, which the fast paths are tested against.
    pub fn locate(&self, index: u64) -> (usize, f32) {
        if self.identity {
            return (index as usize, 1.0);
        }
        let (row, flip) = hash::place(self.seed, index / CHUNK as u64, self.rows());
        let negate = hash::signs(self.seed, index >> 6) >> (index & 63) & 1;
        (CHUNK * row + ((index as usize % CHUNK) ^ flip), if negate == 1 { -1.0 } else { 1.0 })
    }

    /// Standard deviation of ⟨Sx, Sy⟩ − ⟨x, y⟩ over hash functions, from the squared norms and the inner product:
    /// √((|x|²|y|² + ⟨x,y⟩²)/m). The true variance is smaller by 2Σx²y²/m. Zero for an identity sketch.
    ///
    /// Source: Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009 (feature hashing), lemma 2.
    pub fn standard_error(&self, xx: f64, yy: f64, xy: f64) -> f64 {
        if self.identity { 0.0 } else { ((xx * yy + xy * xy) / self.buckets as f64).sqrt() }
    }
}
