//! What probes read: sampled rows of activations and of attention, straight into pinned memory.
//!
//! Row numbers are read by the kernels from pinned memory too, once per row: a table on the device would not pay for
//! its upload.

use super::driver::Result;
use super::memory::{Buffer, Kind};
use super::results::{Landing, Slot};
use super::table::{self, AttentionParams, AttentionRowEntry, RowsParams, SlotHeader, ViewEntry};
use super::{Cuda, CudaError};
use crate::device::{AttentionFound, AttentionJob, AttentionRow, AttentionSource, Pending, RowsJob, Stream, Strided};
use bytemuck::Pod;
use std::sync::Arc;

/// Where results begin in a slot, behind the header.
const FIRST: usize = size_of::<SlotHeader>();

/// A slot and a pinned table for one launch.
struct Prepared {
    slot: Arc<Slot>,
    table: Buffer,
    landing: table::Landing,
}

impl Cuda {
    pub(super) fn probe_rows(&self, stream: Stream, job: RowsJob) -> Pending<Vec<f32>> {
        let count = job.rows.len() * job.runs * job.length;
        if count == 0 {
            return Pending::ready(Vec::new());
        }
        match self.guarded(|| self.enqueue_rows(stream, &job, count)) {
            Ok(landing) => Pending::landing(move || {
                let found = landing.look()?;
                Some(found.map(|slot| slot.values(FIRST, count).to_vec()))
            }),
            Err(error) => self.lost(&error),
        }
    }

    fn enqueue_rows(&self, stream: Stream, job: &RowsJob, count: usize) -> Result<Landing> {
        let blocks = launchable(job.rows.len())?;
        self.probe(stream, FIRST + 4 * count, job.rows, |prepared, handle| {
            let params = RowsParams {
                landing: prepared.landing,
                base: job.memory.address() as u64,
                rows: prepared.table.address(),
                runs: job.runs as u64,
                run_step: job.run_step,
                length: job.length as u64,
                step: job.step,
                format: table::format(job.memory.dtype),
                unused: 0,
            };
            // SAFETY: slot and table live until the result has landed (`probe`); the rows lie in memory that is readable in
            // the order of the stream (Memory::on_device).
            unsafe { self.kernels.rows.launch(blocks, 0, handle, &params) }
        })
    }

    pub(super) fn probe_attention(&self, stream: Stream, job: AttentionJob) -> Pending<AttentionFound> {
        let (rows, heads) = (job.rows.len(), job.heads);
        let keys: usize = job.rows.iter().map(|row| row.keys).sum();
        if rows * heads == 0 {
            let max_logits = vec![f32::NAN; heads];
            return Pending::ready(AttentionFound { probabilities: Vec::new(), max_logits, off: 0.0 });
        }
        match self.guarded(|| self.enqueue_attention(stream, &job, keys * heads)) {
            Ok((landing, first_value)) => Pending::landing(move || {
                let found = landing.look()?;
                Some(found.map(|slot| AttentionFound {
                    probabilities: slot.values(first_value, keys * heads).to_vec(),
                    ..summary(slot.values(FIRST, rows * heads), heads)
                }))
            }),
            Err(error) => self.lost(&error),
        }
    }

    fn enqueue_attention(&self, stream: Stream, job: &AttentionJob, values: usize) -> Result<(Landing, usize)> {
        let of_rows = job.rows.len() * job.heads;
        let blocks = launchable(of_rows)?;
        let first_value = FIRST + 8 * of_rows;
        let mut out = 0;
        let entry = |row: &AttentionRow| {
            let &AttentionRow { sequence, position, first_key, keys } = row;
            let entry = AttentionRowEntry { sequence, position, first_key, keys: keys as u64, out };
            out += (keys * job.heads) as u64;
            entry
        };
        let rows: Vec<_> = job.rows.iter().map(entry).collect();
        let scratch = self.context.allocate_about(Kind::Device, 4 * values)?;
        let landing = self.probe(stream, first_value + 4 * values, &rows, |prepared, handle| {
            let mut params = AttentionParams {
                landing: prepared.landing,
                rows: prepared.table.address(),
                probabilities: ViewEntry::default(),
                query: ViewEntry::default(),
                key: ViewEntry::default(),
                log_sum_exp: ViewEntry::default(),
                width: 0,
                group: 1,
                out_rows: FIRST as u64,
                out_values: first_value as u64,
                scratch: scratch.address(),
                scale: 1.0,
                softcap: 0.0,
                heads: job.heads as u32,
                unused: 0,
            };
            match &job.source {
                AttentionSource::Probabilities { probabilities, log_sum_exp } => {
                    params.probabilities = view(probabilities);
                    params.log_sum_exp = log_sum_exp.as_ref().map(view).unwrap_or_default();
                }
                AttentionSource::QueryKey(source) => {
                    (params.query, params.key) = (view(&source.query), view(&source.key));
                    params.log_sum_exp = source.log_sum_exp.as_ref().map(view).unwrap_or_default();
                    (params.width, params.group) = (source.query.shape()[3], source.group);
                    (params.scale, params.softcap) = (source.scale, source.softcap);
                }
            }
            // SAFETY: slot, table and scratch live until the result has landed, or are handed on to work that is ordered
            // behind; the views are readable in the order of the stream (Memory::on_device).
            unsafe { self.kernels.attention.launch(blocks, 0, handle, &params) }
        })?;
        Ok((landing, first_value))
    }

    /// Enqueues one launch that reads `entries` from pinned memory and fills a slot of so many bytes.
    fn probe<T: Pod>(
        &self,
        stream: Stream,
        bytes: usize,
        entries: &[T],
        launch: impl FnOnce(&Prepared, cudarc::driver::sys::CUstream) -> Result<()>,
    ) -> Result<Landing> {
        let slot = Arc::new(Slot::new(self.context.allocate_about(Kind::Pinned, bytes)?));
        let table = self.context.allocate_about(Kind::Pinned, size_of_val(entries))?;
        let entries: &[u8] = bytemuck::cast_slice(entries);
        // SAFETY: the table is at least as long and nobody else's.
        unsafe { table.host().copy_from_nonoverlapping(entries.as_ptr(), entries.len()) };
        self.state.lock().on(stream, |state, stream| {
            let sequence = state.next();
            let done = state.done(stream)?;
            let landing =
                table::Landing { slot: slot.address(), slot_bytes: slot.bytes() as u64, sequence, done, control: 0 };
            let prepared = Prepared { slot, table, landing };
            launch(&prepared, stream)?;
            let Prepared { slot, table, .. } = prepared;
            state.keep(slot.clone(), sequence, vec![table]);
            Ok(Landing::new(slot, sequence, self.health.clone()))
        })
    }
}

/// So many blocks, if a launch can have them.
fn launchable(blocks: usize) -> Result<u32> {
    i32::try_from(blocks).map(|blocks| blocks as u32).map_err(|_| CudaError::Pointer("more than 2³¹ rows".into()))
}

fn view(view: &Strided) -> ViewEntry {
    let mut strides = [0; 4];
    strides[..view.strides().len()].copy_from_slice(view.strides());
    ViewEntry { base: view.memory.address() as u64, format: table::format(view.memory.dtype), unused: 0, strides }
}

/// Sums and largest logits of all rows, heads of a row side by side.
fn summary(found: &[[f32; 2]], heads: usize) -> AttentionFound {
    let mut max_logits = vec![f32::NAN; heads];
    let mut off = 0.0f32;
    for row in found.chunks_exact(heads) {
        for ([sum, logit], most) in row.iter().zip(&mut max_logits) {
            // Of two numbers the larger, of a number and NaN the number; but a sum that is none stays.
            *most = most.max(*logit);
            let distance = (sum - 1.0).abs();
            off = if off.is_nan() || distance.is_nan() { f32::NAN } else { off.max(distance) };
        }
    }
    AttentionFound { probabilities: Vec::new(), max_logits, off }
}
