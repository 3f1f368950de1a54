//! Moving parameters: slices to host vectors and back, for curvature runs.
//!
//! A Krylov basis is many vectors as long as the model, for which the host has room and the device has not; so vectors stay
//! on the host, and what a request moves crosses the bus once. These calls wait for the device: the trainer has to compute
//! at the moved weights next.

use super::driver::{Result, call};
use super::memory::{Buffer, Kind};
use super::module::Kernels;
use super::pass::State;
use super::table::{self, MoveParams, Run};
use super::values::{CudaValues, Used};
use crate::device::{Gather, GatherJob, Memory, ScatterJob, Segment, Span, Stream};
use std::mem::ManuallyDrop;

/// Elements that cross the bus at once.
const SHARE: u64 = 1 << 22;

/// A part of a slice, and where in the staging buffer it goes.
struct Piece {
    job: usize,
    share: Span,
    at: usize,
}

impl State {
    /// Reads slices; returns how many values are not finite afterwards. The context must be current.
    pub fn gather(&mut self, kernels: &Kernels, stream: Stream, jobs: &mut [GatherJob]) -> Result<u64> {
        let (staging, table) = (self.staging()?, self.runs(stream, jobs.iter().map(|job| job.read.segments))?);
        let mut bad = 0;
        for batch in batches(jobs.iter().map(|job| job.read.segments)) {
            self.on(stream, |_, stream| {
                batch.iter().try_for_each(|piece| {
                    let params = table.params(jobs[piece.job].read.memory, &staging, piece);
                    // SAFETY: the runs reach readable elements only (Memory::on_device); the staging buffer holds a batch.
                    unsafe { kernels.gather.launch(kernels.move_blocks(params.end - params.start), 0, stream, &params) }
                })
            })?;
            self.wait()?;
            for Piece { job, share, at } in batch {
                // SAFETY: the device has written them, and nobody else has the buffer.
                let found = unsafe { std::slice::from_raw_parts(staging.host().cast::<f32>().add(at), share.len()) };
                let job = &mut jobs[job];
                bad += take(job.gather, found, &mut job.values[share.start as usize..share.end as usize]);
            }
        }
        staging.release();
        table.buffer.release();
        Ok(bad)
    }

    /// Writes slices. The context must be current.
    pub fn scatter(&mut self, kernels: &Kernels, stream: Stream, jobs: &[ScatterJob]) -> Result<()> {
        let (staging, table) = (self.staging()?, self.runs(stream, jobs.iter().map(|job| job.segments))?);
        for batch in batches(jobs.iter().map(|job| job.segments)) {
            for piece in &batch {
                let (job, range) = (&jobs[piece.job], piece.share.start as usize..piece.share.end as usize);
                let to = staging.host().cast::<f32>();
                // SAFETY: the device is done with the buffer (`wait` below), and nobody else has it.
                let values = unsafe { std::slice::from_raw_parts_mut(to.add(piece.at), range.len()) };
                values.copy_from_slice(&job.original[range.clone()]);
                if !job.direction.is_empty() {
                    for (value, direction) in values.iter_mut().zip(&job.direction[range]) {
                        *value = (f64::from(*value) + job.step * f64::from(*direction)) as f32;
                    }
                }
            }
            self.on(stream, |_, stream| {
                batch.iter().try_for_each(|piece| {
                    let params = table.params(jobs[piece.job].target.memory(), &staging, piece);
                    // SAFETY: the runs reach writable elements only, which nobody else uses now (Memory::writable).
                    unsafe {
                        kernels.scatter.launch(kernels.move_blocks(params.end - params.start), 0, stream, &params)
                    }
                })
            })?;
            self.wait()?;
        }
        staging.release();
        table.buffer.release();
        Ok(())
    }

    /// Copies kept values to the host. The context must be current.
    pub fn read(&mut self, kernels: &Kernels, stream: Stream, values: &CudaValues, out: &mut [f32]) -> Result<()> {
        let staging = self.staging()?;
        for (number, out) in out.chunks_mut(SHARE as usize).enumerate() {
            let params = values.widened(staging.address(), number as u64 * SHARE, out.len() as u64);
            self.on(stream, |state, stream| {
                state.fill(stream, &mut Used::of([values]))?;
                // SAFETY: the values are as many as `out`; the staging buffer holds a share.
                unsafe { kernels.unpack.launch(kernels.move_blocks(params.count), 0, stream, &params) }
            })?;
            self.wait()?;
            // SAFETY: the device has written them, and nobody else has the buffer.
            out.copy_from_slice(unsafe { std::slice::from_raw_parts(staging.host().cast(), out.len()) });
        }
        staging.release();
        Ok(())
    }

    fn staging(&self) -> Result<InUse> {
        self.context().allocate(Kind::Pinned, 4 * SHARE as usize).map(InUse::new)
    }

    /// The runs of all jobs in device memory.
    fn runs<'a>(&mut self, stream: Stream, jobs: impl Iterator<Item = &'a [Segment]>) -> Result<RunTable> {
        let (mut runs, mut firsts) = (Vec::new(), vec![0]);
        for segments in jobs {
            runs.extend(segments.iter().map(Run::from));
            firsts.push(runs.len());
        }
        let bytes: &[u8] = bytemuck::cast_slice(&runs);
        let buffer = InUse::new(self.context().allocate(Kind::Device, bytes.len())?);
        let staging = InUse::new(self.context().allocate(Kind::Pinned, bytes.len())?);
        // SAFETY: both buffers are at least as long as the bytes. The copy has run when the staging buffer goes back.
        self.on(stream, |_, stream| unsafe {
            staging.host().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            call!(cuMemcpyHtoDAsync_v2(buffer.address(), staging.host().cast(), bytes.len(), stream))
        })?;
        self.wait()?;
        staging.release();
        Ok(RunTable { buffer, firsts })
    }
}

/// Memory that the device may still use. Dropped on the way out of a failure it is given up, not handed out again.
struct InUse(ManuallyDrop<Buffer>);

impl InUse {
    fn new(buffer: Buffer) -> Self {
        Self(ManuallyDrop::new(buffer))
    }

    /// The device is done with it.
    fn release(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }
}

impl std::ops::Deref for InUse {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        &self.0
    }
}

/// Runs of several jobs, one after another.
struct RunTable {
    buffer: InUse,
    /// First run of each job, and the number of all.
    firsts: Vec<usize>,
}

impl RunTable {
    fn params(&self, memory: Memory, staging: &Buffer, piece: &Piece) -> MoveParams {
        let (first, end) = (self.firsts[piece.job], self.firsts[piece.job + 1]);
        MoveParams {
            base: memory.address() as u64,
            runs: self.buffer.address() + (first * size_of::<Run>()) as u64,
            vector: staging.address() + 4 * piece.at as u64,
            start: piece.share.start,
            end: piece.share.end,
            run_count: (end - first) as u32,
            format: table::format(memory.dtype),
        }
    }
}

/// Slices from their first index on, cut into pieces that fill the staging buffer again and again.
fn batches<'a>(jobs: impl Iterator<Item = &'a [Segment]>) -> Vec<Vec<Piece>> {
    let (mut all, mut batch, mut filled) = (Vec::new(), Vec::new(), 0);
    for (job, segments) in jobs.enumerate() {
        let end = Span::of(segments).end;
        let mut start = 0;
        while start < end {
            let length = (end - start).min(SHARE - filled);
            batch.push(Piece { job, share: Span { start, end: start + length }, at: filled as usize });
            (start, filled) = (start + length, filled + length);
            if filled == SHARE {
                all.push(std::mem::take(&mut batch));
                filled = 0;
            }
        }
    }
    all.push(batch);
    all
}

/// Puts what was read where it is wanted; returns how many values are not finite there.
fn take(gather: Gather, found: &[f32], values: &mut [f32]) -> u64 {
    match gather {
        Gather::Copy => values.copy_from_slice(found),
        Gather::Scale(factor) => values.iter_mut().zip(found).for_each(|(value, found)| *value = factor * found),
        Gather::Subtract(factor, outer) => {
            values.iter_mut().zip(found).for_each(|(value, found)| *value = (*value - factor * found) * outer);
        }
    }
    values.iter().filter(|value| !value.is_finite()).count() as u64
}
