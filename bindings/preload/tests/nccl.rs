//! NCCL: NVIDIA's own library, as far as it goes without a GPU, and a double of it that reduces host memory.
//!
//! A program may be linked with NCCL, or load it as Python does, out of the loader's sight; both have to be seen.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use forgetscope::scope::schema::kind;
use support::{Records, preload, root, said_by, without_surroundings};

/// Where a library is: a directory with libnccl.so.2.
#[derive(Clone)]
struct Nccl {
    directory: PathBuf,
}

impl Nccl {
    /// NVIDIA's, as PyPI has it.
    fn real() -> Self {
        let site = root().join("build/nccl/lib");
        let python = fs::read_dir(&site).ok().and_then(|mut listing| listing.next()?.ok());
        let directory = python.map(|python| python.path().join("site-packages/nvidia/nccl/lib"));
        let directory = directory.filter(|directory| directory.join("libnccl.so.2").is_file());
        Self {
            directory: directory.unwrap_or_else(|| panic!("no libnccl.so.2 in {}: run `make nccl`", site.display())),
        }
    }

    /// The double, compiled.
    fn fake() -> Self {
        let directory = tempfile::tempdir().unwrap().keep();
        let arguments = ["-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-ldl"];
        compile("fake_nccl.c", &arguments, &directory.join("libnccl.so.2"));
        Self { directory }
    }

    /// A command that runs `body` of a C file with this library: linked, or loaded with RTLD_LOCAL.
    fn command(&self, body: &str, is_plugin: bool, place: &Path) -> Command {
        let plugin = place.join("libbody.so");
        let rpath = format!("-Wl,-rpath,{}", self.directory.display());
        let nccl = self.directory.join("libnccl.so.2");
        compile(body, &["-shared", "-fPIC", nccl.to_str().unwrap(), &rpath, "-ldl"], &plugin);
        let host = place.join("host");
        let own = format!("-Wl,-rpath,{}", place.display());
        match is_plugin {
            true => compile("nccl_host.c", &["-DPLUGIN", "-ldl"], &host),
            false => compile("nccl_host.c", &[plugin.to_str().unwrap(), &own, &rpath], &host),
        }
        let mut command = Command::new(&host);
        without_surroundings(&mut command).arg(&plugin).env("FGS_RING_DIR", place).env("FGS_EVERY", "1");
        command
    }
}

/// Compiles a file of tests/c. Every warning counts.
fn compile(source: &str, arguments: &[&str], output: &Path) {
    let mut compiler = Command::new("gcc");
    compiler.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-g", "-O1"]);
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(source));
    said_by(compiler.args(arguments).arg("-o").arg(output));
}

/// A run of nccl_steps.c on the double: what was said, and what was measured.
fn steps(kind: &str, is_plugin: bool, variables: &[(&str, &str)]) -> (String, Records) {
    steps_of("nccl_steps.c", kind, is_plugin, variables)
}

fn steps_of(body: &str, kind: &str, is_plugin: bool, variables: &[(&str, &str)]) -> (String, Records) {
    let place = tempfile::tempdir().unwrap();
    let mut command = Nccl::fake().command(body, is_plugin, place.path());
    command
        .env("STEPS_KIND", kind)
        .env("LD_PRELOAD", preload())
        .env("FGS_PRELOAD", "1")
        // On a busy machine steps would be left out.
        .env("FGS_PRELOAD_FLUSH", "1")
        .envs(variables.iter().copied());
    let said = said_by(&mut command);
    let ring = fs::read_dir(place.path()).unwrap().map(|file| file.unwrap().path());
    let ring = ring.filter(|path| path.extension().is_some_and(|extension| extension == "ring")).last();
    (said.clone(), Records::read(&ring.unwrap_or_else(|| panic!("no ring: {said}"))))
}

/// Sum of squares of the gradient, by step.
fn squares(records: &Records) -> Vec<(u64, f64)> {
    records.of(kind::STEP).map(|(subject, values)| (subject.2, values[1])).collect()
}

/// What nccl_steps.c has reduced in a step: value and number of elements of each bucket.
fn expected(buckets: [(f64, f64); 3]) -> f64 {
    buckets.iter().map(|(value, count)| value * value * count).sum()
}

#[test]
fn nvidias_library_is_found_and_answers_as_before() {
    let real = Nccl::real();
    for is_plugin in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let run = |variables: &[(&str, &str)]| {
            let mut command = real.command("nccl_calls.c", is_plugin, place.path());
            command.envs(variables.iter().copied());
            said_by(&mut command)
        };
        let preload = preload();
        let preload = preload.to_str().unwrap();
        let without = run(&[]);
        assert!(without.starts_with("version 0 2"), "{without}");
        assert_eq!(without.lines().count(), 14, "{without}");
        assert!(!without.contains("all-reduce 0") && !without.contains("all-reduce 2"), "the call fails: {without}");
        assert_eq!(run(&[("LD_PRELOAD", preload)]), without);
        // Nothing is measured, so nothing is opened.
        assert_eq!(run(&[("LD_PRELOAD", preload), ("FGS_PRELOAD", "1")]), without);
        assert!(
            !fs::read_dir(place.path()).unwrap().any(|file| file
                .unwrap()
                .path()
                .extension()
                .is_some_and(|e| e == "ring"))
        );
    }
}

#[test]
fn reduced_buckets_are_measured() {
    for (kind, is_plugin) in [("allreduce", false), ("allreduce", true), ("group", false), ("group", true)] {
        let (said, records) = steps(kind, is_plugin, &[]);
        assert!(said.contains("a step is 3 buckets of 17000 elements in 3 collectives"), "{said}");
        assert_eq!(records.tensors, ["bucket.0", "bucket.1", "bucket.2"]);
        let measured = squares(&records);
        // 16 collectives: the sixth step is the first that is seen from its beginning.
        assert_eq!(measured.first().map(|step| step.0), Some(6));
        assert_eq!(measured.len(), 54, "{said}");
        for (step, squares) in measured {
            let value = |bucket: u64| 2.0 * (step + bucket) as f64;
            assert_eq!(squares, expected([(value(0), 9000.0), (value(1), 4000.0), (value(2), 4000.0)]), "step {step}");
        }
    }
}

/// Rank 1 of 2 measures the upper half of every bucket, and the same half of the parameters.
#[test]
fn scattered_buckets_and_gathered_parameters_are_measured() {
    let variables = [("FGS_PRELOAD_PARAMETERS", "1"), ("FGS_PRELOAD_SCALE", "0.5")];
    let (said, records) = steps("scatter", true, &variables);
    assert!(said.contains("a step is 3 buckets of 17000 elements in 6 collectives"), "{said}");
    for (step, measured) in squares(&records) {
        let value = |bucket: u64| 0.5 * (step + bucket) as f64;
        let all = expected([(value(0), 4500.0), (value(1), 2000.0), (value(2), 2000.0)]);
        assert_eq!(measured, all, "step {step}: scaled, half of the elements");
    }
    let updates: Vec<_> = records.of(kind::UPDATE).filter(|(subject, _)| subject.1 == 4).collect();
    assert!(updates.len() > 40, "{said}");
    for (subject, values) in updates {
        // Every parameter of the half grew by a half.
        assert_eq!((values[1], values[4]), (0.25 * 8500.0, 8500.0), "step {}", subject.2);
    }
}

#[test]
fn rebuilt_buckets_are_other_tensors() {
    let (said, records) = steps("rebuilt", false, &[]);
    assert!(said.contains("the sequence of collectives has changed: a step is 3 buckets of 17000 elements"), "{said}");
    // The last one is as before.
    assert_eq!(records.tensors, ["bucket.0", "bucket.1", "bucket.2", "bucket.0.v2", "bucket.1.v2"]);
    assert_eq!(squares(&records).last().map(|step| step.0), Some(59), "steps are counted on");
}

#[test]
fn buffers_that_are_allocated_anew_are_told_by_their_sizes() {
    let (said, records) = steps("fresh", false, &[("FGS_PRELOAD_STEP", "3")]);
    assert!(said.contains("a step is 3 buckets of 17000 elements in 3 collectives; measuring from step 2"), "{said}");
    assert_eq!(squares(&records).len(), 58, "{said}");
}

/// Device memory is read on the collective's stream: after the reduction, however late that is, and before the trainer's
/// next use of the buffer. What is captured into a graph is left out, and that is said once.
#[test]
fn device_memory_is_read_in_the_order_of_the_stream() {
    let double = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
    let mut make = Command::new("make");
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").args(["-s", "-C"]).arg(root().join("tests/emulation"));
    said_by(make.arg(format!("BUILD={}", double.display())));
    let variables =
        [("LD_LIBRARY_PATH", double.to_str().unwrap()), ("FGS_FAKE_DELAY_US", "300"), ("FGS_PRELOAD_TASK", "a")];
    let (said, records) = steps_of("nccl_device.c", "", true, &variables);
    assert!(said.contains("a step is 2 buckets of 12000 elements in 2 collectives"), "{said}");
    assert_eq!(said.matches("are being captured into a CUDA graph; they are not measured").count(), 1, "{said}");
    let measured = squares(&records);
    // 16 collectives are 8 steps.
    assert_eq!((measured.len(), measured.last().unwrap().0), (52, 59), "{measured:?}\n{said}");
    for (step, squares) in measured {
        let value = |bucket: u64| (step + bucket) as f64;
        assert_eq!(squares, expected([(value(0), 6000.0), (value(1), 6000.0), (0.0, 0.0)]), "step {step}");
    }
    assert_eq!(records.of(kind::FAULT).count(), 0);
}
