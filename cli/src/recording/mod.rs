//! A run as files: one Parquet dataset for each kind of record, and the catalog as JSON.
//!
//! ```text
//! DIR/kind=interference/rank=0/part-00000.parquet   columns named after the kind's values
//! DIR/kind=evaluation/rank=0/part-00000.parquet
//! DIR/catalog/rank=0.json                           tensors, tasks, attributes, counters
//! ```
//!
//! Kinds have different values, so a table for each has no columns that are empty or mean something else in the next
//! row. `kind=` and `rank=` are understood by DuckDB, Polars, Spark and Dask. A part is written under another name and
//! renamed when it is complete: whatever happens to the recorder, every part that is there can be read.
//!
//! | file | concept |
//! |---|---|
//! | `columns` | records to columns |
//! | `parts` | the files of one kind |
//! | `recorder` | follows a ring and sorts its records |
//! | `catalog` | the catalog as JSON, there and back |
//! | `read` | records from files |

pub mod catalog;
mod columns;
mod parts;
mod read;
pub mod recorder;

pub use read::Recording;
