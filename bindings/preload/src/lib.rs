//! x
pub mod signature;
