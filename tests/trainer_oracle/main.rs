//! The real trainer, measured, and everything that the instrument says computed again.
//!
//! A library that is preloaded (tap.cpp) writes down the raw gradients and parameters of a short training. From these,
//! this test computes interference per head, drift, alignment, predicted loss change, noise correction and forgetting in
//! fp64, by the definitions, with its own idea of where heads lie, and compares every record of the ring. The same
//! training is then run with nothing kept but sketches, and without the instrument.

mod recompute;
mod tape;

use forgetscope::ring::{Poll, Reader, Record};
use forgetscope::scope::schema::{Role, flag, kind, level};
use recompute::{Oracle, Subject};
use std::path::{Path, PathBuf};
use std::process::Command;
use tape::Tape;

/// A trainer built against the library of this test run, in a directory of its own.
struct Trainer {
    directory: tempfile::TempDir,
}

impl Trainer {
    fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let library = std::env::current_exe().unwrap().with_file_name("libforgetscope.so");
        for name in ["libforgetscope.so", "libforgetscope.so.0"] {
            std::os::unix::fs::symlink(&library, directory.path().join(name)).unwrap();
        }
        let trainer = Self { directory };
        trainer.make("all");
        trainer
    }

    /// Makes a target of the trainer's own Makefile.
    fn make(&self, target: &str) {
        let path = self.directory.path().display();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/trainer");
        let variables = [format!("BUILD={path}"), format!("FGS_LIB={path}")];
        run(Command::new("make")
            .env("OMP_WAIT_POLICY", "passive")
            .arg("-C")
            .arg(directory)
            .arg(target)
            .args(variables));
    }

    /// The library that listens in between.
    fn build_tap(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        run(Command::new("g++")
            .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I"])
            .arg(root.join("include"))
            .arg(root.join("tests/trainer_oracle/tap.cpp"))
            .args(["-ldl", "-o"])
            .arg(self.path("tap.so")));
        self.path("tap.so")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Trains three short tasks on the trainer's own source. Returns the exact losses.
    fn train(&self, name: &str, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let losses = self.path(&format!("{name}.losses"));
        let mut command = Command::new(self.path("trainer"));
        // Other tests run beside this one: threads that wait must not spin.
        command.env("OMP_WAIT_POLICY", "passive");
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/trainer"));
        command.args("--task layers=layers.hpp --task model=model.cpp --task tests=test_gradients.cpp".split(' '));
        command.args("--steps 30 --batch 4 --context 32 --width 64 --heads 4 --layers 2".split(' '));
        command.args("--eval-every 10 --eval-batches 2 --final-eval-batches 2 --reference-batches 12 --probe-batches 2 --null-runs 1 --null-steps 4".split(' '));
        command.arg("--losses").arg(&losses).args(arguments).env("FGS_EVERY", "3");
        run(command.env("FGS_RING", self.path(&format!("{name}.ring"))).envs(variables.iter().copied()));
        std::fs::read_to_string(losses).unwrap()
    }

    fn records(&self, name: &str) -> Vec<Record> {
        let mut reader = Reader::open(self.path(&format!("{name}.ring"))).unwrap();
        let mut records = Vec::new();
        loop {
            match reader.poll().unwrap() {
                Poll::Record(record) => records.push(record),
                Poll::Closed => return records,
                other => panic!("the run has ended and the ring is large enough: {other:?}"),
            }
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a record is about, as the oracle names it. `None`: roles of whole models, which have no name there.
fn subject(record: &Record) -> Option<Subject> {
    Some(match record.level {
        level::HEAD => {
            let role = Role::from_number(record.slice >> 16).unwrap();
            Subject::Head(record.tensor as usize, role.name(), record.slice as usize & 0xffff)
        }
        level::TENSOR => Subject::Tensor(record.tensor as usize),
        level::ROLE => Subject::Role(Role::from_number(record.slice).unwrap().name()),
        level::LAYER => Subject::Layer(record.slice as usize),
        level::MODEL => Subject::Model,
        // Of probes, which tests/python has oracles for.
        level::ATTENTION_HEAD => return None,
        other => panic!("level {other}"),
    })
}

/// Compares within a bound and says what differs.
fn close(what: &str, record: &Record, found: f64, exact: f64, bound: f64) {
    assert!(
        (found - exact).abs() <= bound || found.is_nan() && exact.is_nan(),
        "{what}: {found} instead of {exact} ± {bound:e}\n{record:?}"
    );
}

/// Rounding of fp32 sums inside a block, plus that of the fp32 reference (a sum of 12 batches) and of fp32 differences.
const ROUNDING: f64 = 1e-5;

/// Every record of the run whose references and snapshots are kept exactly. Returns how many were compared per kind.
fn compare_exact(oracle: &Oracle, records: &[Record]) -> std::collections::BTreeMap<u16, usize> {
    let mut compared = std::collections::BTreeMap::new();
    for record in records {
        let Some(subject) = subject(record) else { continue };
        let v = &record.values;
        let reference = usize::from(record.reference);
        match record.kind {
            kind::GRADIENT => {
                let g = oracle.gradient(record.step, subject);
                close("squares", record, v[1], g.squares, ROUNDING * g.squares);
                close("peak", record, v[2], g.peak, ROUNDING * g.peak);
                assert_eq!((v[3], v[4]), (0.0, g.count));
            }
            kind::INTERFERENCE => {
                assert_eq!(record.flags, flag::EXACT | flag::FROZEN);
                let pair = oracle.interference(record.step, reference, subject);
                let norm = (pair.squares * pair.reference_squares).sqrt();
                close("cosine", record, v[0], pair.dot / norm, ROUNDING);
                close("dot", record, v[2], pair.dot, ROUNDING * pair.magnitude);
                close("squares", record, v[3], pair.squares, ROUNDING * pair.squares);
                close("reference", record, v[4], pair.reference_squares, ROUNDING * pair.reference_squares);
                close("null", record, v[1], pair.dot_squares.sqrt() / norm, ROUNDING);
                // A sum of batches that cancels to rounding may have either sign.
                close("conflicts", record, v[7], pair.conflicts, 1.0 + 1e-5 * pair.active);
                close("active", record, v[8], pair.active, 1.0 + 1e-5 * pair.active);
                close("opposing", record, v[9], pair.opposing, ROUNDING * pair.magnitude);
                close("fraction", record, v[6], pair.conflicts / pair.active, 1.0 / pair.active + 1e-5);
                let sketch_error = oracle.sketch_error(subject, pair.squares, pair.reference_squares, pair.dot);
                close("sketched dot", record, v[5], pair.dot, 5.5 * sketch_error + ROUNDING * pair.magnitude);
            }
            kind::UPDATE => {
                let update = oracle.update(record.step, subject);
                close("updates", record, v[1], update.updates, ROUNDING * update.updates);
                close("weights", record, v[2], update.weights, ROUNDING * update.weights);
                close("relative step", record, v[0], (update.updates / update.weights).sqrt(), ROUNDING);
            }
            kind::ALIGNMENT => {
                let pair = oracle.alignment(record.step, reference, subject);
                let norm = (pair.squares * pair.reference_squares).sqrt();
                close("cosine", record, v[0], pair.dot / norm, ROUNDING);
                close("dot", record, v[2], pair.dot, ROUNDING * pair.magnitude);
            }
            kind::DRIFT => {
                let drift = oracle.drift(record.step, reference, subject);
                close("relative", record, v[0], (drift.drift / drift.snapshot).sqrt(), ROUNDING);
                close("angle", record, v[1], drift.angle, ROUNDING);
                close("drift", record, v[2], drift.drift, ROUNDING * drift.drift);
                close("first order", record, v[5], drift.first_order, ROUNDING * drift.magnitude);
            }
            kind::PREDICTION => {
                let p = oracle.prediction(record.step, reference);
                close("first order", record, v[1], p.first_order, ROUNDING * p.magnitude);
                close("error", record, v[2], p.first_order_error, oracle.sketch_share() * p.first_order_error);
                close("quadratic", record, v[3], p.quadratic, oracle.sketch_share() * p.quadratic);
                close("total", record, v[0], v[1] + v[3], 1e-12);
                close("path", record, v[4], p.path, ROUNDING * p.magnitude);
                assert_eq!((v[5], v[6]), (12.0, 4.0 * 32.0));
            }
            kind::CORRECTED if matches!(subject, Subject::Model | Subject::Tensor(_)) => {
                let c = oracle.corrected(record.step, reference, subject, v[8] as usize);
                let share = oracle.sketch_share();
                let scale = (c.gradient_squares * c.reference_squares).sqrt();
                close("dot", record, v[2], c.dot, share * scale);
                close("gradient norm²", record, v[4], c.gradient_norm2, share * c.gradient_squares);
                close("reference norm²", record, v[6], c.reference_norm2, share * c.reference_squares);
                let undetermined = record.flags & flag::UNDETERMINED != 0;
                assert_eq!(undetermined, v[4] <= 2.0 * v[5] || v[6] <= 2.0 * v[7]);
                close("cosine", record, v[0], if undetermined { f64::NAN } else { v[2] / (v[4] * v[6]).sqrt() }, 1e-9);
            }
            kind::EVALUATION if v[5] == 0.0 => {
                let f = oracle.forgetting(reference, v[0]);
                close("own", record, v[2], f.own, 0.0);
                close("since own", record, v[4], f.since_own, 1e-12);
                close("maximum", record, v[3], f.maximum, 1e-12);
            }
            _ => continue,
        }
        *compared.entry(record.kind).or_default() += 1;
    }
    compared
}

/// Gradients against finite differences, AdamW against its closed form, the same bits at any number of threads.
#[test]
fn the_trainers_own_tests_pass() {
    Trainer::build().make("test");
}

#[test]
fn every_record_is_what_an_independent_computation_gives() {
    let trainer = Trainer::build();
    let tap = trainer.build_tap();
    let tape_path = trainer.path("tape");
    let large = ("FGS_RING_SLOTS", "131072");
    let preload = [("LD_PRELOAD", tap.to_str().unwrap()), ("FGS_TAP", tape_path.to_str().unwrap()), large];

    // Sketches as large as the slices: what rests on sketches is then exact too.
    let losses = trainer.train("exact", &preload, &[]);
    let oracle = Oracle::new(Tape::read(&tape_path), 1024, 16_384);
    let compared = compare_exact(&oracle, &trainer.records("exact"));
    // 10 sampled steps a task, against 0, 1 and 2 earlier tasks: 30 comparisons of everything in the model.
    assert_eq!(compared[&kind::PREDICTION], 30);
    for kind in [kind::INTERFERENCE, kind::ALIGNMENT, kind::DRIFT] {
        assert!(compared[&kind] >= 30 * 80, "{compared:?}");
    }
    assert!(compared[&kind::CORRECTED] > 100 && compared[&kind::EVALUATION] > 20, "{compared:?}");

    // Real sketches beside exact references.
    let small = [("FGS_SKETCH_HEAD", "512"), ("FGS_SKETCH_MATRIX", "4096"), large];
    assert_eq!(trainer.train("sketched", &small, &[]), losses, "measuring changes nothing");
    let oracle = oracle.with_sketches(512, 4096);
    compare_exact(&oracle, &trainer.records("sketched"));

    // Nothing but sketches.
    let nothing = [("FGS_BUDGET_BYTES", "0"), small[0], small[1], large];
    assert_eq!(trainer.train("budget", &nothing, &[]), losses);
    compare_sketched(&oracle, &trainer.records("budget"));

    // Off, and disabled.
    assert_eq!(trainer.train("disabled", &[("FGS_DISABLE", "1")], &[]), losses);
    assert!(!trainer.path("disabled.ring").exists());
    assert_eq!(trainer.train("off", &[], &["--instrument", "0"]), losses);
    assert!(!trainer.path("off.ring").exists());
}

/// With no exact reference, copy or snapshot, everything stays within five and a half standard errors of the sketch.
fn compare_sketched(oracle: &Oracle, records: &[Record]) {
    let mut interference = 0;
    for record in records {
        let Some(subject) = subject(record) else { continue };
        let (v, reference) = (&record.values, usize::from(record.reference));
        match record.kind {
            kind::INTERFERENCE => {
                assert_eq!(record.flags, flag::FROZEN, "not exact, and says so");
                assert!(v[6].is_nan() && v[7].is_nan(), "conflicts need coordinates");
                let pair = oracle.interference(record.step, reference, subject);
                let error = oracle.sketch_error(subject, pair.squares, pair.reference_squares, pair.dot);
                close("dot", record, v[2], pair.dot, 5.5 * error + ROUNDING * pair.magnitude);
                interference += 1;
            }
            kind::DRIFT => {
                let drift = oracle.drift(record.step, reference, subject);
                let error = oracle.sketch_error(subject, drift.drift, drift.drift, drift.drift);
                close("drift", record, v[2], drift.drift, 5.5 * error + ROUNDING * drift.drift);
            }
            kind::UPDATE => {
                let update = oracle.update(record.step, subject);
                let error = oracle.sketch_error(subject, update.updates, update.updates, update.updates);
                close("updates", record, v[1], update.updates, 5.5 * error + ROUNDING * update.updates);
            }
            kind::PREDICTION => {
                let p = oracle.prediction(record.step, reference);
                let error = oracle.sketch_error(Subject::Model, p.drift, p.reference_squares, p.first_order);
                close("first order", record, v[1], p.first_order, 5.5 * error);
                close("path", record, v[4], p.path, 5.5 * error);
            }
            _ => {}
        }
    }
    assert!(interference >= 30 * 80);
}
