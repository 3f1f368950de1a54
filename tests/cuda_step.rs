//! A trainer on a GPU, examples/cuda_step, and what the instrument says of it: eager, by a captured graph, and with
//! everything copied to the host.
//!
//! Under the double, or on the machine's own GPU with FGS_TEST_GPU=1. FGS_CUDA_STEP names a program that was built before,
//! for machines without a compiler.

mod emulation_support;

use forgetscope::ring::{Poll, Reader, Record};
use forgetscope::scope::schema::kind;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const STEPS: usize = 40;
const EVERY: u64 = 4;

/// The example, built against the library of this test run.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(path) = std::env::var_os("FGS_CUDA_STEP") {
            return path.into();
        }
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_step");
        std::fs::create_dir_all(&directory).unwrap();
        let library = std::env::current_exe().unwrap().with_file_name("libforgetscope.so");
        for name in ["libforgetscope.so", "libforgetscope.so.0"] {
            let link = directory.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(&library, link).unwrap();
        }
        let mut make = Command::new("make");
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        make.args(["-s", "-C"]).arg(source("examples/cuda_step"));
        make.args([format!("BUILD={}", directory.display()), format!("FGS_LIB={}", directory.display())]);
        run(&mut make);
        directory.join("cuda_step")
    })
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = emulation_support::said_by(&output);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// Kind, level, step, tensor, slice and reference of a record.
type Subject = (u16, u8, u64, u32, u32, u16);

/// A run of the example: its training losses as they were written, its evaluations as printed, its records.
struct Training {
    losses: String,
    evaluations: Vec<Vec<f64>>,
    records: Vec<Record>,
}

impl Training {
    fn new(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ring, losses) = (directory.path().join("ring"), directory.path().join("losses"));
        let mut command = Command::new(program());
        if std::env::var("FGS_TEST_GPU").is_ok_and(|value| value == "1") {
            command.env_remove("FGS_CONFIG");
        } else {
            command = emulation_support::with_double(command);
        }
        command.env("FGS_EVERY", EVERY.to_string()).envs(variables.iter().copied());
        // Texts that travel with the repository, of two kinds.
        command.args(["--task", "prose=docs/statistics/landscape.md", "--task", "code=examples/trainer/model.cpp"]);
        command.args(["--steps", &STEPS.to_string(), "--ring"]).arg(&ring).arg("--losses").arg(&losses);
        let said = run(command.args(arguments).current_dir(root()));
        assert!(!said.contains("forgetscope:"), "the instrument refused something:\n{said}");
        Self {
            losses: std::fs::read_to_string(losses).unwrap(),
            evaluations: said.lines().filter_map(evaluation).collect(),
            records: if ring.exists() { read(&ring) } else { Vec::new() },
        }
    }

    /// Eager steps in device memory, every record awaited: what most tests compare with.
    fn eager() -> &'static Self {
        static RUN: OnceLock<Training> = OnceLock::new();
        RUN.get_or_init(|| Self::new(&[], &["--wait"]))
    }

    fn kinds(&self) -> BTreeSet<u16> {
        self.records.iter().map(|record| record.kind).collect()
    }

    /// Values of what is measured in steps, in the order of publication.
    fn measured(&self) -> BTreeMap<Subject, Vec<[f64; 10]>> {
        let of_steps = [
            kind::GRADIENT,
            kind::INTERFERENCE,
            kind::PROJECTION,
            kind::UPDATE,
            kind::ALIGNMENT,
            kind::DRIFT,
            kind::PREDICTION,
        ];
        let mut found = BTreeMap::<_, Vec<_>>::new();
        for record in self.records.iter().filter(|record| of_steps.contains(&record.kind)) {
            let &Record { kind, level, step, tensor, slice, reference, .. } = record;
            found.entry((kind, level, step, tensor, slice, reference)).or_default().push(record.values);
        }
        found
    }
}

/// The repository's root, where the texts are: of this machine, or of the one that the test runs on.
fn root() -> PathBuf {
    std::env::var_os("FGS_ROOT").map_or_else(|| source("."), PathBuf::from)
}

/// "step  120  prose 3.8637  code 2.8741"
fn evaluation(line: &str) -> Option<Vec<f64>> {
    let mut words = line.strip_prefix("step")?.split_whitespace().skip(1);
    let mut losses = Vec::new();
    while let (Some(_task), Some(loss)) = (words.next(), words.next()) {
        losses.push(loss.parse().ok()?);
    }
    Some(losses)
}

fn read(path: &Path) -> Vec<Record> {
    let mut reader = Reader::open(path).unwrap();
    let mut records = Vec::new();
    loop {
        match reader.poll().unwrap() {
            Poll::Record(record) => records.push(record),
            Poll::Lost(lost) => panic!("{lost} records lost"),
            Poll::Empty | Poll::Closed => return records,
        }
    }
}

#[track_caller]
fn assert_alike(one: &Training, other: &Training, bound: f64) {
    let (one, other) = (one.measured(), other.measured());
    let only: Vec<_> = one.keys().filter(|key| !other.contains_key(key)).collect();
    assert!(only.is_empty() && one.len() == other.len(), "only in one: {only:?}; {} and {}", one.len(), other.len());
    for (subject, values) in &one {
        for (a, b) in values.iter().flatten().zip(other[subject].iter().flatten()) {
            let near = (a - b).abs() <= bound * a.abs().max(b.abs()) + 1e-3 * bound;
            assert!(near || a.is_nan() && b.is_nan(), "{subject:?}: {a} and {b}");
        }
    }
}

/// The model learns, the first task is forgotten, and the ring has a record of every kind that such a run gives.
#[test]
fn a_trainer_on_a_device_is_measured() {
    let run = Training::eager();
    let first = &run.evaluations[0];
    let after_first = &run.evaluations[STEPS / 20];
    let last = run.evaluations.last().unwrap();
    assert!(after_first[0] < first[0] - 1.0 && last[1] < after_first[1] - 0.2, "{:?}", run.evaluations);
    assert!(last[0] > after_first[0], "nothing was forgotten: {:?}", run.evaluations);

    let expected = [
        kind::STEP,
        kind::GRADIENT,
        kind::INTERFERENCE,
        kind::CORRECTED,
        kind::PROJECTION,
        kind::UPDATE,
        kind::ALIGNMENT,
        kind::DRIFT,
        kind::PREDICTION,
        kind::EVALUATION,
        kind::TRANSFER,
        kind::TASK,
        kind::REPRESENTATION,
        kind::SUBSPACE,
        kind::SIMILARITY,
        kind::FISHER,
    ];
    let missing: Vec<_> = expected.iter().filter(|kind| !run.kinds().contains(kind)).collect();
    assert!(missing.is_empty(), "no record of kinds {missing:?}");
    assert!(!run.kinds().contains(&kind::FAULT));
    let steps = run.records.iter().filter(|record| record.kind == kind::STEP).map(|record| record.step);
    assert!(steps.eq((0..2 * STEPS as u64).step_by(EVERY as usize)), "a sampled step is missing");
}

/// What is read on the device is what a copy on the host says: only the order of sums differs.
#[test]
fn device_and_host_memory_give_the_same_statistics() {
    let (device, host) = (Training::eager(), Training::new(&[], &["--wait", "--memory", "host"]));
    assert_eq!(device.losses, host.losses);
    assert_alike(device, &host, 1e-4);
}

/// A graph's replays train as eager steps do, to the last bit, and are measured at the same steps.
#[test]
fn a_captured_step_is_the_eager_step() {
    let (eager, graph) = (Training::eager(), Training::new(&[], &["--wait", "--graph"]));
    assert_eq!(eager.losses, graph.losses);
    assert_eq!(eager.evaluations, graph.evaluations);
    assert_alike(eager, &graph, 1e-6);
    assert!(!graph.kinds().contains(&kind::FAULT));
}

/// The instrument changes no bit of training.
#[test]
fn losses_are_those_of_training_without_the_instrument() {
    let measured = Training::new(&[("FGS_EVERY", "1")], &["--graph"]);
    let disabled = Training::new(&[("FGS_DISABLE", "1")], &["--graph"]);
    assert_eq!(measured.losses, disabled.losses);
    assert!(disabled.records.is_empty() && !measured.records.is_empty());
}
