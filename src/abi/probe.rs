//! Probes: activations of a fixed batch, handed over layer by layer.

use super::boundary::{Failure, Outcome};
use super::handle::{call, call_on, fgs_scope};
use super::status::fgs_status;
use super::tensor::{fgs_dltensor, local_tensor};
use super::text::{check_struct, required};
use crate::device::{AttentionSource, QueryKey, Strided};
use crate::scope::{Attention, Front, HeadEffect, Mask, Outputs};
use std::ffi::{c_char, c_void};

/// Bits of `fgs_probe.flags`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_probe_flag {
    /// Later passes are compared with this one, whatever task is being trained.
    FGS_PROBE_BASE = 1,
}

/// A pass over the probe of a task: the same batches, every time. Initialise with `FGS_PROBE_INIT`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_probe {
    /// sizeof(fgs_probe); set by FGS_PROBE_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_PROBE_INIT.
    pub magic: u32,
    /// Task whose data the probe is.
    pub task: *const c_char,
    /// FGS_UNSET_U64, or: the weights of this pass are those after so many more updates on the task itself since its base
    /// pass. Such passes say what change is usual; without them no head can be called changed. The updates are made outside
    /// steps, and the weights put back afterwards.
    pub continued_updates: u64,
    /// Bits of fgs_probe_flag.
    pub flags: u32,
    /// With continued_updates: which of several runs of such updates the pass belongs to. Passes of one run see the same
    /// batches and are not independent; changes are judged by what differs between runs, so there must be two or more.
    pub run: u32,
}

/// Which keys a query sees.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_mask {
    /// All keys.
    FGS_MASK_NONE = 0,
    /// Keys up to the query's own position.
    FGS_MASK_CAUSAL = 1,
}

/// Attention of one layer over the batch: either its probabilities, or queries and keys. Initialise with
/// `FGS_ATTENTION_INIT`.
///
/// Strides may be any, so a tensor in another order is described by its strides. Of each batch up to `attention_rows`
/// queries are looked at (FGS_ATTENTION_ROWS, default 64).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_attention {
    /// sizeof(fgs_attention); set by FGS_ATTENTION_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_ATTENTION_INIT.
    pub magic: u32,
    /// [sequences, heads, queries, keys], after the softmax, without dropout. NULL: query and key are given.
    pub probabilities: *const fgs_dltensor,
    /// [sequences, positions, heads, width] as it enters the product: rotated, normalised. NULL if probabilities are given.
    pub query: *const fgs_dltensor,
    /// [sequences, positions, key heads, width]. Query head h looks at key head h / (heads / key heads).
    pub key: *const fgs_dltensor,
    /// Log of the sum of the exponentials of the logits, natural: [sequences, heads, queries], as flash attention keeps it.
    /// NULL: with query and key the softmax is taken over the visible keys; with probabilities the largest logit stays
    /// unknown.
    pub log_sum_exp: *const fgs_dltensor,
    /// Logits are scale · query · key. 0: 1/sqrt(width).
    pub scale: f64,
    /// Logits are then softcap · tanh(logit / softcap). 0: not capped.
    pub softcap: f64,
    /// One of fgs_mask.
    pub mask: u32,
    /// A query sees only so many of the latest keys. 0: all.
    pub window: u32,
    /// Number of the first head in the whole model: above 0 if heads are spread over ranks.
    pub first_head: u32,
    /// Zero.
    pub reserved: u32,
}

/// Any strided view of up to four dimensions.
///
/// # Safety
/// As for `local_tensor`, and the tensor's elements must be readable and not written to during the call.
unsafe fn strided(tensor: *const fgs_dltensor, argument: &str) -> Outcome<Strided> {
    // SAFETY: the caller's promise.
    let view = unsafe { local_tensor(tensor)?.strided() };
    view.ok_or_else(|| Failure::invalid(format!("{argument}.ndim: a probe's tensor has at most four dimensions")))
}

/// The same of a tensor that may be left out.
///
/// # Safety
/// As for [`strided`].
unsafe fn optional_strided(tensor: *const fgs_dltensor, argument: &str) -> Outcome<Option<Strided>> {
    // SAFETY: the caller's promise.
    if tensor.is_null() { Ok(None) } else { unsafe { strided(tensor, argument) }.map(Some) }
}

/// Something of one layer of the batch.
///
/// # Safety
/// As for [`call_on`].
unsafe fn of_layer(
    scope: *const fgs_scope,
    layer: u32,
    stream: *mut c_void,
    body: impl FnOnce(&mut Front) -> Outcome<()>,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call_on(scope, stream, |front| {
            check_layer(layer)?;
            body(front)
        })
    }
}

/// A pass over the probe of a task begins: one forward run of its fixed batches at the weights of now.
///
/// Then, for every batch: `fgs_probe_batch`, and for every layer what is to be measured: `fgs_probe_hidden`,
/// `fgs_probe_attention`, `fgs_probe_head_output`, `fgs_probe_router`. Then `fgs_probe_end`, or `fgs_probe_abandon` if the
/// forward run failed. Between steps only; a step or task that begins in between gives the pass up.
///
/// A pass over the task that is being trained becomes the base that later passes of it are compared with, and replaces an
/// earlier one; take it just before `fgs_task_end`. The first pass of any other task becomes its base too. Passes of
/// several tasks at the same weights also say how alike the tasks are.
///
/// Tokens are sampled: up to probe_tokens a batch (FGS_PROBE_TOKENS, 1024), up to probe_tokens_per_sequence a sequence
/// (FGS_PROBE_TOKENS_PER_SEQUENCE, 4), always the same. A few batches that give about 1,000 tokens in all are enough.
/// What is kept counts against probe_budget (FGS_PROBE_BUDGET, 0.05 of the host's memory); a pass beyond it is left out and
/// counted. Errors: FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_INVALID, FGS_ERROR_PHASE.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `probe` must be NULL or readable, and its string terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_begin(scope: *mut fgs_scope, probe: *const fgs_probe) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            let probe = probe.as_ref().ok_or_else(|| Failure::null("probe"))?;
            check_struct(probe.size, probe.magic, size_of::<fgs_probe>(), "fgs_probe")?;
            let base = fgs_probe_flag::FGS_PROBE_BASE as u32;
            if probe.flags & !base != 0 {
                let text = format!("probe.flags: {:#x} has bits that are no fgs_probe_flag", probe.flags);
                return Err(Failure::invalid(text));
            }
            let continued = (probe.continued_updates != u64::MAX).then_some((probe.continued_updates, probe.run));
            Ok(front.probe_begin(required(probe.task, "probe.task")?, continued, probe.flags & base != 0)?)
        })
    }
}

/// A batch of the pass begins: `sequences` sequences of `sequence_length` tokens. Batches come in the same order and with
/// the same shapes in every pass of a task.
///
/// `labels`: a class per sequence or per token (`label_count` says which), negative for none, for the measure of neural
/// collapse; NULL and 0 without classes. Errors: FGS_ERROR_PHASE, FGS_ERROR_INVALID.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `labels` must be NULL or point to `label_count` readable
/// values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_batch(
    scope: *mut fgs_scope,
    sequences: u64,
    sequence_length: u64,
    labels: *const i32,
    label_count: u64,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            let labels = match (labels.is_null(), usize::try_from(label_count)) {
                (true, Ok(0)) => &[],
                (true, _) => return Err(Failure::null("labels")),
                (false, Ok(count)) if count <= 1 << 40 => std::slice::from_raw_parts(labels, count),
                (false, _) => return Err(Failure::invalid(format!("label_count: {label_count} is no count"))),
            };
            Ok(front.probe_batch(sequences, sequence_length, labels)?)
        })
    }
}

/// Hidden states of a layer: the residual stream after it. [sequences, tokens, width] or [sequences · tokens, width].
///
/// Sampled tokens are copied; the data is read during the call and not afterwards. stream: NULL for host memory. Errors:
/// FGS_ERROR_PHASE, FGS_ERROR_INVALID (shape, or the layer twice in a batch), FGS_ERROR_UNSUPPORTED.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `hidden` must be NULL or describe memory that is readable and
/// not written to during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_hidden(
    scope: *mut fgs_scope,
    layer: u32,
    hidden: *const fgs_dltensor,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { of_layer(scope, layer, stream, |front| Ok(front.probe_hidden(layer, strided(hidden, "hidden")?)?)) }
}

/// Attention of a layer. Rows that the trainer does not store are computed from queries and keys inside the call.
///
/// The data is read during the call and not afterwards. stream: NULL for host memory. Errors: as for `fgs_probe_hidden`,
/// and FGS_ERROR_INVALID if the probabilities of a row do not sum to 1: then scale, mask or layout are not the trainer's.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `attention` must be NULL or readable, and its tensors NULL or
/// describe memory that is readable and not written to during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_attention(
    scope: *mut fgs_scope,
    layer: u32,
    attention: *const fgs_attention,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        of_layer(scope, layer, stream, |front| {
            let given = attention.as_ref().ok_or_else(|| Failure::null("attention"))?;
            check_struct(given.size, given.magic, size_of::<fgs_attention>(), "fgs_attention")?;
            Ok(front.probe_attention(layer, convert(given)?)?)
        })
    }
}

/// # Safety
/// The tensors of `given` as for [`strided`].
unsafe fn convert(given: &fgs_attention) -> Outcome<Attention> {
    if given.reserved != 0 {
        return Err(Failure::invalid(format!("attention.reserved: {} is not 0", given.reserved)));
    }
    let mask = match given.mask {
        0 => Mask::None,
        1 => Mask::Causal,
        other => return Err(Failure::invalid(format!("attention.mask: {other} is no fgs_mask"))),
    };
    // SAFETY (both): the caller's promise.
    let log_sum_exp = unsafe { optional_strided(given.log_sum_exp, "attention.log_sum_exp") }?;
    let source = match (given.probabilities.is_null(), given.query.is_null() && given.key.is_null()) {
        (false, true) => {
            let probabilities = unsafe { strided(given.probabilities, "attention.probabilities") }?;
            AttentionSource::Probabilities { probabilities, log_sum_exp }
        }
        (true, false) => {
            let tensor = |tensor: *const fgs_dltensor, argument: &str| {
                if tensor.is_null() {
                    return Err(Failure::null(argument));
                }
                // SAFETY: the caller's promise.
                unsafe { strided(tensor, argument) }
            };
            let (query, key) = (tensor(given.query, "attention.query")?, tensor(given.key, "attention.key")?);
            let heads = |view: &Strided| view.shape().get(2).copied().unwrap_or(0);
            let width = query.shape().get(3).copied().unwrap_or(1).max(1) as f64;
            let scale = if given.scale == 0.0 { 1.0 / width.sqrt() } else { given.scale };
            let group = (heads(&query) / heads(&key).max(1)).max(1);
            let (scale, softcap) = (scale as f32, given.softcap as f32);
            if softcap == 0.0 && given.softcap != 0.0 {
                return Err(Failure::invalid(format!("attention.softcap: {} is 0 in float32", given.softcap)));
            }
            AttentionSource::QueryKey(QueryKey { query, key, log_sum_exp, scale, softcap, group })
        }
        (true, true) => return Err(Failure::null("attention.probabilities")),
        (false, false) => {
            let text = "attention.query: either probabilities are given, or query and key, not both";
            return Err(Failure::invalid(text));
        }
    };
    Ok(Attention { source, mask, window: u64::from(given.window), first_head: given.first_head })
}

/// What the heads of a layer put out, before the output projection mixes them: [sequences, tokens, heads, width], or with
/// sequences and tokens, or heads and width, or both, as one dimension.
///
/// `projection`: the output projection as [model width, heads · width]; NULL: the layer's bound parameter of role
/// FGS_ROLE_OUTPUT with the same heads. With it, and the hidden states of the layer, the change of a head's contribution to
/// the residual stream is measured. `first_head`: number of the first head in the whole model. The data is read during the
/// call and not afterwards. stream: NULL for host memory. Errors: as for `fgs_probe_hidden`.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; tensors must be NULL or describe memory that is readable and
/// not written to during the call, and so must the bound output projection.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_head_output(
    scope: *mut fgs_scope,
    layer: u32,
    head_count: u32,
    first_head: u32,
    outputs: *const fgs_dltensor,
    projection: *const fgs_dltensor,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        of_layer(scope, layer, stream, |front| {
            let outputs = strided(outputs, "outputs")?;
            let projection = optional_strided(projection, "projection")?;
            let outputs = Outputs { heads: head_count, first_head, outputs, projection };
            Ok(front.probe_head_output(layer, outputs)?)
        })
    }
}

/// What the router of a layer's mixture of experts puts out, before the softmax: [sequences, tokens, experts] or
/// [sequences · tokens, experts]. `top_k`: experts that each token goes to.
///
/// The data is read during the call and not afterwards. stream: NULL for host memory. Errors: as for `fgs_probe_hidden`.
///
/// # Safety
/// As for `fgs_probe_hidden`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_router(
    scope: *mut fgs_scope,
    layer: u32,
    logits: *const fgs_dltensor,
    top_k: u32,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { of_layer(scope, layer, stream, |front| Ok(front.probe_router(layer, strided(logits, "logits")?, top_k)?)) }
}

/// The pass is complete. Only now anything of it is measured, and not on this thread.
///
/// Errors: FGS_ERROR_PHASE if none has begun; FGS_ERROR_INVALID if layers or batches are missing, or the batches are not
/// those of the task's base pass: then the pass is dropped.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_end(scope: *mut fgs_scope) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call(scope, |front| Ok(front.probe_end()?)) }
}

/// The pass is not going on, as when the forward run failed: nothing of it is measured, and an earlier base stays.
///
/// It is counted, as one that a step or a task gave up. Errors: FGS_ERROR_PHASE if none has begun.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_probe_abandon(scope: *mut fgs_scope) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call(scope, |front| Ok(front.probe_abandon()?)) }
}

/// What putting back a head's old weights does to a task's loss: the functional effect that a severe disruption must have.
///
/// The trainer keeps the weights of the end of the task, measures `loss` with the weights of now, puts the old query, key,
/// value and output weights of one head back, measures `loss_restored` on the same batches, and undoes it. `error`: standard
/// error of the difference over batches; NaN if it is not known. After the pass over the task's probe at these weights.
/// Errors: FGS_ERROR_NOT_FOUND (task), FGS_ERROR_INVALID.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_head_effect(
    scope: *mut fgs_scope,
    task: *const c_char,
    layer: u32,
    head: u32,
    loss: f64,
    loss_restored: f64,
    error: f64,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            check_layer(layer)?;
            check_head(head)?;
            let effect = HeadEffect { task: 0, step: 0, layer, head, loss, restored: loss_restored, error };
            Ok(front.head_effect(required(task, "task")?, effect)?)
        })
    }
}

fn check_head(head: u32) -> Outcome<()> {
    if head < 1 << 16 {
        return Ok(());
    }
    Err(Failure::invalid(format!("head: {head} is not below 65536")))
}

/// Layers and heads share a 32-bit field of a record.
fn check_layer(layer: u32) -> Outcome<()> {
    if layer < 1 << 16 {
        return Ok(());
    }
    Err(Failure::invalid(format!("layer: {layer} is not below 65536")))
}
