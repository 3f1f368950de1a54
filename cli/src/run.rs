//! Finding the run that is meant: by path, process id, name of the run, or the beginning of the file's name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use forgetscope::ring::{Discovered, NONE16, Poll, Reader, RingError, WriterState, discover, monotonic_ns};

use crate::names::Names;

/// A ring is created in an instant; one that is not complete for so long has been left behind.
const CREATED: Duration = Duration::from_secs(5);

/// Opens a ring, which its writer may have begun to create a moment ago.
pub fn open(path: &Path) -> Result<Reader> {
    let begun = std::time::Instant::now();
    loop {
        match Reader::open(path) {
            Err(RingError::NotReady { .. }) if begun.elapsed() < CREATED => std::thread::sleep(CREATED / 100),
            opened => return Ok(opened?),
        }
    }
}

/// Larger rings are not read to their end only to name the current task in a list.
const QUICKLY_READ: u64 = 1 << 20;

/// Where to look for rings.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Place {
    /// Directory of the rings, where it is not shared memory
    #[arg(long, short = 'D', env = "FGS_RING_DIR", value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

impl Place {
    /// The rings that are there, oldest first.
    pub fn rings(&self) -> Vec<Discovered> {
        discover(self.directory.as_deref())
    }

    /// The path of the ring that `wanted` means; without it, of the only one there is.
    pub fn find(&self, wanted: Option<&str>) -> Result<PathBuf> {
        let Some(wanted) = wanted else { return self.only() };
        let mut found = self.find_all(wanted)?;
        if found.len() > 1 {
            let rings = self.rings();
            let found: Vec<&Discovered> = rings.iter().filter(|ring| found.contains(&ring.path)).collect();
            bail!("`{wanted}` fits {} runs; name one of them:{}", found.len(), listing(&found));
        }
        Ok(found.remove(0))
    }

    /// The paths of the rings that `wanted` means, at least one: ranks of a run share its name.
    pub fn find_all(&self, wanted: &str) -> Result<Vec<PathBuf>> {
        // A path is meant where a file is, or where only a path can be.
        if wanted.contains('/') || Path::new(wanted).is_file() {
            return Ok(vec![PathBuf::from(wanted)]);
        }
        let rings = self.rings();
        let fits: [&dyn Fn(&Discovered) -> bool; 3] = [
            &|ring| wanted.parse() == Ok(ring.header.pid),
            &|ring| run_name(&ring.path).as_deref() == Some(wanted),
            &|ring| file_name(&ring.path).starts_with(wanted) || short_name(&ring.path).starts_with(wanted),
        ];
        for fit in fits {
            let found: Vec<PathBuf> = rings.iter().filter(|ring| fit(ring)).map(|ring| ring.path.clone()).collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        match rings.is_empty() {
            true => Err(self.none()),
            false => bail!("no run is called `{wanted}`; there are:{}", listing(&rings.iter().collect::<Vec<_>>())),
        }
    }

    fn only(&self) -> Result<PathBuf> {
        match &self.rings()[..] {
            [] => Err(self.none()),
            [ring] => Ok(ring.path.clone()),
            rings => {
                bail!("there are {} runs; name one of them:{}", rings.len(), listing(&rings.iter().collect::<Vec<_>>()))
            }
        }
    }

    fn none(&self) -> anyhow::Error {
        let place = self.directory.as_deref().map_or("shared memory".into(), |path| path.display().to_string());
        anyhow!(
            "there is no run in {place}; start a trainer that uses forgetscope, or say where its ring is with --directory"
        )
    }
}

fn listing(rings: &[&Discovered]) -> String {
    let line = |ring: &&Discovered| {
        let name = run_name(&ring.path).map_or_else(String::new, |name| format!("  {name}"));
        let Discovered { header, state, .. } = ring;
        format!(
            "\n  {}  pid {}, rank {}, {}{name}",
            short_name(&ring.path),
            header.pid,
            header.rank,
            state_name(*state)
        )
    };
    rings.iter().map(line).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The file's name without what all of them share: `<pid>-<rank>-<random>`.
pub fn short_name(path: &Path) -> String {
    let name = file_name(path);
    let name = name.strip_prefix("forgetscope-").unwrap_or(&name);
    name.strip_suffix(".ring").unwrap_or(name).into()
}

/// What the trainer calls the run, if anything.
fn run_name(path: &Path) -> Option<String> {
    let mut names = Names::default();
    names.refresh(&mut Reader::open(path).ok()?).ok()?;
    names.attributes.remove("run").filter(|name| !name.is_empty())
}

pub fn state_name(state: WriterState) -> &'static str {
    match state {
        WriterState::Running => "running",
        WriterState::Closed => "closed",
        WriterState::Died => "died",
    }
}

/// How long ago the ring was created, by the clock that does not jump; `None` if that was before the machine started.
pub fn age(ring: &Discovered) -> Option<Duration> {
    monotonic_ns().checked_sub(ring.header.created_monotonic_ns).map(Duration::from_nanos)
}

/// What a ring's content says of its run.
#[derive(Debug, Default)]
pub struct Summary {
    pub names: Names,
    /// The task of the latest record.
    pub task: Option<u16>,
    pub step: Option<u64>,
}

impl Summary {
    /// Reads what there is now.
    pub fn of(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut summary = Summary::default();
        if reader.header().slots <= QUICKLY_READ {
            let end = reader.published();
            while reader.position() < end {
                match reader.poll()? {
                    Poll::Record(record) => {
                        summary.task = Some(record.task).filter(|&task| task != NONE16);
                        summary.step = Some(record.step);
                    }
                    Poll::Lost(_) => {}
                    Poll::Empty | Poll::Closed => break,
                }
            }
        }
        summary.names.refresh(&mut reader)?;
        Ok(summary)
    }
}
