//! A pass that is going on: checks what is handed over and copies the sampled tokens.

use super::attention::Attention;
use super::memory::ProbeMemory;
use super::pass::{AttentionPass, LayerPass, OutputsPass, Pass, RouterPass};
use super::sampling::{Token, choose};
use crate::device::{AttentionJob, AttentionRow, Device, RowsJob, Strided};
use crate::scope::{Options, Result, error::invalid};
use crate::stats::attention::Rows;
use ndarray::Array2;
use std::collections::BTreeMap;

/// The sum of a row of probabilities may be this far from 1: bfloat16 probabilities sum to 1 ± 2⁻⁸; a wrong scale, mask or
/// layout, or dropout, is far beyond it.
const ROW_SUM_TOLERANCE: f32 = 0.02;

/// A pass between its begin and its end.
#[derive(Debug)]
pub struct OpenPass {
    pass: Pass,
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
    /// Counts a batch whose rows have this width.
    fn begin(&mut self, batches: usize, width: usize, what: &str, layer: u32) -> Result<()> {
        if self.batches == batches {
            return Err(invalid!("layer: {what} of layer {layer} were given already in this batch"));
        }
        if self.batches + 1 < batches {
            return Err(invalid!(
                "layer: {what} of layer {layer} were not given in batch {} of this pass",
                self.batches
            ));
        }
        if self.batches > 0 && self.width != width {
            return Err(invalid!("{what}: {width} values a token in layer {layer}, {} in earlier batches", self.width));
        }
        if width == 0 {
            return Err(invalid!("{what}: there are no values in layer {layer}"));
        }
        (self.batches, self.width) = (batches, width);
        Ok(())
    }

    fn into_array(self, tokens: usize) -> Option<Array2<f32>> {
        if self.batches == 0 { None } else { Array2::from_shape_vec((tokens, self.width), self.values).ok() }
    }
}

impl OpenPass {
    pub fn new(pass: Pass) -> Self {
        let (shapes, layers) = (Vec::new(), BTreeMap::new());
        Self { pass, shapes, batch: Batch::default(), layers, over_budget: false, has_labels: false }
    }

    pub fn is_over_budget(&self) -> bool {
        self.over_budget
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
        // The drain thread keeps products of all pairs of rows beside the rows.
        if !self.reserve(memory, rows * (4 * width + 8 * rows)) {
            return Ok(());
        }
        let batches = self.shapes.len();
        let grown = &mut self.layers.entry(layer).or_default().hidden;
        grown.begin(batches, width as usize, "hidden states", layer)?;
        copy(grown, &self.batch.tokens, &view, device);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one call of the C surface")]
    pub fn outputs(
        &mut self,
        layer: u32,
        heads: u32,
        first_head: u32,
        outputs: Strided,
        projection: Option<Strided>,
        device: &dyn Device,
        memory: &ProbeMemory,
    ) -> Result<()> {
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
        let total = found * width;
        let columns = projection.map_or(total, |projection| projection.shape().get(1).copied().unwrap_or(0));
        if columns != total {
            return Err(invalid!(
                "projection.shape: {:?} is not model width × {total}, the width of all heads",
                projection.unwrap_or(view).shape()
            ));
        }
        let batches = self.shapes.len();
        let known = self.layers.entry(layer).or_default();
        if known.outputs.batches > 0 && (known.heads, known.first_head) != (heads, first_head) {
            return Err(invalid!("head_count: layer {layer} had other heads in the batch before"));
        }
        let is_first = known.outputs.batches == 0;
        let rows = self.batch.tokens.len() as u64;
        let weights = projection.filter(|_| is_first).map_or(0, |view| view.shape()[0] * total);
        if !self.reserve(memory, 4 * (rows * total + weights)) {
            return Ok(());
        }
        let layer_pass = self.layers.entry(layer).or_default();
        (layer_pass.heads, layer_pass.first_head) = (heads, first_head);
        layer_pass.outputs.begin(batches, total as usize, "head outputs", layer)?;
        copy(&mut layer_pass.outputs, &self.batch.tokens, &view, device);
        if is_first && let Some(view) = projection {
            let rows: Vec<i64> = (0..view.shape()[0]).map(|row| view.offset(&[row])).collect();
            let mut weights = Array2::zeros((rows.len(), total as usize));
            if let Some(out) = weights.as_slice_mut() {
                let (length, step) = (total as usize, view.strides()[1]);
                device.rows(RowsJob { memory: view.memory, rows: &rows, runs: 1, run_step: 0, length, step, out });
            }
            layer_pass.projection = Some(weights);
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
        if !self.reserve(memory, 4 * experts * self.batch.tokens.len() as u64) {
            return Ok(());
        }
        let batches = self.shapes.len();
        let known = self.layers.entry(layer).or_default();
        if known.router.batches > 0 && known.top_k != top_k {
            return Err(invalid!("top_k: {top_k} in layer {layer}, {} in the batch before", known.top_k));
        }
        known.top_k = top_k;
        known.router.begin(batches, experts as usize, "router logits", layer)?;
        copy(&mut known.router, &self.batch.tokens, &view, device);
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
        let rows: Vec<AttentionRow> =
            self.batch.queries.iter().map(|&token| attention.row(token, length, keys)).collect();
        let count = heads as usize * rows.iter().map(|row| row.keys).sum::<usize>();
        if !self.reserve(memory, 4 * count as u64) {
            return Ok(());
        }
        let (mut values, mut max_logits) = (vec![0.0; count], vec![f32::NAN; heads as usize]);
        let (out, source) = (&mut values[..], attention.source);
        let job = AttentionJob { source, heads: heads as usize, rows: &rows, out, max_logits: &mut max_logits };
        let off = device.attention(job);
        if off > ROW_SUM_TOLERANCE {
            return Err(invalid!(
                "attention: the probabilities of a row sum to 1 ± {off}; scale, mask, log_sum_exp or layout do not fit what \
                 the trainer computes, or dropout is on"
            ));
        }
        let known = self.layers.entry(layer).or_default();
        known.attention.begin(self.shapes.len(), heads as usize, "attention rows", layer)?;
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

    /// The complete pass and the shapes of its batches.
    pub fn finish(self) -> Result<(Pass, Vec<(u64, u64)>)> {
        let Self { mut pass, shapes, layers, .. } = self;
        let tokens = pass.sequences.len();
        if shapes.is_empty() || layers.is_empty() {
            return Err(invalid!("fgs_probe_end: nothing was handed over in this pass"));
        }
        for (number, layer) in layers {
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
    fn reserve(&mut self, memory: &ProbeMemory, bytes: u64) -> bool {
        if !self.over_budget && !memory.extend(&mut self.pass.lease, bytes) {
            self.over_budget = true;
            self.layers.clear();
        }
        !self.over_budget
    }
}

fn no_batch() -> crate::scope::Error {
    crate::scope::Error::WrongPhase("no batch of the probe has begun; call fgs_probe_batch first".into())
}

/// Copies the sampled tokens of a view whose first two dimensions are sequences and positions.
fn copy(grown: &mut Grown, tokens: &[Token], view: &Strided, device: &dyn Device) {
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
