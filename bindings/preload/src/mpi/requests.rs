//! Collectives whose result is there only when their request completes.
//!
//! A request that has completed becomes MPI_REQUEST_NULL in the trainer's array, whichever of the eight functions noticed it:
//! what was there before the call is compared with what is there after it. Only requests of sampled steps are kept; while
//! there are none, waiting costs one load.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::handles::{Handle, Handles};
use crate::boundary::{Inside, is_on, quietly};
use crate::engine::{self, Ticket};

static KEPT: Mutex<Vec<(Handle, Ticket)>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Keeps a ticket until its request has completed.
///
/// A handle that is given out again says that the earlier collective has completed, since a request of one may not be
/// freed before. In a communicator of one rank all of them have the same.
pub fn keep(request: Handle, ticket: Ticket) {
    if let Some(earlier) = take(request) {
        engine::complete(earlier);
    }
    let mut kept = KEPT.lock();
    kept.push((request, ticket));
    COUNT.store(kept.len(), Ordering::Relaxed);
}

/// Calls a function that waits or tests, and hands over what has completed.
///
/// # Safety
/// `requests` must point to `count` requests.
#[inline]
pub unsafe fn settle(requests: *const c_void, count: c_int, real: impl FnOnce() -> c_int) -> c_int {
    if COUNT.load(Ordering::Relaxed) == 0 || !is_on() {
        return real();
    }
    // SAFETY: the same promise.
    unsafe { settle_kept(requests, count, real) }
}

unsafe fn settle_kept(requests: *const c_void, count: c_int, real: impl FnOnce() -> c_int) -> c_int {
    let Some(inside) = Inside::enter() else { return real() };
    let handles = Handles::get();
    let count = if requests.is_null() { 0 } else { count.max(0) as usize };
    let mut ours = Vec::new();
    quietly(|| {
        let kept = KEPT.lock();
        // SAFETY: the caller's promise.
        let before = (0..count).filter_map(|index| Some((index, unsafe { handles.request(requests, index) }?)));
        ours.extend(before.filter(|(_, request)| kept.iter().any(|(known, _)| known == request)));
    });
    let status = real();
    quietly(|| {
        for (index, request) in ours {
            // SAFETY: the array is still the trainer's.
            let has_completed = unsafe { handles.request(requests, index) }.is_none();
            if let Some(ticket) = (has_completed || status != 0).then(|| take(request)).flatten()
                && status == 0
            {
                engine::complete(ticket);
            }
        }
    });
    drop(inside);
    status
}

/// Takes the ticket of a request out.
fn take(request: Handle) -> Option<Ticket> {
    let mut kept = KEPT.lock();
    let index = kept.iter().position(|(known, _)| *known == request)?;
    let (_, ticket) = kept.swap_remove(index);
    COUNT.store(kept.len(), Ordering::Relaxed);
    Some(ticket)
}
