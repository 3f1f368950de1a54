//! What the tests of the C ABI share: compilers, the built library, and programs in tests/c that are run against it.

#![allow(dead_code)] // Each test uses a part of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No program takes longer, also under valgrind: one that does hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A C or C++ compiler that the header is promised to.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    pub command: &'static str,
    pub package: &'static str,
    pub standards: &'static [&'static str],
}

const C: &[&str] = &["c99", "c11", "c17"];
const CXX: &[&str] = &["c++11", "c++14", "c++17", "c++20"];

pub const GCC: Compiler = Compiler { command: "gcc", package: "gcc", standards: C };
pub const C_COMPILERS: [Compiler; 2] = [GCC, Compiler { command: "clang", package: "clang", standards: C }];
pub const CXX_COMPILERS: [Compiler; 2] = [
    Compiler { command: "g++", package: "g++", standards: CXX },
    Compiler { command: "clang++", package: "clang", standards: CXX },
];

/// Warnings that code with this header has to pass; all are errors.
pub const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// With DLPack's own type of a tensor, and without.
pub const WITH_AND_WITHOUT_DLPACK: [&str; 2] = ["-DWITH_DLPACK", "-UWITH_DLPACK"];

/// The directory of the C programs.
pub fn sources() -> PathBuf {
    root().join("tests/c")
}

/// The shared library that cargo built for this test: next to the test itself, and rebuilt whenever the test is.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let path = test.parent().expect("directory of this test").join("libforgetscope.so");
    assert!(path.is_file(), "cargo has not built {}", path.display());
    path
}

/// Runs a tool of the system. A missing tool is a failure with advice, never a test that is skipped.
pub fn tool(command: &mut Command, package: &str) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output();
    output.unwrap_or_else(|error| panic!("cannot run {name} ({error}): install it with `apt-get install {package}`"))
}

/// What a tool printed; panics with everything it said if it failed.
pub fn printed_by(command: &mut Command, package: &str) -> String {
    let output = tool(command, package);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Compiler {
    /// Checks a file of tests/c without making anything of it. Every warning counts.
    pub fn check(self, file: &str, standard: &str, arguments: &[&str]) {
        let mut command = self.command();
        command.args(arguments).arg("-fsyntax-only").arg(format!("-std={standard}")).args(STRICT);
        let output = tool(command.arg(sources().join(file)), self.package);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}:\n{errors}");
    }

    /// A command line of this compiler with the header in its path.
    pub fn command(self) -> Command {
        let mut command = Command::new(self.command);
        command.arg("-I").arg(root().join("include"));
        command
    }
}

/// A directory with the library under the names that linkers and loaders look for, and with what is made of it.
pub struct Bench {
    directory: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        for name in ["libforgetscope.so", "libforgetscope.so.0"] {
            std::os::unix::fs::symlink(library(), directory.path().join(name)).expect("symbolic link");
        }
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Compiles tests/c/`name`.c against the library.
    pub fn build(&self, name: &str) -> Program<'_> {
        self.build_with(name, &["-lforgetscope"])
    }

    /// The same with other libraries.
    pub fn build_with(&self, name: &str, libraries: &[&str]) -> Program<'_> {
        let mut command = GCC.command();
        command.args(["-std=c11", "-D_GNU_SOURCE", "-pthread"]).arg(sources().join(name).with_extension("c"));
        self.link(command, name, libraries)
    }

    /// Compiles tests/cpp/`name`.cpp against the library and the C++ header.
    pub fn build_cxx(&self, name: &str, compiler: Compiler, arguments: &[&str]) -> Program<'_> {
        let mut command = compiler.command();
        command.arg("-std=c++20").args(arguments).arg("-I").arg(root().join("bindings/cpp"));
        command.arg(root().join("tests/cpp").join(name).with_extension("cpp"));
        self.link(command, name, &["-lforgetscope"])
    }

    fn link(&self, mut compiler: Command, name: &str, libraries: &[&str]) -> Program<'_> {
        let binary = self.path().join(name);
        compiler.args(["-g", "-O1"]).args(STRICT).arg("-o").arg(&binary);
        compiler.arg("-L").arg(self.path()).arg(format!("-Wl,-rpath,{}", self.path().display()));
        compiler.args(libraries).args(["-lm", "-ldl"]);
        printed_by(&mut compiler, GCC.package);
        Program { bench: self, binary, variables: Vec::new(), wrapper: Vec::new() }
    }
}

/// A compiled program.
pub struct Program<'a> {
    bench: &'a Bench,
    binary: PathBuf,
    variables: Vec<(&'static str, String)>,
    wrapper: Vec<&'static str>,
}

impl Program<'_> {
    pub fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Runs it under another program.
    pub fn under(mut self, wrapper: &[&'static str]) -> Self {
        self.wrapper = wrapper.to_vec();
        self
    }

    /// Runs the program. It has to end, and with 0; else what it printed is shown.
    pub fn run(&self) {
        let rings = tempfile::tempdir_in(self.bench.path()).expect("directory for rings");
        let mut words = self.wrapper.iter().map(AsRef::as_ref).chain([self.binary.as_os_str()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FGS_") {
                command.env_remove(name);
            }
        }
        for launcher in ["RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"] {
            command.env_remove(launcher);
        }
        command.env("FGS_RING_DIR", rings.path()).envs(self.variables.iter().map(|(name, value)| (name, value)));
        let log = self.binary.with_extension("log");
        let file = std::fs::File::create(&log).expect("log");
        command.stdout(file.try_clone().expect("log")).stderr(file);
        let mut child = command.spawn().unwrap_or_else(|error| {
            let name = command.get_program().to_string_lossy().into_owned();
            panic!("cannot run {name} ({error}): install it with `apt-get install {name}`")
        });
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break Some(status);
            }
            if started.elapsed() > PATIENCE {
                child.kill().expect("kill");
                child.wait().expect("wait");
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let printed = std::fs::read(&log).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed);
        let name = self.binary.display();
        let status = status.unwrap_or_else(|| panic!("{name} did not end within {PATIENCE:?}:\n{printed}"));
        assert!(status.success(), "{name}: {status}\n{printed}");
    }
}

/// Builds a program and runs it.
pub fn run(name: &str) {
    Bench::new().build(name).run();
}
