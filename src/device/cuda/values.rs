//! Values that the library keeps in memory that a CUDA device reads: in its own, or in pinned host memory.

use super::memory::Buffer;
use super::table::{self, FORMAT_F32, KeptEntry, PackParams};
use crate::device::{DType, Keeping, Kept, Span};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// fp32 values on a device.
#[derive(Debug)]
pub struct CudaValues {
    /// Shared with captured passes, which may run for as long as the scope is open.
    pub buffer: Arc<Buffer>,
    pub len: usize,
    /// FORMAT_F32, or one that a copy or a sum that is not added to is kept in.
    pub format: u32,
    /// A sum of gradients, which may be packed.
    pub is_sum: bool,
    /// They are zero, but nothing has been written yet: the first launch that uses them writes the zeros.
    fresh: Arc<AtomicBool>,
}

impl CudaValues {
    /// Zeros.
    pub fn new(buffer: Buffer, len: usize, format: u32, is_sum: bool) -> Self {
        Self { buffer: Arc::new(buffer), len, format, is_sum, fresh: Arc::new(AtomicBool::new(true)) }
    }

    /// Address and length in bytes if the zeros are still to be written; the caller does it before anything else.
    pub fn take_fresh(&self) -> Option<(u64, usize)> {
        self.fresh.swap(false, Ordering::Relaxed).then(|| (self.buffer.address(), bytes_of(self.format, self.len)))
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> u64 {
        bytes_of(self.format, self.len) as u64
    }

    /// Where exponents of blocks begin: behind the values, in the format that has them.
    pub fn exponents(&self) -> u64 {
        if self.format == table::E4M3 { self.buffer.address() + self.len.next_multiple_of(BLOCK) as u64 } else { 0 }
    }

    /// What widens `count` values from `first` on, a multiple of a block, into memory at `wide`.
    pub fn widened(&self, wide: u64, first: u64, count: u64) -> PackParams {
        let exponents = if self.format == table::E4M3 { self.exponents() + first / BLOCK as u64 } else { 0 };
        let packed = self.buffer.address() + value_bytes(self.format) * first;
        PackParams { wide, packed, exponents, count, format: self.format, unused: 0 }
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
    /// They become fresh again if that fails.
    unfilled: Vec<Arc<AtomicBool>>,
    pub buffers: Vec<Arc<Buffer>>,
}

impl Used {
    pub fn of<'a>(values: impl IntoIterator<Item = &'a CudaValues>) -> Self {
        let mut used = Self::default();
        for values in values {
            if let Some(fresh) = values.take_fresh() {
                used.fresh.push(fresh);
                used.unfilled.push(values.fresh.clone());
            }
            used.buffers.push(values.buffer.clone());
        }
        used
    }

    /// The zeros are enqueued.
    pub fn filled(&mut self) {
        self.unfilled.clear();
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.unfilled.drain(..).for_each(|fresh| fresh.store(true, Ordering::Relaxed));
    }
}

/// Values of e4m3 with a common exponent.
const BLOCK: usize = 32;

/// Bytes of one value.
fn value_bytes(format: u32) -> u64 {
    match format {
        table::E4M3 => 1,
        table::BF16 | table::F16 => 2,
        _ => 4,
    }
}

/// Bytes of so many values.
pub fn bytes_of(format: u32, len: usize) -> usize {
    match format {
        table::E4M3 => len.next_multiple_of(BLOCK) + len.div_ceil(BLOCK),
        _ => value_bytes(format) as usize * len,
    }
}

/// The smallest format in which values can be kept without loss while they change.
pub fn format_for(keeping: Keeping) -> u32 {
    match keeping {
        Keeping::Copy(DType::Bf16 | DType::F8E4M3 | DType::F8E5M2) => table::BF16,
        Keeping::Copy(DType::F16) => table::F16,
        Keeping::Copy(DType::F32 | DType::F64) | Keeping::Sum => FORMAT_F32,
    }
}

/// The values as kernels find them.
pub fn entry(kept: Kept) -> KeptEntry {
    let Span { start, end } = kept.span;
    // A place's device is handed values of that place only; without an address nothing is read.
    let Some(values) = kept.values.cuda() else { return KeptEntry::default() };
    KeptEntry {
        address: values.buffer.address(),
        exponents: values.exponents(),
        start,
        end,
        format: values.format,
        unused: 0,
    }
}
