//! Gives the shared library its SONAME and keeps everything that is not `fgs_*` inside it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // OpenBLAS and libgfortran are archives; none of their symbols may be seen by the trainer.
        "-Wl,--exclude-libs,ALL",
        "-Wl,--gc-sections",
        // Every symbol is resolved when the library is built or when it is loaded, never in the middle of a run.
        "-Wl,-z,defs,-z,now",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    // The ABI is version 0: programs that link against the library look for this name at run time. Cargo hands arguments for
    // shared libraries on to those that depend on this one, and two libraries of one name cannot be loaded together; so this
    // is said to everything of this package, and taken back from programs.
    println!("cargo:rustc-link-arg=-Wl,-soname,libforgetscope.so.0");
    for programs in ["tests", "benches"] {
        println!("cargo:rustc-link-arg-{programs}=-Wl,-soname,forgetscope-{programs}");
    }
}
