//! A tensor with any strides, as probes are handed over.

use super::Memory;

/// Most dimensions that a probe's tensor has: sequence, position, head, element.
pub const DIMENSIONS: usize = 4;

/// A view of `dimensions` lengths with their strides in elements; the others have length 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strided {
    pub memory: Memory,
    count: usize,
    shape: [u64; DIMENSIONS],
    strides: [i64; DIMENSIONS],
}

impl Strided {
    /// `None` if there are too many dimensions. The promise of [`Memory::new`] is about every element of the view.
    pub fn new(memory: Memory, dimensions: impl IntoIterator<Item = (u64, i64)>) -> Option<Self> {
        let mut view = Self { memory, count: 0, shape: [1; DIMENSIONS], strides: [0; DIMENSIONS] };
        for (length, stride) in dimensions {
            *view.shape.get_mut(view.count)? = length;
            view.strides[view.count] = stride;
            view.count += 1;
        }
        Some(view)
    }

    pub fn shape(&self) -> &[u64] {
        &self.shape[..self.count]
    }

    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.count]
    }

    /// Splits dimension `at` into `outer` parts: a token axis into sequences and positions, features into heads. `None` if
    /// they are not even, or there would be too many dimensions.
    pub fn split(&self, at: usize, outer: u64) -> Option<Self> {
        let length = self.shape().get(at)?.checked_div(outer)?;
        if length * outer != self.shape[at] {
            return None;
        }
        let dimensions = self.shape().iter().copied().zip(self.strides().iter().copied()).enumerate();
        let split = dimensions.flat_map(|(k, (whole, stride))| {
            if k == at { vec![(outer, length as i64 * stride), (length, stride)] } else { vec![(whole, stride)] }
        });
        Self::new(self.memory, split)
    }

    /// The view with its two dimensions exchanged, of a matrix.
    pub fn transposed(mut self) -> Self {
        self.shape.swap(0, 1);
        self.strides.swap(0, 1);
        self
    }

    /// Offset of an element.
    pub fn offset(&self, index: &[u64]) -> i64 {
        index.iter().zip(self.strides()).map(|(&index, &stride)| index as i64 * stride).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DType;

    #[test]
    fn splits_axes() {
        // SAFETY: nothing is read.
        let memory = unsafe { Memory::new(std::ptr::null(), DType::F32) };
        let tokens = Strided::new(memory, [(6, 20), (8, 2)]).unwrap();
        let sequences = tokens.split(0, 2).unwrap();
        assert_eq!((sequences.shape(), sequences.strides()), (&[2, 3, 8][..], &[60, 20, 2][..]));
        let heads = sequences.split(2, 4).unwrap();
        assert_eq!((heads.shape(), heads.strides()), (&[2, 3, 4, 2][..], &[60, 20, 4, 2][..]));
        assert_eq!(heads.offset(&[1, 2, 3, 1]), 60 + 40 + 12 + 2);
        assert_eq!(tokens.split(0, 4), None);
        assert_eq!(tokens.split(0, 0), None);
        assert_eq!(heads.split(0, 2), None, "too many dimensions");
        assert_eq!(tokens.transposed().shape(), [8, 6]);
    }
}
