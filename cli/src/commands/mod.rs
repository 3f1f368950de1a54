//! The subcommands: each reads its arguments, does one thing, and says what to do next if it cannot.

pub mod ctl;
pub mod ls;
pub mod record;
pub mod report;
pub mod study;
pub mod tail;
