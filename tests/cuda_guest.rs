//! The library as a guest in a process that trains on a GPU: contexts stay as they are, a step waits for nothing, nothing is
//! left behind, and what is measured is what the same training in host memory gives.

mod cuda_support;
mod device_support;
mod emulation_support;

use cuda_support::trainer::{Around, CUDA, Ended, Trainer, current};
use cuda_support::{Bytes, double, driver, use_device};
use cudarc::driver::sys::{self, CUcontext, CUstream};
use emulation_support::{on_device, under_double};
use forgetscope::abi::fgs_data;
use forgetscope::ring::Record;
use forgetscope::scope::schema::{kind, level};
use std::collections::{BTreeMap, BTreeSet};

fn new_stream() -> CUstream {
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one handle. It lives until the process ends.
    unsafe { driver!(cuStreamCreate(&mut stream, 0)) };
    stream
}

/// A context of device 0 that is not its primary one; the only one of this thread.
fn new_context() -> CUcontext {
    let (mut context, mut popped) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: each writes one handle. The context lives until the process ends.
    unsafe {
        driver!(cuCtxSetCurrent(std::ptr::null_mut()));
        driver!(cuCtxCreate_v2(&mut context, 0, 0));
        driver!(cuCtxPopCurrent_v2(&mut popped));
        driver!(cuCtxSetCurrent(context));
    }
    context
}

/// What a record is of.
type Key = (u64, u16, u8, u16, u32, u32);

/// What was measured, as bits; records that tell times are left out.
type Found = BTreeMap<Key, [u64; 10]>;

fn values(ended: &Ended) -> Found {
    assert!(ended.refused.is_empty(), "{:?}", ended.refused);
    let is_measured = |record: &&Record| ![kind::STEP, kind::TASK, kind::STAGE].contains(&record.kind);
    let entry = |record: &Record| {
        let &Record { step, kind, level, reference, tensor, slice, .. } = record;
        ((step, kind, level, reference, tensor, slice), record.values.map(f64::to_bits))
    };
    let found: Found = ended.records.iter().filter(is_measured).map(entry).collect();
    assert!(found.keys().all(|key| key.1 != kind::FAULT));
    found
}

fn assert_same(found: &Found, expected: &Found) {
    assert!(found.keys().eq(expected.keys()), "other records");
    for (key, found) in found {
        assert_eq!(found, &expected[key], "{key:?}");
    }
}

fn run(mut trainer: Trainer) -> Ended {
    trainer.open(1, 1 << 20);
    trainer.train_two_tasks();
    trainer.close()
}

/// Sums are rounded otherwise, in fp32 over 16 terms instead of 64 lanes: what they give is the same to five digits, or to
/// five digits of the largest number of the record where terms cancel.
#[test]
fn the_ring_says_what_it_says_of_host_memory() {
    on_device("the_ring_says_what_it_says_of_host_memory", &[], || {
        let expected = values(&run(Trainer::on_host()));
        use_device(0);
        let found = values(&run(Trainer::new(0)));
        assert!(found.keys().eq(expected.keys()), "other records");
        assert!(found.len() > 100);
        for (key, expected) in &expected {
            let [found, expected] = [found[key], *expected].map(|values| values.map(f64::from_bits));
            let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0f64, |most, x| most.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let is_near = (found - expected).abs() <= 1e-5 * expected.abs().max(largest.min(1.0));
                assert!(is_near || found.is_nan() && expected.is_nan(), "{key:?}: {found:?}, {expected:?}");
            }
        }
    });
}

#[test]
fn contexts_stay_as_they_are() {
    on_device("contexts_stay_as_they_are", &[], || {
        let primary = use_device(0);
        let other = new_context();
        use_device(0);
        let mut expected = None;
        for around in [Around::Own, Around::Nothing, Around::Other(other)] {
            let mut trainer = Trainer::new(0);
            (trainer.around, trainer.is_watched) = (around, true);
            if let Around::Other(_) = around {
                // The first call that needs the device chooses the context: that of the tensors.
                trainer.around = Around::Own;
                trainer.open(1, 1 << 20);
                trainer.around = around;
            } else {
                trainer.open(1, 1 << 20);
            }
            trainer.train_two_tasks();
            let found = values(&trainer.close());
            assert_same(&found, expected.get_or_insert_with(|| found.clone()));
            assert!(current() == primary);
        }
    });
}

/// A trainer that made its own context has its tensors there.
#[test]
fn a_context_that_is_not_the_primary_one() {
    on_device("a_context_that_is_not_the_primary_one", &[], || {
        use_device(0);
        let expected = values(&run(Trainer::new(0)));
        let own = new_context();
        let mut trainer = Trainer::new(0);
        trainer.is_watched = true;
        // The trainer's thread has that context alone.
        let found = values(&run(trainer));
        assert!(current() == own);
        assert_same(&found, &expected);
    });
}

#[test]
fn a_context_of_another_device_is_current() {
    under_double("a_context_of_another_device_is_current", &[], || {
        let elsewhere = use_device(1);
        use_device(0);
        let expected = values(&run(Trainer::new(0)));
        let mut trainer = Trainer::new(0);
        (trainer.around, trainer.is_watched) = (Around::Other(elsewhere), true);
        assert_same(&values(&run(trainer)), &expected);
    });
}

/// Enqueues, and looks at nothing but handles. Whatever waits, allocates, frees or copies is none of these.
const HARMLESS: [&str; 6] = [
    "cuCtxGetCurrent",
    "cuStreamIsCapturing",
    "cuStreamGetCtx",
    "cuStreamWaitEvent",
    "cuEventRecord",
    "cuLaunchKernel",
];

/// A trainer that has been measured for a while.
fn settled(every: u64) -> Trainer {
    let mut trainer = Trainer::new(0);
    trainer.streams = vec![new_stream()];
    trainer.open(every, 1 << 20);
    trainer.train_two_tasks();
    trainer.train(1, 4 * every);
    trainer
}

/// What a step calls.
fn traced_step(trainer: &mut Trainer) -> Vec<String> {
    let mut calls = double::trace(|| trainer.begin_and_read());
    calls.extend(double::trace(|| trainer.end()));
    trainer.flush();
    calls
}

#[test]
fn a_sampled_step_enqueues_and_nothing_else() {
    under_double("a_sampled_step_enqueues_and_nothing_else", &[], || {
        use_device(0);
        let mut trainer = settled(1);
        for _ in 0..3 {
            let calls = traced_step(&mut trainer);
            let others: Vec<_> = calls.iter().filter(|call| !HARMLESS.contains(&call.as_str())).collect();
            assert!(others.is_empty(), "{calls:?}");
            assert!(calls.iter().filter(|call| *call == "cuLaunchKernel").count() >= 4, "{calls:?}");
        }
        assert_eq!(double::count("pageable"), 0);
        trainer.close();
    });
}

#[test]
fn a_step_that_is_not_sampled_calls_nothing() {
    under_double("a_step_that_is_not_sampled_calls_nothing", &[], || {
        use_device(0);
        let mut trainer = settled(4);
        let mut silent = 0;
        for _ in 0..8 {
            let calls = traced_step(&mut trainer);
            let is_sampled = calls.iter().any(|call| call == "cuLaunchKernel");
            // Before a sampled step the parameters are copied.
            silent += u32::from(!is_sampled);
            assert!(is_sampled || calls.iter().all(|call| call == "cuStreamIsCapturing"), "{calls:?}");
            assert!(calls.len() <= 2 || is_sampled);
        }
        assert!(silent >= 4, "{silent} of 8 steps were silent");
        trainer.close();
    });
}

/// Tables stay on the device as long as tensors stay where they are, and are still there when they come back.
#[test]
fn tables_are_uploaded_when_an_address_changes() {
    under_double("tables_are_uploaded_when_an_address_changes", &[], || {
        use_device(0);
        let mut trainer = settled(1);
        let uploads = |trainer: &mut Trainer| {
            let before = double::count("cuMemcpyHtoDAsync");
            trainer.train(1, 1);
            double::count("cuMemcpyHtoDAsync") - before
        };
        assert_eq!((uploads(&mut trainer), uploads(&mut trainer)), (0, 0));
        let (here, there) = (trainer.address(0, fgs_data::FGS_GRAD), Bytes::of(&[0; 4 * 2_400]));
        trainer.bind(0, fgs_data::FGS_GRAD, (CUDA, 0), there.address);
        assert_eq!((uploads(&mut trainer), uploads(&mut trainer)), (1, 0), "one pass reads gradients");
        trainer.bind(0, fgs_data::FGS_GRAD, (CUDA, 0), here);
        assert_eq!(uploads(&mut trainer), 0);
        assert!(trainer.close().refused.is_empty());
    });
}

/// A step that begins like the one before is made again from what the device has of it, unless something is bound within.
#[test]
fn what_is_bound_within_a_step_is_read_where_it_is() {
    on_device("what_is_bound_within_a_step_is_read_where_it_is", &[], || {
        use_device(0);
        let expected = values(&run(Trainer::new(0)));
        let mut trainer = Trainer::new(0);
        trainer.is_moving = true;
        assert_same(&values(&run(trainer)), &expected);
    });
}

/// Nor is a step made again from one in which something moved after it had been read.
#[test]
fn what_was_left_within_a_step_is_not_read_in_the_next() {
    on_device("what_was_left_within_a_step_is_not_read_in_the_next", &[], || {
        use_device(0);
        let expected = values(&run(Trainer::new(0)));
        let mut trainer = Trainer::new(0);
        trainer.moves_in = Some(3);
        assert_same(&values(&run(trainer)), &expected);
    });
}

/// A tensor that is registered within a step is measured from the next one on.
#[test]
fn what_is_registered_within_a_step_is_measured_in_the_next() {
    on_device("what_is_registered_within_a_step_is_measured_in_the_next", &[], || {
        use_device(0);
        let mut trainer = Trainer::new(0);
        trainer.registers_in = Some(3);
        let ended = run(trainer);
        assert!(ended.refused.is_empty(), "{:?}", ended.refused);
        let is_its_gradient = |record: &&Record| record.kind == kind::GRADIENT && record.tensor == 1;
        let steps: BTreeSet<u64> = ended.records.iter().filter(is_its_gradient).map(|record| record.step).collect();
        let last = ended.records.iter().map(|record| record.step).filter(|&step| step < u64::MAX).max().expect("steps");
        assert!(steps.iter().copied().eq(4..=last), "{steps:?}");
    });
}

/// Streams that run behind, and take turns.
#[test]
fn passes_on_two_streams_are_ordered() {
    under_double("passes_on_two_streams_are_ordered", &[("FGS_FAKE_DELAY_US", "300")], || {
        use_device(0);
        let expected = values(&run(Trainer::new(0)));
        let mut trainer = Trainer::new(0);
        trainer.streams = vec![new_stream(), new_stream(), std::ptr::null_mut()];
        assert_same(&values(&run(trainer)), &expected);
    });
}

#[test]
fn scopes_and_threads_do_not_disturb_each_other() {
    on_device("scopes_and_threads_do_not_disturb_each_other", &[], || {
        use_device(0);
        let expected = values(&run(Trainer::new(0)));
        let (mut one, mut two) = (Trainer::new(0), Trainer::new(0));
        one.open(1, 1 << 20);
        two.open(1, 1 << 20);
        one.train_two_tasks();
        two.train_two_tasks();
        assert_same(&values(&one.close()), &expected);
        assert_same(&values(&two.close()), &expected);
        let train = || {
            use_device(0);
            let mut trainer = Trainer::new(0);
            trainer.streams = vec![new_stream()];
            values(&run(trainer))
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(train)).collect();
            for thread in threads {
                assert_same(&thread.join().expect("a thread that ends"), &expected);
            }
        });
    });
}

/// A model that is spread over two devices: each tensor is read where it is.
#[test]
fn two_devices_in_one_scope() {
    under_double("two_devices_in_one_scope", &[], || {
        let elsewhere = use_device(1);
        let ones: Vec<u8> = [2.0f32; 300].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (gradient, parameter) = (Bytes::of(&ones), Bytes::of(&ones));
        use_device(0);
        let mut trainer = Trainer::new(0);
        (trainer.around, trainer.is_watched) = (Around::Own, true);
        trainer.open(1, 1 << 20);
        trainer.bind(1, fgs_data::FGS_GRAD, (CUDA, 1), gradient.address);
        trainer.bind(1, fgs_data::FGS_PARAM, (CUDA, 1), parameter.address);
        trainer.train_two_tasks();
        let ended = trainer.close();
        values(&ended);
        let is_wanted =
            |record: &&Record| record.kind == kind::GRADIENT && record.level == level::TENSOR && record.tensor == 1;
        let norms: Vec<f64> = ended.records.iter().filter(is_wanted).map(|record| record.values[0]).collect();
        // Scaled by ½: the norm of 300 ones.
        assert_eq!(norms.len(), 5);
        assert!(norms.iter().all(|norm| (norm - 300f64.sqrt()).abs() < 1e-6), "{norms:?}");
        // SAFETY: the context of device 1 lives; its memory is freed there.
        unsafe { driver!(cuCtxSetCurrent(elsewhere)) };
        drop((gradient, parameter));
    });
}

/// Pairs of functions that have to be called equally often.
const PAIRED: [(&str, &str); 5] = [
    ("cuMemAlloc", "cuMemFree"),
    ("cuMemHostAlloc", "cuMemFreeHost"),
    ("cuEventCreate", "cuEventDestroy"),
    ("cuModuleLoadData", "cuModuleUnload"),
    ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
];

/// When a scope is closed, all that it took is given back and nothing of its is still to run.
#[test]
fn nothing_is_left_behind() {
    for delay in ["0", "300"] {
        under_double("nothing_is_left_behind", &[("FGS_FAKE_DELAY_US", delay)], || {
            use_device(0);
            for around in [Around::Own, Around::Nothing] {
                let mut trainer = Trainer::new(0);
                trainer.streams = vec![new_stream(), new_stream()];
                trainer.around = around;
                let free = || {
                    let (mut free, mut total) = (0, 0);
                    // SAFETY: writes two numbers.
                    unsafe { driver!(cuMemGetInfo_v2(&mut free, &mut total)) };
                    free
                };
                let before = free();
                double::reset();
                trainer.open(1, 1 << 20);
                trainer.train_two_tasks();
                // The last step is on its way.
                trainer.is_patient = false;
                trainer.train(1, 1);
                trainer.close();
                for stream in &trainer.streams {
                    // SAFETY: the stream lives.
                    assert_eq!(unsafe { sys::cuStreamQuery(*stream) }, sys::CUresult::CUDA_SUCCESS);
                }
                assert_eq!(free(), before);
                for (taken, given) in PAIRED {
                    assert_eq!(double::count(taken), double::count(given), "{taken}");
                }
                assert!(double::count("cuMemAlloc") > 0 && double::count("cuMemHostAlloc") > 0);
                // The trainer frees its tensors at once.
            }
        });
    }
}
