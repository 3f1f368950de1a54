//! Tasks, their references and snapshots.

use super::handle::{call, call_on, fgs_scope};
use super::status::fgs_status;
use super::tensor::{fgs_dltensor, fgs_shard, local_tensor, shard};
use super::text::{optional, required};
use std::ffi::{c_char, c_void};

/// Training of a task begins: from now on gradients are this task's, and all other tasks are earlier ones.
///
/// A name seen before returns to that task. Errors: FGS_ERROR_PHASE if a task or step has not ended.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `name` must be NULL or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_task_begin(scope: *mut fgs_scope, name: *const c_char) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call(scope, |front| Ok(front.task_begin(required(name, "name")?)?)) }
}

/// Training of the current task ends.
///
/// If parameters are bound and no snapshot was taken since the last update, one is taken now. If no reference was given,
/// the mean over the task's last sampled steps (at most 64) becomes its *trailing* reference. Errors: FGS_ERROR_PHASE if
/// no task has begun or a step has not ended.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_task_end(scope: *mut fgs_scope) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call(scope, |front| Ok(front.task_end()?)) }
}

/// The gradients that are bound now are one batch of the reference of `task`: gradients of that task's data.
///
/// Call it 32 to 64 times, once per batch, with the weights unchanged; a single batch is mostly noise. Done at the
/// task's final weights, before or after `fgs_task_end`, the reference is *frozen*: interference and predicted loss change
/// are measured against it. Done later at other weights, with a small replay batch, it is *refreshed*: a new reference
/// for interference, and the sum of ⟨g_A(θ_t), Δθ_t⟩ along the path then follows the true loss. The first batch after an
/// update begins a new reference.
///
/// examples: loss terms (tokens, or sequences) that the batch's loss is a mean over; 0 if unknown. It scales the
/// second-order term of the prediction. scale: what the gradient has to be multiplied by to be that of the mean loss.
/// stream: NULL for host memory. Errors: FGS_ERROR_INVALID (scale; nothing bound), FGS_ERROR_PHASE (inside a step).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string; bound gradients
/// must be readable and not written to during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_reference_add(
    scope: *mut fgs_scope,
    task: *const c_char,
    examples: u64,
    scale: f64,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call_on(scope, stream, |front| Ok(front.reference_add(required(task, "task")?, examples, scale)?)) }
}

/// One tensor's gradient of a reference batch, for trainers that never have all gradients at once.
///
/// The batch is complete with the next `fgs_reference_add` for the same task, which also takes what is bound and was not
/// fed. The data is read during the call. Arguments as for `fgs_gradient_feed` and `fgs_reference_add`.
///
/// # Safety
/// As for `fgs_gradient_feed`; `task` must be NULL or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_reference_feed(
    scope: *mut fgs_scope,
    task: *const c_char,
    id: u32,
    tensor: *const fgs_dltensor,
    shard: *const fgs_shard,
    scale: f64,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call_on(scope, stream, |front| {
            let task = required(task, "task")?;
            let data = local_tensor(tensor)?;
            let shard = self::shard(shard, data.numel())?;
            Ok(front.reference_feed(task, id, data.data()?, shard, scale)?)
        })
    }
}

/// Keeps the parameters that are bound now as the snapshot of `task` (NULL: of the current one): drift is measured from
/// it. `fgs_task_end` does this by itself unless it was done since the last update.
///
/// stream: NULL for host memory. Without bound parameters nothing is kept. Errors: FGS_ERROR_PHASE.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string; bound
/// parameters must be readable and not written to during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_snapshot(scope: *mut fgs_scope, task: *const c_char, stream: *mut c_void) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call_on(scope, stream, |front| Ok(front.snapshot(optional(task, "task")?)?)) }
}
