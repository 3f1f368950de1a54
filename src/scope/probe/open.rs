//! A pass that is going on: checks what is handed over and copies the sampled tokens.

use super::attention::Attention;
use super::memory::{Lease, ProbeMemory};
use super::pass::{AttentionPass, LayerPass, OutputsPass, Pass, Purpose, RouterPass};
use super::sampling::{Token, choose};
use crate::device::{AttentionJob, AttentionRow, Device, RowsJob, Strided};
use crate::scope::message::TaskId;
use crate::scope::{Options, Result, error::invalid};
use crate::stats::attention::Rows;
use ndarray::Array2;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The sum of a row of probabilities may be this far from 1: bfloat16 probabilities sum to 1 ± 2⁻⁸; a wrong scale, mask or
/// layout, or dropout, is far beyond it.
const ROW_SUM_TOLERANCE: f32 = 0.02;

/// A pass between its begin and its end.
#[derive(Debug)]
pub struct OpenPass {
    pass: Pass,
    /// The host memory that it takes.
    lease: Lease,
    shapes: Vec<(u64, u64)>,
    batch: Batch,
    layers: BTreeMap<u32, Layer>,
    over_budget: bool,
    has_labels: bool,
}

/// The batch that is going on.
#[derive(Debug, Default)]
struct Batch {
    sequences: u64,
    length: u64,
    tokens: Vec<Token>,
    /// Those of them whose attention is looked at.
    queries: Vec<Token>,
}

#[derive(Debug, Default)]
struct Layer {
    hidden: Grown,
    outputs: Grown,
    heads: u32,
    first_head: u32,
    projection: Option<Array2<f32>>,
    router: Grown,
    top_k: u32,
    attention: Grown,
    attention_rows: Option<AttentionPass>,
}

/// Rows that grow batch by batch.
#[derive(Debug, Default)]
struct Grown {
    batches: usize,
    width: usize,
    values: Vec<f32>,
}

impl Grown {
    /// Rows of this width may come next, in the batch that is the pass's `batches`-th.
    fn check(&self, batches: usize, width: u64, what: &str, layer: u32) -> Result<()> {
        if self.batches == batches {
            return Err(invalid!("layer: {what} of layer {layer} were given already in this batch"));
        }
        if self.batches + 1 < batches {
            return Err(invalid!(
                "layer: {what} of layer {layer} were not given in batch {} of this pass",
                self.batches
            ));
        }
        if self.batches > 0 && self.width as u64 != width {
            return Err(invalid!("{what}: {width} values a token in layer {layer}, {} in earlier batches", self.width));
        }
        if width == 0 {
            return Err(invalid!("{what}: there are no values in layer {layer}"));
        }
        Ok(())
    }

    /// Counts a batch.
    fn grow(&mut self, width: u64) {
        self.batches += 1;
        self.width = width as usize;
    }

    fn into_array(self, tokens: usize) -> Option<Array2<f32>> {
        if self.batches == 0 { None } else { Array2::from_shape_vec((tokens, self.width), self.values).ok() }
    }
}

impl OpenPass {
    pub fn new(pass: Pass, lease: Lease) -> Self {
        let (shapes, layers) = (Vec::new(), BTreeMap::new());
        Self { pass, lease, shapes, batch: Batch::default(), layers, over_budget: false, has_labels: false }
    }

    pub fn is_over_budget(&self) -> bool {
        self.over_budget
    }

    /// The task whose base it would have become.
    pub fn replaces_base_of(&self) -> Option<TaskId> {
        (self.pass.purpose == Purpose::Base).then_some(self.pass.task)
    }

    pub fn batch(&mut self, sequences: u64, length: u64, labels: &[i32], options: &Options) -> Result<()> {
        if sequences == 0 || length == 0 || sequences.checked_mul(length).is_none_or(|tokens| tokens > 1 << 40) {
            return Err(invalid!("sequences: {sequences} sequences of {length} tokens are no batch"));
        }
        let count = labels.len() as u64;
        if !labels.is_empty() && count != sequences && count != sequences * length {
            return Err(invalid!(
                "label_count: {count} labels are neither one per sequence ({sequences}) nor one per token ({})",
                sequences * length
            ));
        }
        if !self.shapes.is_empty() && self.has_labels == labels.is_empty() {
            return Err(invalid!("labels: either all batches of a pass have labels or none has"));
        }
        self.has_labels = !labels.is_empty();
        let number = self.shapes.len() as u64;
        let (per_sequence, most) = (u64::from(options.probe_tokens_per_sequence), u64::from(options.probe_tokens));
        let tokens = choose(number, sequences, length, per_sequence, most);
        let queries = tokens.len().min(options.attention_rows as usize);
        let queries = (0..queries).map(|k| tokens[k * tokens.len() / queries]).collect();
        let before: u64 = self.shapes.iter().map(|shape| shape.0).sum();
        self.pass.batches.push(tokens.len());
        self.pass.sequences.extend(tokens.iter().map(|token| (before + token.sequence) as u32));
        if self.has_labels {
            let per_token = count != sequences;
            let label = |token: &Token| {
                let at = if per_token { token.sequence * length + token.position } else { token.sequence };
                labels[at as usize]
            };
            self.pass.labels.extend(tokens.iter().map(label));
        }
        self.shapes.push((sequences, length));
        self.batch = Batch { sequences, length, tokens, queries };
        Ok(())
    }

    pub fn hidden(&mut self, layer: u32, hidden: Strided, device: &dyn Device, memory: &ProbeMemory) -> Result<()> {
        let view = self.by_token(hidden, "tensor")?;
        let &[_, _, width] = view.shape() else {
            return Err(invalid!("tensor.shape: {:?} is not tokens × width", hidden.shape()));
        };
        let rows = self.batch.tokens.len() as u64;
        // Beside the rows: what the algebra thread makes of them, in fp64. Scores of min(rows, width) columns and products of
        // all pairs of rows.
        let bytes = width.checked_mul(4).and_then(|bytes| (bytes + 8 * rows.min(width) + 8 * rows).checked_mul(rows));
        let part: Part = |layer| &mut layer.hidden;
        if self.admit(layer, "hidden states", part, width, bytes, memory)? {
            copy(&mut self.layers, layer, part, &self.batch.tokens, &view, device);
        }
        Ok(())
    }

    pub fn outputs(&mut self, layer: u32, given: Outputs, device: &dyn Device, memory: &ProbeMemory) -> Result<()> {
        let Outputs { heads, first_head, outputs, projection } = given;
        let mut view = self.by_token(outputs, "outputs")?;
        if view.shape().len() == 3 {
            view = view.split(2, u64::from(heads)).ok_or_else(|| {
                invalid!("outputs.shape: {:?} cannot be split evenly into {heads} heads", outputs.shape())
            })?;
        }
        let &[_, _, found, width] = view.shape() else {
            return Err(invalid!("outputs.shape: {:?} is not tokens × heads × width", outputs.shape()));
        };
        if heads == 0 || found != u64::from(heads) {
            return Err(invalid!("head_count: {heads} heads, but outputs.shape is {:?}", outputs.shape()));
        }
        check_heads(first_head, found)?;
        let total = found * width;
        let columns = projection.map_or(total, |projection| projection.shape().get(1).copied().unwrap_or(0));
        if columns != total {
            return Err(invalid!(
                "projection.shape: {:?} is not model width × {total}, the width of all heads",
                projection.unwrap_or(view).shape()
            ));
        }
        let known = self.layers.get(&layer).filter(|known| known.outputs.batches > 0);
        if known.is_some_and(|known| (known.heads, known.first_head) != (heads, first_head)) {
            return Err(invalid!("head_count: layer {layer} had other heads in the batch before"));
        }
        let projection = projection.filter(|_| known.is_none());
        let rows = self.batch.tokens.len() as u64;
        let weights = projection.map_or(0, |view| view.shape()[0]);
        let bytes = rows.checked_add(weights).and_then(|rows| rows.checked_mul(total)).and_then(|n| n.checked_mul(4));
        let part: Part = |layer| &mut layer.outputs;
        if self.admit(layer, "head outputs", part, total, bytes, memory)? {
            copy(&mut self.layers, layer, part, &self.batch.tokens, &view, device);
            let known = self.layers.entry(layer).or_default();
            (known.heads, known.first_head) = (heads, first_head);
            if let Some(view) = projection {
                known.projection = Some(matrix(&view, device));
            }
        }
        Ok(())
    }

    pub fn router(
        &mut self,
        layer: u32,
        logits: Strided,
        top_k: u32,
        device: &dyn Device,
        memory: &ProbeMemory,
    ) -> Result<()> {
        let view = self.by_token(logits, "logits")?;
        let &[_, _, experts] = view.shape() else {
            return Err(invalid!("logits.shape: {:?} is not tokens × experts", logits.shape()));
        };
        if top_k == 0 || u64::from(top_k) > experts {
            return Err(invalid!("top_k: {top_k} of {experts} experts cannot be chosen"));
        }
        let known = self.layers.get(&layer).filter(|known| known.router.batches > 0);
        if let Some(known) = known.filter(|known| known.top_k != top_k) {
            return Err(invalid!("top_k: {top_k} in layer {layer}, {} in the batch before", known.top_k));
        }
        let bytes = experts.checked_mul(4 * self.batch.tokens.len() as u64);
        let part: Part = |layer| &mut layer.router;
        if self.admit(layer, "router logits", part, experts, bytes, memory)? {
            copy(&mut self.layers, layer, part, &self.batch.tokens, &view, device);
            self.layers.entry(layer).or_default().top_k = top_k;
        }
        Ok(())
    }

    pub fn attention(
        &mut self,
        layer: u32,
        attention: Attention,
        device: &dyn Device,
        memory: &ProbeMemory,
    ) -> Result<()> {
        if self.shapes.is_empty() {
            return Err(no_batch());
        }
        let Batch { sequences, length, .. } = self.batch;
        let (heads, keys) = attention.check(sequences, length)?;
        check_heads(attention.first_head, heads)?;
        let known = self.layers.get(&layer).and_then(|known| known.attention_rows.as_ref());
        if known.is_some_and(|known| known.first_head != attention.first_head) {
            return Err(invalid!("attention.first_head: layer {layer} had another one in the batch before"));
        }
        let rows: Vec<AttentionRow> =
            self.batch.queries.iter().map(|&token| attention.row(token, length, keys)).collect();
        let visible = rows.iter().try_fold(0u64, |sum, row| sum.checked_add(row.keys as u64));
        let bytes = visible.and_then(|keys| keys.checked_mul(heads)).and_then(|values| values.checked_mul(4));
        // Computed before anything is changed: only then it is known whether the rows are probabilities.
        let part: Part = |layer| &mut layer.attention;
        self.check_next(layer, "attention rows", part, heads)?;
        if !self.reserve(memory, bytes) {
            return Ok(());
        }
        let count = bytes.unwrap_or_default() as usize / 4;
        let (mut values, mut max_logits) = (vec![0.0; count], vec![f32::NAN; heads as usize]);
        let (out, source) = (&mut values[..], attention.source);
        let job = AttentionJob { source, heads: heads as usize, rows: &rows, out, max_logits: &mut max_logits };
        let off = device.attention(job);
        if off > ROW_SUM_TOLERANCE {
            memory.give_back(&mut self.lease, 4 * count as u64);
            return Err(invalid!(
                "attention: the probabilities of a row sum to 1 ± {off}; scale, mask, log_sum_exp or layout do not fit what \
                 the trainer computes, or dropout is on"
            ));
        }
        let known = self.layers.entry(layer).or_default();
        known.attention.grow(heads);
        let keys = rows.iter().map(|row| row.keys);
        match &mut known.attention_rows {
            None => {
                let (heads, keys) = (heads as usize, keys.collect());
                let rows = Rows { heads, keys, probabilities: values, max_logits };
                known.attention_rows = Some(AttentionPass { first_head: attention.first_head, rows });
            }
            Some(known) => {
                known.rows.keys.extend(keys);
                known.rows.probabilities.append(&mut values);
                for (most, logit) in known.rows.max_logits.iter_mut().zip(max_logits) {
                    *most = most.max(logit);
                }
            }
        }
        Ok(())
    }

    /// Rows of `width` values may be the next of this part of the layer.
    fn check_next(&mut self, layer: u32, what: &str, part: Part, width: u64) -> Result<()> {
        let batches = self.shapes.len();
        if self.over_budget {
            // Nothing is kept of earlier batches that this one could be compared with.
            return Ok(());
        }
        match self.layers.get_mut(&layer) {
            Some(known) => part(known).check(batches, width, what, layer),
            None => Grown::default().check(batches, width, what, layer),
        }
    }

    /// Counts a batch of rows of `width` values, once they are checked and have their memory. False: the pass is over its
    /// budget.
    fn admit(
        &mut self,
        layer: u32,
        what: &str,
        part: Part,
        width: u64,
        bytes: Option<u64>,
        memory: &ProbeMemory,
    ) -> Result<bool> {
        self.check_next(layer, what, part, width)?;
        let fits = self.reserve(memory, bytes);
        if fits {
            part(self.layers.entry(layer).or_default()).grow(width);
        }
        Ok(fits)
    }

    /// The complete pass and the shapes of its batches.
    pub fn finish(self) -> Result<(Pass, Vec<(u64, u64)>)> {
        let Self { mut pass, lease, shapes, layers, .. } = self;
        pass.lease = Arc::new(lease);
        let tokens = pass.sequences.len();
        if shapes.is_empty() || layers.is_empty() {
            return Err(invalid!("fgs_probe_end: nothing was handed over in this pass"));
        }
        for (number, layer) in layers {
            if let (Some(projection), true) = (&layer.projection, layer.hidden.batches > 0)
                && projection.nrows() != layer.hidden.width
            {
                return Err(invalid!(
                    "fgs_probe_end: the output projection of layer {number} leads to {} values, its hidden states have {}",
                    projection.nrows(),
                    layer.hidden.width
                ));
            }
            let parts = [&layer.hidden, &layer.outputs, &layer.router, &layer.attention];
            if parts.iter().any(|part| part.batches > 0 && part.batches < shapes.len()) {
                return Err(invalid!(
                    "fgs_probe_end: layer {number} was handed over in some of the {} batches of this pass only",
                    shapes.len()
                ));
            }
            let (heads, first_head, projection) = (layer.heads as usize, layer.first_head, layer.projection);
            let outputs = layer.outputs.into_array(tokens);
            let logits = layer.router.into_array(tokens);
            let found = LayerPass {
                hidden: layer.hidden.into_array(tokens),
                attention: layer.attention_rows,
                outputs: outputs.map(|outputs| OutputsPass { first_head, heads, outputs, projection }),
                router: logits.map(|logits| RouterPass { top_k: layer.top_k as usize, logits }),
            };
            pass.layers.insert(number, found);
        }
        Ok((pass, shapes))
    }

    /// The view with the batch's sequences and positions as its first two dimensions.
    fn by_token(&self, view: Strided, argument: &str) -> Result<Strided> {
        if self.shapes.is_empty() {
            return Err(no_batch());
        }
        let Batch { sequences, length, .. } = self.batch;
        let shape = view.shape();
        let split = match shape {
            [s, t, _, ..] if (*s, *t) == (sequences, length) => Some(view),
            [tokens, ..] if *tokens == sequences * length => view.split(0, sequences),
            _ => None,
        };
        split.ok_or_else(|| {
            invalid!(
                "{argument}.shape: {shape:?} does not begin with the batch's {sequences} sequences of {length} tokens, nor \
                 with their product"
            )
        })
    }

    /// Takes memory for what is copied next; false: the pass does not fit and is given up without a word to the trainer.
    /// `None`: more bytes than can be counted.
    fn reserve(&mut self, memory: &ProbeMemory, bytes: Option<u64>) -> bool {
        if !self.over_budget && !bytes.is_some_and(|bytes| memory.extend(&mut self.lease, bytes)) {
            self.over_budget = true;
            self.layers.clear();
        }
        !self.over_budget
    }
}

/// One of the four things that a layer may hand over.
type Part = fn(&mut Layer) -> &mut Grown;

/// Head outputs as they are handed over.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    pub heads: u32,
    pub first_head: u32,
    pub outputs: Strided,
    pub projection: Option<Strided>,
}

/// Numbers of heads share a field of a record with numbers of layers.
fn check_heads(first: u32, count: u64) -> Result<()> {
    if u64::from(first).saturating_add(count) <= 1 << 16 {
        return Ok(());
    }
    Err(invalid!("first_head: heads {first} to {} are not below 65536", u64::from(first).saturating_add(count) - 1))
}

/// All of a matrix.
fn matrix(view: &Strided, device: &dyn Device) -> Array2<f32> {
    let (count, length, step) = (view.shape()[0], view.shape()[1] as usize, view.strides()[1]);
    let rows: Vec<i64> = (0..count).map(|row| view.offset(&[row])).collect();
    let mut matrix = Array2::zeros((rows.len(), length));
    if let Some(out) = matrix.as_slice_mut() {
        device.rows(RowsJob { memory: view.memory, rows: &rows, runs: 1, run_step: 0, length, step, out });
    }
    matrix
}

fn no_batch() -> crate::scope::Error {
    crate::scope::Error::WrongPhase("no batch of the probe has begun; call fgs_probe_batch first".into())
}

/// Copies the sampled tokens of a view whose first two dimensions are sequences and positions.
fn copy(
    layers: &mut BTreeMap<u32, Layer>,
    layer: u32,
    part: Part,
    tokens: &[Token],
    view: &Strided,
    device: &dyn Device,
) {
    let grown = part(layers.entry(layer).or_default());
    let (runs, run_step, length, step) = match (view.shape(), view.strides()) {
        (&[_, _, runs, length], &[_, _, run_step, step]) => (runs as usize, run_step, length as usize, step),
        (&[_, _, length], &[_, _, step]) => (1, 0, length as usize, step),
        _ => unreachable!("checked by the callers"),
    };
    let rows: Vec<i64> = tokens.iter().map(|token| view.offset(&[token.sequence, token.position])).collect();
    let start = grown.values.len();
    let end = start + rows.len() * grown.width;
    if start == 0 {
        // Pages that come zeroed from the system are not written twice.
        grown.values = vec![0.0; end];
    } else {
        grown.values.resize(end, 0.0);
    }
    let out = &mut grown.values[start..];
    device.rows(RowsJob { memory: view.memory, rows: &rows, runs, run_step, length, step, out });
}
