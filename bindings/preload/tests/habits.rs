//! What trainers on MPI may do, tests/c/habits.c: training goes on as without the library, and what is measured is right or
//! said not to be.

mod support;

use std::fs;
use std::process::{Command, Stdio};

use forgetscope::scope::schema::{kind, level::MODEL};
use support::{Mpi, Plan, Run, preload, without_surroundings};
use tempfile::TempDir;

fn plan(mpi: Mpi, habit: &str, ranks: usize) -> Plan {
    let plan = Plan::new(mpi, mpi.program("habits"), ranks).arguments([habit]).preloaded();
    plan.variable("FGS_EVERY", "1").variable("FGS_PRELOAD_FLUSH", "1")
}

/// Squared norms of the gradient and numbers of its elements, of all ranks together, by step; parts that are not there are
/// none.
fn sums(run: &Run) -> Vec<(u64, f64, f64)> {
    let mut steps = std::collections::BTreeMap::<u64, (f64, f64)>::new();
    for (subject, values) in
        run.ranks.iter().flat_map(|rank| rank.of(kind::STEP)).filter(|(subject, _)| subject.1 == MODEL)
    {
        let sum = steps.entry(subject.2).or_default();
        // A rank that has only copies of what another measures says NaN.
        sum.0 += if values[1].is_nan() { 0.0 } else { values[1] };
        sum.1 += if values[4].is_nan() { 0.0 } else { values[4] };
    }
    steps.into_iter().map(|(step, (squares, elements))| (step, squares, elements)).collect()
}

#[track_caller]
fn assert_said(run: &Run, expected: &str, times: usize) {
    assert_eq!(run.messages().iter().filter(|line| line.contains(expected)).count(), times, "{}", run.said);
}

#[test]
fn memory_that_cannot_be_read_is_not() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "unreadable", 1).run().succeeded();
        assert_said(&run, "buffers are not measured: their memory cannot be read", 1);
    }
}

#[test]
fn parameters_that_are_freed_are_not_read() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "moved", 1).variable("FGS_PRELOAD_PARAMETERS", "1").run().succeeded();
        assert_said(&run, "the trainer has freed a gathered buffer", 1);
        let updates: Vec<u64> = run.ranks[0].of(kind::UPDATE).map(|(subject, _)| subject.2).collect();
        assert!(updates.len() > 100 && updates.iter().all(|&step| step < 200), "{updates:?}");
    }
}

/// The buffer is the trainer's again as soon as it knows that the request has completed.
#[test]
fn requests_that_are_looked_at_have_completed() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "looks", 2).run().succeeded();
        let sums = sums(&run);
        assert!(sums.len() > 40 && sums.iter().all(|step| step.1 == 4.0 * 9000.0), "{sums:?} {}", run.said);
    }
}

#[test]
fn requests_that_complete_unseen_are_said() {
    let run = plan(Mpi::Open, "unseen", 2).run().succeeded();
    assert_said(&run, "3 sampled steps were not completed", 1);
}

#[test]
fn intercommunicators_are_left_out() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "groups", 4).run().succeeded();
        assert!(run.ranks.is_empty(), "{}", run.said);
    }
}

/// A layout file of buckets that are a tensor each: name and number of elements.
fn layout(directory: &TempDir, tensors: &[(&str, u64)]) -> String {
    let bucket = |(name, numel): &(&str, u64)| {
        format!(r#"{{"numel": {numel}, "tensors": [{{"name": "{name}", "offset": 0, "numel": {numel}}}]}}"#)
    };
    let buckets: Vec<String> = tensors.iter().map(bucket).collect();
    let path = directory.path().join("layout.json");
    fs::write(&path, format!(r#"{{"version": 1, "buckets": [{}]}}"#, buckets.join(", "))).unwrap();
    path.to_str().unwrap().into()
}

/// Each reduction of a step is of its own kind, also where a layout says what is in it.
#[test]
fn copies_and_parts_may_be_mixed() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(&directory, &[("norms", 2048), ("weights", 4096)]);
    for (mpi, has_layout) in [(Mpi::Open, false), (Mpi::Open, true), (Mpi::Mpich, true)] {
        let plan = plan(mpi, "mixed", 2);
        let plan = if has_layout { plan.variable("FGS_PRELOAD_LAYOUT", &layout) } else { plan };
        let run = plan.run().succeeded();
        let sums = sums(&run);
        assert_eq!(sums.last().unwrap().0, 59);
        assert!(sums.iter().all(|step| (step.1, step.2) == (4.0 * 6144.0, 6144.0)), "{sums:?} {}", run.said);
        let names = if has_layout { ["norms", "weights"] } else { ["bucket.0", "bucket.1"] };
        assert!(run.ranks.iter().all(|rank| rank.tensors == names), "{:?}", run.ranks[1].tensors);
    }
}

/// What was reduced for a step that was given up is no part of the one that took its number.
#[test]
fn a_step_that_starts_over_is_another() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(&directory, &[("first", 4096), ("second", 3096), ("third", 2096)]);
    for mpi in Mpi::ALL {
        let run = plan(mpi, "over", 2).variable("FGS_PRELOAD_LAYOUT", &layout).run().succeeded();
        let sums = sums(&run);
        assert!(sums.len() >= 15 && sums.iter().all(|step| step.1 == 4.0 * 9288.0), "{sums:?} {}", run.said);
    }
}

/// Who is first in a communicator is not who was first in another with its handle.
#[test]
fn communicators_may_be_freed() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "communicators", 2).run().succeeded();
        let sums = sums(&run);
        assert!(sums.len() > 100 && sums.iter().all(|step| step.1 == 4.0 * 13000.0), "{sums:?} {}", run.said);
    }
}

/// A function that the library has not does what its twin does.
#[test]
fn counts_may_have_64_bits() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "64 bits", 2).run().succeeded();
        let sums = sums(&run);
        assert!(sums.len() > 20 && sums.iter().all(|step| step.1 == 4.0 * 9000.0), "{sums:?} {}", run.said);
    }
}

#[test]
fn buckets_that_keep_changing_end_it() {
    let run = plan(Mpi::Open, "sizes", 1).run().succeeded();
    assert_said(&run, "the sequence of collectives has changed: a step is", 8);
    assert_said(&run, "the buckets change again and again", 1);
    assert_said(&run, "the sequence of collectives has changed 64 times in all", 1);
    assert_eq!(run.ranks[0].tensors.len(), 65);
}

#[test]
fn threads_with_communicators_of_their_own_end_it() {
    for mpi in Mpi::ALL {
        let run = plan(mpi, "threads", 2).run().succeeded();
        assert_said(&run, "several threads reduce at the same time", 1);
    }
}

/// Values that mean nothing, in a variable that looks like one of a shell.
#[test]
fn what_the_switch_says_is_0_or_1() {
    for value in ["yes", "false"] {
        let run = plan(Mpi::Open, "trains", 2).variable("FGS_PRELOAD", value).run().succeeded();
        let expected = format!("FGS_PRELOAD: '{value}' is neither 0 nor 1; training is not measured");
        assert_said(&run, &expected, 1);
        assert!(run.messages().len() == 1 && run.ranks.is_empty(), "{}", run.said);
    }
}

/// A run without a launcher, whose standard error somebody else has.
fn alone(habit: &str, stderr: Stdio) -> std::process::Child {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(Mpi::Open.program("habits"));
    without_surroundings(&mut command).arg(habit).env("LD_PRELOAD", preload()).env("FGS_PRELOAD", "1");
    command.env("FGS_RING_DIR", place.path()).stdout(Stdio::null()).stderr(stderr);
    command.spawn().expect("the program")
}

/// Without a launcher too.
#[test]
fn nothing_to_measure_is_said_of_any_trainer() {
    let output = alone("little", Stdio::piped()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("10 collectives came through and none is one of a training step"), "{said}");
}

/// A message that nobody reads is lost, and that is all.
#[test]
fn a_message_that_nobody_reads_ends_nothing() {
    let mut child = alone("trains", Stdio::piped());
    drop(child.stderr.take());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// A file that a process would wait for.
#[test]
fn a_layout_is_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let run = plan(Mpi::Open, "trains", 1).variable("FGS_PRELOAD_LAYOUT", fifo.to_str().unwrap()).run().succeeded();
    assert_said(&run, "is not a regular file; training is not measured", 1);
}
