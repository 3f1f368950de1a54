//! The ring: how records leave the training process.
//!
//! One producer, many readers, in any process on the machine. The producer never waits and never allocates: it
//! overwrites the oldest record. A reader that is too slow loses records and learns exactly how many. A process that is
//! killed, at whatever instruction, leaves a file that reads without a torn record.
//!
//! ```
//! use forgetscope::ring::{Poll, Reader, Record, Writer, WriterOptions};
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("run.ring");
//! let mut writer = Writer::create(&WriterOptions::new(&path))?;
//! let mut reader = Reader::open(&path)?;
//! writer.publish(&Record { step: 7, ..Record::default() });
//! writer.close();
//!
//! loop {
//!     match reader.poll()? {
//!         Poll::Record(record) => assert_eq!(record.step, 7),
//!         Poll::Lost(count) => eprintln!("{count} records came and went unread"),
//!         Poll::Empty => std::thread::sleep(std::time::Duration::from_millis(10)),
//!         Poll::Closed => break,
//!     }
//! }
//! # Ok::<(), forgetscope::ring::RingError>(())
//! ```
//!
//! | file | concept |
//! |---|---|
//! | `record` | the 120 bytes of a measurement |
//! | `seqlock` | the protocol of a slot; checked by the model checker in `tests/loom` |
//! | `layout` | where everything is in the file |
//! | `header` | what the file says about itself |
//! | `catalog`, `codec` | what the ids in the records mean, and how that is put into bytes |
//! | `writer`, `counters` | the producer, and counts that any thread may raise |
//! | `reader` | the consumer, which trusts nothing in the file |
//! | `discover` | what rings are called and which are there |
//! | `map`, `os`, `sync` | memory, the kernel, atomics |
//!
//! The ring knows nothing of statistics: it imports nothing else of this library, and a reader that links only this
//! module can show everything there is. docs/ring.md describes the file for other languages.

mod catalog;
mod codec;
mod counters;
mod discover;
mod error;
mod header;
mod layout;
mod map;
mod os;
mod reader;
mod record;
mod seqlock;
mod sync;
mod writer;

pub use catalog::{Entry, TensorEntry};
pub use counters::Counters;
pub use discover::{Discovered, default_path, discover};
pub use error::RingError;
pub use header::Header;
pub use layout::{COUNTERS, DEFAULT_CATALOG_BYTES, DEFAULT_SLOTS, HEADER_BYTES, LAYOUT_VERSION, MAGIC, SLOT_BYTES};
pub(crate) use map::{Access, Map};
pub use os::monotonic_ns;
pub(crate) use os::{Process, create_private, obtain};
pub use reader::{Poll, Reader, WriterState};
pub use record::{NONE16, NONE32, RECORD_WORDS, Record, VALUES};
pub(crate) use sync::load_acquire;
pub use writer::{Writer, WriterOptions};
