//! A pass over a probe: what was copied of each layer, and what the pass is for.
//!
//! A pass that has ended is a draft, since copies of device memory may still be on their way; the drain thread lands it.

use super::memory::Lease;
use crate::device::{AttentionFound, Lost, Pending};
use crate::scope::draft::Landing;
use crate::scope::message::TaskId;
use crate::stats::attention::Rows;
use ndarray::Array2;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a pass is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It becomes what later passes are compared with.
    Base,
    /// It is compared with the base, this many updates after it.
    Later { updates: u64 },
    /// The same, but the updates went on with the task itself: what change is usual.
    /// Passes of one `run` of such updates are not independent.
    Null { updates: u64, run: u32 },
}

/// One forward pass over all batches of a task's probe.
#[derive(Debug)]
pub struct Pass {
    pub task: TaskId,
    /// The task that was being trained.
    pub trained: Option<TaskId>,
    pub step: u64,
    pub time_ns: u64,
    pub purpose: Purpose,
    /// Updates of the whole run so far: passes with the same number saw the same weights.
    pub epoch: u64,
    /// Sampled tokens per batch.
    pub batches: Vec<usize>,
    /// Per sampled token, the number of its sequence, counted over all batches.
    pub sequences: Vec<u32>,
    /// Per sampled token, its class; negative: none. Empty if there are no labels.
    pub labels: Vec<i32>,
    pub layers: BTreeMap<u32, LayerPass>,
    /// The host memory that all this takes.
    pub lease: Arc<Lease>,
}

/// What was copied of one layer; rows are the sampled tokens of all batches.
#[derive(Debug, Default)]
pub struct LayerPass {
    pub hidden: Option<Array2<f32>>,
    pub attention: Option<AttentionPass>,
    pub outputs: Option<OutputsPass>,
    pub router: Option<RouterPass>,
}

#[derive(Debug)]
pub struct AttentionPass {
    pub first_head: u32,
    pub rows: Rows,
}

#[derive(Debug)]
pub struct OutputsPass {
    pub first_head: u32,
    pub heads: usize,
    /// Tokens × (heads · head width).
    pub outputs: Array2<f32>,
    /// Model width × (heads · head width); `None` if the output projection is not known.
    pub projection: Option<Array2<f32>>,
}

#[derive(Debug)]
pub struct RouterPass {
    pub top_k: usize,
    /// Tokens × experts.
    pub logits: Array2<f32>,
}

/// The sum of a row of probabilities may be this far from 1: bfloat16 probabilities sum to 1 ± 2⁻⁸; a wrong scale, mask or
/// layout, or dropout, is far beyond it.
const ROW_SUM_TOLERANCE: f32 = 0.02;

/// Attention rows are what they should be. A sum that is no number is a head's own trouble, which its statistics show.
pub fn are_probabilities(found: &AttentionFound) -> bool {
    found.off.is_nan() || found.off <= ROW_SUM_TOLERANCE
}

/// A complete pass on its way to the drain thread.
#[derive(Debug)]
pub struct PassDraft {
    /// Without its layers.
    pub pass: Pass,
    pub layers: Vec<(u32, LayerDraft)>,
}

/// What is being copied of one layer.
#[derive(Debug, Default)]
pub struct LayerDraft {
    pub hidden: Option<RowsDraft>,
    pub attention: Option<AttentionDraft>,
    pub outputs: Option<OutputsDraft>,
    pub router: Option<RouterDraft>,
}

/// Rows of the same width, batch by batch.
#[derive(Debug)]
pub struct RowsDraft {
    pub width: usize,
    pub batches: Vec<Pending<Vec<f32>>>,
}

#[derive(Debug)]
pub struct AttentionDraft {
    pub first_head: u32,
    pub heads: usize,
    /// Keys of each row of all batches.
    pub keys: Vec<usize>,
    pub batches: Vec<Pending<AttentionFound>>,
}

#[derive(Debug)]
pub struct OutputsDraft {
    pub first_head: u32,
    pub heads: usize,
    pub outputs: RowsDraft,
    pub projection: Option<MatrixDraft>,
}

/// All of a matrix.
#[derive(Debug)]
pub struct MatrixDraft {
    pub rows: usize,
    pub columns: usize,
    pub values: Pending<Vec<f32>>,
}

#[derive(Debug)]
pub struct RouterDraft {
    pub top_k: usize,
    pub logits: RowsDraft,
}

impl PassDraft {
    /// The pass, and of how many layers the attention was left out because its rows are no probabilities.
    pub fn land(self, landing: &mut Landing) -> Result<(Pass, usize), Lost> {
        let Self { mut pass, layers } = self;
        let tokens = pass.sequences.len();
        let mut left_out = 0;
        for (number, layer) in layers {
            let rows = |rows: RowsDraft, landing: &mut Landing| rows.land(tokens, landing);
            let hidden = layer.hidden.map(|hidden| rows(hidden, landing)).transpose()?;
            let asked = layer.attention.is_some();
            let attention = layer.attention.map(|attention| attention.land(landing)).transpose()?.flatten();
            left_out += usize::from(asked && attention.is_none());
            let outputs = layer.outputs.map(|outputs| outputs.land(tokens, landing)).transpose()?;
            let router = match layer.router {
                Some(RouterDraft { top_k, logits }) => Some(RouterPass { top_k, logits: rows(logits, landing)? }),
                None => None,
            };
            pass.layers.insert(number, LayerPass { hidden, attention, outputs, router });
        }
        Ok((pass, left_out))
    }
}

impl RowsDraft {
    fn land(self, tokens: usize, landing: &mut Landing) -> Result<Array2<f32>, Lost> {
        let mut values = Vec::new();
        for batch in self.batches {
            append(&mut values, landing.wait(batch)?);
        }
        array(tokens, self.width, values)
    }
}

impl AttentionDraft {
    /// `None`: the rows are no probabilities.
    fn land(self, landing: &mut Landing) -> Result<Option<AttentionPass>, Lost> {
        let Self { first_head, heads, keys, batches } = self;
        let (mut probabilities, mut max_logits) = (Vec::new(), vec![f32::NAN; heads]);
        for batch in batches {
            let found = landing.wait(batch)?;
            if !are_probabilities(&found) {
                return Ok(None);
            }
            append(&mut probabilities, found.probabilities);
            for (most, logit) in max_logits.iter_mut().zip(found.max_logits) {
                // Of two numbers the larger, of a number and NaN the number.
                *most = most.max(logit);
            }
        }
        Ok(Some(AttentionPass { first_head, rows: Rows { heads, keys, probabilities, max_logits } }))
    }
}

impl OutputsDraft {
    fn land(self, tokens: usize, landing: &mut Landing) -> Result<OutputsPass, Lost> {
        let Self { first_head, heads, outputs, projection } = self;
        let outputs = outputs.land(tokens, landing)?;
        let projection = projection.map(|projection| projection.land(landing)).transpose()?;
        Ok(OutputsPass { first_head, heads, outputs, projection })
    }
}

impl MatrixDraft {
    fn land(self, landing: &mut Landing) -> Result<Array2<f32>, Lost> {
        let values = landing.wait(self.values)?;
        array(self.rows, self.columns, values)
    }
}

/// The first batch is all there is of most passes, and becomes the whole without a copy.
fn append(whole: &mut Vec<f32>, part: Vec<f32>) {
    if whole.is_empty() {
        *whole = part;
    } else {
        whole.extend_from_slice(&part);
    }
}

fn array(rows: usize, columns: usize, values: Vec<f32>) -> Result<Array2<f32>, Lost> {
    let found = values.len();
    Array2::from_shape_vec((rows, columns), values)
        .map_err(|_| Lost(format!("a device gave {found} values of {rows} × {columns}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A result that is there after so many looks.
    fn after<T: Send + Clone + 'static>(mut looks: u32, value: T) -> Pending<T> {
        Pending::landing(move || {
            looks = looks.saturating_sub(1);
            (looks == 0).then(|| Ok(value.clone()))
        })
    }

    /// One head, one row of one key a batch.
    fn attention(batches: Vec<(f32, f32)>) -> AttentionDraft {
        let keys = vec![1; batches.len()];
        let found = |(off, logit)| AttentionFound { probabilities: vec![1.0 + off], max_logits: vec![logit], off };
        let batches = batches.into_iter().map(|batch| after(3, found(batch))).collect();
        AttentionDraft { first_head: 7, heads: 1, keys, batches }
    }

    fn pass(layers: Vec<(u32, LayerDraft)>) -> PassDraft {
        let pass = Pass {
            task: 0,
            trained: None,
            step: 3,
            time_ns: 0,
            purpose: Purpose::Base,
            epoch: 0,
            batches: vec![1, 1],
            sequences: vec![0, 1],
            labels: Vec::new(),
            layers: BTreeMap::new(),
            lease: Arc::default(),
        };
        PassDraft { pass, layers }
    }

    #[test]
    fn batches_come_together_in_their_order() {
        let batches = vec![after(4, vec![1.0, 2.0]), Pending::ready(vec![3.0, 4.0])];
        let hidden = Some(RowsDraft { width: 2, batches });
        let attention = Some(attention(vec![(0.0, -1.0), (0.01, f32::NAN)]));
        let draft = pass(vec![(5, LayerDraft { hidden, attention, ..LayerDraft::default() })]);
        let mut looks = 0;
        let mut idle = || looks += 1;
        let (pass, left_out) = draft.land(&mut Landing::new(&[], 0, &mut idle)).unwrap();
        assert_eq!((left_out, looks), (0, 3 + 2 + 2), "idle while it waits");
        let layer = &pass.layers[&5];
        assert_eq!(layer.hidden, Some(ndarray::array![[1.0, 2.0], [3.0, 4.0]]));
        let found = layer.attention.as_ref().unwrap();
        assert_eq!((found.first_head, &found.rows.keys), (7, &vec![1, 1]));
        assert_eq!((&found.rows.probabilities, &found.rows.max_logits), (&vec![1.0, 1.01], &vec![-1.0]));
    }

    #[test]
    fn rows_that_are_no_probabilities_cost_their_layer_its_attention() {
        let layer = |off| LayerDraft {
            hidden: Some(RowsDraft { width: 1, batches: vec![after(1, vec![1.0, 2.0])] }),
            attention: Some(attention(vec![(0.0, 0.0), (off, 0.0)])),
            ..LayerDraft::default()
        };
        let draft = pass(vec![(0, layer(0.5)), (1, layer(0.0))]);
        let (pass, left_out) = draft.land(&mut Landing::new(&[], 0, &mut || {})).unwrap();
        assert_eq!(left_out, 1);
        assert!(pass.layers[&0].attention.is_none() && pass.layers[&0].hidden.is_some());
        assert!(pass.layers[&1].attention.is_some());
    }

    #[test]
    fn too_few_values_are_lost() {
        let hidden = Some(RowsDraft { width: 2, batches: vec![Pending::ready(vec![1.0])] });
        let draft = pass(vec![(0, LayerDraft { hidden, ..LayerDraft::default() })]);
        assert!(draft.land(&mut Landing::new(&[], 0, &mut || {})).is_err());
    }
}
