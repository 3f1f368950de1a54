//! The tensors in each bucket of a step, and which elements of them a buffer holds.
//!
//! With a layout file a bucket is cut into the model's tensors, else it is one tensor. A buffer may hold any range of a
//! bucket: reduce-scatter leaves each rank a part, which may begin in the middle of a tensor.

use std::collections::HashMap;
use std::ops::Range;

use crate::instrument::{Instrument, Outcome, Spec, TensorId};
use crate::layout::{Layout, Placed};

/// A bucket as it is to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub numel: u64,
    /// Which of several equal copies this process has; `None`: it has a part of its own.
    pub replica: Option<u32>,
    /// In front of the names.
    pub prefix: String,
}

/// Different tensors that may have been a bucket: what changes more often is nothing that could be followed.
const VERSIONS: usize = 64;

/// The buckets of the sequence that is followed.
#[derive(Debug, Default)]
pub struct Buckets {
    buckets: Vec<Vec<Tensor>>,
    /// Everything that was ever registered, by name.
    known: HashMap<String, Vec<(Spec, TensorId)>>,
    are_too_many: bool,
}

/// A tensor within a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tensor {
    id: TensorId,
    /// Where in the bucket it begins.
    offset: u64,
    numel: u64,
    shape: (u64, u64),
}

/// The part of a tensor that a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub id: TensorId,
    /// Rows and columns of the whole tensor, or 1 and the length of the part.
    pub shape: [i64; 2],
    /// First element of the tensor that is there; `None`: all of it is.
    pub first: Option<u64>,
    /// Where in the buffer the part begins.
    pub at: u64,
}

impl Buckets {
    /// Makes these the buckets. Tensors that were registered for an earlier sequence are used again where they are the same;
    /// what cannot be registered is left out.
    pub fn register(&mut self, instrument: &Instrument, wanted: &[Wanted], layout: Option<&Layout>) -> Outcome {
        let mut outcome = Ok(());
        self.buckets.clear();
        for (n, wanted) in wanted.iter().enumerate() {
            let tensors = match layout {
                Some(layout) => layout.buckets[n].tensors.iter().map(|tensor| placed(tensor, wanted)).collect(),
                None => vec![whole(n, wanted)],
            };
            let mut bucket = Vec::with_capacity(tensors.len());
            for Placed { offset, spec } in tensors {
                let (numel, shape) = (spec.numel, spec.shape);
                match self.tensor(instrument, spec) {
                    Ok(id) => bucket.push(Tensor { id, offset, numel, shape }),
                    Err(error) => outcome = Err(error),
                }
            }
            self.buckets.push(bucket);
        }
        outcome
    }

    /// A bucket was too many different tensors already.
    pub fn are_too_many(&self) -> bool {
        self.are_too_many
    }

    fn tensor(&mut self, instrument: &Instrument, spec: Spec) -> Outcome<TensorId> {
        let versions = self.known.entry(spec.name.clone()).or_default();
        if let Some((_, id)) = versions.iter().find(|(known, _)| *known == spec) {
            return Ok(*id);
        }
        self.are_too_many |= versions.len() == VERSIONS;
        // Another sequence had a tensor of this name that was not the same.
        let name = match versions.len() {
            0 => spec.name.clone(),
            before => format!("{}.v{}", spec.name, before + 1),
        };
        let id = instrument.register(&Spec { name, ..spec.clone() })?;
        versions.push((spec, id));
        Ok(id)
    }

    /// What a buffer with the elements `local` of the bucket holds.
    pub fn pieces(&self, bucket: usize, local: Range<u64>) -> impl Iterator<Item = Piece> {
        let tensors = self.buckets.get(bucket).map_or(&[][..], Vec::as_slice);
        tensors.iter().filter_map(move |tensor| tensor.within(&local))
    }
}

impl Tensor {
    fn within(&self, local: &Range<u64>) -> Option<Piece> {
        let (begin, end) = (self.offset.max(local.start), (self.offset + self.numel).min(local.end));
        let length = end.checked_sub(begin).filter(|&length| length > 0)?;
        let is_whole = length == self.numel;
        let shape = match self.shape {
            (rows, cols) if is_whole && rows > 0 => [rows as i64, cols as i64],
            _ => [1, length as i64],
        };
        let first = (!is_whole).then_some(begin - self.offset);
        Some(Piece { id: self.id, shape, first, at: begin - local.start })
    }
}

/// A tensor of the layout.
fn placed(tensor: &Placed, wanted: &Wanted) -> Placed {
    let mut tensor = tensor.clone();
    tensor.spec.name.insert_str(0, &wanted.prefix);
    tensor.spec.replica = wanted.replica;
    tensor
}

/// A bucket of which nothing is known but its size.
fn whole(n: usize, wanted: &Wanted) -> Placed {
    let spec = Spec {
        name: format!("{}bucket.{n}", wanted.prefix),
        numel: wanted.numel,
        shape: (0, 0),
        role: 0,
        layer: None,
        expert: None,
        group: 0,
        head_layout: 0,
        head_axis: None,
        heads: 0,
        kv_heads: 0,
        head_offset: 0,
        kv_head_offset: 0,
        replica: wanted.replica,
    };
    Placed { offset: 0, spec }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Parts of all ranks together are the tensors, each element once.
        #[test]
        fn parts_add_up(
            numels in prop::collection::vec((1u64..50, 0u64..9), 1..8), cuts in prop::collection::vec(0u64..400, 0..6),
        ) {
            let instrument = FakeIds::default();
            let mut end = 0;
            let tensors: Vec<Tensor> = numels.iter().map(|&(numel, padding)| {
                let offset = end + padding;
                end = offset + numel;
                Tensor { id: instrument.next(), offset, numel, shape: (numel, 1) }
            }).collect();
            let buckets = Buckets { buckets: vec![tensors.clone()], ..Buckets::default() };
            let mut cuts: Vec<u64> = cuts.into_iter().map(|cut| cut.min(end)).chain([0, end]).collect();
            cuts.sort_unstable();
            let mut seen: HashMap<u32, Vec<u64>> = HashMap::new();
            for pair in cuts.windows(2) {
                for piece in buckets.pieces(0, pair[0]..pair[1]) {
                    let tensor = tensors.iter().position(|tensor| tensor.id == piece.id).unwrap();
                    let length = (piece.shape[0] * piece.shape[1]) as u64;
                    let first = piece.first.unwrap_or(0);
                    prop_assert_eq!(tensors[tensor].offset + first, pair[0] + piece.at);
                    prop_assert!(piece.first.is_some() || piece.shape == [tensors[tensor].numel as i64, 1]);
                    seen.entry(tensor as u32).or_default().extend(first..first + length);
                }
            }
            for (n, tensor) in tensors.iter().enumerate() {
                prop_assert_eq!(seen.get(&(n as u32)).cloned(), Some((0..tensor.numel).collect::<Vec<_>>()));
            }
        }
    }

    /// Ids without a scope.
    #[derive(Default)]
    struct FakeIds(std::cell::Cell<u32>);

    impl FakeIds {
        fn next(&self) -> TensorId {
            self.0.set(self.0.get() + 1);
            TensorId::of_test(self.0.get())
        }
    }
}
