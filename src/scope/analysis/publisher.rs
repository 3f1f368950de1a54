//! Fills in what all records have in common and writes them to the ring.

use super::rollup::Subject;
use crate::ring::{Entry, NONE16, Record, Writer, monotonic_ns};
use crate::scope::message::TaskId;
use crate::scope::schema::{Fault, kind};

/// The ring's producer.
pub struct Publisher {
    writer: Writer,
    rank: u32,
    /// The task that is being trained.
    pub task: Option<TaskId>,
    /// Time, number and flags of the step that is being evaluated.
    pub time_ns: u64,
    pub step: u64,
    pub flags: u32,
    catalog_full: bool,
}

impl Publisher {
    pub fn new(writer: Writer, rank: u32) -> Self {
        Self { writer, rank, task: None, time_ns: 0, step: 0, flags: 0, catalog_full: false }
    }

    /// A record of the step that is being evaluated, or of now.
    pub fn record(&self, kind: u16, subject: Subject) -> Record {
        Record {
            time_ns: if self.time_ns == 0 { monotonic_ns() } else { self.time_ns },
            step: self.step,
            kind,
            level: subject.level,
            flags: self.flags,
            rank: self.rank,
            task: self.task.unwrap_or(NONE16),
            tensor: subject.tensor,
            slice: subject.slice,
            ..Record::default()
        }
    }

    /// Publishes a record with these values; the rest of the ten stay NaN.
    pub fn publish(&mut self, mut record: Record, values: &[f64]) {
        record.values[..values.len()].copy_from_slice(values);
        self.writer.publish(&record);
    }

    /// Publishes a record that is complete.
    pub fn write(&mut self, record: &Record) {
        self.writer.publish(record);
    }

    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Adds to the ring's catalog. A full catalog costs names, nothing else.
    pub fn name(&mut self, entry: &Entry) {
        if self.writer.append(entry).is_err() && !std::mem::replace(&mut self.catalog_full, true) {
            // Said once: further names would only push records of value out of the ring.
            self.fault(Fault::CatalogFull as u8, self.step);
        }
    }

    /// Counts a fault and publishes it.
    pub fn fault(&mut self, code: u8, step: u64) {
        self.writer.count(usize::from(code), 1);
        let count = self.writer.counters().get(usize::from(code));
        let record = Record { step, time_ns: monotonic_ns(), ..self.record(kind::FAULT, Subject::MODEL) };
        self.publish(record, &[f64::from(code), count as f64]);
    }

    pub fn heartbeat(&mut self) {
        self.time_ns = 0;
        self.writer.heartbeat(monotonic_ns());
    }

    pub fn close(self) {
        self.writer.close();
    }
}
