//! What can go wrong in a call, as a class and a sentence.

use crate::ring::RingError;

/// A refused call. The sentence names the argument and says what would have been right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has a value that it may not have.
    #[error("{0}")]
    InvalidArgument(String),
    /// The call does not fit where the scope is in the life of a step or a task.
    #[error("{0}")]
    WrongPhase(String),
    /// An id or name that the scope does not know.
    #[error("{0}")]
    NotFound(String),
    /// Legal, but not something that this build measures.
    #[error("{0}")]
    Unsupported(String),
    /// A configuration file or variable that cannot be used.
    #[error("{0}")]
    Config(String),
    /// The ring could not be created.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Threads could not be started.
    #[error("{0}")]
    System(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// An [`Error::InvalidArgument`] from a format string.
macro_rules! invalid {
    ($($part:tt)*) => { $crate::scope::Error::InvalidArgument(format!($($part)*)) };
}
pub(crate) use invalid;
