//! The consumer: reads records in order, at its own pace, and counts exactly what it missed.
//!
//! A reader asks the slot of its next record and never the shared `published` word, so that readers who are up to date
//! touch one line that the producer will write next and nothing else. It maps the file without write permission and
//! trusts nothing in it: the header is checked once and kept as a copy, sequences and lengths are checked whenever they
//! are used. A damaged or hostile file gives an error, or records that make no sense, but no crash.
//!
//! One thing cannot be excluded. A mapped page that no longer exists raises SIGBUS, so whoever may write to the file can
//! end its readers by cutting it short between a check and a read. Polling checks the length whenever it has found the
//! ring empty and every 256 records; a writer of this library never shortens a ring, and its mode is 0600.
//!
//! Cost: about 25 ns for a record; 0.6 µs for an empty poll, most of it the system call that checks the length.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::catalog::Entry;
use super::codec::Frame;
use super::counters::counter;
use super::error::RingError;
use super::header::Header;
use super::layout::{MAX_RECORDS, state, word};
use super::map::{Access, Map};
use super::os;
use super::record::Record;
use super::seqlock::{self, Slot};
use super::sync::load_acquire;

/// How many records may be read before the length of the file is checked again.
const GUARD_INTERVAL: u32 = 256;
/// How long the answer to "does the writer live?" is believed while polling; asking takes about 20 µs.
const STATE_INTERVAL: Duration = Duration::from_millis(50);
/// A writer that cannot be seen from here counts as died when its last heartbeat is this old.
const HEARTBEAT_LIMIT_NS: u64 = 60_000_000_000;

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Poll {
    /// The next record.
    Record(Record),
    /// So many records were overwritten before they could be read; reading goes on behind them.
    Lost(u64),
    /// Nothing yet.
    Empty,
    /// Nothing, and nothing will follow: the writer has closed the ring or died, and all it left has been read.
    Closed,
}

/// What has become of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterState {
    /// It is at work.
    Running,
    /// It ended as intended.
    Closed,
    /// It was killed, crashed, or was dropped without being closed.
    Died,
}

/// A reader of one ring, with a position of its own. Readers do not disturb each other or the writer.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    descriptor: File,
    file: Map,
    header: Header,
    /// How many records lie behind: delivered, lost, or before the start.
    position: u64,
    /// How many bytes of the catalog lie behind.
    catalog_position: u64,
    /// How many more polls may pass before the file's length is checked.
    unguarded: u32,
    state: Option<(WriterState, Instant)>,
}

impl Reader {
    /// Opens a ring at the oldest record that is still there. Symbolic links are not followed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RingError> {
        let path = path.as_ref();
        let failed = |action| move |source| RingError::Io { action, path: path.to_owned(), source };
        let descriptor = OpenOptions::new()
            .read(true)
            // O_NONBLOCK, or opening a FIFO would wait for somebody to write into it.
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ELOOP | libc::ENXIO) => RingError::NotAFile { path: path.to_owned() },
                _ => failed("open")(source),
            })?;
        let metadata = descriptor.metadata().map_err(failed("examine"))?;
        if !metadata.is_file() {
            return Err(RingError::NotAFile { path: path.to_owned() });
        }
        let size = metadata.len();
        if size == 0 {
            // Creation makes the file and then gives it its length.
            return Err(RingError::NotReady { path: path.to_owned() });
        }
        let file = Map::new(&descriptor, size, Access::Read).map_err(failed("map"))?;
        let header = Header::read(&file, size, path)?;
        let mut reader = Reader {
            path: path.to_owned(),
            descriptor,
            file,
            header,
            position: 0,
            catalog_position: 0,
            unguarded: 0,
            state: None,
        };
        reader.position = reader.head()?.saturating_sub(reader.header.slots);
        Ok(reader)
    }

    /// What the ring says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the ring is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next record, or why there is none. Never waits.
    ///
    /// From any point on, the records delivered and the counts of [`Poll::Lost`] add up to the change of
    /// [`position`](Reader::position), and once the ring is closed and read to its end, that is all it ever held.
    pub fn poll(&mut self) -> Result<Poll, RingError> {
        self.guard()?;
        match self.attempt() {
            Ok(Poll::Empty) => {}
            outcome => return outcome,
        }
        self.unguarded = 0;
        if self.recent_state() == WriterState::Running {
            return Ok(Poll::Empty);
        }
        // The writer may have published and ended since the attempt. Now it has ended, so this attempt is the last.
        self.guard()?;
        Ok(match self.attempt()? {
            Poll::Empty => Poll::Closed,
            poll => poll,
        })
    }

    /// Reads the next slot, if it holds the next record; repositions if it holds a later one.
    #[inline]
    fn attempt(&mut self) -> Result<Poll, RingError> {
        let number = self.position + 1;
        let [sequence, payload @ ..] = self.header.geometry.slot(&self.file, number);
        match seqlock::read(sequence, payload, number) {
            Slot::Complete(words) => {
                self.position = number;
                Ok(Poll::Record(Record::from_words(&words)))
            }
            Slot::Pending => Ok(Poll::Empty),
            Slot::Overtaken { sequence } => self.recover(number, sequence),
        }
    }

    /// Goes on at a safe distance behind the head, after finding `sequence` in the slot of `number`.
    #[cold]
    fn recover(&mut self, number: u64, sequence: u64) -> Result<Poll, RingError> {
        let slots = self.header.slots;
        let head = self.head()?;
        // The record that took the slot came a whole number of laps later, and all before it are published, give or
        // take what is on its way between two cores.
        let successor = sequence.div_ceil(2);
        let laps_ahead = successor > number && (successor - number).is_multiple_of(slots);
        if !laps_ahead || successor > head + slots {
            return Err(RingError::Slot { path: self.path.clone(), number, sequence });
        }
        let head = head.max(successor - 1);
        // The oldest records are the next to be overwritten: without a margin, the writer would overtake again at once.
        let margin = match self.recent_state() {
            WriterState::Running => slots / 8,
            WriterState::Closed | WriterState::Died => 0,
        };
        let resume = (head + margin - slots).max(number);
        let lost = resume - self.position;
        self.position = resume;
        Ok(Poll::Lost(lost))
    }

    /// Goes to the head: the next record is the next to be published. Skipped records do not count as lost.
    pub fn seek_to_head(&mut self) -> Result<(), RingError> {
        self.guard()?;
        self.position = self.head()?;
        Ok(())
    }

    /// How many records lie behind: delivered, lost, skipped, or overwritten before the ring was opened.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next catalog entry that has not been returned yet. Entries of types from later versions are passed over.
    ///
    /// After an error for one damaged entry, the next call goes on behind it.
    pub fn poll_catalog(&mut self) -> Result<Option<Entry>, RingError> {
        loop {
            self.check_length()?;
            let end = load_acquire(&self.file[word::CATALOG_LEN]);
            let start = self.catalog_position;
            if end == start {
                return Ok(None);
            }
            if end < start || end > self.header.catalog_bytes || !end.is_multiple_of(8) {
                return Err(self.damaged_catalog(start, "its length is impossible"));
            }
            let section = self.header.geometry.catalog(&self.file);
            let mut words =
                section[start as usize / 8..end as usize / 8].iter().map(|word| word.load(Ordering::Relaxed));
            let frame = Frame::from_word(words.next().unwrap_or(0));
            if frame.body_words() > words.len() {
                return Err(self.damaged_catalog(start, "an entry is longer than the catalog"));
            }
            self.catalog_position += 8 * (1 + frame.body_words() as u64);
            let body = frame.body(words);
            match Entry::decode(frame.code, &body) {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) => {}
                Err(reason) => return Err(self.damaged_catalog(start, reason)),
            }
        }
    }

    /// All catalog entries that have not been returned yet.
    ///
    /// If one of them is damaged, none counts as returned: [`poll_catalog`](Reader::poll_catalog) gets past it.
    pub fn catalog(&mut self) -> Result<Vec<Entry>, RingError> {
        let start = self.catalog_position;
        let entries: Result<Vec<_>, _> = std::iter::from_fn(|| self.poll_catalog().transpose()).collect();
        if entries.is_err() {
            self.catalog_position = start;
        }
        entries
    }

    fn damaged_catalog(&self, offset: u64, reason: &'static str) -> RingError {
        RingError::Catalog { path: self.path.clone(), offset, reason }
    }

    /// How many records have been published; 0 if the file has been cut short.
    ///
    /// This and the next two look at words that the writer stores to: once a second, not once a record.
    pub fn published(&self) -> u64 {
        self.look(word::PUBLISHED)
    }

    /// When the writer last said that it lives, in nanoseconds of [`monotonic_ns`](super::monotonic_ns); 0 if the file
    /// has been cut short.
    pub fn heartbeat(&self) -> u64 {
        self.look(word::HEARTBEAT)
    }

    /// A counter's value; 0 for an index of 64 or more, or if the file has been cut short.
    pub fn counter(&self, index: usize) -> u64 {
        if self.check_length().is_err() {
            return 0;
        }
        counter(&self.file, index).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Whether the writer is at work. About 20 µs.
    pub fn alive(&self) -> bool {
        self.state() == WriterState::Running
    }

    /// What has become of the writer. About 20 µs while it runs.
    pub fn state(&self) -> WriterState {
        let heartbeat = self.heartbeat();
        if self.check_length().is_err() {
            return WriterState::Died;
        }
        match load_acquire(&self.file[word::STATE]) {
            state::OPEN => {}
            state::CLOSED => return WriterState::Closed,
            _ => return WriterState::Died,
        }
        let now = os::monotonic_ns();
        // The clock starts anew when the machine does: a ring from the future was written before a reboot.
        let rebooted = now < self.header.created_monotonic_ns;
        let running =
            self.header.process().is_running().unwrap_or_else(|| now.saturating_sub(heartbeat) < HEARTBEAT_LIMIT_NS);
        if running && !rebooted {
            return WriterState::Running;
        }
        // It may have closed the ring and ended since its state was looked at.
        match load_acquire(&self.file[word::STATE]) {
            state::CLOSED => WriterState::Closed,
            _ => WriterState::Died,
        }
    }

    /// The writer's state as of at most 50 ms ago, except that a clean end is noticed at once.
    fn recent_state(&mut self) -> WriterState {
        let ended = load_acquire(&self.file[word::STATE]) != state::OPEN;
        if let Some((state, at)) = self.state
            && (state != WriterState::Running || !ended)
            && at.elapsed() < STATE_INTERVAL
        {
            return state;
        }
        let state = self.state();
        self.state = Some((state, Instant::now()));
        state
    }

    /// A word of the header, or 0 if the file has been cut short.
    fn look(&self, index: usize) -> u64 {
        match self.check_length() {
            Ok(()) => load_acquire(&self.file[index]),
            Err(_) => 0,
        }
    }

    /// How many records have been published, for computing positions from.
    fn head(&self) -> Result<u64, RingError> {
        let published = load_acquire(&self.file[word::PUBLISHED]);
        if published > MAX_RECORDS {
            return Err(RingError::Header {
                path: self.path.clone(),
                field: "published",
                value: published,
                requirement: "no run publishes that many records",
            });
        }
        Ok(published)
    }

    /// Checks the file's length now and then: see the module's documentation.
    #[inline]
    fn guard(&mut self) -> Result<(), RingError> {
        if self.unguarded == 0 {
            self.check_length()?;
            self.unguarded = GUARD_INTERVAL;
        }
        self.unguarded -= 1;
        Ok(())
    }

    fn check_length(&self) -> Result<(), RingError> {
        let expected = self.header.geometry.file_bytes;
        let size = match self.descriptor.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(self.unexamined(source)),
        };
        if size < expected {
            return Err(RingError::Truncated { path: self.path.clone(), size, expected });
        }
        Ok(())
    }

    fn unexamined(&self, source: io::Error) -> RingError {
        RingError::Io { action: "examine", path: self.path.clone(), source }
    }
}
