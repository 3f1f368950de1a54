//! CUDA without a GPU, for tests: kernels that run on the CPU and a double of libcuda (tests/emulation, docs/emulation.md).
//!
//! The driver's double has to be found before anything of a process asks for libcuda, and its faults and limits are the
//! process's own. So a test that uses it runs its body in a child: the same test binary, with the double in front.
//!
//! With FGS_TEST_GPU=1, on a machine that has a GPU and its driver, what asks for a device gets that one. What steers the
//! double or looks at its trace is left out then, and says so.

#![allow(dead_code)] // Each test uses a part of it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Set in a process that runs the body of a test.
const CHILD: &str = "FGS_TEST_CHILD";

/// Set from outside to 1: the machine's own driver and GPU are tested.
const ON_GPU: &str = "FGS_TEST_GPU";

/// What tests/emulation/Makefile made: the double as `libcuda.so.1`, `old/libcuda.so.1`, and `self_test`. Built once a
/// process, and only what changed; several processes take turns.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
        std::fs::create_dir_all(&directory).expect("directory for the emulation");
        let turn = File::create(directory.join(".lock")).expect("lock file");
        turn.lock().expect("lock");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulation");
        let mut make = Command::new("make");
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        make.args(["-s", "-j2", "-C"]).arg(source).arg(format!("BUILD={}", directory.display()));
        let output = make.output().unwrap_or_else(|e| panic!("cannot run make ({e}): `apt-get install make g++`"));
        assert!(output.status.success(), "{make:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        directory
    })
}

/// A command that finds the double in place of the driver, with no setting of ours from outside.
pub fn with_double(command: Command) -> Command {
    with_driver(command, built())
}

/// A command that finds the `libcuda.so.1` of a directory, with no setting of ours from outside.
pub fn with_driver(command: Command, directory: &Path) -> Command {
    let mut command = without_settings(command);
    command.env("LD_LIBRARY_PATH", search_path(directory));
    command
}

fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FGS_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// `first`, then what the loader searches anyway.
fn search_path(first: &Path) -> String {
    // An empty part would mean the current directory.
    let rest = std::env::var("LD_LIBRARY_PATH").ok().filter(|rest| !rest.is_empty());
    rest.map_or_else(|| first.display().to_string(), |rest| format!("{}:{rest}", first.display()))
}

/// Runs `body` in a process of its own under the double, with these environment variables.
///
/// `test` is the full name of the calling test, as `cargo test` prints it: the child runs that test, arrives here again
/// and calls `body`.
pub fn under_double(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    if is_on_gpu() {
        return say_left_out(test);
    }
    passes(test, with_double(this_test()), variables);
}

/// The same for a body that needs a device, whichever: with FGS_TEST_GPU=1 it gets the machine's own.
pub fn on_device(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let command = if is_on_gpu() { without_settings(this_test()) } else { with_double(this_test()) };
    passes(test, command, variables);
}

/// The same under the `libcuda.so.1` of a directory, which need not have one.
pub fn under_driver_of(directory: &Path, test: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    if is_on_gpu() {
        return say_left_out(test);
    }
    passes(test, with_driver(this_test(), directory), &[]);
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn is_on_gpu() -> bool {
    std::env::var(ON_GPU).is_ok_and(|value| value == "1")
}

/// Past the test harness, which would keep it to itself.
fn say_left_out(test: &str) {
    let _ = writeln!(std::io::stderr(), "test {test} is left out: it needs the double");
}

fn this_test() -> Command {
    Command::new(std::env::current_exe().expect("path of this test"))
}

fn passes(test: &str, command: Command, variables: &[(&str, &str)]) {
    let output = child(test, command, variables);
    let said = said_by(&output);
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {}\n{said}", output.status);
}

/// The same for a body that has to end its process by a signal. Returns what it printed.
pub fn crashes_under_double(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> String {
    if is_child() {
        body();
        panic!("nothing was reported");
    }
    let output = child(test, with_double(this_test()), variables);
    let said = said_by(&output);
    assert!(std::os::unix::process::ExitStatusExt::signal(&output.status).is_some(), "{test} did not crash:\n{said}");
    said
}

fn child(test: &str, mut command: Command, variables: &[(&str, &str)]) -> Output {
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).envs(variables.iter().copied());
    command.env(CHILD, "1").output().expect("child")
}

/// Standard output and standard error.
pub fn said_by(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
