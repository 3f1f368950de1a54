//! The C programs under valgrind: nothing is read that was not given, nothing is read after the call, nothing leaks.
//!
//! Valgrind shows the library a processor without AVX-512, so it runs its AVX2 kernels here; those of other instruction
//! sets give the same bits, which the tests of the device check.

mod abi_support;

use abi_support::Bench;

const MEMCHECK: [&str; 5] =
    ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"];

fn check(name: &str) {
    Bench::new().build(name).under(&MEMCHECK).run();
}

#[test]
fn ordinary_use() {
    check("life");
    check("train");
}

/// Each rank's memory ends where its part ends.
#[test]
fn shards() {
    check("shards");
}

/// Strided views with gaps.
#[test]
fn views() {
    check("dtypes");
}

/// Activations are lent for the length of a call, and end where their shapes say.
#[test]
fn probes() {
    check("probe");
}

/// Parameters are written to, and nothing beside them.
#[test]
fn curvature() {
    check("curvature");
}

/// Buffers are only lent for the length of a call.
#[test]
fn feeding() {
    check("feed");
}

/// Refused calls leak nothing either.
#[test]
fn wrong_use() {
    check("wrong_use");
}
