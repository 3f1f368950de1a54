//! Collectives whose result is there only when their request completes.
//!
//! A request that has completed becomes MPI_REQUEST_NULL in the trainer's array, whichever of the eight functions noticed it:
//! what was there before the call is compared with what is there after it. MPI_Request_get_status says it and leaves the
//! request as it is. Only requests of sampled steps are kept; while there are none, waiting costs one load.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::handles::{Handle, Handles};
use crate::boundary::{Inside, is_on, quietly};
use crate::engine;
use crate::session::Ticket;

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
    put(request, ticket);
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
    let mut taken = Vec::new();
    quietly(|| {
        // SAFETY: the caller's promise.
        let active = (0..count).filter_map(|index| Some((index, unsafe { handles.request(requests, index) }?)));
        taken.extend(active.filter_map(|(index, request)| Some((index, request, take(request)?))));
    });
    let status = real();
    quietly(|| {
        for (index, request, ticket) in taken {
            // SAFETY: the array is still the trainer's.
            let is_active = unsafe { handles.request(requests, index) }.is_some();
            settled(request, ticket, status, is_active);
        }
    });
    drop(inside);
    status
}

/// Calls the function that asks whether a request has completed, and does not free it: the buffer is the trainer's again.
///
/// # Safety
/// `flag` must be writable.
#[inline]
pub unsafe fn look(request: Handle, flag: *const c_int, real: impl FnOnce() -> c_int) -> c_int {
    if COUNT.load(Ordering::Relaxed) == 0 || !is_on() {
        return real();
    }
    let Some(inside) = Inside::enter() else { return real() };
    let request = Handles::get().clean(request);
    let ticket = take(request);
    let status = real();
    quietly(|| {
        if let Some(ticket) = ticket {
            // SAFETY: the caller's promise, after success.
            let is_active = status == 0 && unsafe { *flag } == 0;
            settled(request, ticket, status, is_active);
        }
    });
    drop(inside);
    status
}

/// A call that waited or tested returned: the request goes on, or has completed, or nobody knows.
fn settled(request: Handle, ticket: Ticket, status: c_int, is_active: bool) {
    match (status, is_active) {
        (_, true) => put(request, ticket),
        (0, false) => engine::complete(ticket),
        _ => {}
    }
}

fn put(request: Handle, ticket: Ticket) {
    let mut kept = KEPT.lock();
    kept.push((request, ticket));
    COUNT.store(kept.len(), Ordering::Relaxed);
}

/// Takes the ticket of a request out. Before the real call: when that has freed the request, another thread may be given its
/// handle.
fn take(request: Handle) -> Option<Ticket> {
    let mut kept = KEPT.lock();
    let index = kept.iter().position(|(known, _)| *known == request)?;
    let (_, ticket) = kept.swap_remove(index);
    COUNT.store(kept.len(), Ordering::Relaxed);
    Some(ticket)
}
