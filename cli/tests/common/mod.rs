//! What the tests of all commands share.

pub mod made_up;
pub mod program;
