//! Reading a ring from C: for languages whose maps of shared memory have no fences.

use super::boundary::{Failure, guard};
use super::status::fgs_status;
use super::text::required;
use crate::ring::{Entry, Poll, Reader, Record};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char};

/// A reader of one ring. Opaque. One thread at a time; any number of readers, in any process.
pub struct fgs_reader {
    reader: Reader,
    names: BTreeMap<(u32, u64), CString>,
}

/// A record of the ring: see docs/statistics for what the values of each kind are. Ids that do not apply are all ones,
/// values that do not apply are NaN.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_record {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// The trainer's step.
    pub step: u64,
    /// What the record is; decides the meaning of `values`.
    pub kind: u16,
    /// 0 head, 1 tensor, 2 role, 3 layer, 4 model.
    pub level: u8,
    pub reserved: u8,
    pub flags: u32,
    pub rank: u32,
    /// The task that was being trained.
    pub task: u16,
    /// The earlier task that it was compared with, or that was evaluated.
    pub reference: u16,
    /// Id of the tensor.
    pub tensor: u32,
    /// Head: role << 16 | number; role; layer: by level.
    pub slice: u32,
    pub values: [f64; 10],
}

/// What `fgs_reader_name` looks up.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_name {
    /// Name of a kind of record.
    FGS_NAME_KIND = 0,
    /// Name of a value: id = kind << 8 | index.
    FGS_NAME_VALUE = 1,
    /// Name of a task.
    FGS_NAME_TASK = 2,
    /// Name of a tensor.
    FGS_NAME_TENSOR = 3,
    /// Name of a role.
    FGS_NAME_ROLE = 4,
    /// Name of a metric.
    FGS_NAME_METRIC = 5,
    /// Name of a level.
    FGS_NAME_LEVEL = 6,
    /// Name of a flag: id = the bit's value.
    FGS_NAME_FLAG = 7,
    /// Name of a fault: id = value 0 of a fault record.
    FGS_NAME_FAULT = 8,
}

/// Opens the ring at `path` for reading, from the oldest record that is still there. It belongs to the caller until
/// `fgs_reader_close`.
///
/// A file that is no ring, or a damaged or hostile one, gives FGS_ERROR_RING and a sentence; no file gives
/// FGS_ERROR_NOT_FOUND.
///
/// # Safety
/// `path` must be NULL or a terminated string; `out` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_reader_open(path: *const c_char, out: *mut *mut fgs_reader) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { out.as_mut() }.ok_or_else(|| Failure::null("out"))?;
        *out = std::ptr::null_mut();
        // SAFETY: the caller's promise.
        let path = unsafe { required(path, "path") }?;
        let reader = Reader::open(path)?;
        *out = Box::into_raw(Box::new(fgs_reader { reader, names: BTreeMap::new() }));
        Ok(fgs_status::FGS_OK)
    })
}

/// The next record in `*record` and FGS_OK; or FGS_EMPTY if there is none at present; or FGS_CLOSED if the writer has
/// ended and everything was read.
///
/// `*lost` receives how many records were overwritten before they could be read since the last call: exactly, usually 0.
/// Never waits. NULL for `lost` if it does not matter.
///
/// # Safety
/// `reader` must come from `fgs_reader_open` and not have been closed; `record` must be NULL or writable, `lost` NULL or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_reader_next(
    reader: *mut fgs_reader,
    record: *mut fgs_record,
    lost: *mut u64,
) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise, for all.
        let (reader, record, lost) = unsafe { (reader.as_mut(), record.as_mut(), lost.as_mut()) };
        let reader = reader.ok_or_else(|| Failure::null("reader"))?;
        let record = record.ok_or_else(|| Failure::null("record"))?;
        let mut missed = 0;
        let status = loop {
            match reader.reader.poll()? {
                Poll::Lost(count) => missed += count,
                Poll::Empty => break fgs_status::FGS_EMPTY,
                Poll::Closed => break fgs_status::FGS_CLOSED,
                Poll::Record(found) => {
                    *record = found.into();
                    break fgs_status::FGS_OK;
                }
            }
        };
        if let Some(lost) = lost {
            *lost = missed;
        }
        Ok(status)
    })
}

/// The name of a task, tensor, kind, … in `*name`: `what` is an fgs_name. The text belongs to the reader and is valid
/// until `fgs_reader_close`. Errors: FGS_ERROR_NOT_FOUND if the catalog does not have it (yet), FGS_ERROR_INVALID (what).
///
/// # Safety
/// `reader` must come from `fgs_reader_open` and not have been closed; `name` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_reader_name(
    reader: *mut fgs_reader,
    what: u32,
    id: u32,
    name: *mut *const c_char,
) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise, for both.
        let (reader, name) = unsafe { (reader.as_mut(), name.as_mut()) };
        let reader = reader.ok_or_else(|| Failure::null("reader"))?;
        let name = name.ok_or_else(|| Failure::null("name"))?;
        if what > fgs_name::FGS_NAME_FAULT as u32 {
            return Err(Failure::invalid(format!("what: {what} is not an fgs_name")));
        }
        while let Some(entry) = reader.reader.poll_catalog()? {
            reader.learn(entry);
        }
        let found = reader.names.get(&(what, u64::from(id)));
        let missing = || Failure::new(fgs_status::FGS_ERROR_NOT_FOUND, format!("id: the catalog has no name for {id}"));
        *name = found.ok_or_else(missing)?.as_ptr();
        Ok(fgs_status::FGS_OK)
    })
}

/// Closes a reader. NULL is fine and does nothing.
///
/// # Safety
/// `reader` must be NULL or come from `fgs_reader_open` and not have been closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_reader_close(reader: *mut fgs_reader) -> fgs_status {
    guard(|| {
        if !reader.is_null() {
            // SAFETY: made by Box::into_raw in fgs_reader_open, and closed once.
            drop(unsafe { Box::from_raw(reader) });
        }
        Ok(fgs_status::FGS_OK)
    })
}

impl fgs_reader {
    fn learn(&mut self, entry: Entry) {
        use fgs_name::*;
        let mut add = |what: fgs_name, id: u64, name: String| {
            // A name that was given out must stay where it is: the first one wins.
            let name = CString::new(name.replace('\0', "?")).unwrap_or_default();
            self.names.entry((what as u32, id)).or_insert(name);
        };
        match entry {
            Entry::Kind { kind, name, values } => {
                add(FGS_NAME_KIND, kind.into(), name);
                for (index, value) in (0..).zip(values) {
                    add(FGS_NAME_VALUE, u64::from(kind) << 8 | index, value);
                }
            }
            Entry::Level { id, name } => add(FGS_NAME_LEVEL, id.into(), name),
            Entry::Role { id, name } => add(FGS_NAME_ROLE, id.into(), name),
            Entry::Task { id, name } => add(FGS_NAME_TASK, id.into(), name),
            Entry::Metric { id, name, .. } => add(FGS_NAME_METRIC, id.into(), name),
            Entry::Tensor(tensor) => add(FGS_NAME_TENSOR, tensor.id.into(), tensor.name),
            Entry::Flag { bit, name } => add(FGS_NAME_FLAG, bit.into(), name),
            Entry::Counter { index, name } => add(FGS_NAME_FAULT, index.into(), name),
            _ => {}
        }
    }
}

impl From<Record> for fgs_record {
    fn from(record: Record) -> Self {
        Self {
            time_ns: record.time_ns,
            step: record.step,
            kind: record.kind,
            level: record.level,
            reserved: record.reserved,
            flags: record.flags,
            rank: record.rank,
            task: record.task,
            reference: record.reference,
            tensor: record.tensor,
            slice: record.slice,
            values: record.values,
        }
    }
}
