//! The ring in one process: what is written is read, and what cannot be done is said.

mod ring_support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use forgetscope::ring::{
    COUNTERS, Entry, Poll, Reader, RingError, TensorEntry, Writer, WriterOptions, WriterState, default_path, discover,
    monotonic_ns,
};
use proptest::prelude::*;
use ring_support::{Tally, directory, record};

fn small(path: &Path) -> WriterOptions {
    WriterOptions { slots: 8, catalog_bytes: 4096, ..WriterOptions::new(path) }
}

#[test]
fn the_header_tells_what_the_writer_was_given() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let before = monotonic_ns();
    let writer = Writer::create(&WriterOptions {
        slots: 1000,
        rank: 3,
        world: 8,
        schema_hash: 0xfeed,
        ..WriterOptions::new(&path)
    })
    .unwrap();
    let reader = Reader::open(&path).unwrap();
    let header = reader.header();
    assert_eq!((header.slots, header.rank, header.world), (1024, 3, 8));
    assert_eq!((header.schema_hash, header.pid), (0xfeed, std::process::id()));
    assert_ne!(header.instance, [0; 16]);
    assert!((before..=monotonic_ns()).contains(&header.created_monotonic_ns));
    assert_eq!(header.realtime_ns(header.created_monotonic_ns + 5), header.created_realtime_ns + 5);
    let mode = std::fs::metadata(writer.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    writer.heartbeat(42);
    assert_eq!(reader.heartbeat(), 42);
}

#[test]
fn the_end_of_a_writer_is_seen_after_its_last_record() {
    let directory = directory();
    for (name, state) in [("closed", WriterState::Closed), ("dropped", WriterState::Died)] {
        let path = directory.path().join(name);
        let mut writer = Writer::create(&small(&path)).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.poll().unwrap(), Poll::Empty);
        assert!(reader.alive());
        writer.publish(&record(1));
        match state {
            WriterState::Closed => writer.close(),
            _ => drop(writer),
        }
        assert_eq!(reader.poll().unwrap(), Poll::Record(record(1)));
        assert_eq!(reader.poll().unwrap(), Poll::Closed);
        assert_eq!((reader.alive(), reader.state()), (false, state));
    }
}

#[test]
fn a_reader_that_comes_late_starts_at_the_oldest_record() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let mut writer = Writer::create(&small(&path)).unwrap();
    (1..=20).for_each(|number| writer.publish(&record(number)));
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!((reader.position(), reader.published()), (12, 20));
    for number in 13..=20 {
        assert_eq!(reader.poll().unwrap(), Poll::Record(record(number)));
    }
    assert_eq!(reader.poll().unwrap(), Poll::Empty);

    writer.publish(&record(21));
    writer.publish(&record(22));
    reader.seek_to_head().unwrap();
    assert_eq!((reader.position(), reader.poll().unwrap()), (22, Poll::Empty));
    writer.publish(&record(23));
    assert_eq!(reader.poll().unwrap(), Poll::Record(record(23)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Any order of publishing and polling, in rings of 1 to 32 slots.
    #[test]
    fn received_and_lost_add_up(
        slots in 1..=32u64,
        bursts in proptest::collection::vec((0..80u64, 0..80usize), 1..20),
    ) {
        let directory = directory();
        let path = directory.path().join("a.ring");
        let options = WriterOptions { slots, catalog_bytes: 0, ..WriterOptions::new(&path) };
        let mut writer = Writer::create(&options).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let mut tally = Tally::default();
        for (publish, poll) in bursts {
            for _ in 0..publish {
                writer.publish(&record(writer.published() + 1));
            }
            for _ in 0..poll {
                tally.note(reader.poll().unwrap());
                prop_assert_eq!(reader.position(), tally.total());
            }
        }
        let published = writer.published();
        writer.close();
        tally.finish(&mut reader);
        prop_assert_eq!(tally.total(), published);
    }
}

#[test]
fn the_catalog_comes_in_order_and_as_it_grows() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let mut writer = Writer::create(&WriterOptions::new(&path)).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.poll_catalog().unwrap(), None);
    let entries = [
        Entry::Kind { kind: 1, name: "interference".into(), values: vec!["cosine".into(), "conflict".into()] },
        Entry::Tensor(TensorEntry {
            id: 7,
            name: "layers.0.attention.wq".into(),
            layer: 0,
            expert: -1,
            head_count: 12,
            rows: 768,
            cols: 768,
            ..TensorEntry::default()
        }),
        Entry::Task { id: 0, name: "Völkerrecht".into() },
    ];
    writer.append(&entries[0]).unwrap();
    assert_eq!(reader.poll_catalog().unwrap().as_ref(), Some(&entries[0]));
    assert_eq!(reader.poll_catalog().unwrap(), None);
    writer.append(&entries[1]).unwrap();
    writer.append(&entries[2]).unwrap();
    assert_eq!(reader.catalog().unwrap(), entries[1..]);
    assert_eq!(Reader::open(&path).unwrap().catalog().unwrap(), entries);
}

#[test]
fn a_full_catalog_is_an_error_and_stays_readable() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let mut writer = Writer::create(&WriterOptions { catalog_bytes: 200 << 10, ..small(&path) }).unwrap();
    let entry = |id: u16| Entry::Task { id, name: format!("task {id}") };
    let (appended, error) = (0..).find_map(|id| writer.append(&entry(id)).err().map(|error| (id, error))).unwrap();
    let RingError::CatalogFull { needed, available } = error else {
        panic!("{error}");
    };
    assert!(needed > available && appended > 5000);
    let large = Entry::Attribute { key: "large".into(), value: "x".repeat(1 << 20) };
    assert!(matches!(writer.append(&large), Err(RingError::CatalogFull { .. })));
    let entries = Reader::open(&path).unwrap().catalog().unwrap();
    assert!(entries.into_iter().eq((0..appended).map(entry)));
}

#[test]
fn counters_add_up_across_threads_and_outlive_the_writer() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let writer = Writer::create(&small(&path)).unwrap();
    let reader = Reader::open(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let counters = writer.counters();
            scope.spawn(move || (0..10_000).for_each(|_| counters.add(COUNTERS - 1, 1)));
        }
    });
    writer.count(0, 5);
    let counters = writer.counters();
    counters.add(COUNTERS, 1);
    writer.close();
    counters.add(0, 1);
    assert_eq!((reader.counter(0), reader.counter(1)), (6, 0));
    assert_eq!(reader.counter(COUNTERS - 1), 40_000);
    assert_eq!((reader.counter(COUNTERS), counters.get(COUNTERS)), (0, 0));
}

/// Data loaders are forked from the trainer and take a copy of everything with them.
#[test]
fn a_forked_child_does_not_end_the_ring_of_its_parent() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let mut writer = Writer::create(&small(&path)).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    // SAFETY: the child unmaps its copy of the ring, closes a file and ends, without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(writer);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) }
    }
    // SAFETY: the child is ours, and its status is not asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    writer.publish(&record(1));
    assert!(reader.alive());
    assert_eq!(reader.poll().unwrap(), Poll::Record(record(1)));
    assert_eq!(reader.poll().unwrap(), Poll::Empty);
}

#[test]
fn a_writer_never_touches_a_file_that_is_there() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    std::fs::write(&path, "precious").unwrap();
    let link = directory.path().join("link.ring");
    symlink(directory.path().join("nowhere"), &link).unwrap();
    for taken in [&path, &link] {
        let error = Writer::create(&small(taken)).err().unwrap();
        assert!(matches!(error, RingError::Exists { .. }), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(!directory.path().join("nowhere").exists());
}

#[test]
fn options_out_of_range_are_refused_before_a_file_is_made() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let none = WriterOptions { slots: 0, ..small(&path) };
    let vast = WriterOptions { catalog_bytes: u64::MAX, ..small(&path) };
    for options in [none, vast] {
        assert!(matches!(Writer::create(&options), Err(RingError::Option { .. })));
    }
    let nowhere = small(Path::new("/nonexistent/a.ring"));
    assert!(matches!(Writer::create(&nowhere), Err(RingError::Io { .. })));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A tmpfs refuses at once what is larger than itself, so this costs nothing; on a machine whose /dev/shm could hold
/// the largest ring, there is nothing to refuse.
#[test]
fn a_file_system_that_is_too_small_is_an_error() {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let options = WriterOptions { slots: 1 << 28, ..WriterOptions::new(&path) };
    if capacity(directory.path()) >= 32 << 30 {
        return;
    }
    let error = Writer::create(&options).err().unwrap();
    assert!(matches!(error, RingError::NoSpace { .. }), "{error}");
    assert!(!path.exists(), "a failed creation leaves nothing behind");
}

/// The size of the file system in bytes; "endless" unless it is a tmpfs.
fn capacity(directory: &Path) -> u64 {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(directory.as_os_str().as_bytes()).unwrap();
    // SAFETY: statfs is plain data, for which zeros are valid.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and `status` is writable.
    let outcome = unsafe { libc::statfs(path.as_ptr(), &mut status) };
    if outcome != 0 || status.f_type != libc::TMPFS_MAGIC {
        return u64::MAX;
    }
    status.f_blocks * status.f_bsize as u64
}

#[test]
fn discovery_finds_rings_and_only_rings() {
    let directory = directory();
    let here = Some(directory.path());
    let create = |rank| Writer::create(&WriterOptions { rank, ..small(&default_path(here, rank)) });
    let mut running = create(0).unwrap();
    running.publish(&record(1));
    create(1).unwrap().close();
    drop(create(2).unwrap());
    std::fs::write(default_path(here, 3), "no ring").unwrap();
    std::fs::write(directory.path().join("other.ring"), "no ring").unwrap();
    symlink(running.path(), default_path(here, 4)).unwrap();

    let found = discover(here);
    let states: Vec<_> = found.iter().map(|ring| (ring.header.rank, ring.state, ring.published)).collect();
    let expected = [(0, WriterState::Running, 1), (1, WriterState::Closed, 0), (2, WriterState::Died, 0)];
    assert_eq!(states, expected);
    assert_eq!(found[0].path, running.path());
    assert!(discover(Some(Path::new("/nonexistent"))).is_empty());
    assert_ne!(default_path(None, 0), default_path(None, 0));
}
