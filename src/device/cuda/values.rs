//! Values that the library keeps in memory that a CUDA device reads: in its own, or in pinned host memory.

use super::memory::Buffer;
use super::table::{FORMAT_F32, KeptEntry};
use crate::device::{Kept, Values};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// fp32 values on a device.
#[derive(Debug)]
pub struct CudaValues {
    /// Shared with captured passes, which may run for as long as the scope is open.
    pub buffer: Arc<Buffer>,
    pub len: usize,
    /// They are zero, but nothing has been written yet: the first launch that uses them writes the zeros.
    fresh: AtomicBool,
}

impl CudaValues {
    /// Zeros.
    pub fn new(buffer: Buffer, len: usize) -> Self {
        Self { buffer: Arc::new(buffer), len, fresh: AtomicBool::new(true) }
    }

    /// Address and length in bytes if the zeros are still to be written; the caller does it before anything else.
    pub fn take_fresh(&self) -> Option<(u64, usize)> {
        self.fresh.swap(false, Ordering::Relaxed).then(|| (self.buffer.address(), 4 * self.len))
    }

    pub fn ordinal(&self) -> u32 {
        self.buffer.context().ordinal
    }
}

/// Kept values that a pass uses.
#[derive(Default)]
pub struct Used {
    /// Addresses and lengths of those that are used for the first time: they are still to be filled with zeros.
    pub fresh: Vec<(u64, usize)>,
    pub buffers: Vec<Arc<Buffer>>,
}

impl Used {
    pub fn of<'a>(values: impl Iterator<Item = &'a Values>) -> Self {
        let mut used = Self::default();
        for values in values.filter_map(Values::cuda) {
            used.fresh.extend(values.take_fresh());
            used.buffers.push(values.buffer.clone());
        }
        used
    }
}

/// The values as kernels find them.
pub fn entry(kept: Kept) -> KeptEntry {
    // A place's device is handed values of that place only; without an address nothing is read.
    let (address, format) = kept.values.cuda().map_or((0, 0), |values| (values.buffer.address(), FORMAT_F32));
    KeptEntry { address, exponents: 0, start: kept.span.start, end: kept.span.end, format, unused: 0 }
}
