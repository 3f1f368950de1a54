//! The file as docs/ring.md describes it, read byte by byte without the library's reader: whoever follows that page in
//! another language finds what it promises.

mod ring_support;

use forgetscope::ring::{Entry, Record, TensorEntry, Writer, WriterOptions};
use ring_support::{directory, record};

/// Little-endian fields at offsets of a file.
struct Bytes(Vec<u8>);

impl Bytes {
    fn array<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.0[offset as usize..][..N].try_into().unwrap()
    }

    fn u64(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    fn u32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }
}

/// A ring of 4 slots through which 6 records have gone, with one catalog entry, as it is while its writer is at work.
fn ring(entry: &Entry) -> Bytes {
    let directory = directory();
    let path = directory.path().join("a.ring");
    let mut writer = Writer::create(&WriterOptions {
        slots: 3,
        catalog_bytes: 1,
        rank: 5,
        world: 6,
        schema_hash: 7,
        ..WriterOptions::new(&path)
    })
    .unwrap();
    writer.append(entry).unwrap();
    (1..=6).for_each(|number| writer.publish(&record(number)));
    writer.count(63, 9);
    writer.heartbeat(8);
    Bytes(std::fs::read(&path).unwrap())
}

fn task() -> Entry {
    Entry::Task { id: 258, name: "legal".into() }
}

#[test]
fn the_header() {
    let file = ring(&task());
    assert_eq!(&file.array::<8>(0), b"FGSRING\0");
    let fixed = [1, 4096, 128, 4, 8192, 4096, 4096, 8192 + 4 * 128, 7];
    for (index, expected) in (1..).zip(fixed) {
        assert_eq!(file.u64(8 * index), expected, "byte {}", 8 * index);
    }
    assert_eq!(file.0.len() as u64, file.u64(64));
    assert_ne!(file.array::<16>(80), [0; 16]);
    assert_eq!(file.u64(96), u64::from(std::process::id()));
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start_time = stat.rsplit(')').next().unwrap().split_whitespace().nth(22 - 3).unwrap();
    assert_eq!(file.u64(104).to_string(), start_time);
    assert_eq!((file.u64(120), file.u64(128)), (5, 6));
    assert!(file.u64(136) > 0 && file.u64(144) > 1_600_000_000_000_000_000);
    assert_eq!([1024, 1152, 1280, 1408].map(|at| file.u64(at)), [1, 6, 8, 24]);
    assert_eq!((file.u64(2048), file.u64(2048 + 63 * 8)), (0, 9));
}

#[test]
fn the_slots() {
    let file = ring(&task());
    for number in 3..=6 {
        let slot = file.u64(40) + (number - 1) % 4 * 128;
        assert_eq!(file.u64(slot), 2 * number);
        let found = Record {
            time_ns: file.u64(slot + 8),
            step: file.u64(slot + 16),
            kind: file.u16(slot + 24),
            level: file.array::<1>(slot + 26)[0],
            reserved: file.array::<1>(slot + 27)[0],
            flags: file.u32(slot + 28),
            rank: file.u32(slot + 32),
            task: file.u16(slot + 36),
            reference: file.u16(slot + 38),
            tensor: file.u32(slot + 40),
            slice: file.u32(slot + 44),
            values: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(|i| f64::from_le_bytes(file.array(slot + 48 + 8 * i))),
        };
        assert_eq!(found, record(number));
    }
}

#[test]
fn the_catalog() {
    let file = ring(&task());
    let start = file.u64(48);
    let body = [&[2, 1], &5u32.to_le_bytes()[..], b"legal"].concat();
    assert_eq!((file.u32(start), file.u16(start + 4), file.u16(start + 6)), (11, 7, 0));
    assert_eq!(file.array::<11>(start + 8)[..], body);
    assert_eq!(file.array::<5>(start + 19), [0; 5]);
}

/// The body of each type of entry, put together field by field as the page lists them.
#[test]
fn the_types_of_entries() {
    let text = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let tensor = TensorEntry {
        id: 1,
        name: "w".into(),
        role: 2,
        layer: -1,
        expert: 3,
        head_count: 4,
        kv_head_count: 5,
        rows: 6,
        cols: 7,
        group: 8,
        flags: 9,
    };
    let mut tensor_body = [&1u32.to_le_bytes()[..], &text("w"), &2u16.to_le_bytes(), &(-1i32).to_le_bytes()].concat();
    tensor_body.extend([3u32, 4, 5].into_iter().flat_map(u32::to_le_bytes));
    tensor_body.extend([6u64, 7].into_iter().flat_map(u64::to_le_bytes));
    tensor_body.extend([8u32, 9].into_iter().flat_map(u32::to_le_bytes));

    let name = || String::from("name");
    let kind = Entry::Kind { kind: 1, name: name(), values: vec!["a".into(), "bc".into()] };
    let slice = Entry::Slice { tensor: 1, slice: 2, name: name(), role: 3, numel: 4 };
    let metric = Entry::Metric { id: 1, name: name(), higher_is_better: true };
    let attribute = Entry::Attribute { key: "key".into(), value: "value".into() };
    let (one16, one32) = (1u16.to_le_bytes(), 1u32.to_le_bytes());
    let cases = [
        (1, kind, [&one16[..], &text("name"), &2u32.to_le_bytes(), &text("a"), &text("bc")].concat()),
        (2, Entry::Level { id: 1, name: name() }, [&[1], &text("name")[..]].concat()),
        (3, Entry::Flag { bit: 1, name: name() }, [&one32[..], &text("name")].concat()),
        (4, Entry::Role { id: 1, name: name() }, [&one16[..], &text("name")].concat()),
        (5, Entry::Tensor(tensor), tensor_body),
        (6, slice, [&one32[..], &2u32.to_le_bytes(), &text("name"), &3u16.to_le_bytes(), &4u64.to_le_bytes()].concat()),
        (7, Entry::Task { id: 1, name: name() }, [&one16[..], &text("name")].concat()),
        (8, metric, [&one16[..], &text("name"), &[1]].concat()),
        (9, Entry::Counter { index: 1, name: name() }, [&[1], &text("name")[..]].concat()),
        (10, attribute, [text("key"), text("value")].concat()),
    ];
    for (code, entry, body) in cases {
        let file = ring(&entry);
        let start = file.u64(48);
        assert_eq!((file.u32(start) as usize, file.u16(start + 4)), (body.len(), code), "{entry:?}");
        assert_eq!(file.0[start as usize + 8..][..body.len()], body, "{entry:?}");
        let end = start + 8 + body.len().next_multiple_of(8) as u64;
        assert_eq!(file.u64(1408), end - start, "{entry:?}");
    }
}
