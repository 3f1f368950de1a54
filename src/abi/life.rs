//! Opening, closing, flushing; versions.

use super::boundary::{Failure, guard, guard_value};
use super::handle::{fgs_scope, scope};
use super::options::{fgs_options, layer};
use super::status::fgs_status;
use crate::scope::{Options, Scope, is_disabled};
use std::ffi::c_char;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Opens an instrument: creates its ring in shared memory and starts its threads.
///
/// `options` may be NULL for the defaults; files and environment variables overrule them either way (see `fgs_options`).
/// With FGS_DISABLE=1 in the environment nothing is created: the scope is valid and every call on it does nothing.
/// On failure `*out` is NULL, which every other function refuses with FGS_ERROR_NULL, so a trainer that ignores the status
/// trains on.
///
/// The scope belongs to the caller until `fgs_close`. Errors: FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_CONFIG,
/// FGS_ERROR_RING (the ring cannot be created), FGS_ERROR_SYSTEM.
///
/// # Safety
/// `options` must be NULL or readable; `out` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_open(options: *const fgs_options, out: *mut *mut fgs_scope) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { out.as_mut() }.ok_or_else(|| Failure::null("out"))?;
        *out = std::ptr::null_mut();
        // SAFETY: the caller's promise.
        let given = unsafe { layer(options) }?;
        let scope =
            if is_disabled(&environment) { None } else { Some(Scope::open(Options::resolve(given, &environment)?)?) };
        *out = Box::into_raw(Box::new(fgs_scope::new(scope)));
        Ok(fgs_status::FGS_OK)
    })
}

/// Closes an instrument: publishes what is still waiting, marks the ring closed, ends the threads, frees the scope.
///
/// NULL is fine and does nothing. The ring's file stays, for those who read later; `forgetscope ls --prune` removes the
/// files of ended runs. No other call on the scope may be going on or follow.
///
/// # Safety
/// `scope` must be NULL or come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_close(scope: *mut fgs_scope) -> fgs_status {
    guard(|| {
        if scope.is_null() {
            return Ok(fgs_status::FGS_OK);
        }
        // SAFETY: made by Box::into_raw in fgs_open, and closed once.
        let handle = unsafe { Box::from_raw(scope) };
        if handle.is_forked() {
            // The threads are the parent's: waiting for them would never end, so the child's copy is left alone.
            std::mem::forget(handle);
            return Ok(fgs_status::FGS_OK);
        }
        if let Some(scope) = handle.into_scope() {
            scope.close();
        }
        Ok(fgs_status::FGS_OK)
    })
}

/// Waits until everything handed over so far is in the ring. For tests and for the end of a run; a trainer need not call
/// it. Takes as long as the evaluation of at most four sampled steps.
///
/// # Safety
/// `scope` must be NULL or come from `fgs_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_flush(scope: *const fgs_scope) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise.
        if let Some(scope) = unsafe { self::scope(scope) }? {
            scope.flush()?;
        }
        Ok(fgs_status::FGS_OK)
    })
}

/// Path of the ring's file in `*path`. The text belongs to the scope and is valid until `fgs_close`; empty if disabled.
///
/// # Safety
/// `scope` must be NULL or come from `fgs_open` and not have been closed; `path` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_ring_path(scope: *const fgs_scope, path: *mut *const c_char) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise, for both.
        let (handle, path) = unsafe { (scope.as_ref(), path.as_mut()) };
        let handle = handle.ok_or_else(|| Failure::null("scope"))?;
        *path.ok_or_else(|| Failure::null("path"))? = handle.ring_path.as_ptr();
        Ok(fgs_status::FGS_OK)
    })
}

/// Version of the library that is loaded: FGS_VERSION of the header that it was built with. Compare the two to notice a
/// header and a library that do not belong together.
#[unsafe(no_mangle)]
pub extern "C" fn fgs_version() -> u32 {
    guard_value(0, || {
        let part = |text: &str| text.parse::<u32>().unwrap_or(0);
        part(env!("CARGO_PKG_VERSION_MAJOR")) * 10_000
            + part(env!("CARGO_PKG_VERSION_MINOR")) * 100
            + part(env!("CARGO_PKG_VERSION_PATCH"))
    })
}
