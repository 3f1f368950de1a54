//! A run as one HTML page that says what is being forgotten, where, and how sure that is.
//!
//! The page is one file: no network, no asset, nothing that needs a script to be read. It has two halves that know
//! nothing of each other: `data` brings the records of a run into the form of its figures, and the rest writes.
//!
//! | file | concept |
//! |---|---|
//! | `source` | a ring or a recording, read |
//! | `data` | what the figures need of the records |
//! | `mean` | a head's cosine over many steps |
//! | `findings` | what can be said, and what cannot |
//! | `words` | findings as sentences |
//! | `charts` | figures as SVG: scales, lines, heat maps, intervals |
//! | `sections` | the parts of the page |
//! | `page` | the page around them |

mod charts;
mod data;
mod findings;
mod mean;
mod page;
mod sections;
mod source;
mod words;

pub use page::render;
pub use source::read;
