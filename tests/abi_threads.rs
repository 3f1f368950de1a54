//! Threads and processes: one scope on many threads, many scopes in one process, and a process that forks.

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
