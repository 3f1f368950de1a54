//! The header page: what is said once about a ring, written before the magic and never changed.
//!
//! The writer stores every field and then the magic with Release, so a reader that sees the magic sees the fields. A
//! reader takes a snapshot: each field is read once, checked against the size of the file, and only the checked copy is
//! used from then on. Whoever changes the file afterwards changes nothing that a reader computes addresses from.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::RingError;
use super::layout::{Geometry, HEADER_BYTES, LAYOUT_VERSION, MAGIC, MAX_RECORDS, SLOT_BYTES, state, word};
use super::os::Process;
use super::sync::load_acquire;

/// What a ring says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// How many records the ring holds before it overwrites the oldest; a power of two.
    pub slots: u64,
    /// The size of the catalog section.
    pub catalog_bytes: u64,
    /// Which set of kinds and values the writer uses: equal hashes mean equal schemas.
    pub schema_hash: u64,
    /// Random; tells two runs apart whatever their files are called.
    pub instance: [u8; 16],
    /// The writer's process.
    pub pid: u32,
    /// When that process started, in clock ticks after boot; 0 if unknown.
    pub pid_start_time: u64,
    /// The inode of that process's pid namespace; 0 if unknown.
    pub pid_namespace: u64,
    /// The writer's rank.
    pub rank: u32,
    /// How many ranks there are.
    pub world: u32,
    /// `CLOCK_MONOTONIC` when the ring was created.
    pub created_monotonic_ns: u64,
    /// `CLOCK_REALTIME` at the same moment, in nanoseconds since 1970.
    pub created_realtime_ns: u64,
    pub(super) geometry: Geometry,
}

impl Header {
    /// Converts the time of a record to nanoseconds since 1970.
    pub fn realtime_ns(&self, time_ns: u64) -> u64 {
        self.created_realtime_ns.wrapping_add(time_ns.wrapping_sub(self.created_monotonic_ns))
    }

    /// The writer's process.
    pub(super) fn process(&self) -> Process {
        Process { pid: self.pid, start_time: self.pid_start_time, namespace: self.pid_namespace }
    }

    /// Fills a new file's header page, the magic last.
    pub(super) fn write(&self, file: &[AtomicU64]) {
        let set = |index: usize, value: u64| file[index].store(value, Ordering::Relaxed);
        set(word::LAYOUT_VERSION, LAYOUT_VERSION);
        set(word::HEADER_BYTES, HEADER_BYTES);
        set(word::SLOT_BYTES, SLOT_BYTES);
        set(word::SLOT_COUNT, self.geometry.slot_count);
        set(word::SLOTS_OFFSET, self.geometry.slots_offset);
        set(word::CATALOG_OFFSET, self.geometry.catalog_offset);
        set(word::CATALOG_BYTES, self.geometry.catalog_bytes);
        set(word::FILE_BYTES, self.geometry.file_bytes);
        set(word::SCHEMA_HASH, self.schema_hash);
        let instance = u128::from_le_bytes(self.instance);
        set(word::INSTANCE, instance as u64);
        set(word::INSTANCE + 1, (instance >> 64) as u64);
        set(word::PID, u64::from(self.pid));
        set(word::PID_START_TIME, self.pid_start_time);
        set(word::PID_NAMESPACE, self.pid_namespace);
        set(word::RANK, u64::from(self.rank));
        set(word::WORLD, u64::from(self.world));
        set(word::MONOTONIC_NS, self.created_monotonic_ns);
        set(word::REALTIME_NS, self.created_realtime_ns);
        set(word::HEARTBEAT, self.created_monotonic_ns);
        set(word::STATE, state::OPEN);
        file[word::MAGIC].store(MAGIC, Ordering::Release);
    }

    /// Reads and checks the header of a file of `size` bytes that is mapped in full.
    pub(super) fn read(file: &[AtomicU64], size: u64, path: &Path) -> Result<Self, RingError> {
        let owned = || path.to_owned();
        if size < HEADER_BYTES {
            return Err(RingError::NotARing { path: owned() });
        }
        match load_acquire(&file[word::MAGIC]) {
            MAGIC => {}
            0 => return Err(RingError::NotReady { path: owned() }),
            _ => return Err(RingError::NotARing { path: owned() }),
        }
        let get = |index: usize| file[index].load(Ordering::Relaxed);
        let flaw = |(field, value, requirement)| RingError::Header { path: path.to_owned(), field, value, requirement };
        let version = get(word::LAYOUT_VERSION);
        if version != LAYOUT_VERSION {
            return Err(RingError::Version { path: owned(), found: version, supported: LAYOUT_VERSION });
        }
        let expect = |field, index, expected, requirement| match get(index) {
            value if value == expected => Ok(()),
            value => Err(flaw((field, value, requirement))),
        };
        expect("header_bytes", word::HEADER_BYTES, HEADER_BYTES, "it must be 4096")?;
        expect("slot_bytes", word::SLOT_BYTES, SLOT_BYTES, "it must be 128")?;

        let geometry = Geometry {
            slot_count: get(word::SLOT_COUNT),
            slots_offset: get(word::SLOTS_OFFSET),
            catalog_offset: get(word::CATALOG_OFFSET),
            catalog_bytes: get(word::CATALOG_BYTES),
            file_bytes: get(word::FILE_BYTES),
        }
        .validate()
        .map_err(flaw)?;
        if size < geometry.file_bytes {
            return Err(RingError::Truncated { path: owned(), size, expected: geometry.file_bytes });
        }

        let narrow = |field, index| {
            let value = get(index);
            u32::try_from(value).map_err(|_| flaw((field, value, "it must fit 32 bits")))
        };
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&get(word::INSTANCE).to_le_bytes());
        instance[8..].copy_from_slice(&get(word::INSTANCE + 1).to_le_bytes());
        let header = Header {
            slots: geometry.slot_count,
            catalog_bytes: geometry.catalog_bytes,
            schema_hash: get(word::SCHEMA_HASH),
            instance,
            pid: narrow("pid", word::PID)?,
            pid_start_time: get(word::PID_START_TIME),
            pid_namespace: get(word::PID_NAMESPACE),
            rank: narrow("rank", word::RANK)?,
            world: narrow("world", word::WORLD)?,
            created_monotonic_ns: get(word::MONOTONIC_NS),
            created_realtime_ns: get(word::REALTIME_NS),
            geometry,
        };

        let state = get(word::STATE);
        if !matches!(state, state::OPEN | state::CLOSED | state::ABANDONED) {
            return Err(flaw(("state", state, "it must be 1, 2 or 3")));
        }
        let published = get(word::PUBLISHED);
        if published > MAX_RECORDS {
            return Err(flaw(("published", published, "no run publishes that many records")));
        }
        let catalog_len = get(word::CATALOG_LEN);
        if catalog_len > geometry.catalog_bytes || !catalog_len.is_multiple_of(8) {
            let requirement = "it must be a multiple of 8 within the catalog section";
            return Err(flaw(("catalog_len", catalog_len, requirement)));
        }
        Ok(header)
    }
}
