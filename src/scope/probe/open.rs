//! A pass that is going on: checks what is handed over and copies the sampled tokens.

use super::attention::Attention;
use super::memory::{Lease, ProbeMemory};
use super::pass::{
    AttentionDraft, LayerDraft, MatrixDraft, OutputsDraft, Pass, PassDraft, Purpose, RouterDraft, RowsDraft,
    are_probabilities,
};
use super::sampling::{Token, choose};
use crate::device::{AttentionJob, AttentionRow, Device, Pending, RowsJob, Strided};
use crate::scope::message::TaskId;
use crate::scope::queue::Queue;
use crate::scope::{Options, Result, error::invalid};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    projection: Option<MatrixDraft>,
    router: Grown,
    top_k: u32,
    attention: Grown,
    attention_rows: Option<AttentionDraft>,
}

/// Rows that grow batch by batch.
#[derive(Debug, Default)]
struct Grown {
    batches: usize,
    width: usize,
    values: Vec<Pending<Vec<f32>>>,
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

    fn into_draft(self) -> Option<RowsDraft> {
        (self.batches > 0).then_some(RowsDraft { width: self.width, batches: self.values })
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

    pub fn hidden(&mut self, layer: u32, hidden: Strided, queue: &Queue, memory: &ProbeMemory) -> Result<()> {
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
            copy(&mut self.layers, layer, part, &self.batch.tokens, &view, queue);
        }
        Ok(())
    }

    pub fn outputs(&mut self, layer: u32, given: Outputs, queue: &Queue, memory: &ProbeMemory) -> Result<()> {
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
            copy(&mut self.layers, layer, part, &self.batch.tokens, &view, queue);
            let known = self.layers.entry(layer).or_default();
            (known.heads, known.first_head) = (heads, first_head);
            if let Some(view) = projection {
                known.projection = Some(matrix(&view, queue));
            }
        }
        Ok(())
    }

    pub fn router(
        &mut self,
        layer: u32,
        logits: Strided,
        top_k: u32,
        queue: &Queue,
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
            copy(&mut self.layers, layer, part, &self.batch.tokens, &view, queue);
            self.layers.entry(layer).or_default().top_k = top_k;
        }
        Ok(())
    }

    pub fn attention(&mut self, layer: u32, attention: Attention, queue: &Queue, memory: &ProbeMemory) -> Result<()> {
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
        // Asked for before anything is changed: rows that are no probabilities are refused if that is seen at once.
        let part: Part = |layer| &mut layer.attention;
        self.check_next(layer, "attention rows", part, heads)?;
        if !self.reserve(memory, bytes) {
            return Ok(());
        }
        let job = AttentionJob { source: attention.source, heads: heads as usize, rows: &rows };
        let found = match queue.device.attention(queue.stream, job).now() {
            Ok(found) if !are_probabilities(&found) => {
                memory.give_back(&mut self.lease, bytes.unwrap_or_default());
                return Err(invalid!(
                    "attention: the probabilities of a row sum to 1 ± {}; scale, mask, log_sum_exp or layout do not fit \
                     what the trainer computes, or dropout is on",
                    found.off
                ));
            }
            Ok(found) => Pending::ready(found),
            // Whether they are probabilities is seen when they land.
            Err(landing) => landing,
        };
        let known = self.layers.entry(layer).or_default();
        known.attention.grow(heads);
        let draft = known.attention_rows.get_or_insert_with(|| AttentionDraft {
            first_head: attention.first_head,
            heads: heads as usize,
            keys: Vec::new(),
            batches: Vec::new(),
        });
        draft.keys.extend(rows.iter().map(|row| row.keys));
        draft.batches.push(found);
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
    pub fn finish(self) -> Result<(PassDraft, Vec<(u64, u64)>)> {
        let Self { mut pass, lease, shapes, layers, .. } = self;
        pass.lease = Arc::new(lease);
        if shapes.is_empty() || layers.is_empty() {
            return Err(invalid!("fgs_probe_end: nothing was handed over in this pass"));
        }
        let mut drafts = Vec::with_capacity(layers.len());
        for (number, layer) in layers {
            if let (Some(projection), true) = (&layer.projection, layer.hidden.batches > 0)
                && projection.rows != layer.hidden.width
            {
                return Err(invalid!(
                    "fgs_probe_end: the output projection of layer {number} leads to {} values, its hidden states have {}",
                    projection.rows,
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
            let outputs = layer.outputs.into_draft();
            let logits = layer.router.into_draft();
            let draft = LayerDraft {
                hidden: layer.hidden.into_draft(),
                attention: layer.attention_rows,
                outputs: outputs.map(|outputs| OutputsDraft { first_head, heads, outputs, projection }),
                router: logits.map(|logits| RouterDraft { top_k: layer.top_k as usize, logits }),
            };
            drafts.push((number, draft));
        }
        Ok((PassDraft { pass, layers: drafts }, shapes))
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
fn matrix(view: &Strided, queue: &Queue) -> MatrixDraft {
    let (count, columns, step) = (view.shape()[0], view.shape()[1] as usize, view.strides()[1]);
    let rows: Vec<i64> = (0..count).map(|row| view.offset(&[row])).collect();
    let job = RowsJob { memory: view.memory, rows: &rows, runs: 1, run_step: 0, length: columns, step };
    MatrixDraft { rows: rows.len(), columns, values: queue.device.rows(queue.stream, job) }
}

fn no_batch() -> crate::scope::Error {
    crate::scope::Error::WrongPhase("no batch of the probe has begun; call fgs_probe_batch first".into())
}

/// Copies the sampled tokens of a view whose first two dimensions are sequences and positions.
fn copy(layers: &mut BTreeMap<u32, Layer>, layer: u32, part: Part, tokens: &[Token], view: &Strided, queue: &Queue) {
    let (runs, run_step, length, step) = match (view.shape(), view.strides()) {
        (&[_, _, runs, length], &[_, _, run_step, step]) => (runs as usize, run_step, length as usize, step),
        (&[_, _, length], &[_, _, step]) => (1, 0, length as usize, step),
        _ => unreachable!("checked by the callers"),
    };
    let rows: Vec<i64> = tokens.iter().map(|token| view.offset(&[token.sequence, token.position])).collect();
    let job = RowsJob { memory: view.memory, rows: &rows, runs, run_step, length, step };
    let copied = queue.device.rows(queue.stream, job);
    part(layers.entry(layer).or_default()).values.push(copied);
}
