//! What can go wrong with a control page, as sentences that say what to do next.

use std::io;
use std::path::PathBuf;

/// Why a page could not be created, opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no such file.
    #[error(
        "{} does not exist: the trainer of this ring takes no commands; those that libforgetscope_preload.so is loaded into do",
        path.display()
    )]
    Missing { path: PathBuf },

    /// A system call failed.
    #[error("could not {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// The file belongs to somebody else, or is no regular file, or none that a server makes.
    #[error("{} is no control page that can be used: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },

    /// The server's process is gone or has closed the page.
    #[error("the trainer of {} has ended; nobody would carry the command out", path.display())]
    Ended { path: PathBuf },

    /// Another client is talking to the server at this moment.
    #[error("another program is using {}; try again when it is done", path.display())]
    Locked { path: PathBuf },

    /// A command is waiting for its step.
    #[error(
        "rank {rank} still waits for step {step} to carry out another command; wait, or take it back with `cancel`"
    )]
    Waiting { rank: u32, step: u64 },

    /// No task may be called so.
    #[error("{reason}")]
    Name { reason: String },
}
