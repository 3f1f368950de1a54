//! The CUDA device in tests: memory on it as a trainer has it, and the library's device beside that of the host.
//!
//! Bodies run by `emulation_support::on_device`, so under the double or on a GPU. Everything is on the legacy default
//! stream, where copies from the host wait for kernels.

#![allow(dead_code)] // Each test uses a part of it.

pub mod double;
pub mod oracle;
pub mod trainer;

use crate::device_support::encode;
use cudarc::driver::sys::{CUcontext, CUdeviceptr};
use forgetscope::device::cpu::Cpu;
use forgetscope::device::cuda::{Cuda, load_driver};
use forgetscope::device::{DType, Device, Home, Keeping, Memory, Packing, Place, Segment, SliceRead, Stream, Values};
use forgetscope::sketch::Layout;
use forgetscope::sketch::hash::mix;
use std::ffi::c_void;
use std::sync::Arc;

pub const PLACE: Place = Place::Cuda(0);

/// A call of the driver's that has to succeed: `driver!(cuCtxSynchronize())`. To be used inside `unsafe`.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {
        assert_eq!(
            ::cudarc::driver::sys::$function($($argument),*),
            ::cudarc::driver::sys::CUresult::CUDA_SUCCESS,
            stringify!($function)
        )
    };
}
#[allow(unused_imports)] // as above
pub(crate) use driver;

/// Makes the primary context of a device current on this thread, as frameworks do.
pub fn use_device(ordinal: i32) -> CUcontext {
    load_driver().expect("a driver");
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is loaded; each call writes one handle. The context is kept to the end of the process.
    unsafe {
        driver!(cuDevicePrimaryCtxRetain(&mut context, ordinal));
        driver!(cuCtxSetCurrent(context));
    }
    context
}

/// A buffer of the trainer's in device memory.
pub struct Bytes {
    pub address: CUdeviceptr,
    pub len: usize,
}

impl Bytes {
    /// In the current context.
    pub fn new(len: usize) -> Self {
        let mut address = 0;
        // SAFETY: writes one address.
        unsafe { driver!(cuMemAlloc_v2(&mut address, len.max(1))) };
        Self { address, len }
    }

    pub fn of(bytes: &[u8]) -> Self {
        let buffer = Self::new(bytes.len());
        buffer.write(bytes);
        buffer
    }

    pub fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        write(self.address, bytes);
    }

    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the buffer has as many bytes.
        unsafe { driver!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.address, bytes.len())) };
        bytes
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`. The driver waits for kernels that still read it.
        unsafe { driver!(cuMemFree_v2(self.address)) };
    }
}

fn write(address: CUdeviceptr, bytes: &[u8]) {
    if !bytes.is_empty() {
        // SAFETY: the caller's memory holds as many bytes.
        unsafe { driver!(cuMemcpyHtoD_v2(address, bytes.as_ptr().cast::<c_void>(), bytes.len())) };
    }
}

/// The same values in the memory of the device and of the host.
pub struct Tensor {
    pub dtype: DType,
    /// What a reader sees.
    pub seen: Vec<f32>,
    device: Bytes,
    host: Vec<u64>,
}

impl Tensor {
    pub fn new(dtype: DType, source: &[f32]) -> Self {
        let (bytes, seen) = encode(dtype, source);
        Self::from_bytes(dtype, &bytes, seen)
    }

    /// Codes, and what a reader has to see in them.
    pub fn from_bytes(dtype: DType, bytes: &[u8], seen: Vec<f32>) -> Self {
        // Words, so that the host's copy is aligned for every type.
        let word = |part: &[u8]| {
            let mut whole = [0; 8];
            whole[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(whole)
        };
        Self { dtype, seen, device: Bytes::of(bytes), host: bytes.chunks(8).map(word).collect() }
    }

    /// Element 0 on the device lies so many elements behind what this names: segments count from there.
    pub fn on_device(&self, shift: i64) -> Memory {
        let base = self.device.address.wrapping_sub((shift as u64).wrapping_mul(self.dtype.size() as u64));
        // SAFETY: the tests keep the tensor until the device is done; segments stay inside it.
        unsafe { Memory::on_device(base as *const u8, self.dtype, 0) }
    }

    pub fn on_host(&self, shift: i64) -> Memory {
        let base = self.host.as_ptr().cast::<u8>().wrapping_offset(-(shift as isize) * self.dtype.size() as isize);
        // SAFETY: as above.
        unsafe { Memory::new(base, self.dtype) }
    }

    pub fn device_bytes(&self) -> &Bytes {
        &self.device
    }
}

/// A slice of a tensor.
pub struct Slice {
    pub tensor: Tensor,
    pub segments: Vec<Segment>,
    pub layout: Layout,
    /// Segments count from so many elements before the tensor.
    pub shift: i64,
}

impl Slice {
    pub fn new(dtype: DType, source: &[f32], segments: Vec<Segment>, numel: u64, buckets: usize) -> Self {
        let layout = Layout::new(numel, buckets, mix(numel));
        Self { tensor: Tensor::new(dtype, source), segments, layout, shift: 0 }
    }

    /// A whole tensor of one slice.
    pub fn whole(dtype: DType, source: &[f32], buckets: usize) -> Self {
        let numel = source.len() as u64;
        Self::new(dtype, source, vec![crate::device_support::segment(1, numel, 0, 0, 1)], numel, buckets)
    }

    pub fn on_device(&self) -> SliceRead<'_> {
        SliceRead { layout: self.layout, memory: self.tensor.on_device(self.shift), segments: &self.segments }
    }

    pub fn on_host(&self) -> SliceRead<'_> {
        SliceRead { layout: self.layout, memory: self.tensor.on_host(self.shift), segments: &self.segments }
    }

    /// (index in the slice, value) of everything that is read.
    pub fn elements(&self) -> Vec<(u64, f32)> {
        let moved = |segment: &Segment| Segment { offset: segment.offset - self.shift, ..*segment };
        let segments: Vec<_> = self.segments.iter().map(moved).collect();
        crate::device_support::elements(&self.tensor.seen, &segments)
    }
}

/// The devices that are compared.
pub struct Devices {
    pub cuda: Arc<Cuda>,
    pub cpu: Cpu,
}

impl Devices {
    pub fn open() -> Self {
        Self::with(Packing::F32)
    }

    /// Sums that have settled are kept so.
    pub fn with(packing: Packing) -> Self {
        use_device(0);
        Self { cuda: Cuda::open(0, packing).expect("a CUDA device"), cpu: Cpu::new(2).expect("threads") }
    }

    /// A sum of gradients on the device: zeros.
    pub fn sum(&self, len: usize) -> Values {
        self.cuda.values(PLACE, len, Keeping::Sum, Home::Near).expect("room")
    }

    /// fp32 values that the library keeps on the device.
    pub fn kept(&self, values: &[f32]) -> Values {
        let kept = self.sum(values.len());
        let on_device = kept.cuda().expect("on the device");
        on_device.take_fresh();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        write(on_device.buffer.address(), &bytes);
        kept
    }

    /// The same in host memory.
    pub fn kept_on_host(&self, values: &[f32]) -> Values {
        let mut kept = Values::from(values.to_vec());
        self.cpu.settle(Stream::NULL, &mut kept);
        kept
    }

    /// What the library keeps on the device.
    pub fn read(&self, values: &Values) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        assert!(self.cuda.read(Stream::NULL, values.cuda().expect("on the device"), &mut out));
        out
    }
}

/// Numbers as bits, to be compared where NaN or a sign of zero may be.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
