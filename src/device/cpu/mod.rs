//! Host memory: SIMD kernels on a pool of threads.
//!
//! Work is shared out in units of fixed size and their results are added in the order of the units, so a result has the
//! same bits on one thread and on many. The pool's threads set their own rounding and denormal mode: a trainer built
//! with -Ofast flushes denormals process-wide.

mod accumulate;
mod attention;
mod block;
mod gradients;
pub mod kernels;
mod memory_limit;
mod parameters;
mod perturb;
mod pool;
mod rows;
mod vector;

use crate::device::{
    AccumulateFound, AccumulateJob, AttentionFound, AttentionJob, Device, GradientFound, GradientJob, Home, Keeping,
    ParameterFound, ParameterJob, Pending, Place, RowsJob, Stream, Values,
};
use crate::sketch::{CHUNK, Layout};
use block::{Block, Staging};
use kernels::{Kernels, normalizer};
use pool::Pool;
use rayon::prelude::*;

/// The host's processors.
pub struct Cpu {
    pool: Pool,
    kernels: Kernels,
}

impl Cpu {
    /// A device that works with `threads` threads.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::with_kernels(threads, Kernels::available()[0])
    }

    /// A device that uses the given kernels instead of the best ones: for tests and benches.
    pub fn with_kernels(threads: usize, kernels: Kernels) -> Result<Self, rayon::ThreadPoolBuildError> {
        Ok(Self { pool: Pool::new(threads)?, kernels })
    }

    /// Adds a block to a sketch of fp32 buckets. `next`: the address of what is likely to be read next.
    fn sketch(&self, layout: &Layout, block: Block, values: &[f32], buckets: &mut [f32], next: *const u8) {
        if layout.identity {
            let at = block.start as usize;
            for (bucket, value) in buckets[at..].iter_mut().zip(block.inside(values)) {
                *bucket += value;
            }
        } else {
            (self.kernels.sketch)(values, layout, block.first_chunk(), buckets, next);
        }
    }

    /// Adds a block to a sketch of fp64 buckets.
    fn sketch_f64(&self, layout: &Layout, block: Block, values: &[f32], buckets: &mut [f64]) {
        if layout.identity {
            let at = block.start as usize;
            for (bucket, value) in buckets[at..].iter_mut().zip(block.inside(values)) {
                *bucket += f64::from(*value);
            }
        } else {
            (self.kernels.sketch_f64)(values, layout, block.first_chunk(), buckets);
        }
    }

    /// Σ v² and max |v|.
    fn norm(&self, values: &[f32]) -> (f64, f32) {
        let block = |values: &[f32]| {
            let mut staging = Staging::new();
            let whole = values.len().next_multiple_of(CHUNK);
            let values = if whole == values.len() {
                values
            } else {
                staging.0[..values.len()].copy_from_slice(values);
                &staging.0[..whole]
            };
            let peak = f32::from_bits((self.kernels.peak)(values));
            ((self.kernels.squares)(values, normalizer(peak)), peak)
        };
        self.pool.install(|| {
            let blocks: Vec<_> = values.par_chunks(kernels::BLOCK).map(block).collect();
            blocks.into_iter().fold((0.0, 0.0), |(sum, peak), (squares, high)| (sum + squares, high.max(peak)))
        })
    }
}

impl Device for Cpu {
    fn values(&self, place: Place, len: usize, _: Keeping, _: Home) -> Option<Values> {
        (place == Place::Host).then(|| Values::zeros(len))
    }

    fn copy_values(&self, _: Stream, source: &Values, target: &mut Values, at: usize) -> bool {
        let (Some(source), Some(target)) = (source.host(), target.host_mut()) else { return false };
        target.values[at..at + source.values.len()].copy_from_slice(&source.values);
        true
    }

    fn settle(&self, _: Stream, values: &mut Values) {
        if let Some(host) = values.host_mut() {
            (host.squares, host.peak) = self.norm(&host.values);
        }
    }

    fn gradients(&self, _: Stream, jobs: Vec<GradientJob>) -> Pending<Vec<GradientFound>> {
        Pending::ready(gradients::run(self, jobs))
    }

    fn accumulate(&self, _: Stream, jobs: Vec<AccumulateJob>) -> Pending<Vec<AccumulateFound>> {
        Pending::ready(accumulate::run(self, jobs))
    }

    fn parameters(&self, _: Stream, jobs: Vec<ParameterJob>) -> Pending<Vec<ParameterFound>> {
        Pending::ready(parameters::run(self, jobs))
    }

    fn rows(&self, _: Stream, job: RowsJob) -> Pending<Vec<f32>> {
        Pending::ready(rows::run(self, job))
    }

    fn attention(&self, _: Stream, job: AttentionJob) -> Pending<AttentionFound> {
        Pending::ready(attention::run(self, job))
    }

    fn memory_bytes(&self, _: Place) -> u64 {
        host_memory_bytes()
    }
}

/// Bytes of memory that this process may use: the machine's, or the control group's limit.
pub fn host_memory_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let machine = pages.max(0) as u64 * size.max(0) as u64;
    memory_limit::memory_limit().map_or(machine, |limit| limit.min(machine))
}

/// Sets this thread to round to nearest, keep denormals, and raise nothing.
pub fn set_float_mode() {
    #[cfg(target_arch = "x86_64")]
    {
        /// All exceptions masked, round to nearest, no flushing of denormals: the state at process start.
        const MXCSR: u32 = 0x1f80;
        // SAFETY: loads a valid control word from memory; the thread belongs to the library.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &MXCSR, options(nostack, readonly)) };
    }
}
