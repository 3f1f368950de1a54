//! A driver that fails: whatever call of the library's it is, and whenever, training goes on as it would without it.

mod cuda_support;
mod device_support;
mod emulation_support;

use cuda_support::double::{self, ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY};
use cuda_support::trainer::{Around, CUDA, Ended, Trainer, current};
use cuda_support::{Bytes, driver, use_device};
use cudarc::driver::sys::CUstream;
use emulation_support::{built, on_device, under_double, under_driver_of};
use forgetscope::abi::{fgs_data, fgs_status};
use forgetscope::device::cuda::load_driver;
use forgetscope::ring::Record;
use forgetscope::scope::schema::{flag, kind, level};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Every function of the driver that the library calls, by the list that it asks for itself.
fn functions() -> Vec<&'static str> {
    let source = include_str!("../src/device/cuda/driver.rs");
    let list = source.split_once("const FUNCTIONS").and_then(|(_, rest)| rest.split_once("];")).expect("a list").0;
    let quoted = list.split('"').skip(1).step_by(2);
    let names: Vec<_> = quoted.collect();
    assert!(names.len() > 30 && names.iter().all(|name| name.starts_with("cu")), "{names:?}");
    names
}

/// Steps of which there is a record of the whole model's gradient.
fn measured(records: &[Record]) -> BTreeSet<u64> {
    let is_gradient = |record: &&Record| record.kind == kind::GRADIENT && record.level == level::MODEL;
    records.iter().filter(is_gradient).map(|record| record.step).collect()
}

fn has_fault(records: &[Record]) -> bool {
    records.iter().any(|record| record.kind == kind::FAULT)
}

/// What panicked since the last time, on any thread.
fn panics() -> Arc<Mutex<Vec<String>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let list = seen.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        list.lock().push(info.to_string());
        before(info);
    }));
    seen
}

/// Ends a process that hangs.
fn at_most_seconds(seconds: u32) {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(seconds) };
}

/// How a trainer calls the library.
#[derive(Clone, Copy)]
enum Manner {
    /// With its context current, on the legacy stream.
    Plain,
    /// With none current, on two streams by turns.
    Elsewhere,
}

/// A whole run with one fault in it: (whether it was hit, what came of it).
fn run_with(manner: Manner, function: &str, nth: u64, error: i32, is_sticky: bool) -> (bool, Ended) {
    double::reset();
    let mut trainer = Trainer::new(0);
    trainer.may_fail = is_sticky;
    if let Manner::Elsewhere = manner {
        trainer.around = Around::Nothing;
        trainer.streams = vec![new_stream(), new_stream()];
    }
    double::reset();
    double::fail(function, nth, error, is_sticky);
    trainer.open(1, 1 << 20);
    trainer.train_two_tasks();
    let ended = trainer.close();
    let is_hit = double::count(function) >= nth;
    double::reset();
    for stream in trainer.streams.iter().filter(|stream| !stream.is_null()) {
        // SAFETY: made above, and not used again.
        unsafe { driver!(cuStreamDestroy_v2(*stream)) };
    }
    if !is_sticky {
        assert_eq!(trainer.downloaded(), trainer.parameters, "the trainer's own results changed");
    }
    (is_hit, ended)
}

/// One that the legacy stream waits for.
fn new_stream() -> CUstream {
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one handle.
    unsafe { driver!(cuStreamCreate(&mut stream, 0)) };
    stream
}

/// Every function, every call of it until none is left that fails, three kinds of errors. Long runs of calls that are alike
/// are sampled: after the twelfth, every seventh.
fn every_call_may_fail(manner: Manner, functions: &[&str], error: i32, is_sticky: bool) {
    at_most_seconds(120);
    let seen = panics();
    let context = use_device(0);
    let (_, whole) = run_with(manner, "none", 1, 0, false);
    let expected = measured(&whole.records);
    assert_eq!(expected.len(), 5, "all steps are sampled");
    assert!(whole.refused.is_empty() && !has_fault(&whole.records), "{:?}", whole.refused);
    for function in functions {
        let mut nth = 1;
        loop {
            println!("{function}, call {nth}, error {error}");
            let (is_hit, ended) = run_with(manner, function, nth, error, is_sticky);
            assert_eq!(*seen.lock(), Vec::<String>::new());
            assert!(current() == context, "another context is current");
            let is_said = !ended.refused.is_empty() || has_fault(&ended.records);
            assert!(
                is_said || measured(&ended.records) == expected,
                "{:?}: a step is missing",
                measured(&ended.records)
            );
            if !is_hit {
                assert!(!is_said, "{:?}", ended.refused);
                break;
            }
            nth += if nth < 12 { 1 } else { 7 };
        }
    }
}

#[test]
fn any_call_may_be_refused() {
    under_double("any_call_may_be_refused", &[], || {
        every_call_may_fail(Manner::Plain, &functions(), INVALID_VALUE, false);
    });
}

#[test]
fn any_call_may_find_no_memory() {
    under_double("any_call_may_find_no_memory", &[], || {
        every_call_may_fail(Manner::Plain, &functions(), OUT_OF_MEMORY, false);
    });
}

#[test]
fn the_device_may_fail_at_any_call() {
    under_double("the_device_may_fail_at_any_call", &[], || {
        every_call_may_fail(Manner::Plain, &functions(), ILLEGAL_ADDRESS, true);
    });
}

/// What is called only where no context is current or streams change.
const ELSEWHERE: [&str; 6] = [
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuStreamIsCapturing",
    "cuStreamWaitEvent",
];

#[test]
fn calls_that_only_some_trainers_cause_may_fail() {
    under_double("calls_that_only_some_trainers_cause_may_fail", &[], || {
        every_call_may_fail(Manner::Elsewhere, &ELSEWHERE, INVALID_VALUE, false);
        every_call_may_fail(Manner::Elsewhere, &ELSEWHERE, ILLEGAL_ADDRESS, true);
    });
}

/// The driver is initialised once a process, so its failure has one of its own.
#[test]
fn a_driver_that_cannot_be_initialised() {
    under_double("a_driver_that_cannot_be_initialised", &[("FGS_FAKE_FAIL", "cuInit:1:999")], || {
        let error = load_driver().unwrap_err();
        assert_eq!(error.to_string(), "cuInit failed: CUDA_ERROR_UNKNOWN");
        assert_eq!(load_driver(), Err(error), "it is not tried again");
    });
}

/// Binding device memory at this address is refused with the sentence that is returned; host memory works all the same.
fn refused_binding(address: u64, ordinal: i32) -> String {
    let mut trainer = Trainer::on_host();
    trainer.open(1, 1 << 20);
    trainer.bind(0, fgs_data::FGS_GRAD, (CUDA, ordinal), address);
    let refused = trainer.refused.pop().expect("a refusal");
    assert_eq!((refused.call, refused.status), ("fgs_bind", fgs_status::FGS_ERROR_UNSUPPORTED));
    trainer.train_two_tasks();
    let ended = trainer.close();
    assert!(ended.refused.is_empty(), "{:?}", ended.refused);
    assert_eq!(measured(&ended.records).len(), 5, "what was bound before is measured");
    refused.text
}

#[test]
fn a_machine_without_a_driver() {
    let empty = tempfile::tempdir().expect("a directory");
    // What the loader finds first is no library at all.
    std::fs::write(empty.path().join("libcuda.so.1"), "").expect("a file");
    under_driver_of(empty.path(), "a_machine_without_a_driver", || {
        let text = refused_binding(0x1000, 0);
        assert!(text.contains("there is no CUDA driver on this machine"), "{text}");
    });
}

#[test]
fn a_driver_that_is_too_old() {
    under_driver_of(&built().join("old"), "a_driver_that_is_too_old", || {
        let text = refused_binding(0x1000, 0);
        assert!(text.contains("too old: it lacks cuThreadExchangeStreamCaptureMode"), "{text}");
    });
}

#[test]
fn a_machine_without_a_device() {
    under_double("a_machine_without_a_device", &[("FGS_FAKE_DEVICES", "0")], || {
        let text = refused_binding(0x1000, 0);
        assert!(text.contains("cuInit failed: CUDA_ERROR_NO_DEVICE"), "{text}");
    });
}

/// Addresses that kernels could not read are refused before any does.
#[test]
fn addresses_that_are_none_of_the_device() {
    on_device("addresses_that_are_none_of_the_device", &[], || {
        use_device(0);
        let host = vec![0.0f32; 2_400];
        assert!(refused_binding(host.as_ptr() as u64, 0).contains("not memory that CUDA knows"));
        assert!(refused_binding(0x1000, 0).contains("not memory that CUDA knows"));
        let freed = Bytes::new(4 * 2_400).address;
        assert!(refused_binding(freed, 0).contains("not memory that CUDA knows"));
        // Another size class of the allocator's, so that it is not rounded up.
        let short = Bytes::new(4 << 20);
        let text = refused_binding(short.address + (4 << 20) - 4 * 2_000, 0);
        assert!(text.contains("reach 1600 bytes beyond the end"), "{text}");
        assert!(refused_binding(short.address, 77).contains("there is no CUDA device 77"));
    });
}

#[test]
fn an_address_of_another_device() {
    under_double("an_address_of_another_device", &[], || {
        use_device(1);
        let elsewhere = Bytes::new(4 * 2_400);
        let text = refused_binding(elsewhere.address, 0);
        assert!(text.contains("is memory of CUDA device 1, not of device 0"), "{text}");
    });
}

fn of_model(records: &[Record], wanted: u16) -> impl Iterator<Item = &Record> {
    records.iter().filter(move |record| record.kind == wanted && record.level == level::MODEL)
}

/// Where the budget has no room for exact references, sketches are kept: interference is estimated, not left out.
#[test]
fn no_room_for_references() {
    on_device("no_room_for_references", &[], || {
        use_device(0);
        for (budget, is_exact) in [(1 << 20, true), (0, false)] {
            let mut trainer = Trainer::new(0);
            trainer.open(1, budget);
            trainer.train_two_tasks();
            let ended = trainer.close();
            assert!(ended.refused.is_empty(), "{:?}", ended.refused);
            let mut found = of_model(&ended.records, kind::INTERFERENCE).peekable();
            assert!(found.peek().is_some());
            assert!(found.all(|record| (record.flags & flag::EXACT != 0) == is_exact));
        }
    });
}

/// Trains on one task, leaves it while allocations are refused as `arm` says, and goes on with the next, for two steps
/// with refusals and for two without.
fn leave_a_task_without_memory(arm: impl FnOnce()) -> Ended {
    let mut trainer = Trainer::new(0);
    trainer.open(1, 1 << 20);
    trainer.begin_task(c"first");
    trainer.train(0, 2);
    double::reset();
    arm();
    trainer.leave_task(0, c"first");
    trainer.begin_task(c"second");
    trainer.train(1, 2);
    double::reset();
    trainer.train(1, 2);
    let ended = trainer.close();
    assert_eq!(trainer.downloaded(), trainer.parameters);
    assert!(ended.refused.is_empty(), "{:?}", ended.refused);
    assert!(measured(&ended.records).is_superset(&[4, 5].into()), "the library recovers");
    ended
}

/// The budget has room and the device has not: one allocation is refused, and again after what was kept is given back.
#[test]
fn no_memory_for_one_allocation() {
    under_double("no_memory_for_one_allocation", &[], || {
        use_device(0);
        let mut estimated = 0;
        for before in 0..12 {
            let ended = leave_a_task_without_memory(|| {
                double::fail("cuMemAlloc", before + 1, OUT_OF_MEMORY, false);
                double::fail("cuMemAlloc", before + 1, OUT_OF_MEMORY, false);
            });
            let found: Vec<_> = of_model(&ended.records, kind::INTERFERENCE).collect();
            assert!(has_fault(&ended.records) || found.len() == 4, "a step is missing");
            estimated += u32::from(found.iter().any(|record| record.flags & flag::EXACT == 0));
        }
        assert!(estimated > 0, "a reference that finds no memory is kept as a sketch");
    });
}

/// Not a byte: nothing is measured until there is room again.
#[test]
fn no_memory_at_all() {
    under_double("no_memory_at_all", &[], || {
        use_device(0);
        let ended = leave_a_task_without_memory(|| {
            // One after the other: each refuses one call.
            (0..1_000).for_each(|_| double::fail("cuMemAlloc", 1, OUT_OF_MEMORY, false));
        });
        assert!(has_fault(&ended.records));
    });
}
