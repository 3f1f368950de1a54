//! The program as a process.

#![allow(dead_code)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Runs the program without what the environment might say.
pub fn forgetscope(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program starts")
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forgetscope"));
    command.args(arguments).env_remove("FGS_RING_DIR").env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
    command
}

/// Standard output of a run that succeeds.
pub fn stdout(arguments: &[&str]) -> String {
    let output = forgetscope(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Standard error of a run that fails as it should: with exit code 1, in words.
pub fn failure(arguments: &[&str]) -> String {
    let output = forgetscope(arguments);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(text.starts_with("forgetscope: ") && !text.contains("panicked"), "{text}");
    text
}

/// Waits until something is so; ten seconds are for ever.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        sleep(Duration::from_millis(5));
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
