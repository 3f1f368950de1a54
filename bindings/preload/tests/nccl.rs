//! NCCL: NVIDIA's own library, as far as it goes without a GPU, and a double of it that reduces host memory.
//!
//! A program may be linked with NCCL, or load it as Python does, out of the loader's sight; both have to be seen.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use forgetscope::scope::schema::kind;
use support::{Records, preload, root, said_by, without_surroundings};

/// Where a library is, and what its file is called.
#[derive(Clone)]
struct Nccl {
    directory: PathBuf,
    file: &'static str,
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
            file: "libnccl.so.2",
        }
    }

    /// The double, compiled.
    fn fake() -> Self {
        Self::fake_called("libnccl.so.2", &[])
    }

    /// Under another name, or with macros of its own.
    fn fake_called(file: &'static str, macros: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap().keep();
        let soname = format!("-Wl,-soname,{file}");
        let arguments = [&["-shared", "-fPIC", &soname, "-ldl"], macros].concat();
        compile("fake_nccl.c", &arguments, &directory.join(file));
        Self { directory, file }
    }

    /// A command that runs `body` of a C file with this library: linked, or loaded with RTLD_LOCAL.
    fn command(&self, body: &str, is_plugin: bool, place: &Path) -> Command {
        let plugin = self.plugin(body, place, "libbody.so");
        let rpath = format!("-Wl,-rpath,{}", self.directory.display());
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

    /// A C file that is linked with this library, as a library.
    fn plugin(&self, body: &str, place: &Path, file: &str) -> PathBuf {
        let plugin = place.join(file);
        let rpath = format!("-Wl,-rpath,{}", self.directory.display());
        let nccl = self.directory.join(self.file);
        compile(body, &["-shared", "-fPIC", nccl.to_str().unwrap(), &rpath, "-ldl"], &plugin);
        plugin
    }
}

/// Where the double of libcuda is.
fn cuda() -> &'static str {
    static DIRECTORY: OnceLock<String> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let double = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
        let mut make = Command::new("make");
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").args(["-s", "-C"]).arg(root().join("tests/emulation"));
        said_by(make.arg(format!("BUILD={}", double.display())));
        double.to_str().unwrap().to_owned()
    })
}

/// A run with the library preloaded, and told to measure or not. It has to go well.
fn preloaded(command: &mut Command, is_told: bool) -> String {
    said_by(command.env("LD_PRELOAD", preload()).env("FGS_PRELOAD", if is_told { "1" } else { "0" }))
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
        .env("LD_LIBRARY_PATH", cuda())
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
        assert!(said.contains("a step is 3 buckets of 6000 elements in 3 collectives"), "{said}");
        assert_eq!(records.tensors, ["bucket.0", "bucket.1", "bucket.2"]);
        let measured = squares(&records);
        // 16 collectives: the sixth step is the first that is seen from its beginning.
        assert_eq!(measured.first().map(|step| step.0), Some(6));
        assert_eq!(measured.len(), 54, "{said}");
        for (step, squares) in measured {
            let value = |bucket: u64| 2.0 * (step + bucket) as f64;
            assert_eq!(squares, expected([(value(0), 3000.0), (value(1), 1500.0), (value(2), 1500.0)]), "step {step}");
        }
    }
}

/// Rank 1 of 2 measures the upper half of every bucket, and the same half of the parameters.
#[test]
fn scattered_buckets_and_gathered_parameters_are_measured() {
    let variables = [("FGS_PRELOAD_PARAMETERS", "1"), ("FGS_PRELOAD_SCALE", "0.5")];
    let (said, records) = steps("scatter", true, &variables);
    assert!(said.contains("a step is 3 buckets of 6000 elements in 6 collectives"), "{said}");
    for (step, measured) in squares(&records) {
        let value = |bucket: u64| 0.5 * (step + bucket) as f64;
        let all = expected([(value(0), 1500.0), (value(1), 750.0), (value(2), 750.0)]);
        assert_eq!(measured, all, "step {step}: scaled, half of the elements");
    }
    let updates: Vec<_> = records.of(kind::UPDATE).filter(|(subject, _)| subject.1 == 4).collect();
    assert!(updates.len() > 40, "{said}");
    for (subject, values) in updates {
        // Every parameter of the half grew by a half.
        assert_eq!((values[1], values[4]), (0.25 * 3000.0, 3000.0), "step {}", subject.2);
    }
}

#[test]
fn rebuilt_buckets_are_other_tensors() {
    let (said, records) = steps("rebuilt", false, &[]);
    assert!(said.contains("the sequence of collectives has changed: a step is 3 buckets of 6000 elements"), "{said}");
    // The last one is as before.
    assert_eq!(records.tensors, ["bucket.0", "bucket.1", "bucket.2", "bucket.0.v2", "bucket.1.v2"]);
    assert_eq!(squares(&records).last().map(|step| step.0), Some(59), "steps are counted on");
}

#[test]
fn buffers_that_are_allocated_anew_are_told_by_their_sizes() {
    let (said, records) = steps("fresh", false, &[("FGS_PRELOAD_STEP", "3")]);
    assert!(said.contains("a step is 3 buckets of 6000 elements in 3 collectives; measuring from step 2"), "{said}");
    assert_eq!(squares(&records).len(), 58, "{said}");
}

/// Device memory is read on the collective's stream: after the reduction, however late that is, and before the trainer's
/// next use of the buffer. What is captured into a graph is left out, and that is said once.
#[test]
fn device_memory_is_read_in_the_order_of_the_stream() {
    let variables = [("FGS_FAKE_DELAY_US", "300"), ("FGS_PRELOAD_TASK", "a")];
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

/// Whatever the file is called, and where the library was loaded out of the loader's sight.
#[test]
fn a_library_of_any_name_is_found() {
    let named = Nccl::fake_called("librccl.so.1", &[]);
    for is_plugin in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let mut command = named.command("nccl_copies.c", is_plugin, place.path());
        assert_eq!(preloaded(&mut command, false), "");
        // Without a driver it is the memory of devices that nothing is known of.
        let said = preloaded(&mut command, true);
        assert_eq!(said.matches("buffers are not measured: there is no CUDA driver").count(), 1, "{said}");
    }
    // A copy within the library that calls it, as a framework may be built.
    let place = tempfile::tempdir().unwrap();
    let (framework, host) = (place.path().join("libframework.so"), place.path().join("host"));
    let double = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/fake_nccl.c");
    compile("nccl_copies.c", &[double.to_str().unwrap(), "-shared", "-fPIC", "-ldl"], &framework);
    compile("nccl_host.c", &["-DPLUGIN", "-ldl"], &host);
    let mut command = Command::new(&host);
    without_surroundings(&mut command).arg(&framework).env("FGS_RING_DIR", place.path());
    assert_eq!(preloaded(&mut command, false), "");
    assert!(preloaded(&mut command, true).contains("buffers are not measured"));
}

/// Two frameworks with a copy each: nobody gets the other's.
#[test]
fn copies_are_not_mixed() {
    let place = tempfile::tempdir().unwrap();
    let first =
        Nccl::fake_called("libnccl_first.so.2", &["-DCOPY=1"]).plugin("nccl_copies.c", place.path(), "libfirst.so");
    let second =
        Nccl::fake_called("libnccl_second.so.2", &["-DCOPY=2"]).plugin("nccl_copies.c", place.path(), "libsecond.so");
    let host = place.path().join("host");
    compile("nccl_host.c", &["-DPLUGIN", "-ldl"], &host);
    for is_told in [false, true] {
        let mut command = Command::new(&host);
        without_surroundings(&mut command).arg(&first).arg(&second).env("FGS_RING_DIR", place.path());
        let said = preloaded(&mut command, is_told);
        assert_eq!(said.matches("several loaded libraries have a nccl").count(), usize::from(is_told), "{said}");
        assert_eq!(said.lines().count(), usize::from(is_told), "{said}");
    }
}

/// What is enqueued at some later time is left out.
#[test]
fn groups_that_do_not_block_are_said() {
    let place = tempfile::tempdir().unwrap();
    let double = Nccl::fake_called("libnccl.so.2", &["-DEND_OF_GROUP=7"]);
    let said = preloaded(&mut double.command("nccl_copies.c", true, place.path()), true);
    assert_eq!(said.matches("an NCCL communicator does not block").count(), 1, "{said}");
    assert!(said.contains("40 collectives came through and none is one of a training step"), "{said}");
}

/// MPI hands NCCL's id out and ends before training begins.
#[test]
fn mpi_may_end_before_nccl_begins() {
    let place = tempfile::tempdir().unwrap();
    let plugin = Nccl::fake().plugin("nccl_steps.c", place.path(), "libbody.so");
    let host = place.path().join("host");
    let mut compiler = Command::new("mpicc.openmpi");
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/nccl_after_mpi.c")).arg(&plugin);
    said_by(compiler.arg(format!("-Wl,-rpath,{}", place.path().display())).arg("-o").arg(&host));
    for when in ["before", "after"] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(&host);
        without_surroundings(&mut command).arg(when).env("FGS_RING_DIR", directory.path()).env("FGS_EVERY", "1");
        command.env("STEPS_KIND", "allreduce").env("LD_LIBRARY_PATH", cuda()).env("FGS_PRELOAD_FLUSH", "1");
        let said = preloaded(&mut command, true);
        let ring = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
        let ring = ring.filter(|path| path.extension().is_some_and(|extension| extension == "ring")).last();
        let records = Records::read(&ring.unwrap_or_else(|| panic!("no ring: {said}")));
        assert_eq!(squares(&records).last().map(|step| step.0), Some(59), "{when}: {said}");
    }
}
