//! Threads and processes: one scope on many threads, many scopes in one process, a process that forks, and one that waits for
//! signals.

mod abi_support;

use abi_support::run;

#[test]
fn threads() {
    run("threads");
}

#[test]
fn fork() {
    run("fork");
}

#[test]
fn signals() {
    run("signals");
}
