//! forgetscope.hpp: warning-free C++20 with two compilers, with exceptions and without, and the same records as C.

mod abi_support;

use abi_support::{Bench, CXX_COMPILERS};

const PEDANTIC: [&str; 5] = ["-Wconversion", "-Wsign-conversion", "-Wold-style-cast", "-Wundef", "-Wcast-qual"];

fn same(arguments: &[&str]) {
    for compiler in CXX_COMPILERS {
        let bench = Bench::new();
        bench
            .build_cxx("same", compiler, &[&["-Wno-sign-conversion", "-Wno-old-style-cast"], arguments].concat())
            .run();
    }
}

#[test]
fn measures_what_c_measures() {
    same(&["-fexceptions"]);
}

#[test]
fn needs_no_exceptions() {
    same(&["-fno-exceptions", "-fno-rtti"]);
}

#[test]
fn the_header_is_free_of_warnings() {
    for compiler in CXX_COMPILERS {
        for exceptions in ["-fexceptions", "-fno-exceptions"] {
            Bench::new().build_cxx("header", compiler, &[&PEDANTIC[..], &[exceptions]].concat()).run();
        }
    }
}
