//! Nothing comes through, and why that may be.
//!
//! A library that resolves its calls by itself (-Bsymbolic, RTLD_DEEPBIND, a static copy, dlsym) goes past us without a sign.
//! So it is said when the process ends, and earlier where a collective library was there from the beginning: then a thread
//! sleeps for `FGS_PRELOAD_PATIENCE` seconds. Only in the first of the processes that a launcher gave a rank; without a
//! launcher in any process of which at least one collective came through.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use forgetscope::thread::spawn;

use crate::boundary;
use crate::engine;
use crate::launcher::{is_first, launched};
use crate::real::Library;
use crate::say::counted;
use crate::settings::patience;

/// Collectives that came through.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// Those that had too few elements, or another communicator than is wanted; and the largest of them.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);
static LARGEST: AtomicU64 = AtomicU64::new(0);
static SAID: AtomicBool = AtomicBool::new(false);
/// The process that the library was loaded into.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// A collective came through.
#[inline]
pub fn seen() {
    SEEN.fetch_add(1, Ordering::Relaxed);
}

/// It is not one of those that are looked at.
pub fn left_out(count: u64) {
    LEFT_OUT.fetch_add(1, Ordering::Relaxed);
    LARGEST.fetch_max(count, Ordering::Relaxed);
}

/// The library was loaded.
pub fn start() {
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    if launched().is_none() || library().is_none() {
        return;
    }
    let watch = || {
        thread::sleep(patience());
        if boundary::is_on() {
            say_if_nothing_came();
        }
    };
    // Without a thread it is said at the end.
    let _ = spawn("fgs-preload", watch);
}

/// The path of a collective library that is loaded.
fn library() -> Option<String> {
    Library::Nccl.path().or_else(|| Library::Mpi.path())
}

/// The process ends.
pub extern "C" fn at_exit() {
    if boundary::is_on() && PROCESS.load(Ordering::Relaxed) == std::process::id() {
        boundary::quietly(|| {
            say_if_nothing_came();
            engine::close();
        });
    }
}

fn say_if_nothing_came() {
    let (seen, left_out) = (SEEN.load(Ordering::Relaxed), LEFT_OUT.load(Ordering::Relaxed));
    let is_trainer = seen > 0 || launched().is_some() && library().is_some();
    // Settings that cannot be used are the reason, and are said here if nowhere before.
    if seen > left_out || !is_first() || !is_trainer || engine::settings().is_none() {
        return;
    }
    if SAID.swap(true, Ordering::Relaxed) {
        return;
    }
    if left_out > 0 {
        let largest = LARGEST.load(Ordering::Relaxed);
        say!(
            "{} came through and none is one of a training step: the largest had {largest} elements. \
             FGS_PRELOAD_MIN_ELEMENTS and FGS_PRELOAD_RANKS say which ones count",
            counted(left_out, "collective"),
        );
    } else {
        say!(
            "FGS_PRELOAD is set and {} is loaded, but no collective came through. Either this process does not train, \
             or its calls go past: linked with -Bsymbolic or with a static copy of the library, loaded with RTLD_DEEPBIND, \
             found by dlsym, persistent, or from Fortran. See Troubleshooting in docs/preload.md",
            library().unwrap_or_default()
        );
    }
}

/// The process ends, and no step was ever recognised.
pub fn nothing_found() {
    let looked_at = SEEN.load(Ordering::Relaxed) - LEFT_OUT.load(Ordering::Relaxed);
    if is_first() && !SAID.swap(true, Ordering::Relaxed) {
        say!(
            "{} came and no sequence of them repeated often enough to be a step; nothing was measured. \
             FGS_PRELOAD_STEP or a layout file says what a step is (docs/preload.md)",
            counted(looked_at, "collective"),
        );
    }
}
