//! include/forgetscope.h is what cbindgen makes of src/abi. `FGS_BLESS=1` (`make header`) writes it anew.

use std::path::Path;

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    // In the order in which a reader of the header wants to meet things.
    let files = [
        "status",
        "options",
        "handle",
        "life",
        "tensor",
        "catalog",
        "bind",
        "task",
        "step",
        "probe",
        "curvature",
        "outcome",
        "reader",
    ];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in files {
        builder = builder.with_src(root.join("src/abi").join(file).with_extension("rs"));
    }
    let mut text = Vec::new();
    builder.generate().expect("cbindgen").write(&mut text);
    let text = String::from_utf8(text).expect("UTF-8");
    // Rust's heading for the caller's duties, in words that C programmers use.
    text.replace("// # Safety\n", "// Requires:\n")
}

#[test]
fn header_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/forgetscope.h");
    let fresh = generate();
    if std::env::var_os("FGS_BLESS").is_some() {
        std::fs::write(&path, &fresh).expect("write the header");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == fresh, "include/forgetscope.h differs from src/abi: run `make header` and commit the result");
}

#[test]
fn at_least_half_of_the_header_is_documentation() {
    let text = generate();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (comments, code): (Vec<_>, Vec<_>) =
        lines.partition(|line| line.starts_with("//") || line.starts_with("/*") || line.starts_with('*'));
    assert!(comments.len() >= code.len(), "{} lines of comment, {} of code", comments.len(), code.len());
}

#[test]
fn version_macros_are_the_crate_version() {
    let text = generate();
    for (name, value) in [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        assert!(text.contains(&format!("#define FGS_VERSION_{name} {value}\n")), "FGS_VERSION_{name}");
    }
}
