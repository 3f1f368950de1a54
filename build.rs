//! Gives the shared library its SONAME and keeps everything that is not `fgs_*` inside it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // The ABI is version 0: programs that link against the library look for this name at run time.
        "-Wl,-soname,libforgetscope.so.0",
        // OpenBLAS and libgfortran are archives; none of their symbols may be seen by the trainer.
        "-Wl,--exclude-libs,ALL",
        "-Wl,--gc-sections",
        // Every symbol is resolved when the library is built or when it is loaded, never in the middle of a run.
        "-Wl,-z,defs,-z,now",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
