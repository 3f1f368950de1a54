//! The header compiles by itself: every promised standard of C and C++, two compilers, warnings as errors, with DLPack's
//! own header before it and without.

mod abi_support;

use abi_support::{C_COMPILERS, CXX_COMPILERS, Compiler, WITH_AND_WITHOUT_DLPACK};

/// Warnings that trainers are built with here and there, beyond the usual ones.
const PEDANTIC: [&str; 5] = ["-Wconversion", "-Wsign-conversion", "-Wundef", "-Wcast-qual", "-Wunused-macros"];

fn check(compilers: [Compiler; 2], language: &[&str]) {
    for compiler in compilers {
        for standard in compiler.standards {
            for dlpack in WITH_AND_WITHOUT_DLPACK {
                compiler.check("header.c", standard, &[language, &PEDANTIC, &[dlpack]].concat());
            }
        }
    }
}

#[test]
fn compiles_as_c() {
    check(C_COMPILERS, &["-x", "c", "-Wstrict-prototypes", "-Wmissing-prototypes"]);
}

#[test]
fn compiles_as_cxx() {
    check(CXX_COMPILERS, &["-x", "c++", "-Wold-style-cast"]);
}
