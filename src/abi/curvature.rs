//! The loss landscape, by reverse communication.

use super::boundary::{Failure, Outcome, guard};
use super::handle::{call, call_on, fgs_scope, with_front};
use super::status::fgs_status;
use super::text::{check_struct, required};
use crate::scope::{CurvatureRequest, CurvatureSettings, CurvatureWant};
use std::ffi::{c_char, c_void};

/// What a curvature run measures. Initialise with `FGS_CURVATURE_INIT`, then set task and what differs from the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_curvature {
    /// sizeof(fgs_curvature); set by FGS_CURVATURE_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_CURVATURE_INIT.
    pub magic: u32,
    /// The task whose loss it is: the trainer answers with gradients of this task's probe batch. Copied.
    pub task: *const c_char,
    /// Lanczos steps per starting vector; two gradients each. Default 32.
    pub lanczos_steps: u32,
    /// Samples of the traces (Hutchinson); four gradients each. Default 8.
    pub trace_vectors: u32,
    /// Starting vectors that run all Lanczos steps; more of them resolve the spectral density better. Default 1.
    pub density_vectors: u32,
    /// Eigenvalues that are published; in the run that later ones are compared with, as many eigenvectors are kept.
    /// Default 3.
    pub eigenvectors: u32,
    /// Points at which the loss is wanted on the line from the task's snapshot to the weights, both ends included. Default
    /// 0: none. Left out where no exact snapshot is kept.
    pub path_points: u32,
    /// For tensors in blocks: gradients spent on the trace are six times this (Hutch++). Default 4.
    pub block_vectors: u32,
    /// Ids of tensors that are looked at by themselves as well. Copied.
    pub blocks: *const u32,
    /// How many they are; with 0 blocks may be NULL.
    pub block_count: u64,
    /// How far the weights are moved for a difference of gradients, relative to their norm. Default 0.001.
    pub relative_step: f64,
    /// Of the random vectors: the same seed gives the same vectors.
    pub seed: u64,
}

/// What `fgs_curvature_next` wants.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_curvature_want {
    /// Nothing any more: the parameters are as they were, the records are published.
    FGS_CURVATURE_DONE = 0,
    /// The gradient of the task's probe batch at the parameters as they are now, in the bound gradients; and the loss.
    FGS_CURVATURE_GRADIENT = 1,
    /// The loss of the same batch at the parameters as they are now; gradients are not read.
    FGS_CURVATURE_LOSS = 2,
}

/// A request of a curvature run. Initialise with `FGS_CURVATURE_REQUEST_INIT`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_curvature_request {
    /// sizeof(fgs_curvature_request); set by FGS_CURVATURE_REQUEST_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_CURVATURE_REQUEST_INIT.
    pub magic: u32,
    /// fgs_curvature_want.
    pub want: u32,
    /// Requests before this one.
    pub index: u32,
    /// Requests in all, at most: Lanczos may be done early.
    pub total: u32,
}

/// A curvature run begins: the loss landscape of a task around the weights as they are now. See docs/statistics/landscape.md
/// for what is measured. The trainer's part is a loop:
///
/// ```c
/// fgs_curvature_begin(scope, &options);
/// while (fgs_curvature_next(scope, &request) == FGS_OK && request.want != FGS_CURVATURE_DONE) {
///     loss = forward_and_backward(probe_batch);     // the same batch every time, no dropout
///     if (fgs_curvature_submit(scope, loss, 1.0, NULL) != FGS_OK)
///         break;
/// }
/// fgs_curvature_end(scope);
/// ```
///
/// From the first request to the end the parameters that are bound with FGS_PARAM are *written to*: the library moves them
/// in place. When the run is over they are as they were, to the last bit: after FGS_CURVATURE_DONE, `fgs_curvature_end`,
/// `fgs_step_begin`, `fgs_task_end` or `fgs_close`, after other parameters are bound, and after a submission that is not
/// finite. What has to stay the same from the first request to the last is the trainer's duty: the batch, and the random
/// numbers of dropout if there must be any. Buffers of gradients may move; bind them again.
///
/// Every measured tensor that is bound takes part, all of it, in fp32, with its gradient. The gradients are those that one
/// rank computes from its own probe batch: nothing is reduced. While the task is trained, or at the weights of its snapshot,
/// the run is the *base* that later ones are compared with. Memory: the parameters four times, within the budget; as many
/// times more as there are Lanczos steps if the budget allows it, which gives eigenvectors.
///
/// Errors: FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_INVALID (the sentence names the field; a parameter or gradient that
/// is not bound), FGS_ERROR_NOT_FOUND (blocks), FGS_ERROR_UNSUPPORTED (parameters that are not fp32; shards; tied copies),
/// FGS_ERROR_CONFIG (the budget; the sentence says how many bytes are missing), FGS_ERROR_PHASE (inside a step, a half-fed
/// reference batch, or another run).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `options` must be NULL or readable, with a terminated task
/// and block_count readable ids. Until the run is over, what is bound with FGS_PARAM must be writable, and neither read nor
/// written during calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_curvature_begin(scope: *mut fgs_scope, options: *const fgs_curvature) -> fgs_status {
    // SAFETY: the caller's promise, for all.
    unsafe {
        call(scope, |front| {
            let options = options.as_ref().ok_or_else(|| Failure::null("options"))?;
            check_struct(options.size, options.magic, size_of::<fgs_curvature>(), "fgs_curvature")?;
            let task = required(options.task, "curvature.task")?;
            Ok(front.curvature_begin(task, settings(options)?)?)
        })
    }
}

/// # Safety
/// `options.blocks` must be NULL or have as many readable ids as it says.
unsafe fn settings(options: &fgs_curvature) -> Outcome<CurvatureSettings> {
    let count = usize::try_from(options.block_count).ok().filter(|&count| count <= 1 << 16);
    let Some(count) = count else {
        return Err(Failure::invalid(format!("curvature.block_count: {} is far too many", options.block_count)));
    };
    let blocks = match count {
        0 => Vec::new(),
        _ if options.blocks.is_null() => return Err(Failure::null("curvature.blocks")),
        // SAFETY: the caller's promise.
        count => unsafe { std::slice::from_raw_parts(options.blocks, count) }.to_vec(),
    };
    Ok(CurvatureSettings {
        lanczos_steps: options.lanczos_steps,
        trace_vectors: options.trace_vectors,
        density_vectors: options.density_vectors,
        eigenvectors: options.eigenvectors,
        path_points: options.path_points,
        block_vectors: options.block_vectors,
        blocks,
        relative_step: options.relative_step,
        seed: options.seed,
    })
}

/// Moves the parameters to where the next gradient or loss is wanted, and says in `*request` which of the two it is.
///
/// FGS_CURVATURE_DONE ends the loop. With the instrument disabled it is the first answer. Errors: FGS_ERROR_NULL,
/// FGS_ERROR_STRUCT, FGS_ERROR_PHASE (no run; the last request has not been answered).
///
/// # Safety
/// As for `fgs_curvature_begin`; `request` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_curvature_next(scope: *mut fgs_scope, request: *mut fgs_curvature_request) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let request = unsafe { request.as_mut() }.ok_or_else(|| Failure::null("request"))?;
        let size = size_of::<fgs_curvature_request>();
        check_struct(request.size, request.magic, size, "fgs_curvature_request")?;
        let mut found = CurvatureRequest { want: CurvatureWant::Done, index: 0, total: 0 };
        let ask = |front: &mut crate::scope::Front| {
            found = front.curvature_next()?;
            Ok(())
        };
        // SAFETY: the caller's promise.
        let status = unsafe { with_front(scope, ask) }?;
        let want = match found.want {
            CurvatureWant::Done => fgs_curvature_want::FGS_CURVATURE_DONE,
            CurvatureWant::Gradient => fgs_curvature_want::FGS_CURVATURE_GRADIENT,
            CurvatureWant::Loss => fgs_curvature_want::FGS_CURVATURE_LOSS,
        };
        (request.want, request.index, request.total) = (want as u32, found.index, found.total);
        Ok(status)
    })
}

/// Answers the last request: the loss, and for FGS_CURVATURE_GRADIENT the gradients that are bound now, times `scale`.
///
/// All reading is over when the call returns. A loss or gradient that is not finite ends the run with FGS_ERROR_INVALID and
/// a fault; the parameters are as they were. After any other error the request still stands. `loss`: the mean that the
/// gradient times `scale` is the gradient of. stream: NULL for host memory. Errors: FGS_ERROR_INVALID (loss, scale; a
/// gradient that is not bound whole any more), FGS_ERROR_PHASE (nothing was asked for).
///
/// # Safety
/// As for `fgs_curvature_begin`; bound gradients must be readable and not written to during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_curvature_submit(
    scope: *mut fgs_scope,
    loss: f64,
    scale: f64,
    stream: *mut c_void,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe { call_on(scope, stream, |front| Ok(front.curvature_submit(loss, scale)?)) }
}

/// Ends a run. The parameters are as they were when it began, to the last bit. Legal at any moment, also without a run. A run
/// that was not complete publishes a fault and nothing else. Errors: FGS_ERROR_SYSTEM (a device failed, and the parameters
/// are not as they were; the other functions of a run say the same when it ends there).
///
/// # Safety
/// As for `fgs_curvature_begin`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_curvature_end(scope: *mut fgs_scope) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            front.curvature_end()?;
            Ok(())
        })
    }
}
