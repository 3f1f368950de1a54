//! Element types, and the one type that holds a pointer into the trainer's memory.

use super::float8;
use half::{bf16, f16};

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F32,
    F64,
    Bf16,
    F16,
    /// OCP's E4M3 without infinities.
    F8E4M3,
    F8E5M2,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Bf16 | Self::F16 => 2,
            Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }

    /// Name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E5M2 => "float8_e5m2",
        }
    }

    /// Explicit bits of the mantissa. Data of 64 bits is measured in 32.
    pub const fn mantissa_bits(self) -> i32 {
        match self {
            Self::F32 | Self::F64 => 23,
            Self::F16 => 10,
            Self::Bf16 => 7,
            Self::F8E4M3 => 3,
            Self::F8E5M2 => 2,
        }
    }
}

/// Which memory an address belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    #[default]
    Host,
    /// Memory of the CUDA device with this ordinal.
    Cuda(u32),
}

/// The trainer's CUDA stream that a call is ordered on; NULL, also the legacy default stream, for host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub *mut std::ffi::c_void);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host memory"),
            Self::Cuda(ordinal) => write!(f, "memory of CUDA device {ordinal}"),
        }
    }
}

impl Stream {
    pub const NULL: Self = Self(std::ptr::null_mut());
}

// SAFETY: a handle that is only passed back to the driver, which may be called from any thread.
unsafe impl Send for Stream {}

/// The first element of a buffer that belongs to the trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    base: *const u8,
    pub dtype: DType,
    pub place: Place,
}

// SAFETY: a Memory is an address; it is read only inside calls during which the trainer guarantees that the buffer is
// alive and not written to (see `Memory::new`), from whichever thread of the pool takes the work.
unsafe impl Send for Memory {}
// SAFETY: as above; nothing is ever written through it but by way of a Writable, whose maker promises that it may.
unsafe impl Sync for Memory {}

impl Memory {
    /// # Safety
    /// Whenever a device is handed this value together with segments, every element that the segments reach must be
    /// readable for the length of the call. `base` must be aligned to the element's size.
    pub unsafe fn new(base: *const u8, dtype: DType) -> Self {
        Self { base, dtype, place: Place::Host }
    }

    /// The same in the memory of a CUDA device.
    ///
    /// # Safety
    /// Whenever a device is handed this value together with segments and a stream, every element that the segments reach
    /// must be readable in that stream's order, and not be written to before what the call enqueued has run.
    pub unsafe fn on_device(base: *const u8, dtype: DType, ordinal: u32) -> Self {
        Self { base, dtype, place: Place::Cuda(ordinal) }
    }

    /// The first element's address.
    pub(super) fn address(self) -> *const u8 {
        self.base
    }

    /// Address of an element, which need not exist: for prefetching.
    pub(super) fn address_of(self, offset: i64) -> *const u8 {
        self.base.wrapping_offset(offset as isize * self.dtype.size() as isize)
    }

    /// Elements `offset .. offset + length`, if they are fp32 and can be read in place.
    ///
    /// # Safety
    /// The elements must be readable for `'a`: the promise of [`Memory::new`].
    pub(super) unsafe fn in_place<'a>(self, offset: i64, length: usize) -> Option<&'a [f32]> {
        // SAFETY: the caller promises the range.
        (self.dtype == DType::F32)
            .then(|| unsafe { std::slice::from_raw_parts(self.base.cast::<f32>().offset(offset as isize), length) })
    }

    /// Converts `out.len()` elements, the first at `offset`, `stride` elements apart, to fp32. `widen` converts bfloat16
    /// that lies side by side.
    ///
    /// # Safety
    /// The elements must be readable: the promise of [`Memory::new`].
    #[inline]
    pub(super) unsafe fn gather(self, offset: i64, stride: i64, widen: fn(&[u16], &mut [f32]), out: &mut [f32]) {
        // SAFETY (all arms): the caller promises the range, and `base` is aligned for its element type.
        unsafe {
            match self.dtype {
                DType::F32 => gather(self.base.cast::<f32>(), offset, stride, out, |x| x),
                DType::F64 => gather(self.base.cast::<f64>(), offset, stride, out, |x| x as f32),
                DType::Bf16 if stride == 1 => {
                    let source = self.base.cast::<u16>().offset(offset as isize);
                    widen(std::slice::from_raw_parts(source, out.len()), out);
                }
                DType::Bf16 => gather(self.base.cast::<bf16>(), offset, stride, out, bf16::to_f32),
                DType::F16 if stride == 1 => {
                    use half::slice::HalfFloatSliceExt;
                    let source = self.base.cast::<f16>().offset(offset as isize);
                    std::slice::from_raw_parts(source, out.len()).convert_to_f32_slice(out);
                }
                DType::F16 => gather(self.base.cast::<f16>(), offset, stride, out, f16::to_f32),
                DType::F8E4M3 => gather(self.base, offset, stride, out, float8::e4m3),
                DType::F8E5M2 => gather(self.base, offset, stride, out, float8::e5m2),
            }
        }
    }
}

/// fp32 elements of a buffer of the trainer's that may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    base: *mut f32,
    pub place: Place,
}

// SAFETY: an address; it is written to only inside calls during which the trainer uses the buffer in no other way (see
// `Memory::writable`), and no element by two threads.
unsafe impl Send for Writable {}
// SAFETY: as above.
unsafe impl Sync for Writable {}

impl Memory {
    /// The same buffer for writing; `None` unless it is fp32.
    ///
    /// # Safety
    /// Whenever a device is handed the result together with segments, every element that the segments reach must be
    /// writable for the length of the call, and be read or written by nobody else; and no two indices, of the same or of
    /// different segments in one call, may be the same element.
    pub unsafe fn writable(self) -> Option<Writable> {
        (self.dtype == DType::F32).then_some(Writable { base: self.base.cast_mut().cast(), place: self.place })
    }

    /// The first element is at this address.
    pub fn is_first(self, address: *const u8) -> bool {
        self.base == address
    }

    /// The same at another address.
    ///
    /// # Safety
    /// As for [`Memory::new`] or [`Memory::on_device`], whichever it is.
    pub unsafe fn moved(self, base: *const u8) -> Self {
        Self { base, ..self }
    }

    /// The buffer holds the same elements, at the same place, as `other`.
    pub fn is_at(self, other: Self) -> bool {
        (self.base, self.place) == (other.base, other.place)
    }

    /// Addresses of the bytes from the element `low` to the end of the element `high`: where a run of elements lies.
    pub fn bytes(self, low: i64, high: i64) -> std::ops::Range<usize> {
        self.address_of(low) as usize..self.address_of(high) as usize + self.dtype.size()
    }
}

impl Writable {
    /// The same buffer for reading.
    pub(super) fn memory(self) -> Memory {
        Memory { base: self.base.cast_const().cast(), dtype: DType::F32, place: self.place }
    }

    /// Writes `values`, the first at `offset`, `stride` elements apart.
    ///
    /// # Safety
    /// The elements must be writable and nobody else's for now: the promise of [`Memory::writable`], and of the caller that
    /// no other thread writes them.
    pub(super) unsafe fn write(self, offset: i64, stride: i64, values: &[f32]) {
        // SAFETY: the caller promises every element reached; `values` is the library's own memory.
        unsafe {
            let first = self.base.offset(offset as isize);
            if stride == 1 {
                first.copy_from_nonoverlapping(values.as_ptr(), values.len());
            } else {
                for (k, value) in values.iter().enumerate() {
                    *first.offset(k as isize * stride as isize) = *value;
                }
            }
        }
    }
}

/// # Safety
/// As for [`Memory::gather`].
#[inline(always)]
unsafe fn gather<T: Copy>(base: *const T, offset: i64, stride: i64, out: &mut [f32], convert: impl Fn(T) -> f32) {
    // SAFETY: the caller promises that every element reached is readable.
    unsafe {
        let first = base.offset(offset as isize);
        if stride == 1 {
            let source = std::slice::from_raw_parts(first, out.len());
            for (out, &value) in out.iter_mut().zip(source) {
                *out = convert(value);
            }
        } else {
            for (k, out) in out.iter_mut().enumerate() {
                *out = convert(*first.offset(k as isize * stride as isize));
            }
        }
    }
}

const _: () = assert!(size_of::<bf16>() == 2 && size_of::<f16>() == 2);
