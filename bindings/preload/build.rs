//! Keeps everything but the interposed functions inside the shared library: whoever preloads it gets no `fgs_*` and no
//! BLAS into the trainer's process.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // The forgetscope library and OpenBLAS come as archives.
        "-Wl,--exclude-libs,ALL",
        "-Wl,--gc-sections",
        "-Wl,-soname,libforgetscope_preload.so.0",
        // Every symbol is resolved when the library is loaded, never in the middle of a run.
        "-Wl,-z,defs,-z,now",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
