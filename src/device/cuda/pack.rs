//! Sums of gradients in fewer bits while nothing is added to them.
//!
//! A reference is added to a few dozen times and compared with thousands of times: it is summed in fp32, and may be kept
//! in bfloat16 or in e4m3 with block exponents from then on. Adding to it again widens it first. The packed and the wide
//! values are both there while one is made from the other.

use super::driver::Result;
use super::memory::Kind;
use super::module::Kernels;
use super::pass::State;
use super::table::{self, FORMAT_F32, PackParams};
use super::values::{CudaValues, Used, bytes_of};
use crate::device::{Packing, Stream};

impl State {
    /// Packs values that are not. The context must be current.
    pub fn pack(&mut self, kernels: &Kernels, stream: Stream, values: &mut CudaValues, packing: Packing) -> Result<()> {
        let format = match packing {
            Packing::F32 => return Ok(()),
            Packing::Bf16 => table::BF16,
            Packing::E4m3 => table::E4M3,
        };
        // Copies are kept in a format of their own.
        if values.format != FORMAT_F32 || !values.is_sum {
            return Ok(());
        }
        let packed = self.other(values, format)?;
        let params = packed.widened(values.buffer.address(), 0, values.len as u64);
        self.convert(kernels.pack, kernels, stream, &[values, &packed], &params)?;
        *values = packed;
        Ok(())
    }

    /// Widens values that are packed. The context must be current.
    pub fn unpack(&mut self, kernels: &Kernels, stream: Stream, values: &mut CudaValues) -> Result<()> {
        if values.format == FORMAT_F32 {
            return Ok(());
        }
        let wide = self.other(values, FORMAT_F32)?;
        let params = values.widened(wide.buffer.address(), 0, values.len as u64);
        self.convert(kernels.unpack, kernels, stream, &[values, &wide], &params)?;
        *values = wide;
        Ok(())
    }

    /// Room for the same values in another format.
    fn other(&self, values: &CudaValues, format: u32) -> Result<CudaValues> {
        let kind = if values.buffer.host().is_null() { Kind::Device } else { Kind::Spilled };
        let buffer = self.context().allocate(kind, bytes_of(format, values.len))?;
        Ok(CudaValues::new(buffer, values.len, format, values.is_sum))
    }

    fn convert(
        &mut self,
        kernel: super::module::Kernel,
        kernels: &Kernels,
        stream: Stream,
        both: &[&CudaValues; 2],
        params: &PackParams,
    ) -> Result<()> {
        let [from, to] = both;
        self.on(stream, |state, stream| {
            state.fill(stream, &mut Used::of([*from]))?;
            // Every value is written.
            to.take_fresh();
            // SAFETY: both buffers hold as many values; they live, or are handed on to work that is ordered behind.
            unsafe { kernel.launch(kernels.move_blocks(params.count), 0, stream, params) }
        })
    }
}
