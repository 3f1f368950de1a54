//! The half that asks, and waits for the answer.
//!
//! Clients of one page take turns: each holds a lock on the file for as long as it is open. The file is believed nothing:
//! owner, size and every field are checked, and a server that is gone is noticed by its process.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::command::{Answer, Command, Status};
use super::error::ControlError;
use super::page::{Identity, LONGEST_TEXT, PAGE_BYTES, page_path, read_identity, read_text, state, word, write_text};
use crate::ring::{Access, Map, Process, load_acquire};

/// How long another client may take to be done.
const TURN: Duration = Duration::from_secs(2);

/// A client of one page.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    page: Map,
    identity: Identity,
    server: Process,
    /// The request that was sent.
    sent: u64,
    /// Holds the lock.
    _file: File,
}

/// A page of a server that runs, and its file.
struct Opened {
    path: PathBuf,
    file: File,
    page: Map,
    identity: Identity,
    server: Process,
}

impl Opened {
    /// Opens and checks the page of `ring`, whose instance is given. Waits for nobody.
    fn open(ring: &Path, instance: [u8; 16]) -> Result<Self, ControlError> {
        let path = page_path(ring);
        let failed = |action, source| ControlError::Io { action, path: path.clone(), source };
        let unusable = |reason: String| ControlError::Unusable { path: path.clone(), reason };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // O_NONBLOCK, or opening a FIFO would wait for its other end.
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT) => ControlError::Missing { path: path.clone() },
                Some(libc::ELOOP | libc::ENXIO | libc::EISDIR) => unusable("it is not a regular file".into()),
                _ => failed("open", source),
            })?;
        let metadata = file.metadata().map_err(|source| failed("examine", source))?;
        // SAFETY: the call has no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        if !metadata.is_file() {
            return Err(unusable("it is not a regular file".into()));
        }
        if metadata.uid() != user {
            return Err(unusable(format!("it belongs to user {}, not to user {user}", metadata.uid())));
        }
        if metadata.len() != PAGE_BYTES {
            return Err(unusable(format!("it has {} bytes, not {PAGE_BYTES}", metadata.len())));
        }
        let page = Map::new(&file, PAGE_BYTES, Access::ReadWrite).map_err(|source| failed("map", source))?;
        let (identity, server) = read_identity(&page).map_err(unusable)?;
        if identity.instance != instance {
            return Err(unusable("it belongs to another ring".into()));
        }
        let opened = Self { path, file, page, identity, server };
        if has_ended(&opened.page, &opened.server) {
            return Err(ControlError::Ended { path: opened.path });
        }
        Ok(opened)
    }

    /// Waits until no other client uses the page.
    fn take_turn(&self) -> Result<(), ControlError> {
        let begun = Instant::now();
        while let Err(error) = self.file.try_lock() {
            let path = self.path.clone();
            match error {
                TryLockError::WouldBlock if begun.elapsed() < TURN => std::thread::sleep(TURN / 100),
                TryLockError::WouldBlock => return Err(ControlError::Locked { path }),
                TryLockError::Error(source) => return Err(ControlError::Io { action: "lock", path, source }),
            }
        }
        Ok(())
    }
}

impl Client {
    /// Opens the page of `ring`, whose instance is given, and takes its turn.
    pub fn open(ring: &Path, instance: [u8; 16]) -> Result<Self, ControlError> {
        let opened = Opened::open(ring, instance)?;
        opened.take_turn()?;
        let Opened { path, file, page, identity, server } = opened;
        Ok(Self { path, page, identity, server, sent: 0, _file: file })
    }

    /// Whose page it is. Another client may be using it at this moment.
    pub fn look(ring: &Path, instance: [u8; 16]) -> Result<Identity, ControlError> {
        Ok(Opened::open(ring, instance)?.identity)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The step that the server began last.
    pub fn step(&self) -> u64 {
        self.page[word::STEP].load(Ordering::Relaxed)
    }

    /// The server's process is gone, or has closed the page. About 20 µs.
    pub fn has_ended(&self) -> bool {
        has_ended(&self.page, &self.server)
    }

    /// The step for which a command of an earlier client waits.
    pub fn waiting(&self) -> Option<u64> {
        let requested = load_acquire(&self.page[word::REQUEST]);
        let is_open = requested != load_acquire(&self.page[word::ANSWERED]);
        is_open.then(|| self.page[word::AT_STEP].load(Ordering::Relaxed))
    }

    /// Sends a command that is to be carried out before step `at`, or before the next one if that has begun. `Cancel` may
    /// be sent at any time, other commands when none is waiting.
    pub fn send(&mut self, command: &Command, at: u64) -> Result<(), ControlError> {
        command.check().map_err(|reason| ControlError::Name { reason })?;
        if let Some(step) = self.waiting().filter(|_| *command != Command::Cancel) {
            return Err(ControlError::Waiting { rank: self.identity.rank, step });
        }
        let set = |index: usize, value: u64| self.page[index].store(value, Ordering::Relaxed);
        let (kind, number, name) = command.encode();
        set(word::KIND, kind);
        set(word::AT_STEP, at);
        set(word::NUMBER, number);
        write_text(&self.page[word::NAME..], name);
        self.sent = self.page[word::REQUEST].load(Ordering::Relaxed).wrapping_add(1);
        self.page[word::REQUEST].store(self.sent, Ordering::Release);
        Ok(())
    }

    /// The answer to what was sent; `None` if it is not there yet.
    pub fn answer(&self) -> Result<Option<Answer>, ControlError> {
        if load_acquire(&self.page[word::ANSWERED]) != self.sent {
            // A server that answers and ends at once has answered.
            let is_late = self.has_ended() && load_acquire(&self.page[word::ANSWERED]) != self.sent;
            return if is_late { Err(ControlError::Ended { path: self.path.clone() }) } else { Ok(None) };
        }
        let get = |index: usize| self.page[index].load(Ordering::Relaxed);
        let damaged = |reason| ControlError::Unusable { path: self.path.clone(), reason };
        let status = match get(word::STATUS) {
            0 => Status::Done,
            1 => Status::Refused,
            status => return Err(damaged(format!("its field `status` is {status}, not 0 or 1"))),
        };
        let text = read_text(&self.page[word::TEXT..], LONGEST_TEXT).map_err(damaged)?;
        Ok(Some(Answer { status, step: get(word::ANSWER_STEP), text }))
    }
}

fn has_ended(page: &Map, server: &Process) -> bool {
    load_acquire(&page[word::STATE]) == state::CLOSED || server.is_running() == Some(false)
}
