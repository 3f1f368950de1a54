extern crate openblas_src as _;
pub mod device;
pub mod ring;
pub mod sketch;
pub mod stats;
