//! What can be said to a running instrument, and what it answers.

use super::page::{LONGEST_NAME, LONGEST_TEXT};

/// A task may be called so: the name fits the page, is a string in C too, and does nothing to a terminal. Else why not.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(format!("the name has {} bytes, and may have 1 to {LONGEST_NAME}", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("the name \"{}\" has control characters", name.escape_debug()));
    }
    Ok(())
}

/// A command. Numbers in the page are those of `kind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Takes back a command that waits for its step.
    Cancel,
    /// A task begins; the one before ends.
    TaskBegin(String),
    /// The current task ends.
    TaskEnd,
    /// The parameters are kept as they are now.
    Snapshot,
    /// Sample every so many steps from now on; 0: none.
    Every(u64),
}

impl Command {
    /// Number, argument and name, as the page has them.
    pub(super) fn encode(&self) -> (u64, u64, &str) {
        match self {
            Self::Cancel => (0, 0, ""),
            Self::TaskBegin(name) => (1, 0, name),
            Self::TaskEnd => (2, 0, ""),
            Self::Snapshot => (3, 0, ""),
            Self::Every(steps) => (4, *steps, ""),
        }
    }

    /// The command with these numbers; else why there is none.
    pub(super) fn decode(kind: u64, number: u64, name: Result<String, String>) -> Result<Self, String> {
        Ok(match kind {
            0 => Self::Cancel,
            1 => {
                let name = name?;
                check_name(&name)?;
                Self::TaskBegin(name)
            }
            2 => Self::TaskEnd,
            3 => Self::Snapshot,
            4 => Self::Every(number),
            kind => return Err(format!("{kind} is the number of no command; this trainer's library may be older")),
        })
    }

    /// It can be sent.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::TaskBegin(name) => check_name(name),
            _ => Ok(()),
        }
    }
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Carried out.
    Done,
    /// Not carried out; the sentence says why.
    Refused,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: Status,
    /// The step before which it was carried out.
    pub step: u64,
    /// A sentence for people; empty where there is nothing to say.
    pub text: String,
}

impl Answer {
    pub fn done(step: u64, text: impl Into<String>) -> Self {
        Self { status: Status::Done, step, text: shortened(text.into()) }
    }

    pub fn refused(step: u64, text: impl Into<String>) -> Self {
        Self { status: Status::Refused, step, text: shortened(text.into()) }
    }
}

/// The text, cut at a character so that it fits the page.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
    text
}
