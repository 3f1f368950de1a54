//! Messages to the person who started the trainer: lines on standard error that begin with `forgetscope:` and the rank.

use std::io::Write;

use crate::launcher::launched;

/// Prints a line. Each fault is said once: callers see to that.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

/// "1 bucket", "3 buckets".
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// One write, so that lines of several ranks do not mix.
pub fn line(text: std::fmt::Arguments) {
    let line = match launched() {
        Some((rank, _)) => format!("forgetscope: rank {rank}: {text}\n"),
        None => format!("forgetscope: {text}\n"),
    };
    // Standard error may be closed; there is nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
