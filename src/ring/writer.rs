//! The producer: creates the file and publishes records into it.
//!
//! Creating a ring takes a few milliseconds, because all its pages are obtained at once: a file system that is full says
//! so here, where it is an error value, and not later, where it would be SIGBUS in somebody's training run. Publishing
//! is then 18 stores, about 9 ns, without a system call, a lock, an allocation or a page fault.
//!
//! One thread publishes at a time (`&mut self`); counters may be raised by all. A process that forks must not publish
//! from the child: the mapping is shared with the parent, and two producers would tear each other's records.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::catalog::Entry;
use super::counters::Counters;
use super::error::RingError;
use super::header::Header;
use super::layout::{DEFAULT_CATALOG_BYTES, DEFAULT_SLOTS, Geometry, HEADER_BYTES, state, word};
use super::map::{Access, Map};
use super::os::{self, Process};
use super::record::Record;
use super::seqlock;

/// The catalog obtains its pages in portions of this size, as it grows.
const CATALOG_PORTION: u64 = 64 << 10;

/// How a ring is created.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// The file, which must not exist yet; see [`default_path`](super::default_path).
    pub path: PathBuf,
    /// How many records the ring holds; rounded up to a power of two. A slot takes 128 bytes.
    pub slots: u64,
    /// Room for the catalog; rounded up to whole pages, which are obtained only as they are used.
    pub catalog_bytes: u64,
    /// The rank of this process.
    pub rank: u32,
    /// How many ranks there are.
    pub world: u32,
    /// Identifies the set of kinds and values that the records use.
    pub schema_hash: u64,
}

impl WriterOptions {
    /// 65,536 slots (8 MiB), a catalog of up to 4 MiB, rank 0 of 1.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        WriterOptions {
            path: path.into(),
            slots: DEFAULT_SLOTS,
            catalog_bytes: DEFAULT_CATALOG_BYTES,
            rank: 0,
            world: 1,
            schema_hash: 0,
        }
    }
}

/// The producer of one ring.
///
/// Dropping it without [`close`](Writer::close) leaves a ring that readers report as died. The file stays either way:
/// it is the record of the run.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    descriptor: File,
    file: Arc<Map>,
    geometry: Geometry,
    published: u64,
    catalog_len: u64,
    catalog_obtained: u64,
    pid: u32,
}

impl Writer {
    /// Creates the file, readable by its owner only, obtains its space and makes it visible to readers.
    ///
    /// A file that is already there, symbolic links included, is an error and stays as it is. After any other error
    /// nothing is left behind.
    pub fn create(options: &WriterOptions) -> Result<Self, RingError> {
        let geometry = Geometry::new(options.slots, options.catalog_bytes)?;
        let path = options.path.clone();
        let descriptor = os::create_private(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RingError::Exists { path: path.clone() },
            _ => failed("create", &path, source),
        })?;
        Self::initialise(options, geometry, descriptor).inspect_err(|_| {
            // Nobody can read an unfinished ring, and the error at hand matters more than one from here.
            let _ = fs::remove_file(&path);
        })
    }

    fn initialise(options: &WriterOptions, geometry: Geometry, descriptor: File) -> Result<Self, RingError> {
        let path = &options.path;
        descriptor.set_len(geometry.file_bytes).map_err(|source| failed("size", path, source))?;
        let slots_bytes = geometry.file_bytes - geometry.slots_offset;
        obtain(&descriptor, path, 0, HEADER_BYTES)?;
        obtain(&descriptor, path, geometry.slots_offset, slots_bytes)?;
        let file = Map::new(&descriptor, geometry.file_bytes, Access::ReadWrite)
            .map_err(|source| failed("map", path, source))?;
        file.populate(0, HEADER_BYTES);
        file.populate(geometry.slots_offset, slots_bytes);

        let process = Process::current();
        let instance = os::random_bytes().map_err(|source| failed("name", path, source))?;
        Header {
            slots: geometry.slot_count,
            catalog_bytes: geometry.catalog_bytes,
            schema_hash: options.schema_hash,
            instance,
            pid: process.pid,
            pid_start_time: process.start_time,
            pid_namespace: process.namespace,
            rank: options.rank,
            world: options.world,
            created_monotonic_ns: os::monotonic_ns(),
            created_realtime_ns: os::realtime_ns(),
            geometry,
        }
        .write(&file);

        Ok(Writer {
            path: path.clone(),
            descriptor,
            file: Arc::new(file),
            geometry,
            published: 0,
            catalog_len: 0,
            catalog_obtained: 0,
            pid: process.pid,
        })
    }

    /// Publishes a record, overwriting the oldest once the ring is full.
    #[inline]
    pub fn publish(&mut self, record: &Record) {
        let number = self.published + 1;
        let [sequence, payload @ ..] = self.geometry.slot(&self.file, number);
        seqlock::write(sequence, payload, number, &record.to_words());
        self.file[word::PUBLISHED].store(number, Ordering::Release);
        self.published = number;
    }

    /// Appends an entry to the catalog. A reader that sees a record published later sees this entry.
    ///
    /// Costs an allocation, and a system call for every 64 KiB of catalog.
    pub fn append(&mut self, entry: &Entry) -> Result<(), RingError> {
        let available = self.geometry.catalog_bytes - self.catalog_len;
        let words = entry.encode().ok_or(RingError::CatalogFull { needed: u64::MAX, available })?;
        let needed = 8 * words.len() as u64;
        if needed > available {
            return Err(RingError::CatalogFull { needed, available });
        }
        let end = self.catalog_len + needed;
        self.obtain_catalog(end)?;
        let start = self.catalog_len as usize / 8;
        let section = self.geometry.catalog(&self.file);
        for (target, word) in section[start..].iter().zip(words) {
            target.store(word, Ordering::Relaxed);
        }
        self.file[word::CATALOG_LEN].store(end, Ordering::Release);
        self.catalog_len = end;
        Ok(())
    }

    /// Makes sure that the catalog has its pages up to `end`.
    fn obtain_catalog(&mut self, end: u64) -> Result<(), RingError> {
        if end <= self.catalog_obtained {
            return Ok(());
        }
        let target = end.next_multiple_of(CATALOG_PORTION).min(self.geometry.catalog_bytes);
        let offset = self.geometry.catalog_offset + self.catalog_obtained;
        let bytes = target - self.catalog_obtained;
        obtain(&self.descriptor, &self.path, offset, bytes)?;
        self.catalog_obtained = target;
        Ok(())
    }

    /// Adds `n` to a counter; see [`Counters::add`].
    pub fn count(&self, index: usize, n: u64) {
        self.counters().add(index, n);
    }

    /// A handle on the counters for other threads.
    pub fn counters(&self) -> Counters {
        Counters::new(Arc::clone(&self.file))
    }

    /// Says that the writer was alive at `now`, in nanoseconds of [`monotonic_ns`](super::monotonic_ns).
    ///
    /// Readers in another container cannot see this process and judge by the heartbeat: once a second is enough.
    pub fn heartbeat(&self, now: u64) {
        self.file[word::HEARTBEAT].store(now, Ordering::Relaxed);
    }

    /// How many records have been published.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// Where the ring is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that nothing will follow, and ends. Readers get [`Poll::Closed`](super::Poll) after the last record.
    pub fn close(self) {
        self.finish(state::CLOSED);
    }

    /// Leaves `OPEN` once. A forked child has a copy of this value but is not the writer: it must not end the ring of
    /// its parent.
    fn finish(&self, state: u64) {
        if std::process::id() == self.pid {
            let _ = self.file[word::STATE].compare_exchange(state::OPEN, state, Ordering::Release, Ordering::Relaxed);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish(state::ABANDONED);
    }
}

/// Obtains the blocks behind a range of the ring.
fn obtain(descriptor: &File, path: &Path, offset: u64, bytes: u64) -> Result<(), RingError> {
    os::obtain(descriptor, offset, bytes).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOSPC) => RingError::NoSpace { path: path.to_owned(), bytes },
        _ => failed("allocate", path, source),
    })
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> RingError {
    RingError::Io { action, path: path.to_owned(), source }
}
