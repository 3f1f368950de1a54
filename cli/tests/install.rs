//! What `make install` leaves serves trainers: by pkg-config, by CMake's find_package, also after the tree was moved; and the
//! source tree serves them as a part of their own CMake build. Consumers are compiled with warnings as errors and run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use tempfile::TempDir;

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the top directory")
}

/// Cargo's target directory, and its profile's part of it.
fn built() -> (PathBuf, PathBuf) {
    let profile = Path::new(env!("CARGO_BIN_EXE_forgetscope")).parent().expect("directory of the program");
    (profile.parent().expect("target directory").into(), profile.into())
}

/// The libraries, as `cargo test` alone does not leave them under their own names.
static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(|| {
    let (target, profile) = built();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(root())
        .args(["build", "--quiet"])
        .args(["forgetscope", "forgetscope-preload"].map(|p| format!("--package={p}")));
    succeed(cargo.arg("--target-dir").arg(target));
    profile
});

fn run(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {name} ({error}): install it with `apt-get install {name}`"))
}

/// Runs a command that has to succeed; what it printed.
fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let printed = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}:\n{}{}", printed(&output.stdout), printed(&output.stderr));
    printed(&output.stdout)
}

fn install(arguments: &[&OsStr]) -> Command {
    let mut install = Command::new(root().join("scripts/install"));
    install.arg("--library").arg(LIBRARIES.join("libforgetscope.so"));
    install.arg("--preload").arg(LIBRARIES.join("libforgetscope_preload.so"));
    install.arg("--program").arg(env!("CARGO_BIN_EXE_forgetscope")).args(arguments);
    install
}

/// An installed tree that was moved after it was installed.
fn installed(libdir: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (first, second) = (directory.path().join("first"), directory.path().join("second place"));
    succeed(&mut install(&["--prefix".as_ref(), first.as_ref(), "--libdir".as_ref(), libdir.as_ref()]));
    fs::rename(&first, &second).expect("move");
    (directory, second)
}

/// Runs a consumer; it prints the norm that it has read back from its ring.
fn measures(consumer: &Path, libraries: Option<&Path>) {
    let rings = tempfile::tempdir().expect("directory for rings");
    let mut command = Command::new(consumer);
    command.env("FGS_RING_DIR", rings.path());
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    assert_eq!(succeed(&mut command), "norm 5\n");
}

fn consumer(file: &str) -> PathBuf {
    root().join("tests/install").join(file)
}

#[test]
fn pkg_config_finds_it() {
    for libdir in ["lib", "lib/x86_64-linux-gnu"] {
        let (directory, prefix) = installed(libdir);
        let libraries = prefix.join(libdir);
        let query = |question: &[&str]| {
            let mut pkg_config = Command::new("pkg-config");
            pkg_config.env("PKG_CONFIG_PATH", libraries.join("pkgconfig")).args(question).arg("forgetscope");
            succeed(&mut pkg_config)
        };
        assert_eq!(query(&["--modversion"]).trim(), env!("CARGO_PKG_VERSION"));
        for (compiler, standard, file) in [("gcc", "-std=c99", "consumer.c"), ("g++", "-std=c++20", "consumer.cpp")] {
            let program = directory.path().join("consumer");
            // The shell takes the answer apart as it would in a Makefile: the prefix contains a space.
            let script = format!("\"$@\" {}", query(&["--cflags", "--libs"]));
            let mut compile = Command::new("sh");
            compile.args(["-c", &script, "sh", compiler, standard]).args(STRICT).arg(consumer(file));
            succeed(compile.arg("-o").arg(&program));
            measures(&program, Some(&libraries));
        }
    }
}

fn configure(build: &Path, arguments: &[String]) -> Command {
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(root().join("tests/install")).arg("-B").arg(build).args(arguments);
    cmake
}

fn build_with_cmake(arguments: &[String]) {
    let directory = tempfile::tempdir().expect("temporary directory");
    succeed(&mut configure(directory.path(), arguments));
    succeed(Command::new("cmake").arg("--build").arg(directory.path()));
    for program in ["consumer_c", "consumer_cpp"] {
        // CMake has written the library's directory into the program.
        measures(&directory.path().join(program), None);
    }
}

#[test]
fn cmake_finds_the_package() {
    for libdir in ["lib", "lib/x86_64-linux-gnu"] {
        let (_directory, prefix) = installed(libdir);
        build_with_cmake(&[format!("-DCMAKE_PREFIX_PATH={}", prefix.display())]);
    }
}

#[test]
fn cmake_refuses_other_versions() {
    let (_directory, prefix) = installed("lib");
    let package = prefix.join("lib/cmake/forgetscope");
    let is_found = |version: &str| {
        let project = tempfile::tempdir().expect("temporary directory");
        let text = format!(
            "cmake_minimum_required(VERSION 3.21)\nproject(p C)\nfind_package(forgetscope {version} REQUIRED)\n"
        );
        fs::write(project.path().join("CMakeLists.txt"), text).expect("write");
        let mut cmake = Command::new("cmake");
        cmake.arg("-S").arg(project.path()).arg("-B").arg(project.path().join("build"));
        run(cmake.arg(format!("-Dforgetscope_DIR={}", package.display()))).status.success()
    };
    for version in ["", "0", "0.1", "0.1.0", "0.1.0 EXACT", "0.1...0.3", "0.0.5...<0.2"] {
        assert!(is_found(version), "'{version}' is what is installed");
    }
    for version in ["0.0", "0.2", "1", "0.1.1", "0.1.0.1 EXACT", "0.2...1", "0.0...<0.1"] {
        assert!(!is_found(version), "'{version}' is not what is installed");
    }
}

#[test]
fn cmake_builds_it_from_source() {
    let (target, profile) = built();
    let name = if profile.ends_with("debug") { "dev" } else { "release" };
    // The libraries of this test run, so that cargo has nothing left to do.
    LazyLock::force(&LIBRARIES);
    build_with_cmake(&[
        format!("-DFORGETSCOPE_SOURCE={}", root().display()),
        format!("-DFORGETSCOPE_TARGET_DIR={}", target.display()),
        format!("-DFORGETSCOPE_PROFILE={name}"),
    ]);
}

#[test]
fn everything_is_there_and_goes_again() {
    let staging = tempfile::tempdir().expect("temporary directory");
    let arguments =
        ["--destdir".as_ref(), staging.path().as_os_str(), "--prefix".as_ref(), "/opt/forgetscope".as_ref()];
    succeed(&mut install(&arguments));
    let prefix = staging.path().join("opt/forgetscope");
    let version = env!("CARGO_PKG_VERSION");
    for name in ["libforgetscope", "libforgetscope_preload"] {
        let link = |name: String| fs::read_link(prefix.join("lib").join(name)).expect("a link");
        assert_eq!(link(format!("{name}.so")), Path::new(&format!("{name}.so.0")));
        assert_eq!(link(format!("{name}.so.0")), Path::new(&format!("{name}.so.{version}")));
        let library = prefix.join(format!("lib/{name}.so.{version}"));
        let dynamic = succeed(Command::new("readelf").arg("-d").arg(&library));
        assert!(dynamic.contains(&format!("Library soname: [{name}.so.0]")), "{dynamic}");
    }
    let page = succeed(Command::new("gzip").arg("-dc").arg(prefix.join("share/man/man1/forgetscope-record.1.gz")));
    assert!(page.contains(".SH OPTIONS") && page.contains("Parquet"), "{page}");
    let main = succeed(Command::new("gzip").arg("-dc").arg(prefix.join("share/man/man1/forgetscope.1.gz")));
    assert!(main.contains("EXAMPLES") && !main.contains("manual"), "{main}");
    let printed = succeed(Command::new(prefix.join("bin/forgetscope")).arg("--version"));
    assert_eq!(printed.trim(), format!("forgetscope {version}"));
    for text in ["lib/pkgconfig/forgetscope.pc", "lib/cmake/forgetscope/forgetscopeConfig.cmake"] {
        let text = fs::read_to_string(prefix.join(text)).expect("read");
        assert!(!text.contains("/opt") && !text.contains('@'), "{text}");
    }

    succeed(Command::new(root().join("scripts/install")).arg("--uninstall").args(arguments));
    let left = succeed(Command::new("find").arg(&prefix).args(["-not", "-type", "d"]));
    assert_eq!(left, "");
}

#[test]
fn what_cannot_be_installed_is_said() {
    let says = |arguments: &[&str]| {
        let output = run(Command::new(root().join("scripts/install")).args(arguments));
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(says(&["--prefix", "relative"]).contains("absolute"));
    assert!(says(&["--prefix"]).contains("--prefix needs a value"));
    assert!(says(&["--colour", "red"]).contains("'--colour'"));
    assert!(says(&["--library", "/nonexistent.so", "--prefix", "/tmp/never"]).contains("/nonexistent.so is missing"));
    assert!(says(&["--uninstall", "--prefix", "/nonexistent"]).contains("nothing is installed"));
}

#[test]
fn the_debian_package_serves_trainers() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut deb = Command::new(root().join("scripts/deb"));
    deb.arg("--output").arg(directory.path());
    deb.arg("--library").arg(LIBRARIES.join("libforgetscope.so"));
    deb.arg("--preload").arg(LIBRARIES.join("libforgetscope_preload.so"));
    let package = succeed(deb.arg("--program").arg(env!("CARGO_BIN_EXE_forgetscope")));
    let control = succeed(Command::new("dpkg-deb").args(["-f", package.trim()]));
    for field in ["Package: forgetscope", "Depends: libc6", &format!("Version: {}", env!("CARGO_PKG_VERSION"))] {
        assert!(control.contains(field), "{control}");
    }
    let tree = directory.path().join("tree");
    succeed(Command::new("dpkg-deb").arg("-x").arg(package.trim()).arg(&tree));
    assert!(tree.join("usr/share/doc/forgetscope/copyright").is_file());
    build_with_cmake(&[format!("-DCMAKE_PREFIX_PATH={}", tree.join("usr").display())]);
}
