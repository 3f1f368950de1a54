//! The files of one kind: `kind=interference/rank=0/part-00000.parquet` and following.
//!
//! A part is written as `.part-00000.parquet.tmp`, which no query picks up, and renamed when it is complete. It is
//! completed after so many rows or so much time, whichever comes first, so that a recorder that is killed leaves nearly
//! everything.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use forgetscope::ring::Header;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::columns::{Numbered, Table};
use crate::names::Names;

/// Records are turned into columns in batches of this many.
const BATCH: usize = 8192;
/// Rows of a row group: what a reader holds in memory at once, and what the recorder does.
const ROW_GROUP: usize = 1 << 17;

/// When a part is complete.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: u64,
    pub time: Duration,
}

/// The parts of one kind of one rank.
pub struct Parts {
    directory: PathBuf,
    limits: Limits,
    kind: u16,
    waiting: Vec<Numbered>,
    part: Option<Part>,
    completed: u32,
}

/// The part that is being written.
struct Part {
    table: Table,
    writer: ArrowWriter<File>,
    temporary: PathBuf,
    rows: u64,
    begun: Instant,
}

impl Parts {
    pub fn new(directory: PathBuf, kind: u16, limits: Limits) -> Result<Self> {
        fs::create_dir_all(&directory).map_err(|error| failed(&directory, &error))?;
        Ok(Parts { directory, limits, kind, waiting: Vec::with_capacity(BATCH), part: None, completed: 0 })
    }

    /// Takes a record; it is written with the next batch.
    pub fn push(&mut self, record: Numbered) {
        self.waiting.push(record);
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= BATCH
    }

    /// Writes what is waiting. Returns whether a part was completed by it.
    pub fn write(&mut self, names: &Names, header: &Header) -> Result<bool> {
        if self.waiting.is_empty() {
            return self.complete_if_due();
        }
        let table = Table::of(names, self.kind);
        // The catalog may have named the kind's values only now: other columns need another file.
        if self.part.as_ref().is_some_and(|part| part.table != table) {
            self.complete()?;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut completed = false;
        let mut rest = &waiting[..];
        while !rest.is_empty() {
            let most = self.limits.rows;
            let part = self.open(&table)?;
            let room = usize::try_from(most.saturating_sub(part.rows)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room.max(1)));
            part.writer.write(&table.batch(names, header, now)?).map_err(|error| failed(&part.temporary, &error))?;
            part.rows += now.len() as u64;
            rest = later;
            completed |= self.complete_if_due()?;
        }
        self.waiting = waiting;
        self.waiting.clear();
        Ok(completed)
    }

    /// Renames the part that is being written, if there is one, to its final name.
    pub fn complete(&mut self) -> Result<()> {
        let Some(part) = self.part.take() else { return Ok(()) };
        let target = self.directory.join(format!("part-{:05}.parquet", self.completed));
        let file = part.writer.into_inner().map_err(|error| failed(&part.temporary, &error))?;
        file.sync_all().map_err(|error| failed(&part.temporary, &error))?;
        fs::rename(&part.temporary, &target).map_err(|error| failed(&target, &error))?;
        self.completed += 1;
        Ok(())
    }

    fn complete_if_due(&mut self) -> Result<bool> {
        let is_due = |part: &Part| part.rows >= self.limits.rows || part.begun.elapsed() >= self.limits.time;
        match &self.part {
            Some(part) if is_due(part) => self.complete().map(|()| true),
            _ => Ok(false),
        }
    }

    /// The part that is being written; a new one if there is none.
    fn open(&mut self, table: &Table) -> Result<&mut Part> {
        let part = match self.part.take() {
            Some(part) => part,
            None => {
                let temporary = self.directory.join(format!(".part-{:05}.parquet.tmp", self.completed));
                let file = File::create(&temporary).map_err(|error| failed(&temporary, &error))?;
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_max_row_group_row_count(Some(ROW_GROUP))
                    .build();
                let writer = ArrowWriter::try_new(file, table.schema.clone(), Some(properties))
                    .map_err(|error| failed(&temporary, &error))?;
                Part { table: table.clone(), writer, temporary, rows: 0, begun: Instant::now() }
            }
        };
        Ok(self.part.insert(part))
    }
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot write {}: {error}; check the directory and its free space", path.display())
}
