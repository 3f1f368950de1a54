//! Where everything is in the file: 4096 bytes, little-endian 64-bit words.
//!
//! What is said once is written before the magic and never changed, as in a ring. The step, the request and the answer have
//! a 128-byte line or more each, so that a client that waits does not slow the server down. docs/control.md is this file in
//! prose; what is changed here must be changed there, together with [`VERSION`].

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ring::{Process, load_acquire};

/// "FGSCTRL\0" in the first eight bytes.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"FGSCTRL\0");
/// Changes whenever one side would misread the other.
pub(super) const VERSION: u64 = 1;
/// Size of the file.
pub const PAGE_BYTES: u64 = 4096;
/// Most bytes of a name in a command.
pub const LONGEST_NAME: usize = 255;
/// Most bytes of an answer's sentence.
pub(super) const LONGEST_TEXT: usize = 511;
/// Most bytes of the job's name.
const LONGEST_JOB: usize = 63;

/// Indices of words.
pub(super) mod word {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const PAGE_BYTES: usize = 2;
    pub const INSTANCE: usize = 3; // and 4
    pub const PID: usize = 5;
    pub const PID_START_TIME: usize = 6;
    pub const PID_NAMESPACE: usize = 7;
    pub const RANK: usize = 8;
    pub const WORLD: usize = 9;
    pub const JOB: usize = 16; // length, then text

    pub const STATE: usize = 512 / 8;
    pub const STEP: usize = 640 / 8;

    pub const REQUEST: usize = 1024 / 8;
    pub const KIND: usize = REQUEST + 1;
    pub const AT_STEP: usize = REQUEST + 2;
    pub const NUMBER: usize = REQUEST + 3;
    pub const NAME: usize = REQUEST + 4; // length, then text

    pub const ANSWERED: usize = 2048 / 8;
    pub const STATUS: usize = ANSWERED + 1;
    pub const ANSWER_STEP: usize = ANSWERED + 2;
    pub const TEXT: usize = ANSWERED + 3; // length, then text
}

/// Values of the word `STATE`.
pub(super) mod state {
    pub const OPEN: u64 = 1;
    pub const CLOSED: u64 = 2;
}

const _: () = {
    assert!(8 * (word::JOB + 1) + LONGEST_JOB < 512);
    assert!(8 * (word::NAME + 1) + LONGEST_NAME < 2048);
    assert!(8 * (word::TEXT + 1) + LONGEST_TEXT < PAGE_BYTES as usize);
};

/// The page that belongs to a ring.
pub fn page_path(ring: &Path) -> PathBuf {
    let mut path = ring.as_os_str().to_owned();
    path.push(".ctl");
    path.into()
}

/// Who takes the commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// That of the ring.
    pub instance: [u8; 16],
    pub rank: u32,
    pub world: u32,
    /// The same for all ranks that were started together. What is longer than 63 bytes is shortened in the page.
    pub job: String,
}

/// Writes what is said once, the magic last.
pub(super) fn write_identity(page: &[AtomicU64], identity: &Identity) {
    let set = |index: usize, value: u64| page[index].store(value, Ordering::Relaxed);
    let (process, instance) = (Process::current(), u128::from_le_bytes(identity.instance));
    set(word::VERSION, VERSION);
    set(word::PAGE_BYTES, PAGE_BYTES);
    set(word::INSTANCE, instance as u64);
    set(word::INSTANCE + 1, (instance >> 64) as u64);
    set(word::PID, u64::from(process.pid));
    set(word::PID_START_TIME, process.start_time);
    set(word::PID_NAMESPACE, process.namespace);
    set(word::RANK, u64::from(identity.rank));
    set(word::WORLD, u64::from(identity.world));
    write_text(&page[word::JOB..], &short_job(&identity.job));
    set(word::STATE, state::OPEN);
    page[word::MAGIC].store(MAGIC, Ordering::Release);
}

/// A job's name as it fits: a long one is its beginning and a number that stands for all of it, so that two of them which
/// begin alike are not taken for one.
pub(super) fn short_job(job: &str) -> Cow<'_, str> {
    if job.len() <= LONGEST_JOB {
        return job.into();
    }
    // FNV-1a, which is the same in every version and on every machine.
    let hash =
        job.bytes().fold(0xcbf29ce484222325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3));
    let number = format!("~{hash:016x}");
    format!("{}{number}", &job[..job.floor_char_boundary(LONGEST_JOB - number.len())]).into()
}

/// Reads and checks what is said once; else what is wrong with it.
pub(super) fn read_identity(page: &[AtomicU64]) -> Result<(Identity, Process), String> {
    let get = |index: usize| page[index].load(Ordering::Relaxed);
    match load_acquire(&page[word::MAGIC]) {
        MAGIC => {}
        0 => return Err("it is still being created; try again in a moment".into()),
        _ => return Err("it does not start with the magic \"FGSCTRL\\0\"".into()),
    }
    if get(word::VERSION) != VERSION {
        let found = get(word::VERSION);
        return Err(format!("it has version {found} and this program knows {VERSION}; use the one that belongs to it"));
    }
    if get(word::PAGE_BYTES) != PAGE_BYTES {
        return Err(format!("its field `page_bytes` is {}, not {PAGE_BYTES}", get(word::PAGE_BYTES)));
    }
    let narrow = |field: &str, index: usize| {
        u32::try_from(get(index)).map_err(|_| format!("its field `{field}` is {}, beyond 32 bits", get(index)))
    };
    let mut instance = [0; 16];
    instance[..8].copy_from_slice(&get(word::INSTANCE).to_le_bytes());
    instance[8..].copy_from_slice(&get(word::INSTANCE + 1).to_le_bytes());
    let identity = Identity {
        instance,
        rank: narrow("rank", word::RANK)?,
        world: narrow("world", word::WORLD)?,
        job: read_text(&page[word::JOB..], LONGEST_JOB).map_err(|error| format!("its field `job`: {error}"))?,
    };
    let (start_time, namespace) = (get(word::PID_START_TIME), get(word::PID_NAMESPACE));
    Ok((identity, Process { pid: narrow("pid", word::PID)?, start_time, namespace }))
}

/// Stores a length and a text.
pub(super) fn write_text(words: &[AtomicU64], text: &str) {
    words[0].store(text.len() as u64, Ordering::Relaxed);
    for (word, bytes) in words[1..].iter().zip(text.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
    }
}

/// Reads a length and a text of at most `longest` bytes; else what is wrong with it.
pub(super) fn read_text(words: &[AtomicU64], longest: usize) -> Result<String, String> {
    let length = words[0].load(Ordering::Relaxed);
    if length > longest as u64 {
        return Err(format!("a text of {length} bytes, where {longest} are allowed"));
    }
    let length = length as usize;
    let words = words[1..].iter().take(length.div_ceil(8));
    let mut bytes: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| "a text that is not UTF-8".into())
}
