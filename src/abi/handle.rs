//! The handle of a scope: owned by the caller between `fgs_open` and `fgs_close`.

use super::boundary::{Failure, Outcome};
use super::status::fgs_status;
use crate::scope::{Front, Scope};
use std::ffi::CString;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// An open instrument. Opaque; one per process or one per model, as the trainer likes.
///
/// All functions that take a scope may be called from any thread; calls on one scope are carried out one after another.
pub struct fgs_scope {
    /// `None`: disabled, every call is a no-op.
    scope: Option<Scope>,
    pub(super) ring_path: CString,
    /// Number of forks when it was opened.
    generation: u32,
}

/// Forks that this process descends from since the library was loaded.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

impl fgs_scope {
    pub(super) fn new(scope: Option<Scope>) -> Self {
        static ONCE: Once = Once::new();
        // Threads do not survive a fork: a child must not wait for them.
        // SAFETY: the handler touches nothing but an atomic. Failing (no memory) leaves forks unnoticed.
        ONCE.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(count_fork));
        });
        let path = scope.as_ref().map(|scope| scope.ring_path().as_os_str().as_encoded_bytes().to_vec());
        let ring_path = CString::new(path.unwrap_or_default()).unwrap_or_default();
        Self { scope, ring_path, generation: GENERATION.load(Ordering::Relaxed) }
    }

    pub(super) fn is_forked(&self) -> bool {
        self.generation != GENERATION.load(Ordering::Relaxed)
    }

    pub(super) fn into_scope(self) -> Option<Scope> {
        self.scope
    }
}

/// The scope behind a handle; `None` if it is disabled.
///
/// # Safety
/// `handle` must be NULL or come from `fgs_open` and not have been closed.
pub(super) unsafe fn scope<'a>(handle: *const fgs_scope) -> Outcome<Option<&'a Scope>> {
    // SAFETY: the caller's promise.
    let Some(handle) = (unsafe { handle.as_ref() }) else { return Err(Failure::null("scope")) };
    if handle.scope.is_some() && handle.is_forked() {
        let text = "scope: this process was forked after fgs_open; open a scope of its own";
        return Err(Failure::new(fgs_status::FGS_ERROR_FORKED, text));
    }
    Ok(handle.scope.as_ref())
}

/// Runs a call on the calling side of a scope; does nothing if it is disabled.
///
/// # Safety
/// As for [`scope`].
pub(super) unsafe fn with_front(handle: *const fgs_scope, call: impl FnOnce(&mut Front) -> Outcome<()>) -> Outcome {
    // SAFETY: the same promise.
    if let Some(scope) = unsafe { scope(handle) }? {
        call(&mut scope.front())?;
    }
    Ok(fgs_status::FGS_OK)
}
