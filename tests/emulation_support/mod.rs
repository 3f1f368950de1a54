//! CUDA without a GPU, for tests: kernels that run on the CPU and a double of libcuda (tests/emulation, docs/emulation.md).
//!
//! The driver's double has to be found before anything of a process asks for libcuda, and its faults and limits are the
//! process's own. So a test that uses it runs its body in a child: the same test binary, with the double in front.

#![allow(dead_code)] // Each test uses a part of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Set in a process that runs under the double.
const UNDER: &str = "FGS_TEST_UNDER_DOUBLE";

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
pub fn with_double(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FGS_") {
            command.env_remove(name);
        }
    }
    command.env("LD_LIBRARY_PATH", search_path(built())).env(UNDER, "1").stdin(Stdio::null());
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
    if std::env::var_os(UNDER).is_some() {
        return body();
    }
    let output = child(test, variables);
    let said = said_by(&output);
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {}\n{said}", output.status);
}

/// The same for a body that has to end its process by a signal. Returns what it printed.
pub fn crashes_under_double(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> String {
    if std::env::var_os(UNDER).is_some() {
        body();
        panic!("nothing was reported");
    }
    let output = child(test, variables);
    let said = said_by(&output);
    assert!(std::os::unix::process::ExitStatusExt::signal(&output.status).is_some(), "{test} did not crash:\n{said}");
    said
}

fn child(test: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = with_double(Command::new(std::env::current_exe().expect("path of this test")));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).envs(variables.iter().copied());
    command.output().expect("child")
}

/// Standard output and standard error.
pub fn said_by(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
