//! The panic boundary: nothing unwinds into C, and every failure becomes a status and a sentence.

use super::status::{fgs_status, set_last_error};
use crate::ring::RingError;
use crate::scope;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: fgs_status,
    pub text: String,
}

impl Failure {
    pub fn new(status: fgs_status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// A needed pointer is NULL.
    pub fn null(argument: &str) -> Self {
        Self::new(fgs_status::FGS_ERROR_NULL, format!("{argument} is NULL"))
    }

    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(fgs_status::FGS_ERROR_INVALID, text)
    }
}

impl From<scope::Error> for Failure {
    fn from(error: scope::Error) -> Self {
        use scope::Error;
        let status = match error {
            Error::InvalidArgument(_) => fgs_status::FGS_ERROR_INVALID,
            Error::WrongPhase(_) => fgs_status::FGS_ERROR_PHASE,
            Error::NotFound(_) => fgs_status::FGS_ERROR_NOT_FOUND,
            Error::Unsupported(_) => fgs_status::FGS_ERROR_UNSUPPORTED,
            Error::Config(_) => fgs_status::FGS_ERROR_CONFIG,
            Error::Ring(_) => fgs_status::FGS_ERROR_RING,
            Error::System(_) => fgs_status::FGS_ERROR_SYSTEM,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RingError> for Failure {
    fn from(error: RingError) -> Self {
        let status = match &error {
            RingError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                fgs_status::FGS_ERROR_NOT_FOUND
            }
            _ => fgs_status::FGS_ERROR_RING,
        };
        Self::new(status, error.to_string())
    }
}

pub(super) type Outcome<T = fgs_status> = Result<T, Failure>;

/// Runs the body of a function: failures and panics become statuses.
pub(super) fn guard(body: impl FnOnce() -> Outcome) -> fgs_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            set_last_error(&failure.text);
            failure.status
        }
        Err(_) => {
            set_last_error(
                "a bug in forgetscope was caught; the call did nothing. Please report it with the panic message",
            );
            fgs_status::FGS_ERROR_INTERNAL
        }
    }
}

/// Runs a body that cannot fail but could panic.
pub(super) fn guard_value<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::fgs_last_error;
    use std::ffi::CStr;

    #[test]
    fn panics_become_a_status() {
        let status = guard(|| panic!("on purpose"));
        assert_eq!(status, fgs_status::FGS_ERROR_INTERNAL);
        // SAFETY: fgs_last_error returns a terminated string that lives until the next call on this thread.
        let text = unsafe { CStr::from_ptr(fgs_last_error()) };
        assert!(text.to_str().unwrap().contains("bug in forgetscope"));
        assert_eq!(guard_value(7, || panic!("on purpose")), 7);
    }
}
