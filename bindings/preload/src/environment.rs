//! The process's variables as they were when the library was loaded: later other threads may be changing them, and reading
//! would be a race that the trainer loses.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

/// The variables. Kept at the first call, which is the loader's.
pub fn variables() -> &'static BTreeMap<OsString, OsString> {
    static VARIABLES: OnceLock<BTreeMap<OsString, OsString>> = OnceLock::new();
    VARIABLES.get_or_init(|| std::env::vars_os().collect())
}

pub fn variable(name: &str) -> Option<&'static OsStr> {
    variables().get(OsStr::new(name)).map(OsString::as_os_str)
}

/// A variable that a launcher has set; anything but UTF-8 is nothing that one says.
pub fn text(name: &str) -> Option<&'static str> {
    variable(name)?.to_str()
}
