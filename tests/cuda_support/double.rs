//! Faults, counts and traces of the double of libcuda: docs/emulation.md says what each function does.

use std::ffi::{CStr, CString, c_char, c_int, c_ulonglong};

/// CUDA_ERROR_... that are injected.
pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const ILLEGAL_ADDRESS: i32 = 700;

/// A function of the double's.
fn symbol(name: &CStr) -> *mut libc::c_void {
    // SAFETY: the name ends with NUL; the library has been loaded before.
    let found = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY);
        libc::dlsym(library, name.as_ptr())
    };
    assert!(!found.is_null(), "{name:?}: this is not the double");
    found
}

fn terminated(name: &str) -> CString {
    CString::new(name).expect("a name")
}

/// The nth call of a function from now on fails.
pub fn fail(function: &str, nth: u64, error: i32, is_sticky: bool) {
    type Fail = unsafe extern "C" fn(*const c_char, c_int, c_int);
    let name = if is_sticky { c"fgs_fake_fail_sticky" } else { c"fgs_fake_fail" };
    // SAFETY: the signature of both.
    unsafe {
        let fail = std::mem::transmute::<*mut libc::c_void, Fail>(symbol(name));
        fail(terminated(function).as_ptr(), nth as c_int, error);
    }
}

/// No faults, counts of 0.
pub fn reset() {
    // SAFETY: the signature of the function.
    unsafe { std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn()>(symbol(c"fgs_fake_reset"))() }
}

/// Calls of a function since the last reset.
pub fn count(function: &str) -> u64 {
    type Count = unsafe extern "C" fn(*const c_char) -> c_ulonglong;
    // SAFETY: the signature of the function.
    unsafe { std::mem::transmute::<*mut libc::c_void, Count>(symbol(c"fgs_fake_count"))(terminated(function).as_ptr()) }
}

/// Names of the functions that this thread calls meanwhile.
pub fn trace(work: impl FnOnce()) -> Vec<String> {
    type End = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    let mut text = vec![0u8; 1 << 20];
    // SAFETY: the signatures of the functions; the second writes at most as many bytes.
    let needed = unsafe {
        std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn()>(symbol(c"fgs_fake_trace_begin"))();
        work();
        std::mem::transmute::<*mut libc::c_void, End>(symbol(c"fgs_fake_trace_end"))(
            text.as_mut_ptr().cast(),
            text.len(),
        )
    };
    assert!(needed <= text.len());
    let text = CStr::from_bytes_until_nul(&text).expect("terminated").to_string_lossy().into_owned();
    // SAFETY: no preconditions.
    let own = unsafe { libc::syscall(libc::SYS_gettid) }.to_string();
    let of_thread = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, thread)| thread.trim() == own);
    of_thread.map(|(name, _)| name.to_owned()).collect()
}
