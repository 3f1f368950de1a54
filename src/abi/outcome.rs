//! What the trainer measured itself: losses and other evaluations.

use super::boundary::guard;
use super::handle::{fgs_scope, with_front};
use super::status::fgs_status;
use super::text::required;
use crate::scope::LOSS;
use std::ffi::c_char;

/// The loss of a task on held-out data, as the weights are now. Lower is better. Not the training loss of a batch.
///
/// Forgetting and backward transfer follow from it. Non-finite values are taken: a diverged loss is an outcome. At any
/// time between `fgs_open` and `fgs_close`; it belongs to the step that was begun last.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `task` must be NULL or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_record_loss(scope: *mut fgs_scope, task: *const c_char, value: f64) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { with_front(scope, |front| Ok(front.evaluation(required(task, "task")?, LOSS, value, false)?)) }
    })
}

/// Any other metric of a task on held-out data, such as accuracy. `higher_is_better`: 1 or 0, the same in every call for
/// one metric. Otherwise as `fgs_record_loss`.
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `task` and `metric` must be NULL or terminated strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_record_eval(
    scope: *mut fgs_scope,
    task: *const c_char,
    metric: *const c_char,
    value: f64,
    higher_is_better: i32,
) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            with_front(scope, |front| {
                let (task, metric) = (required(task, "task")?, required(metric, "metric")?);
                Ok(front.evaluation(task, metric, value, higher_is_better != 0)?)
            })
        }
    })
}
