//! Streams that are being captured into a CUDA graph.
//!
//! A collective in a graph runs whenever the graph is replayed, which nobody sees from here. It is left out, and that is said
//! once. The driver is asked only if it is loaded, about 100 ns.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::real::{Library, Real};
use crate::watch;

pub fn is_going_on(stream: usize) -> bool {
    static CAPTURING: Real = Real::new(Library::Cuda, c"cuStreamIsCapturing", None);
    static SAID: AtomicBool = AtomicBool::new(false);
    let function = CAPTURING.address();
    if function.is_null() {
        return false;
    }
    let mut state: c_int = 0;
    // SAFETY: cuStreamIsCapturing has this type since CUDA 10; the stream is the one that NCCL has just used.
    let status = unsafe {
        let function: unsafe extern "C" fn(usize, *mut c_int) -> c_int = std::mem::transmute(function);
        function(stream, &mut state)
    };
    // 0: not being captured. A stream of which nothing is known is not read from either.
    if status == 0 && state == 0 {
        return false;
    }
    watch::left_out(0);
    if !SAID.swap(true, Ordering::Relaxed) {
        say!(
            "collectives are being captured into a CUDA graph; they are not measured, since replays cannot be seen from here"
        );
    }
    true
}
