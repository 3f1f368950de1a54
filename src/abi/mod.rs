//! The C surface: the only `extern "C"` of the library.
//!
//! Every function is a panic boundary, converts its arguments, calls `scope` or `ring`, and turns the outcome into a
//! status and a sentence. Nothing is computed here. `include/forgetscope.h` is generated from this module by cbindgen.

#![allow(non_camel_case_types)] // the names of the C types

mod bind;
mod boundary;
mod catalog;
mod curvature;
mod handle;
mod life;
mod options;
mod outcome;
mod probe;
mod reader;
mod status;
mod step;
mod task;
mod tensor;
mod text;

pub use bind::*;
pub use catalog::*;
pub use curvature::*;
pub use handle::fgs_scope;
pub use life::*;
pub use options::*;
pub use outcome::*;
pub use probe::*;
pub use reader::*;
pub use status::*;
pub use step::*;
pub use task::*;
pub use tensor::*;
