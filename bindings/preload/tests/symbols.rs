//! What the library shows to the process that it is loaded into: the functions that it takes the place of, and no others.

mod support;

use std::process::Command;

use support::{preload, root, said_by};

fn symbols(which: &str) -> Vec<String> {
    let printed = said_by(Command::new("nm").args(["-D", "--format=posix", which]).arg(preload()));
    let name = |line: &str| line.split([' ', '@']).next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = printed.lines().map(name).collect();
    names.sort();
    names
}

/// No `fgs_*`, which a linked trainer has of its own, and nothing of OpenBLAS.
#[test]
fn exactly_the_listed_symbols_are_exported() {
    let listed = std::fs::read_to_string(root().join("bindings/preload/tests/symbols.txt")).unwrap();
    assert_eq!(symbols("--defined-only").join("\n") + "\n", listed);
}

/// Neither MPI nor NCCL: a process without them loads it all the same.
#[test]
fn only_the_system_is_needed() {
    let printed = said_by(Command::new("readelf").args(["--dynamic", "--wide"]).arg(preload()));
    let value = |line: &str| line.split(['[', ']']).nth(1).unwrap_or_default().to_owned();
    let of =
        |tag: &str| printed.lines().filter(|line| line.contains(&format!("({tag})"))).map(value).collect::<Vec<_>>();
    for name in of("NEEDED") {
        let known = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
        assert!(known.contains(&name.as_str()), "{name} is needed");
    }
    // Not the name of libforgetscope.so: the loader would take one for the other.
    assert_eq!(of("SONAME"), ["libforgetscope_preload.so.0"]);
    let imported = symbols("--undefined-only");
    let is_foreign =
        |name: &&String| ["MPI_", "nccl", "blas", "lapack", "gfortran", "fgs_"].iter().any(|word| name.contains(word));
    assert_eq!(imported.iter().filter(is_foreign).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// Programs that have nothing to do with training are left alone, told to measure or not.
#[test]
fn other_programs_notice_nothing() {
    for told in ["0", "1"] {
        let mut command = Command::new("sh");
        command.args(["-c", "echo hello; ls / >/dev/null"]).env("LD_PRELOAD", preload()).env("FGS_PRELOAD", told);
        assert_eq!(said_by(&mut command), "hello\n");
    }
}
