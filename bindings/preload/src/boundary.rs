//! Between the trainer and us: on or off, no recursion, no unwinding, forks, the end of the process.
//!
//! Cost while off: one load. While on: a thread-local flag and a counter.

use std::cell::Cell;
use std::ffi::c_int;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{engine, environment, say, watch};

/// Set by the loader's call of [`on_load`], before the trainer's first instruction.
static ON: AtomicBool = AtomicBool::new(false);

/// Threads that are inside an interposed function.
static CROWD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The thread is inside an interposed function: what the real one calls is not the trainer's.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether anything is to be measured.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// From now on every function only forwards.
pub fn turn_off() {
    ON.store(false, Ordering::Relaxed);
}

/// The body of an interposed function: the real call, and after its success what is ours to do. Returns what the real call
/// returned, whatever happens.
#[inline]
pub fn around(real: impl FnOnce() -> c_int, after: impl FnOnce()) -> c_int {
    whatever(real, |status| {
        if status == 0 {
            after();
        }
    })
}

/// The same where there is something to do after a failure too.
#[inline]
pub fn whatever(real: impl FnOnce() -> c_int, after: impl FnOnce(c_int)) -> c_int {
    if !is_on() {
        return real();
    }
    let Some(inside) = Inside::enter() else { return real() };
    let status = real();
    quietly(|| after(status));
    drop(inside);
    status
}

/// Runs what is ours. A panic is a bug of ours: it ends measuring, not training.
pub fn quietly(body: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(body)).is_err() && is_on() {
        turn_off();
        say!(
            "a bug in forgetscope was caught; training goes on and is not measured. Please report it with the panic message"
        );
    }
}

/// Marks the thread until dropped, also when the real function throws.
pub struct Inside;

impl Inside {
    pub fn enter() -> Option<Self> {
        if INSIDE.replace(true) {
            return None;
        }
        CROWD.fetch_add(1, Ordering::Relaxed);
        Some(Self)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
        CROWD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether other threads are inside as well.
pub fn is_crowded() -> bool {
    CROWD.load(Ordering::Relaxed) > 1
}

/// A number that stands for this thread among those that run.
pub fn thread() -> usize {
    INSIDE.with(|inside| std::ptr::from_ref(inside) as usize)
}

/// Called by the loader. Without `FGS_PRELOAD`, or with `FGS_DISABLE`, it does nothing. What else than 1 they say is looked at
/// with the other settings.
extern "C" fn on_load() {
    // As the program starts: one thread.
    let is_set =
        |name| std::env::var_os(name).is_some_and(|value| !matches!(value.as_bytes().trim_ascii(), b"" | b"0"));
    if !is_set("FGS_PRELOAD") || is_set("FGS_DISABLE") {
        return;
    }
    ON.store(true, Ordering::Relaxed);
    // The hook is that of our own standard library.
    std::panic::set_hook(Box::new(|panic| say::line(format_args!("{panic}"))));
    quietly(|| {
        environment::variables();
        // SAFETY: the handlers are functions of this library, which is never unloaded.
        unsafe {
            libc::atexit(watch::at_exit);
            libc::pthread_atfork(None, None, Some(in_child));
        }
        watch::start();
    });
}

#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

/// A child of a process that is measured is not measured: the scope is its parent's. A child that was forked before the first
/// collective may be a trainer itself.
unsafe extern "C" fn in_child() {
    if is_on() && engine::is_in_use() {
        turn_off();
    }
}
