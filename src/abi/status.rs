//! Statuses, and the text of the last error.

use super::boundary::guard_value;
use std::cell::RefCell;
use std::ffi::{CString, c_char};

/// Outcome of a call.
///
/// Zero is success, positive values are answers that are no errors, negative values are errors: the call did nothing,
/// `fgs_last_error()` says why, and training may go on as if it had not been made.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_status {
    /// Done.
    FGS_OK = 0,
    /// `fgs_reader_next`: nothing new at present.
    FGS_EMPTY = 1,
    /// `fgs_reader_next`: the writer has ended and everything was read.
    FGS_CLOSED = 2,
    /// A pointer that is needed is NULL.
    FGS_ERROR_NULL = -1,
    /// An argument has a value that it may not have.
    FGS_ERROR_INVALID = -2,
    /// A struct was not initialised with its FGS_..._INIT macro, or its header is newer than this library.
    FGS_ERROR_STRUCT = -3,
    /// There is nothing with this id, name or path.
    FGS_ERROR_NOT_FOUND = -4,
    /// The call does not fit here in the life of a step or task.
    FGS_ERROR_PHASE = -5,
    /// Legal, but not something that this build measures.
    FGS_ERROR_UNSUPPORTED = -6,
    /// A configuration file, environment variable or option cannot be used.
    FGS_ERROR_CONFIG = -7,
    /// The ring could not be created or read.
    FGS_ERROR_RING = -8,
    /// The system refused threads or memory.
    FGS_ERROR_SYSTEM = -9,
    /// A bug in forgetscope was caught at the boundary.
    FGS_ERROR_INTERNAL = -10,
    /// The process was forked after `fgs_open`; the scope belongs to the parent.
    FGS_ERROR_FORKED = -11,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Remembers why a call of this thread failed.
pub(super) fn set_last_error(text: &str) {
    let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
    // Failing to remember (a thread that is being torn down) must not fail the call.
    let _ = LAST_ERROR.try_with(|last| last.replace(text));
}

/// Why the latest failed call of this thread failed: one or two sentences that name the argument.
///
/// The text belongs to the library and is valid until the next call of a forgetscope function on this thread. It is empty
/// if no call failed yet; a successful call leaves it as it is. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn fgs_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Name of a status, for messages: "FGS_ERROR_PHASE". Static text, never NULL, also for numbers that are no status.
#[unsafe(no_mangle)]
pub extern "C" fn fgs_status_name(status: i32) -> *const c_char {
    use fgs_status::*;
    guard_value(c"unknown status".as_ptr(), || {
        let named = [
            (FGS_OK, c"FGS_OK"),
            (FGS_EMPTY, c"FGS_EMPTY"),
            (FGS_CLOSED, c"FGS_CLOSED"),
            (FGS_ERROR_NULL, c"FGS_ERROR_NULL"),
            (FGS_ERROR_INVALID, c"FGS_ERROR_INVALID"),
            (FGS_ERROR_STRUCT, c"FGS_ERROR_STRUCT"),
            (FGS_ERROR_NOT_FOUND, c"FGS_ERROR_NOT_FOUND"),
            (FGS_ERROR_PHASE, c"FGS_ERROR_PHASE"),
            (FGS_ERROR_UNSUPPORTED, c"FGS_ERROR_UNSUPPORTED"),
            (FGS_ERROR_CONFIG, c"FGS_ERROR_CONFIG"),
            (FGS_ERROR_RING, c"FGS_ERROR_RING"),
            (FGS_ERROR_SYSTEM, c"FGS_ERROR_SYSTEM"),
            (FGS_ERROR_INTERNAL, c"FGS_ERROR_INTERNAL"),
            (FGS_ERROR_FORKED, c"FGS_ERROR_FORKED"),
        ];
        let found = named.iter().find(|(known, _)| *known as i32 == status);
        found.map_or(c"unknown status".as_ptr(), |(_, name)| name.as_ptr())
    })
}
