//! What rings are called, and which are there.
//!
//! A ring of its own for each run and rank: `forgetscope-<pid>-<rank>-<random>.ring`, in /dev/shm where that exists,
//! so that no disk is involved. The name is for people; what a program needs is in the header.

use std::path::{Path, PathBuf};

use super::header::Header;
use super::os;
use super::reader::{Reader, WriterState};

const PREFIX: &str = "forgetscope-";
const SUFFIX: &str = ".ring";

/// A ring that was found.
#[derive(Clone, Debug)]
pub struct Discovered {
    pub path: PathBuf,
    pub header: Header,
    pub state: WriterState,
    /// How many records have been published.
    pub published: u64,
}

/// A path for a new ring of this process, in `directory` or else where [`discover`] looks.
pub fn default_path(directory: Option<&Path>, rank: u32) -> PathBuf {
    let random = match os::random_bytes() {
        Ok(bytes) => u128::from_le_bytes(bytes) as u64,
        // Good enough for a name: if it is taken, creation says so.
        Err(_) => os::monotonic_ns(),
    };
    let name = format!("{PREFIX}{}-{rank}-{random:016x}{SUFFIX}", std::process::id());
    directory.map_or_else(default_directory, Path::to_owned).join(name)
}

/// The rings in `directory`, by default those in shared memory, oldest first.
///
/// Files that are no rings, are not readable for this user or are just being created are left out. A directory that
/// cannot be read has no rings.
pub fn discover(directory: Option<&Path>) -> Vec<Discovered> {
    let directory = directory.map_or_else(default_directory, Path::to_owned);
    let Ok(listing) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<Discovered> = listing
        .filter_map(|file| {
            let file = file.ok()?;
            let name = file.file_name();
            let name = name.to_str()?;
            if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
                return None;
            }
            let reader = Reader::open(file.path()).ok()?;
            Some(Discovered {
                path: file.path(),
                header: reader.header().clone(),
                state: reader.state(),
                published: reader.published(),
            })
        })
        .collect();
    found.sort_by(|a, b| {
        let age = |ring: &Discovered| (ring.header.created_realtime_ns, ring.header.rank);
        age(a).cmp(&age(b)).then_with(|| a.path.cmp(&b.path))
    });
    found
}

/// Shared memory if this process may create files there, else the directory for temporary files.
fn default_directory() -> PathBuf {
    // SAFETY: the path is a C string; the call only asks.
    let writable = unsafe { libc::access(c"/dev/shm".as_ptr(), libc::W_OK | libc::X_OK) } == 0;
    if writable { PathBuf::from("/dev/shm") } else { std::env::temp_dir() }
}
