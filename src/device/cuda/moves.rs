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
use super::values::CudaValues;
use crate::device::{Gather, GatherJob, Memory, ScatterJob, Segment, Span, Stream};
use cudarc::driver::sys::CUstream;

/// Elements that cross the bus at once.
const SHARE: u64 = 1 << 22;

impl State {
    /// Reads slices; returns how many values are not finite afterwards. The context must be current.
    pub fn gather(&mut self, kernels: &Kernels, stream: Stream, jobs: &mut [GatherJob]) -> Result<u64> {
        let mut bad = 0;
        for job in jobs {
            let staging = self.staging()?;
            let runs = self.runs(stream, job.read.segments)?;
            for share in shares(job.read.segments) {
                let handle = self.begin(stream)?;
                let params = params(job.read.memory, &runs, &staging, share);
                // SAFETY: the runs reach readable elements only (Memory::on_device); the staging buffer holds a share.
                unsafe { kernels.gather.launch(kernels.move_blocks(share.len() as u64), 0, handle, &params)? };
                self.end(stream)?;
                self.wait()?;
                // SAFETY: the device has written them, and nobody else has the buffer.
                let found = unsafe { std::slice::from_raw_parts(staging.host().cast::<f32>(), share.len()) };
                bad += take(job.gather, found, &mut job.values[share.start as usize..share.end as usize]);
            }
        }
        Ok(bad)
    }

    /// Writes slices. The context must be current.
    pub fn scatter(&mut self, kernels: &Kernels, stream: Stream, jobs: &[ScatterJob]) -> Result<()> {
        for job in jobs {
            let staging = self.staging()?;
            let runs = self.runs(stream, job.segments)?;
            for share in shares(job.segments) {
                let range = share.start as usize..share.end as usize;
                // SAFETY: the device is done with the buffer (`wait` below), and nobody else has it.
                let values = unsafe { std::slice::from_raw_parts_mut(staging.host().cast::<f32>(), share.len()) };
                values.copy_from_slice(&job.original[range.clone()]);
                if !job.direction.is_empty() {
                    for (value, direction) in values.iter_mut().zip(&job.direction[range]) {
                        *value = (f64::from(*value) + job.step * f64::from(*direction)) as f32;
                    }
                }
                let handle = self.begin(stream)?;
                let params = params(job.target.memory(), &runs, &staging, share);
                // SAFETY: the runs reach writable elements only, which nobody else uses now (Memory::writable).
                unsafe { kernels.scatter.launch(kernels.move_blocks(share.len() as u64), 0, handle, &params)? };
                self.end(stream)?;
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Copies kept values to the host. The context must be current.
    pub fn read(&mut self, kernels: &Kernels, stream: Stream, values: &CudaValues, out: &mut [f32]) -> Result<()> {
        let staging = self.staging()?;
        for (number, out) in out.chunks_mut(SHARE as usize).enumerate() {
            let handle = self.begin(stream)?;
            let params = values.widened(staging.address(), number as u64 * SHARE, out.len() as u64);
            // SAFETY: the values are as many as `out`; the staging buffer holds a share.
            unsafe { kernels.unpack.launch(kernels.move_blocks(out.len() as u64), 0, handle, &params)? };
            self.end(stream)?;
            self.wait()?;
            // SAFETY: the device has written them, and nobody else has the buffer.
            out.copy_from_slice(unsafe { std::slice::from_raw_parts(staging.host().cast(), out.len()) });
        }
        Ok(())
    }

    fn staging(&self) -> Result<Buffer> {
        self.context().allocate(Kind::Pinned, 4 * SHARE as usize)
    }

    /// The runs in device memory.
    fn runs(&mut self, stream: Stream, segments: &[Segment]) -> Result<(Buffer, u32)> {
        let runs: Vec<Run> = segments.iter().map(Run::from).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&runs);
        let table = self.context().allocate(Kind::Device, bytes.len())?;
        let staging = self.context().allocate(Kind::Pinned, bytes.len())?;
        let handle: CUstream = self.begin(stream)?;
        // SAFETY: both buffers are at least as long as the bytes. The copy has run when the staging buffer goes back.
        unsafe {
            staging.host().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            call!(cuMemcpyHtoDAsync_v2(table.address(), staging.host().cast(), bytes.len(), handle))?;
        }
        self.end(stream)?;
        self.wait()?;
        Ok((table, runs.len() as u32))
    }
}

fn params(memory: Memory, (runs, run_count): &(Buffer, u32), staging: &Buffer, share: Span) -> MoveParams {
    MoveParams {
        base: memory.address() as u64,
        runs: runs.address(),
        vector: staging.address(),
        start: share.start,
        end: share.end,
        run_count: *run_count,
        format: table::format(memory.dtype),
    }
}

/// A slice from its first index on, cut into pieces that fit the staging buffer.
fn shares(segments: &[Segment]) -> impl Iterator<Item = Span> {
    let end = Span::of(segments).end;
    (0..end.div_ceil(SHARE)).map(move |share| Span { start: share * SHARE, end: ((share + 1) * SHARE).min(end) })
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
