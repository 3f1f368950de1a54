//! What can go wrong with a ring, as sentences that say what to do next.

use std::io;
use std::path::PathBuf;

/// Why a ring could not be created, opened, read or extended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// An option of the writer is out of range.
    #[error("the ring's option `{option}` is {value}, but {requirement}")]
    Option { option: &'static str, value: u64, requirement: &'static str },

    /// A system call failed.
    #[error("could not {action} the ring {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// A file of that name is already there. A ring is never reused: readers of the old one still map it.
    #[error(
        "{} already exists, and a ring is never written over another file; choose a new path or remove the old file",
        path.display()
    )]
    Exists { path: PathBuf },

    /// The file system cannot hold the ring.
    #[error(
        "the file system of {} has no room for {bytes} bytes more; free some, choose another directory, or ask for \
         fewer slots",
        path.display()
    )]
    NoSpace { path: PathBuf, bytes: u64 },

    /// A directory, symbolic link, FIFO, socket or device.
    #[error(
        "{} is not a regular file; give the path of the ring itself (symbolic links are not followed)",
        path.display()
    )]
    NotAFile { path: PathBuf },

    /// The file is regular but does not start as a ring does.
    #[error("{} is not a ring: it does not start with the magic \"FGSRING\\0\"", path.display())]
    NotARing { path: PathBuf },

    /// The writer has created the file but not finished its header, or died in between.
    #[error(
        "the ring {} is still being created; try again in a moment, and remove it if that does not help",
        path.display()
    )]
    NotReady { path: PathBuf },

    /// A layout from another time.
    #[error(
        "the ring {} has layout version {found}, and this program reads version {supported}; use the forgetscope that \
         belongs to the trainer",
        path.display()
    )]
    Version { path: PathBuf, found: u64, supported: u64 },

    /// A header field that cannot be true.
    #[error(
        "the ring {} is damaged: its header field `{field}` is {value}, but {requirement}; it cannot be read",
        path.display()
    )]
    Header { path: PathBuf, field: &'static str, value: u64, requirement: &'static str },

    /// The file is shorter than its header says, or has been cut short since it was opened.
    #[error(
        "the ring {} has {size} bytes where {expected} are needed; it was truncated or copied in part, and must be \
         copied again or given up",
        path.display()
    )]
    Truncated { path: PathBuf, size: u64, expected: u64 },

    /// A slot contradicts the header.
    #[error(
        "the ring {} is damaged: the slot of record {number} holds the sequence {sequence}, which no writer leaves \
         there; seek to the head to go on with later records",
        path.display()
    )]
    Slot { path: PathBuf, number: u64, sequence: u64 },

    /// A catalog entry does not decode.
    #[error("the catalog of the ring {} is damaged at byte {offset}: {reason}", path.display())]
    Catalog { path: PathBuf, offset: u64, reason: &'static str },

    /// The catalog has no room for another entry.
    #[error(
        "the ring's catalog is full: the entry needs {needed} bytes and {available} are left; create the ring with a \
         larger `catalog_bytes`"
    )]
    CatalogFull { needed: u64, available: u64 },
}
