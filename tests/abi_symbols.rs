//! What the shared library shows to the process that loads it: `fgs_*` and nothing else. It brings a BLAS along that
//! nobody may see, uses nobody else's, and starts nothing when it is loaded.

mod abi_support;

use abi_support::{Bench, library, printed_by, root};
use std::process::Command;

/// Names of the dynamic symbol table, sorted, without versions.
fn symbols(which: &str) -> Vec<String> {
    let printed = printed_by(Command::new("nm").args(["-D", "--format=posix", which]).arg(library()), "binutils");
    let name = |line: &str| line.split([' ', '@']).next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = printed.lines().map(name).collect();
    names.sort();
    names
}

/// Entries of the dynamic section with this tag.
fn dynamic(tag: &str) -> Vec<String> {
    let printed = printed_by(Command::new("readelf").args(["--dynamic", "--wide"]).arg(library()), "binutils");
    let value = |line: &str| line.split(['[', ']']).nth(1).unwrap_or_default().to_owned();
    printed.lines().filter(|line| line.contains(&format!("({tag})"))).map(value).collect()
}

/// The checked-in list. A symbol that is added belongs there; one that is missing breaks programs.
#[test]
fn exactly_the_listed_symbols_are_exported() {
    let exported = symbols("--defined-only").join("\n") + "\n";
    let listed = std::fs::read_to_string(root().join("tests/symbols.txt")).expect("tests/symbols.txt");
    assert_eq!(exported, listed, "the exported symbols (left) are not those of tests/symbols.txt (right)");
}

#[test]
fn every_exported_function_is_in_the_header() {
    let header = std::fs::read_to_string(root().join("include/forgetscope.h")).expect("the header");
    for symbol in symbols("--defined-only") {
        assert!(header.contains(&format!("{symbol}(")), "{symbol} is not declared");
    }
}

/// Neither C names (cblas_dgemm, LAPACKE_dsyev, openblas_set_num_threads) nor Fortran names (dgemm_, _gfortran_…).
#[test]
fn no_linear_algebra_is_imported() {
    let imported = symbols("--undefined-only");
    assert!(imported.iter().any(|name| name == "malloc"), "nm lists what is imported");
    let is_foreign = |name: &&String| {
        let name = name.to_lowercase();
        let is_fortran = name.ends_with('_') && !name.starts_with('_');
        is_fortran || ["blas", "lapack", "gfortran", "mkl_"].iter().any(|word| name.contains(word))
    };
    assert_eq!(imported.iter().filter(is_foreign).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn only_the_system_is_needed() {
    for name in dynamic("NEEDED") {
        let known = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
        assert!(known.contains(&name.as_str()), "{name} is needed");
    }
    assert_eq!(dynamic("SONAME"), ["libforgetscope.so.0"]);
}

/// The program has a BLAS of its own, whose functions abort.
#[test]
fn loading_starts_nothing_and_captures_nothing() {
    Bench::new().build_with("load", &["-rdynamic"]).run();
}
