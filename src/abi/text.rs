//! Strings and structs that come from C.

use super::boundary::{Failure, Outcome};
use super::status::fgs_status;
use std::ffi::{CStr, c_char};

/// Longest string that is taken: a longer one is more likely a pointer to something else.
const LONGEST: usize = 4096;

/// A string that must be there.
///
/// # Safety
/// `text` must be NULL or point to a NUL-terminated string that is not written to during the call.
pub(super) unsafe fn required<'a>(text: *const c_char, argument: &str) -> Outcome<&'a str> {
    // SAFETY: the same promise.
    unsafe { optional(text, argument) }?.ok_or_else(|| Failure::null(argument))
}

/// A string that may be NULL.
///
/// # Safety
/// As for [`required`].
pub(super) unsafe fn optional<'a>(text: *const c_char, argument: &str) -> Outcome<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller promises a terminated string; strnlen looks no further than its end.
    let length = unsafe { libc::strnlen(text, LONGEST + 1) };
    if length > LONGEST {
        return Err(Failure::invalid(format!("{argument} is longer than {LONGEST} bytes")));
    }
    // SAFETY: as above.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Failure::invalid(format!("{argument} is not UTF-8")))
}

/// Written by the FGS_..._INIT macros: "FGS1" in ASCII. A struct without it was never initialised.
pub(super) const MAGIC: u32 = 0x3153_4746;

/// Checks the two fields that every struct begins with.
pub(super) fn check_struct(size: u32, magic: u32, expected: usize, name: &str) -> Outcome<()> {
    if magic != MAGIC {
        let text = format!("{name} was not initialised; set it to {}_INIT first", name.to_uppercase());
        return Err(Failure::new(fgs_status::FGS_ERROR_STRUCT, text));
    }
    // Sizes of earlier versions will be listed here; a larger one comes from a later header.
    if size as usize != expected {
        let text = format!(
            "{name}.size is {size}, this library knows {expected}; build against the header of version {}",
            env!("CARGO_PKG_VERSION")
        );
        return Err(Failure::new(fgs_status::FGS_ERROR_STRUCT, text));
    }
    Ok(())
}
