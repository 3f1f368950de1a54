//! Files that are no rings, were rings once, or pretend to be: an error or a reading, never a crash and never a hang.
//!
//! A crash would be a signal that ends the whole test process, so every case that returns is a case passed; `exercise`
//! adds that reading ends after a bounded number of steps.

mod ring_support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forgetscope::ring::{
    COUNTERS, Entry, HEADER_BYTES, MAGIC, Poll, Reader, RingError, SLOT_BYTES, TensorEntry, Writer, WriterOptions,
};
use proptest::prelude::*;
use ring_support::{directory, record};

const SLOTS: u64 = 16;
const CATALOG_BYTES: u64 = 4096;

/// Bytes of the header's fields, as docs/ring.md lists them.
const FIELDS: [u64; 23] =
    [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 1024, 1152, 1280, 1408];
const PUBLISHED: u64 = 1152;
const CATALOG_LEN: u64 = 1408;

/// Numbers that break arithmetic, offsets and counts.
const NASTY: [u64; 21] = [
    0,
    1,
    2,
    7,
    8,
    15,
    17,
    127,
    128,
    4095,
    4096,
    4097,
    8192,
    1 << 31,
    1 << 32,
    1 << 47,
    1 << 62,
    (1 << 62) + 1,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];

/// A well-formed ring that has been overwritten twice, with a catalog, closed.
fn valid(directory: &Path) -> Vec<u8> {
    let path = directory.join("valid.ring");
    let mut writer =
        Writer::create(&WriterOptions { slots: SLOTS, catalog_bytes: CATALOG_BYTES, ..WriterOptions::new(&path) })
            .unwrap();
    for id in 0..12 {
        let tensor = TensorEntry { id, name: format!("layers.{id}.weight"), ..TensorEntry::default() };
        writer.append(&Entry::Tensor(tensor)).unwrap();
    }
    let kind = Entry::Kind { kind: 1, name: "interference".into(), values: vec!["cosine".into(), "conflict".into()] };
    writer.append(&kind).unwrap();
    (1..=40).for_each(|number| writer.publish(&record(number)));
    writer.close();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

/// Does everything that a reader can do with a file. The outcome is of no interest, only that there is one.
fn exercise(path: &Path) -> Result<u64, RingError> {
    let mut reader = Reader::open(path)?;
    let _ = (reader.state(), reader.alive(), reader.published(), reader.heartbeat());
    let _ = (0..=COUNTERS).map(|index| reader.counter(index)).sum::<u64>();
    let _ = format!("{:?} {}", reader.header(), reader.header().realtime_ns(u64::MAX));

    // Entries may be damaged one by one; each takes at least a word, so they come to an end.
    let words = reader.header().catalog_bytes / 8;
    let mut stuck = None;
    for step in 0.. {
        assert!(step <= 2 * words + 2, "the catalog has no end");
        match reader.poll_catalog() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                let text = error.to_string();
                assert!(text.len() > 20, "an error is a sentence");
                if stuck.replace(text.clone()) == Some(text) {
                    break;
                }
            }
        }
    }

    let mut records = 0;
    for step in 0.. {
        assert!(step <= 8 * SLOTS.max(reader.header().slots) + 8, "the ring has no end");
        match reader.poll()? {
            Poll::Record(_) => records += 1,
            Poll::Lost(_) => {}
            Poll::Empty | Poll::Closed => break,
        }
    }
    reader.seek_to_head()?;
    reader.poll()?;
    Ok(records)
}

/// A file that is rewritten for each case.
struct Case {
    path: PathBuf,
    file: File,
}

impl Case {
    fn new(directory: &Path) -> Self {
        let path = directory.join("case.ring");
        let file = File::create(&path).unwrap();
        Case { path, file }
    }

    fn run(&self, bytes: &[u8]) -> Result<u64, RingError> {
        self.file.set_len(bytes.len() as u64).unwrap();
        self.file.write_all_at(bytes, 0).unwrap();
        exercise(&self.path)
    }
}

fn set(bytes: &mut [u8], offset: u64, value: u64) {
    bytes[offset as usize..][..8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], offset: u64) -> u64 {
    u64::from_le_bytes(bytes[offset as usize..][..8].try_into().unwrap())
}

#[test]
fn the_valid_file_is_read_in_full() {
    let directory = directory();
    let bytes = valid(directory.path());
    assert_eq!(Case::new(directory.path()).run(&bytes).unwrap(), SLOTS);
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("valid"), valid(directory.path())).unwrap();
    symlink(at("valid"), at("link")).unwrap();
    let fifo = std::ffi::CString::new(at("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    let others = ["link", "fifo", "socket", "directory"].map(at);
    let devices = ["/dev/null", "/dev/zero"].map(PathBuf::from);
    for path in others.iter().chain(&devices) {
        let error = exercise(path).unwrap_err();
        assert!(matches!(error, RingError::NotAFile { .. }), "{error}");
    }
    assert!(matches!(exercise(&at("missing")), Err(RingError::Io { .. })));
}

#[test]
fn a_truncated_file_is_an_error_at_every_length() {
    let directory = directory();
    let bytes = valid(directory.path());
    let case = Case::new(directory.path());
    let around = |length: u64| length.saturating_sub(9)..length + 10;
    let lengths = (0..200)
        .chain((0..bytes.len() as u64).step_by(61))
        .chain(FIELDS.into_iter().flat_map(around))
        .chain([HEADER_BYTES, HEADER_BYTES + CATALOG_BYTES].into_iter().flat_map(around))
        .chain(bytes.len() as u64 - 200..bytes.len() as u64);
    for length in lengths {
        let error = case.run(&bytes[..length as usize]).unwrap_err();
        assert!(!matches!(error, RingError::Io { .. }), "{length}: {error}");
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let directory = directory();
    let bytes = valid(directory.path());
    let path = directory.path().join("shrinking.ring");
    for length in [0, 100, HEADER_BYTES, bytes.len() as u64 - 1] {
        fs::write(&path, &bytes).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        assert!(matches!(reader.poll(), Err(RingError::Truncated { .. })));
        assert!(matches!(reader.poll_catalog(), Err(RingError::Truncated { .. })));
        assert!(matches!(reader.seek_to_head(), Err(RingError::Truncated { .. })));
        assert_eq!((reader.published(), reader.counter(0), reader.alive()), (0, 0, false));
    }
}

#[test]
fn each_header_field_may_hold_anything() {
    let directory = directory();
    let bytes = valid(directory.path());
    let case = Case::new(directory.path());
    for field in FIELDS {
        let truth = get(&bytes, field);
        let near = [truth.wrapping_sub(1), truth + 1, truth ^ 8, truth << 1, truth << 32];
        for value in NASTY.into_iter().chain(near) {
            let mut damaged = bytes.clone();
            set(&mut damaged, field, value);
            let _ = case.run(&damaged);
        }
    }
    // Those from which addresses are computed must be refused, not survived by luck.
    for (name, field) in [("slot_count", 32), ("slots_offset", 40), ("catalog_offset", 48)] {
        let mut damaged = bytes.clone();
        set(&mut damaged, field, 1 << 40);
        let error = case.run(&damaged).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn pairs_of_nasty_sizes_do_not_overflow() {
    let directory = directory();
    let bytes = valid(directory.path());
    let case = Case::new(directory.path());
    let sizes = [32, 40, 48, 56, 64];
    for (i, first) in sizes.into_iter().enumerate() {
        for second in sizes.into_iter().skip(i + 1) {
            for a in NASTY {
                for b in NASTY {
                    let mut damaged = bytes.clone();
                    set(&mut damaged, first, a);
                    set(&mut damaged, second, b);
                    let _ = case.run(&damaged);
                }
            }
        }
    }
}

#[test]
fn sequences_and_counts_may_lie() {
    let directory = directory();
    let bytes = valid(directory.path());
    let case = Case::new(directory.path());
    for published in NASTY {
        for sequence in NASTY {
            let mut damaged = bytes.clone();
            set(&mut damaged, PUBLISHED, published);
            for slot in (0..SLOTS).step_by(3) {
                let offset = HEADER_BYTES + CATALOG_BYTES + slot * SLOT_BYTES;
                set(&mut damaged, offset, sequence);
            }
            let _ = case.run(&damaged);
        }
    }
}

#[test]
fn lengths_in_the_catalog_may_lie() {
    let directory = directory();
    let bytes = valid(directory.path());
    let case = Case::new(directory.path());
    let written = get(&bytes, CATALOG_LEN);
    for offset in (HEADER_BYTES..HEADER_BYTES + written).step_by(8) {
        for value in NASTY {
            let mut damaged = bytes.clone();
            set(&mut damaged, offset, value);
            let _ = case.run(&damaged);
        }
    }
    for value in NASTY {
        let mut damaged = bytes.clone();
        set(&mut damaged, CATALOG_LEN, value);
        let _ = case.run(&damaged);
    }
}

#[test]
fn every_flipped_bit_of_the_header_and_many_of_the_rest() {
    let directory = directory();
    let bytes = valid(directory.path());
    let case = Case::new(directory.path());
    let fields = FIELDS.into_iter().flat_map(|field| field * 8..field * 8 + 64);
    let rest = (HEADER_BYTES * 8..bytes.len() as u64 * 8).step_by(13);
    for bit in fields.chain(rest) {
        let mut damaged = bytes.clone();
        damaged[bit as usize / 8] ^= 1 << (bit % 8);
        let _ = case.run(&damaged);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..6000), magic in any::<bool>()) {
        let directory = directory();
        let mut bytes = bytes;
        if magic && bytes.len() >= 16 {
            set(&mut bytes, 0, MAGIC);
            set(&mut bytes, 8, 1);
        }
        prop_assert!(Case::new(directory.path()).run(&bytes).is_err());
    }
}

/// Somebody with write access scribbles over header, catalog and slots while the ring is read. (Cutting it short at the
/// wrong moment is the one thing that cannot be survived: see the documentation of the reader.)
#[test]
fn a_file_that_changes_while_it_is_read() {
    let directory = directory();
    let bytes = valid(directory.path());
    let path = directory.path().join("restless.ring");
    fs::write(&path, &bytes).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            let mut chance = 88_172_645_463_325_252_u64;
            while !done.load(Ordering::Relaxed) {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                let offset = chance % (bytes.len() as u64 / 8) * 8;
                let truth = get(&bytes, offset);
                let value = match chance >> 60 {
                    0..4 => NASTY[(chance >> 32) as usize % NASTY.len()],
                    4 => chance,
                    _ => truth,
                };
                file.write_all_at(&value.to_le_bytes(), offset).unwrap();
                // The header is mended so that readers get in.
                file.write_all_at(&bytes[..152], 0).unwrap();
            }
        });
        let end = Instant::now() + Duration::from_secs(1);
        let (mut readings, mut errors) = (0, 0);
        while Instant::now() < end {
            let Ok(mut reader) = Reader::open(&path) else {
                errors += 1;
                continue;
            };
            for _ in 0..200 {
                let _ = (reader.poll(), reader.poll_catalog());
            }
            readings += 1;
        }
        done.store(true, Ordering::Relaxed);
        println!("{readings} readings, {errors} refusals");
        assert_ne!(readings, 0);
    });
}
