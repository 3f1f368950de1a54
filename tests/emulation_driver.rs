//! The double of libcuda, tested by itself: tests/emulation/driver_test.cpp and capture_test.cpp, a process a case.

mod emulation_support;

use emulation_support::{built, crashes_under_double, said_by, under_double};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

fn driver_test(case: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(built().join("driver_test"));
    command.arg(case).envs(variables.iter().copied()).output().expect("driver_test")
}

fn passes(case: &str, variables: &[(&str, &str)]) {
    let output = driver_test(case, variables);
    assert!(output.status.success(), "{case}: {}\n{}", output.status, said_by(&output));
}

/// Returns what was said.
fn crashes(case: &str) -> String {
    let output = driver_test(case, &[]);
    let said = said_by(&output);
    assert!(output.status.signal().is_some(), "{case} did not crash: {said}");
    said
}

macro_rules! cases {
    ($($name:ident $variables:expr;)*) => { $(#[test] fn $name() { passes(stringify!($name), $variables); })* };
}

cases! {
    contexts &[];
    memory &[("FGS_FAKE_MEMORY", "1048576")];
    modules &[];
    graphs &[];
    capture_refusals &[];
    faults &[];
    faults_from_outside &[("FGS_FAKE_FAIL", "cuMemAlloc:2:2,cuStreamCreate:1:700:sticky")];
    no_device &[("FGS_FAKE_DEVICES", "0")];
}

/// Once as it comes, once with slow workers: what is ordered stays ordered.
#[test]
fn streams() {
    passes("streams", &[]);
    passes("streams", &[("FGS_FAKE_DELAY_US", "2000")]);
}

#[test]
fn a_write_beside_an_allocation_ends_the_process() {
    for case in ["crash_overrun", "crash_overrun_at_exit"] {
        let said = crashes(case);
        assert!(said.contains("252 bytes at") && said.contains("something was written at offset 252"), "{said}");
    }
}

#[test]
fn memory_that_was_freed_cannot_be_touched() {
    let said = crashes("crash_after_free");
    assert!(said.contains("kernel test_ring, block (0, 0, 0), thread (0, 0, 0) touched memory"), "{said}");
}

/// Contexts do not share device memory, not even two of one device.
#[test]
fn a_pointer_of_another_context_is_reported_at_the_launch() {
    let said = crashes("crash_foreign_memory");
    assert!(said.contains("kernel test_ring on device 0 is given memory of another context, of device 1"), "{said}");
}

/// What a driver before CUDA 10.1 lacks, and nothing else.
#[test]
fn the_old_driver_lacks_two_functions() {
    let exports = |library: &str| -> Vec<String> {
        let output =
            Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(built().join(library)).output();
        let text = String::from_utf8(output.expect("nm: `apt-get install binutils`").stdout).unwrap();
        text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let (new, old) = (exports("libcuda.so.1"), exports("old/libcuda.so.1"));
    let missing: Vec<_> = new.iter().filter(|name| !old.contains(name)).collect();
    assert_eq!(missing, ["cuStreamBeginCapture_v2", "cuThreadExchangeStreamCaptureMode"]);
    assert!(new.iter().all(|name| name.starts_with("cu") || name.starts_with("fgs_fake_")), "{new:?}");
}

/// As cudarc opens it: by either name, in the middle of a run.
fn symbol(name: &std::ffi::CStr) -> *mut libc::c_void {
    // SAFETY: the names end with NUL; the double's constructors only fill tables.
    unsafe {
        let library = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_LAZY);
        assert!(!library.is_null(), "{:?}", std::ffi::CStr::from_ptr(libc::dlerror()));
        assert_eq!(library, libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY));
        libc::dlsym(library, name.as_ptr())
    }
}

#[test]
fn programs_find_the_double_in_place_of_the_driver() {
    under_double("programs_find_the_double_in_place_of_the_driver", &[("FGS_FAKE_DEVICES", "3")], || {
        type Init = extern "C" fn(u32) -> i32;
        type Count = extern "C" fn(&mut i32) -> i32;
        // SAFETY: the signature of the driver's function; the double was built with it.
        let init = unsafe { std::mem::transmute::<*mut libc::c_void, Init>(symbol(c"cuInit")) };
        // SAFETY: as above.
        let count = unsafe { std::mem::transmute::<*mut libc::c_void, Count>(symbol(c"cuDeviceGetCount")) };
        let mut devices = 0;
        assert_eq!((init(0), count(&mut devices), devices), (0, 0, 3));
    });
}

#[test]
fn a_crash_under_the_double_is_seen() {
    let said = crashes_under_double("a_crash_under_the_double_is_seen", &[], || std::process::abort());
    assert!(said.contains("running 1 test"), "{said}");
}
