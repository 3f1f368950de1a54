//! Follows one ring and sorts its records into the files of their kinds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use forgetscope::ring::{COUNTERS, Poll, Reader, WriterState};

use super::catalog::{Catalog, Facts};
pub use super::parts::Limits;
use super::parts::Parts;
use crate::names::Names;
use crate::run::state_name;

/// Records read in a row before anybody else gets a turn.
const TURN: usize = 65_536;
/// What waits in memory is written at least this often, so that old parts are completed when they are due.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// A hostile ring may claim any number of kinds; each is a directory and an open file.
const MOST_KINDS: usize = 256;

/// What a turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more.
    Busy,
    /// All that is there has been read.
    Idle,
    /// The run has ended and all of it has been read.
    Ended,
}

/// The recording of one ring.
pub struct Recorder {
    reader: Reader,
    names: Names,
    directory: PathBuf,
    limits: Limits,
    kinds: BTreeMap<u16, Parts>,
    facts: Facts,
    written: Instant,
}

impl Recorder {
    /// Prepares the directory. A recording that is already there is never added to.
    pub fn begin(reader: Reader, directory: &Path, limits: Limits) -> Result<Self> {
        let header = reader.header();
        let facts = Facts {
            instance: header.instance.iter().map(|byte| format!("{byte:02x}")).collect(),
            pid: header.pid,
            rank: header.rank,
            world: header.world,
            created_realtime_ns: header.created_realtime_ns,
            schema_hash: header.schema_hash,
            state: state_name(WriterState::Running).into(),
            overwritten: reader.position(),
            ..Facts::default()
        };
        let catalogs = directory.join("catalog");
        fs::create_dir_all(&catalogs)
            .map_err(|error| anyhow!("cannot create {}: {error}; choose another directory", catalogs.display()))?;
        let mut recorder = Recorder {
            reader,
            names: Names::default(),
            directory: directory.into(),
            limits,
            kinds: BTreeMap::new(),
            facts,
            written: Instant::now(),
        };
        let path = recorder.catalog_path();
        if path.exists() {
            bail!(
                "{} already holds a recording of rank {}; choose another directory, or remove it first",
                directory.display(),
                recorder.facts.rank
            );
        }
        recorder.names.refresh(&mut recorder.reader)?;
        recorder.write_catalog()?;
        Ok(recorder)
    }

    /// Reads what is there, but not for ever.
    pub fn turn(&mut self) -> Result<Turn> {
        let mut turn = Turn::Busy;
        for _ in 0..TURN {
            match self.reader.poll()? {
                Poll::Record(record) => {
                    self.facts.records += 1;
                    let number = self.reader.position();
                    let parts = match self.kinds.get_mut(&record.kind) {
                        Some(parts) => parts,
                        None => {
                            let parts = self.parts_of(record.kind)?;
                            self.kinds.entry(record.kind).or_insert(parts)
                        }
                    };
                    parts.push((number, record));
                    if parts.is_full() {
                        self.write(Some(record.kind))?;
                    }
                }
                Poll::Lost(count) => self.facts.lost += count,
                Poll::Empty => {
                    turn = Turn::Idle;
                    break;
                }
                Poll::Closed => {
                    turn = Turn::Ended;
                    break;
                }
            }
        }
        if self.written.elapsed() >= WRITE_INTERVAL {
            self.written = Instant::now();
            self.write(None)?;
        }
        Ok(turn)
    }

    /// Writes everything, completes the files, and says what became of the run.
    pub fn finish(mut self) -> Result<Facts> {
        self.write(None)?;
        self.kinds.values_mut().try_for_each(Parts::complete)?;
        self.facts.state = state_name(self.reader.state()).into();
        self.write_catalog()?;
        Ok(self.facts)
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Writes what waits, of one kind or of all. The catalog is read first: it names everything published before.
    fn write(&mut self, kind: Option<u16>) -> Result<()> {
        self.names.refresh(&mut self.reader)?;
        let mut completed = false;
        for (id, parts) in &mut self.kinds {
            if kind.is_none_or(|kind| kind == *id) {
                completed |= parts.write(&self.names, self.reader.header())?;
            }
        }
        if completed { self.write_catalog() } else { Ok(()) }
    }

    /// The files of a kind that was not met before.
    fn parts_of(&mut self, kind: u16) -> Result<Parts> {
        self.names.refresh(&mut self.reader)?;
        if self.kinds.len() >= MOST_KINDS {
            bail!(
                "{} has records of more than {MOST_KINDS} kinds, which no forgetscope writes; it is damaged",
                self.reader.path().display()
            );
        }
        let name = file_name(&self.names.kind(kind));
        let directory = self.directory.join(format!("kind={name}")).join(format!("rank={}", self.facts.rank));
        let taken = self.kinds.keys().any(|other| file_name(&self.names.kind(*other)) == name);
        let directory = if taken { directory.join(format!("id={kind}")) } else { directory };
        Parts::new(directory, kind, self.limits)
    }

    fn catalog_path(&self) -> PathBuf {
        self.directory.join("catalog").join(format!("rank={}.json", self.facts.rank))
    }

    fn write_catalog(&mut self) -> Result<()> {
        let counters = self.names.counters.keys().max().map_or(0, |&last| (usize::from(last) + 1).min(COUNTERS));
        let counters = (0..counters).map(|index| self.reader.counter(index)).collect();
        let catalog = Catalog { facts: self.facts.clone(), names: self.names.clone(), counters };
        catalog.write(&self.catalog_path())
    }
}

/// A kind's name as part of a path. Names come from a file that anybody may have written.
fn file_name(name: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.chars().map(|c| if harmless(c) { c } else { '_' }).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        assert_eq!(file_name("interference"), "interference");
        assert_eq!(file_name("../../etc"), "______etc");
    }
}
