//! What the tests share: the library as cargo built it, programs that are compiled once, runs of them, records by name.

#![allow(dead_code)] // Each test uses a part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use forgetscope::ring::{Entry, NONE16, NONE32, Poll, Reader, Record};
use forgetscope::scope::schema::kind;
use tempfile::TempDir;

/// No run takes longer: one that does hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap()
}

/// A shared library of this workspace: next to the test itself.
pub fn library(name: &str) -> PathBuf {
    let path = std::env::current_exe().expect("path of this test").with_file_name(name);
    assert!(path.is_file(), "cargo has not built {}", path.display());
    path
}

pub fn preload() -> PathBuf {
    library("libforgetscope_preload.so")
}

/// Runs a command to its end. A tool that is missing is a failure with advice.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {name} ({error}): scripts/setup installs what is missing"))
}

/// What a command printed, on both streams. It has to succeed.
#[track_caller]
pub fn said_by(command: &mut Command) -> String {
    let output = run(command);
    let said = text(&output);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Takes away what a launcher or the environment of the test might say.
pub fn without_surroundings(command: &mut Command) -> &mut Command {
    let is_said = |name: &OsStr| {
        let name = name.to_string_lossy();
        let launchers = ["FGS_", "OMPI_", "PMI", "SLURM_", "MASTER_", "TORCHELASTIC_"];
        launchers.iter().any(|prefix| name.starts_with(prefix))
            || ["RANK", "WORLD_SIZE", "LD_PRELOAD"].contains(&&*name)
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_said(name)) {
        command.env_remove(name);
    }
    command
}

/// One run at a time: with two processors, several ranks and one thread each, more would only wait for each other.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// An implementation of MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mpi {
    Open,
    Mpich,
}

impl Mpi {
    pub const ALL: [Self; 2] = [Self::Open, Self::Mpich];

    fn suffix(self) -> &'static str {
        match self {
            Self::Open => "openmpi",
            Self::Mpich => "mpich",
        }
    }

    /// Directory for what is built with it.
    fn directory(self) -> PathBuf {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(self.suffix());
        fs::create_dir_all(&directory).expect("directory for programs");
        directory
    }

    /// A program of examples/mpi_trainer.
    pub fn trainer(self, name: &str) -> PathBuf {
        let _turn = turn();
        let directory = self.directory();
        for link in ["libforgetscope.so", "libforgetscope.so.0"] {
            let link = directory.join(link);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(library("libforgetscope.so"), link).expect("symbolic link");
        }
        let mut make = Command::new("make");
        make.env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .args(["-s", "-C"])
            .arg(root().join("examples/mpi_trainer"));
        make.arg(format!("BUILD={}", directory.display())).arg(format!("FGS_LIB={}", directory.display()));
        make.arg(format!("MPICXX=mpicxx.{}", self.suffix())).arg(name);
        let said = said_by(&mut make);
        assert!(!said.contains("warning"), "{said}");
        directory.join(name)
    }

    /// A program of tests/c, compiled once.
    pub fn program(self, name: &str) -> PathBuf {
        static COMPILED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let _turn = turn();
        let program = self.directory().join(name);
        if !COMPILED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(program.clone()) {
            return program;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name).with_extension("c");
        let mut compiler = Command::new(format!("mpicc.{}", self.suffix()));
        compiler.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1"]);
        said_by(compiler.arg(source).arg("-o").arg(&program));
        program
    }

    /// A command that runs a program on several ranks. Variables for the program only: see [`Run`].
    fn launcher(self, ranks: usize) -> Command {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg(format!("mpirun.{}", self.suffix()));
        without_surroundings(&mut command);
        command.env("OMP_NUM_THREADS", "1");
        if self == Self::Open {
            // In a container: as root, more ranks than processors, without ssh.
            command.args(["--allow-run-as-root", "--oversubscribe", "--mca", "plm", "isolated"]);
            command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
        }
        command.args(["-n", &ranks.to_string()]);
        command
    }
}

/// A run of a program on several ranks.
pub struct Run {
    pub said: String,
    pub succeeded: bool,
    pub directory: TempDir,
    /// Records of each rank, by what they are about.
    pub ranks: Vec<Records>,
}

/// How a program is run.
pub struct Plan {
    mpi: Mpi,
    program: PathBuf,
    ranks: usize,
    variables: Vec<(String, String)>,
    arguments: Vec<OsString>,
    /// Each rank is started by a shell, as by scripts that bind ranks to processors.
    has_wrapper: bool,
    directory: TempDir,
}

impl Plan {
    pub fn new(mpi: Mpi, program: PathBuf, ranks: usize) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        Self { mpi, program, ranks, variables: Vec::new(), arguments: Vec::new(), has_wrapper: false, directory }
    }

    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// With libforgetscope_preload.so, told to measure.
    pub fn preloaded(self) -> Self {
        self.inert().variable("FGS_PRELOAD", "1")
    }

    /// With libforgetscope_preload.so, not told anything.
    pub fn inert(self) -> Self {
        self.variable("LD_PRELOAD", preload().to_str().expect("a path in UTF-8"))
    }

    pub fn arguments<T: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub fn through_a_shell(mut self) -> Self {
        self.has_wrapper = true;
        self
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn command(&self) -> Command {
        let mut command = self.mpi.launcher(self.ranks);
        // For the program alone: `env` sets them after the launcher has started it.
        command.arg("env").args(self.variables.iter().map(|(name, value)| format!("{name}={value}")));
        command.env("FGS_RING_DIR", self.directory.path());
        if self.has_wrapper {
            command.args(["sh", "-c", "\"$@\"; exit $?", "sh"]);
        }
        command.arg(&self.program).args(&self.arguments).current_dir(root());
        command
    }

    #[track_caller]
    pub fn run(self) -> Run {
        let output = {
            let _turn = turn();
            run(&mut self.command())
        };
        Run::of(self, &output)
    }

    /// Runs it while `meanwhile` does something else.
    #[track_caller]
    pub fn run_with(self, meanwhile: impl FnOnce(&Path)) -> Run {
        let _turn = turn();
        let mut command = self.command();
        let (out, errors) = (self.directory.path().join("out"), self.directory.path().join("errors"));
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&errors).unwrap());
        let mut child = command.spawn().expect("mpirun");
        meanwhile(self.directory.path());
        let status = child.wait().expect("mpirun");
        let read = |path| fs::read(path).unwrap();
        Run::of(self, &Output { status, stdout: read(out), stderr: read(errors) })
    }
}

impl Run {
    fn of(plan: Plan, output: &Output) -> Self {
        let rings = fs::read_dir(plan.directory.path()).unwrap().map(|file| file.unwrap().path());
        let mut ranks: Vec<_> = rings
            .filter(|path| path.extension() == Some(OsStr::new("ring")))
            .map(|path| Records::read(&path))
            .collect();
        ranks.sort_by_key(|records| records.rank);
        Self { said: text(output), succeeded: output.status.success(), directory: plan.directory, ranks }
    }

    /// A run that went well.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.succeeded, "{}", self.said);
        self
    }

    /// What forgetscope said, without the lines of the trainer.
    pub fn messages(&self) -> Vec<&str> {
        self.said.lines().filter(|line| line.starts_with("forgetscope:")).collect()
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", self.said))
    }
}

/// What a record is about: kind, level, step, tensor, slice, task, reference.
pub type Subject = (u16, u8, u64, String, u32, String, String);

/// What a ring holds.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub rank: u32,
    pub by_subject: BTreeMap<Subject, Vec<[f64; 10]>>,
    pub tensors: Vec<String>,
}

impl Records {
    pub fn read(path: &Path) -> Self {
        let mut reader = Reader::open(path).unwrap();
        let (mut tensors, mut tasks) = (BTreeMap::new(), BTreeMap::new());
        for entry in reader.catalog().unwrap() {
            match entry {
                Entry::Tensor(tensor) => _ = tensors.insert(tensor.id, tensor.name),
                Entry::Task { id, name } => _ = tasks.insert(id, name),
                _ => {}
            }
        }
        let mut records = Self { rank: reader.header().rank, ..Self::default() };
        let task = |id: u16| if id == NONE16 { String::new() } else { tasks[&id].clone() };
        loop {
            let record: Record = match reader.poll().unwrap() {
                Poll::Record(record) => record,
                Poll::Lost(lost) => panic!("{lost} records lost"),
                Poll::Empty | Poll::Closed => break,
            };
            let tensor = if record.tensor == NONE32 { String::new() } else { tensors[&record.tensor].clone() };
            let Record { kind, level, step, slice, .. } = record;
            let subject = (kind, level, step, tensor, slice, task(record.task), task(record.reference));
            records.by_subject.entry(subject).or_default().push(record.values);
        }
        records.tensors = tensors.into_values().collect();
        records
    }

    /// The records of one kind.
    pub fn of(&self, kind: u16) -> impl Iterator<Item = (&Subject, &[f64; 10])> {
        let of_kind = self.by_subject.iter().filter(move |(subject, _)| subject.0 == kind);
        of_kind.flat_map(|(subject, values)| values.iter().map(move |values| (subject, values)))
    }

    /// Steps that were measured.
    pub fn steps(&self) -> Vec<u64> {
        self.of(kind::STEP).map(|(subject, _)| subject.2).collect()
    }

    /// All records that both have are the same, bit for bit; and how many there are of each kind. The time that a step took
    /// is left out, and what happened to tasks: who has no parameters takes no snapshots.
    #[track_caller]
    pub fn assert_same(&self, other: &Self) -> BTreeMap<u16, usize> {
        let mut compared = BTreeMap::new();
        for (subject, values) in &self.by_subject {
            let Some(others) = other.by_subject.get(subject).filter(|_| subject.0 != kind::TASK) else { continue };
            let bits = |list: &Vec<[f64; 10]>| -> Vec<[u64; 10]> {
                let values = list.iter().map(|values| {
                    let mut values = *values;
                    if subject.0 == kind::STEP {
                        values[7] = 0.0;
                    }
                    values.map(|value| if value.is_nan() { u64::MAX } else { value.to_bits() })
                });
                values.collect()
            };
            assert_eq!(bits(values), bits(others), "{subject:?}: {values:?} and {others:?}");
            *compared.entry(subject.0).or_default() += values.len();
        }
        compared
    }
}
