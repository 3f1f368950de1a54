//! Messages to the person who started the trainer: lines on standard error that begin with `forgetscope:` and the rank.

use std::io::{Write, stderr};
use std::mem::MaybeUninit;

use crate::launcher::launched;

/// Prints a line. Each fault is said once: callers see to that.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

/// "1 bucket", "3 buckets".
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A few numbers of a list, and how many there are.
pub fn shown(counts: &[u64]) -> String {
    const SHOWN: usize = 12;
    match counts.get(..SHOWN) {
        Some(first) if counts.len() > SHOWN => format!("{first:?}… ({} in all)", counts.len()),
        _ => format!("{counts:?}"),
    }
}

/// One write, so that lines of several ranks do not mix.
pub fn line(text: std::fmt::Arguments) {
    let line = match launched() {
        Some((rank, _)) => format!("forgetscope: rank {rank}: {text}\n"),
        None => format!("forgetscope: {text}\n"),
    };
    // Standard error may be closed; there is nobody to tell.
    without_sigpipe(|| _ = stderr().write_all(line.as_bytes()));
}

/// Runs `write` so that a pipe that nobody reads any more does not kill the trainer: the signal that says so goes to the
/// thread that wrote, is kept from it, and taken away.
fn without_sigpipe(write: impl FnOnce()) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set; SIGPIPE is a signal.
    let pipe = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    };
    let is_pending = || {
        let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigpending initializes the set if it succeeds, and fails for bad addresses only.
        unsafe {
            libc::sigpending(pending.as_mut_ptr()) == 0 && libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1
        }
    };
    // The trainer may be waiting for one of its own.
    let was_pending = is_pending();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are ours; only this thread's mask changes.
    if unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, before.as_mut_ptr()) } != 0 {
        return;
    }
    write();
    if !was_pending && is_pending() {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set and the time live; nothing is wanted to be known of the signal.
        unsafe { libc::sigtimedwait(&pipe, std::ptr::null_mut(), &at_once) };
    }
    // SAFETY: pthread_sigmask has initialized the mask that was there before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
}
