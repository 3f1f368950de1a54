//! Threads of a guest: the signals of the host process are not theirs.
//!
//! A trainer that blocks a signal and takes it with `sigwait` (Slurm's `--signal`, a checkpoint on request) blocks it in
//! its own threads. A thread of ours that did not block it would be given it: the process would end, or the signal be
//! lost. So ours block everything but what a fault of their own raises. Cost: two system calls a thread.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::thread::{Builder, JoinHandle};

/// What a thread raises itself; blocked, it would end the process without the handlers of the host.
const FAULTS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGTRAP];

/// Starts a thread that takes no signal. `name`: at most 15 bytes, as `ps` shows it.
pub fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let blocked = Blocked::all_but_faults();
    let thread = Builder::new().name(name.into()).spawn(body);
    drop(blocked);
    thread
}

/// The calling thread takes no signal until this is dropped. Threads that it starts meanwhile inherit that for good.
struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    fn all_but_faults() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: sigfillset writes the whole set; sigdelset and pthread_sigmask get sets that are written, and valid
        // signals. With valid arguments none of them fails.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for signal in FAULTS {
                libc::sigdelset(all.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self { before: before.assume_init() }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was there.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}
