//! Commands to a running instrument: a page of shared memory beside its ring.
//!
//! For trainers that cannot be changed, where somebody else has to say that a task begins. The *server* is in the trainer's
//! process and looks at one word in each step; a *client* is any process of the same user. One command at a time, one answer
//! to each. What a command does is the server's affair: this module knows nothing of tasks or steps but their names and
//! numbers.
//!
//! | file | concept |
//! |---|---|
//! | `page` | where everything is in the file, and what is said once |
//! | `command` | what can be said, and what is answered |
//! | `server` | the half in the trainer: publishes the step, takes a command, answers |
//! | `client` | the half that asks, and waits |
//! | `error` | what can go wrong, as sentences |
//!
//! Neither side believes the other: lengths, numbers and text are copied once and checked. docs/control.md describes the
//! file for other languages.
//!
//! Cost: two stores and a load in each step.

mod client;
mod command;
mod error;
mod page;
mod server;

pub use client::Client;
pub use command::{Answer, Command, Status, check_name};
pub use error::ControlError;
pub use page::{Identity, LONGEST_NAME, PAGE_BYTES, page_path};
pub use server::Server;

#[cfg(test)]
mod tests;
