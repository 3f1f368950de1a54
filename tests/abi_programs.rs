//! Programs in C that use the library as trainers do. Each is one concept and reads as an example: see tests/c.

mod abi_support;

use abi_support::run;

/// One test per program, named like it.
macro_rules! programs {
    ($($name:ident),* $(,)?) => { $(#[test] fn $name() { run(stringify!($name)); })* };
}

programs!(life, train, feed, shards, heads, stacked, dtypes, steps, rebind, probe, curvature, disabled);
