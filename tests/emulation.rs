//! The CPU emulation of CUDA kernels, tested by itself: right results of right kernels, a report for each kind of bug.

mod emulation_support;

use emulation_support::{built, said_by};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

fn self_test(case: Option<&str>, seed: u32) -> Output {
    let mut command = Command::new(built().join("self_test"));
    command.args(case).env("FGS_EMULATION_SEED", seed.to_string());
    command.output().expect("self_test")
}

#[test]
fn kernels_run_as_on_a_device_in_any_order() {
    for seed in 0..6 {
        let output = self_test(None, seed);
        assert!(output.status.success(), "seed {seed}: {}", said_by(&output));
    }
}

/// Every bug ends the process, and the report names the kernel and the line.
#[test]
fn bugs_of_kernels_are_reported() {
    let bugs = [
        ("fault_divergent_barrier", "divergent barrier"),
        ("fault_two_barriers", "divergent barrier"),
        ("fault_lane_ended", "but lane 7 has ended"),
        ("fault_lane_elsewhere", "for lanes that never come"),
        ("fault_not_in_mask", "in which it is not"),
        ("fault_lane_absent", "names lanes that the warp does not have"),
        ("fault_masks_differ", "with mask ffffffff"),
        ("fault_source_not_in_mask", "reads lane 20, which is not in the mask"),
        ("fault_misaligned", "not aligned for its type"),
        ("fault_shift", "shift by"),
        ("fault_conversion", "beyond the range of the integer type"),
    ];
    for (kernel, report) in bugs {
        let output = self_test(Some(kernel), 0);
        let said = said_by(&output);
        assert!(output.status.signal().is_some(), "{kernel} did not end the process: {said}");
        assert!(said.contains(&format!("kernel {kernel}, block (0, 0, 0): kernels/faults.cu:")), "{said}");
        assert!(said.contains(report), "{said}");
    }
}

/// Dynamic shared memory ends where a guard page begins.
#[test]
fn an_overrun_of_shared_memory_crashes_and_is_explained() {
    let output = self_test(Some("fault_shared_overrun"), 0);
    assert!(output.status.signal().is_some());
    let said = said_by(&output);
    assert!(said.contains("thread (63, 0, 0) touched memory that it may not touch"), "{said}");
}

/// In the order of thread numbers this kernel happens to work; a random order shows that a barrier is missing.
#[test]
fn a_missing_barrier_shows_in_another_order() {
    let word = |seed| said_by(&self_test(Some("race"), seed)).trim().to_owned();
    assert_eq!(word(0), "right");
    assert_eq!(word(1), "wrong");
}
