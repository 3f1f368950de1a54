//! The life of a step.

use super::boundary::{Failure, guard};
use super::handle::{call, call_on, fgs_scope};
use super::status::fgs_status;
use super::tensor::{fgs_dltensor, fgs_shard, local_tensor, shard};
use std::ffi::c_void;

/// Bits of `flags` of `fgs_gradients_ready`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_gradient_flag {
    /// The gradients are this rank's own, before the data-parallel reduction. Records are marked, since their sums over
    /// ranks are not those of the reduced gradient.
    FGS_GRADIENTS_UNREDUCED = 1,
}

/// An optimizer step begins. `step` is the trainer's own number; any is legal, so runs may go back or skip.
///
/// Costs well under 100 ns if the step is not sampled. A step that was begun and not ended is given up and counted.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_step_begin(scope: *mut fgs_scope, step: u64) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call(scope, |front| Ok(front.step_begin(step)?)) }
}

/// Whether the step that has begun is sampled: 1 or 0 in `*sampled`, 0 outside steps. For trainers that have something to do
/// only then, such as `fgs_rebind`.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `sampled` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_step_sampled(scope: *const fgs_scope, sampled: *mut i32) -> fgs_status {
    // SAFETY: the caller's promise.
    let Some(sampled) = (unsafe { sampled.as_mut() }) else { return guard(|| Err(Failure::null("sampled"))) };
    *sampled = 0;
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            *sampled = i32::from(front.is_sampled());
            Ok(())
        })
    }
}

/// Steps are sampled when (step − start_step) is a multiple of `every` from now on; 0: never. For a closer look at a part of
/// the run. Tensors with a rule of their own in the configuration keep it, and steps in CUDA graphs keep what was captured.
/// Errors: FGS_ERROR_PHASE (inside a step).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_set_every(scope: *mut fgs_scope, every: u64) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call(scope, |front| Ok(front.set_every(every)?)) }
}

/// One tensor's gradient, for trainers that never have all gradients at once (callbacks, fused backward and update).
///
/// Between `fgs_step_begin` and `fgs_gradients_ready` or `fgs_step_end`, in any order; shards of one tensor may be fed one
/// by one. The data is read during the call and not afterwards. `shard`: NULL for all of the tensor. `scale` must be the
/// same for all tensors of a step. stream: NULL for host memory.
///
/// Errors: FGS_ERROR_PHASE, FGS_ERROR_NOT_FOUND (id), FGS_ERROR_INVALID, FGS_ERROR_UNSUPPORTED as for `fgs_bind`.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `tensor` must be NULL or describe memory that is readable
/// and not written to during the call; `shard` must be NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_gradient_feed(
    scope: *mut fgs_scope,
    id: u32,
    tensor: *const fgs_dltensor,
    shard: *const fgs_shard,
    scale: f64,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call_on(scope, stream, |front| {
            let data = local_tensor(tensor)?;
            let shard = self::shard(shard, data.numel())?;
            Ok(front.feed(id, data.data()?, shard, scale)?)
        })
    }
}

/// All gradients of the step are final: after accumulation and reduction, before the update.
///
/// Reads every bound gradient that was not fed, and the bound parameters as they are before the update: during the call, or
/// in the order of `stream`. `scale`: what the trainer will still multiply the gradient by (1/loss scale, 1/tokens, the
/// clip coefficient); a finite number above zero. `flags`: bits of fgs_gradient_flag. stream: NULL for host memory.
/// Errors: FGS_ERROR_PHASE, FGS_ERROR_INVALID (scale, flags).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; bound data must be readable and not written to during the
/// call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_gradients_ready(
    scope: *mut fgs_scope,
    scale: f64,
    flags: u32,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call_on(scope, stream, |front| {
            let unreduced = fgs_gradient_flag::FGS_GRADIENTS_UNREDUCED as u32;
            if flags & !unreduced != 0 {
                return Err(Failure::invalid(format!("flags: {flags:#x} has bits that are no fgs_gradient_flag")));
            }
            Ok(front.gradients_ready(scale, flags & unreduced != 0)?)
        })
    }
}

/// The step is over. `applied`: 1 if the update was made, 0 if the trainer skipped it (overflow, say).
///
/// Reads the bound parameters as they are after the update: during the call, or in the order of `stream`. stream: NULL for
/// host memory. Errors: FGS_ERROR_PHASE if no step has begun.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; bound data must be readable and not written to during the
/// call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_step_end(scope: *mut fgs_scope, applied: i32, stream: *mut c_void) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call_on(scope, stream, |front| Ok(front.step_end(applied != 0)?)) }
}
