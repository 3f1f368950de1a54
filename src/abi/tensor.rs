//! Data that comes from C: DLPack tensors and shards.

use super::boundary::{Failure, Outcome};
use super::status::fgs_status;
use super::text::check_struct;
use crate::device::cuda::{CudaError, check_pointer};
use crate::device::{DType, Memory, Place, Strided};
use crate::scope::{Data, Shard, View};
use std::ffi::c_void;

/// DLPack's DLTensor, laid out alike. The header gives it under the name `fgs_dltensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_dltensor {
    /// First byte of the allocation.
    pub data: *mut c_void,
    /// DLDeviceType: 1 host, 2 CUDA, 3 pinned host, 13 CUDA managed.
    pub device_type: i32,
    pub device_id: i32,
    pub ndim: i32,
    /// DLDataTypeCode: 2 float, 4 bfloat, 10 float8_e4m3fn, 12 float8_e5m2.
    pub dtype_code: u8,
    pub dtype_bits: u8,
    pub dtype_lanes: u16,
    pub shape: *mut i64,
    /// In elements; NULL: row-major without gaps.
    pub strides: *mut i64,
    /// From `data` to the first element.
    pub byte_offset: u64,
}

/// Which elements of the unsharded tensor the local data is: `run_count` runs of `run_length` elements, the first at
/// `offset`, one every `run_step`, all counted in the row-major order of the unsharded tensor. Initialise with
/// `FGS_SHARD_INIT`.
///
/// A flat range (ZeRO, Megatron's distributed optimizer): offset only. Rows of a matrix: offset = first row · columns.
/// Columns of a matrix: offset = first column, run_length = local columns, run_step = columns, run_count = rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_shard {
    /// sizeof(fgs_shard); set by FGS_SHARD_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_SHARD_INIT.
    pub magic: u32,
    /// First element.
    pub offset: u64,
    /// Elements of a run; 0: all of the local data is one run.
    pub run_length: u64,
    /// From the beginning of one run to that of the next; at least run_length. Not read if there is one run.
    pub run_step: u64,
    /// Number of runs; 0 counts as 1.
    pub run_count: u64,
}

/// A tensor from C, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalTensor {
    base: *const u8,
    dtype: DType,
    place: Place,
    dims: Dims,
}

/// Shape and strides, as far as they matter: at most eight dimensions.
#[derive(Clone, Copy, Debug)]
struct Dims {
    count: usize,
    shape: [i64; MAX_DIMS],
    strides: [i64; MAX_DIMS],
}

const MAX_DIMS: usize = 8;

/// Checks a tensor's description. Its elements are not touched.
///
/// # Safety
/// `tensor` must be NULL or readable, with `ndim` readable values behind `shape`, and behind `strides` unless NULL.
pub(super) unsafe fn local_tensor(tensor: *const fgs_dltensor) -> Outcome<LocalTensor> {
    // SAFETY: the caller's promise.
    let Some(tensor) = (unsafe { tensor.as_ref() }) else { return Err(Failure::null("tensor")) };
    let unsupported = |text: String| Err(Failure::new(fgs_status::FGS_ERROR_UNSUPPORTED, text));
    let place = match tensor.device_type {
        1 | 3 => Place::Host,
        // Managed memory is read where it is.
        2 | 13 => match u32::try_from(tensor.device_id) {
            Ok(ordinal) => Place::Cuda(ordinal),
            Err(_) => return Err(Failure::invalid(format!("tensor.device: there is no device {}", tensor.device_id))),
        },
        other => {
            return unsupported(format!("tensor.device: DLPack device type {other} is neither host nor CUDA memory"));
        }
    };
    let dtype = match (tensor.dtype_code, tensor.dtype_bits, tensor.dtype_lanes) {
        (2, 64, 1) => DType::F64,
        (2, 32, 1) => DType::F32,
        (2, 16, 1) => DType::F16,
        (4, 16, 1) => DType::Bf16,
        (10, 8, 1) => DType::F8E4M3,
        (12, 8, 1) => DType::F8E5M2,
        (code, bits, lanes) => {
            return unsupported(format!(
                "tensor.dtype: code {code} with {bits} bits and {lanes} lanes is none of float64, float32, float16, bfloat16, \
                 float8_e4m3fn, float8_e5m2"
            ));
        }
    };
    let Some(count) = usize::try_from(tensor.ndim).ok().filter(|&count| count <= MAX_DIMS) else {
        return Err(Failure::invalid(format!("tensor.ndim: {} is not between 0 and {MAX_DIMS}", tensor.ndim)));
    };
    let mut dims = Dims { count, shape: [1; MAX_DIMS], strides: [0; MAX_DIMS] };
    if count > 0 {
        if tensor.shape.is_null() {
            return Err(Failure::null("tensor.shape"));
        }
        // SAFETY: `ndim` values are readable, says the caller.
        dims.shape[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(tensor.shape, count) });
    }
    if let Some(length) = dims.shape[..count].iter().find(|&&length| length < 0) {
        return Err(Failure::invalid(format!("tensor.shape: {length} is negative")));
    }
    let numel = dims.shape[..count].iter().try_fold(1i64, |numel, &length| numel.checked_mul(length));
    if numel.is_none_or(|numel| numel > 1 << 48) {
        return Err(Failure::invalid("tensor.shape: more than 2^48 elements"));
    }
    if numel == Some(0) {
        // There are no elements to find, and the product of the other dimensions may be anything.
        (dims.count, dims.shape[0]) = (1, 0);
    }
    let count = dims.count;
    let mut dense = 1;
    for k in (0..count).rev() {
        dims.strides[k] = dense;
        dense *= dims.shape[k];
    }
    if !tensor.strides.is_null() && numel != Some(0) {
        // SAFETY: `ndim` values are readable, says the caller.
        dims.strides[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(tensor.strides, count) });
        let bad = (0..count).find(|&k| dims.shape[k] > 1 && dims.strides[k] <= 0);
        if let Some(k) = bad {
            let stride = dims.strides[k];
            return unsupported(format!("tensor.strides: stride {stride} of dimension {k} is not above zero"));
        }
    }
    if tensor.data.is_null() && numel != Some(0) {
        return Err(Failure::null("tensor.data"));
    }
    let base = (tensor.data as *const u8).wrapping_add(tensor.byte_offset as usize);
    let tensor = LocalTensor { base, dtype, place, dims };
    check_range(base, tensor.bytes(), dtype, place)?;
    Ok(tensor)
}

/// An address is aligned for its elements, and device memory is what it is said to be, as far as the driver can tell.
pub(super) fn check_range(base: *const u8, bytes: usize, dtype: DType, place: Place) -> Outcome<()> {
    if !(base as usize).is_multiple_of(dtype.size()) {
        return Err(Failure::invalid(format!(
            "tensor.data: the first element is at {base:?}, which is not a multiple of its size, {} bytes",
            dtype.size()
        )));
    }
    let Place::Cuda(ordinal) = place else { return Ok(()) };
    if bytes == 0 {
        return Ok(());
    }
    check_pointer(base as usize, bytes, ordinal).map_err(|error| {
        let argument = if matches!(error, CudaError::Pointer(_)) { "data" } else { "device" };
        Failure::new(fgs_status::FGS_ERROR_UNSUPPORTED, format!("tensor.{argument}: {error}"))
    })
}

impl LocalTensor {
    fn shape(&self) -> &[i64] {
        &self.dims.shape[..self.dims.count]
    }

    /// Bytes from the first element to the end of the last.
    fn bytes(&self) -> usize {
        if self.numel() == 0 {
            return 0;
        }
        let dims = self.shape().iter().zip(&self.dims.strides);
        let last: i64 = dims.map(|(length, stride)| (length - 1) * stride).sum();
        (last as usize + 1) * self.dtype.size()
    }

    /// The data's first element.
    ///
    /// # Safety
    /// As for [`Memory::new`] or [`Memory::on_device`], whichever it is.
    unsafe fn memory(&self) -> Memory {
        // SAFETY: the caller's promise; alignment was checked by `local_tensor`.
        unsafe {
            match self.place {
                Place::Host => Memory::new(self.base, self.dtype),
                Place::Cuda(ordinal) => Memory::on_device(self.base, self.dtype, ordinal),
            }
        }
    }

    pub fn numel(&self) -> u64 {
        self.shape().iter().product::<i64>() as u64
    }

    /// The part `index` of `count` along the first dimension: one layer of a stacked buffer. `None` if the first dimension
    /// does not hold a multiple of `count`.
    pub fn layer(&self, index: u32, count: u32) -> Option<Self> {
        let rows = *self.shape().first()?;
        let per_layer = rows / i64::from(count);
        if per_layer * i64::from(count) != rows {
            return None;
        }
        let mut layer = *self;
        layer.dims.shape[0] = per_layer;
        let elements = i64::from(index) * per_layer * self.dims.strides[0];
        layer.base = self.base.wrapping_add(elements as usize * self.dtype.size());
        Some(layer)
    }

    /// The data as probes take it; `None` if it has too many dimensions.
    ///
    /// # Safety
    /// Every element of the view must be readable and not written to during the call.
    pub unsafe fn strided(&self) -> Option<Strided> {
        // SAFETY: the caller's promise.
        let memory = unsafe { self.memory() };
        let dims = &self.dims;
        Strided::new(memory, (0..dims.count).map(|k| (dims.shape[k] as u64, dims.strides[k])))
    }

    /// The data as the scope takes it.
    ///
    /// # Safety
    /// Every element of the view must be readable whenever the scope reads it: for a binding until it is replaced, for fed
    /// data during the call.
    pub unsafe fn data(&self) -> Outcome<Data> {
        let strides = &self.dims.strides[..self.dims.count];
        let Some(view) = View::collapse(self.shape(), Some(strides)) else {
            return Err(Failure::new(
                fgs_status::FGS_ERROR_UNSUPPORTED,
                format!(
                    "tensor.strides: the view {:?} with strides {strides:?} has more than two independent dimensions; \
                     pass a contiguous tensor, or one view per part with fgs_bind_shard",
                    self.shape()
                ),
            ));
        };
        let numel = self.numel();
        // A layer of a stacked buffer, or a batch of one: a matrix whatever dimensions of length 1 come first.
        let mut shape = self.shape();
        while let [1, rest @ ..] = shape
            && rest.len() >= 2
        {
            shape = rest;
        }
        let rows = shape.first().map_or(1, |&rows| rows as u64);
        // SAFETY: the caller's promise.
        let memory = unsafe { self.memory() };
        Ok(Data { memory, view, shape: (rows, numel.checked_div(rows).unwrap_or(0)) })
    }
}

/// The shard that is given; NULL: none.
///
/// # Safety
/// `shard` must be NULL or readable.
pub(super) unsafe fn shard(shard: *const fgs_shard, local: u64) -> Outcome<Option<Shard>> {
    // SAFETY: the caller's promise.
    let Some(shard) = (unsafe { shard.as_ref() }) else { return Ok(None) };
    check_struct(shard.size, shard.magic, size_of::<fgs_shard>(), "fgs_shard")?;
    let runs = shard.run_count.max(1);
    let length = if shard.run_length == 0 { local / runs } else { shard.run_length };
    let step = if runs == 1 { length } else { shard.run_step };
    Ok(Some(Shard { offset: shard.offset, length, step, runs }))
}
