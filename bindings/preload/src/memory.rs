//! Where a buffer lies, as a DLPack tensor says it.
//!
//! The CUDA driver is asked, if there is one: about 100 ns, in sampled steps only. What it does not know is host memory, or
//! that of another kind of device: so the ends of the buffer are tried before it is read.

use std::ffi::{c_int, c_uint, c_void};
use std::ops::Range;

use forgetscope::abi::fgs_dltensor;

use crate::instrument::Outcome;
use crate::readable::is_readable;
use crate::real::{Library, Real};

/// What a collective left behind.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Whose collective it was.
    pub library: Library,
    pub address: usize,
    /// Which elements of the whole lie there.
    pub local: Range<u64>,
    pub dtype: DType,
    /// In the order of which the result is there; 0: it is there.
    pub stream: usize,
    /// This process is the one that measures it. Set by the session.
    pub is_measured: bool,
}

impl Buffer {
    /// Addresses of the elements that lie there.
    pub fn bytes(&self) -> Range<usize> {
        let count = self.local.end.saturating_sub(self.local.start) as usize;
        self.address..self.address.saturating_add(count.saturating_mul(self.dtype.bytes()))
    }
}

/// Types of elements that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F64,
    F32,
    F16,
    Bf16,
}

impl DType {
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// DLPack's code and number of bits.
    fn dlpack(self) -> (u8, u8) {
        match self {
            Self::F64 => (2, 64),
            Self::F32 => (2, 32),
            Self::F16 => (2, 16),
            Self::Bf16 => (4, 16),
        }
    }
}

/// A device as DLPack has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    kind: i32,
    id: i32,
}

const HOST: Device = Device { kind: 1, id: 0 };

/// What the CUDA driver says of an address.
enum Said {
    /// There is no driver.
    Nothing,
    Device(i32),
    /// Host memory that it knows, or memory that it does not.
    Host,
    Error(c_int),
}

impl Device {
    /// The device that holds a buffer; else why it cannot be read.
    pub fn of(buffer: &Buffer) -> Outcome<Self> {
        let bytes = buffer.bytes();
        let said = ask_cuda(bytes.start);
        let why = match (buffer.library, said) {
            (_, Said::Device(id)) => return Ok(Self { kind: 2, id }),
            (_, Said::Error(status)) => format!("the CUDA driver cannot tell where they lie (error {status})"),
            (Library::Nccl, Said::Nothing) => "there is no CUDA driver in this process (RCCL is not supported)".into(),
            // The reduction is enqueued; it is there when nobody knows.
            (Library::Nccl, Said::Host) => "NCCL reduces them in host memory, at a later time".into(),
            _ if can_be_read(&bytes) => return Ok(HOST),
            _ => "their memory cannot be read (of a device that is not CUDA's?)".into(),
        };
        Err(format!("buffers are not measured: {why}"))
    }

    /// Memory that was on this device is still there.
    pub fn still_has(self, bytes: &Range<usize>) -> bool {
        [bytes.start, bytes.end - 1].into_iter().all(|address| match ask_cuda(address) {
            Said::Device(id) => self == Self { kind: 2, id },
            Said::Host | Said::Nothing => self.is_host(),
            Said::Error(_) => false,
        })
    }

    pub fn is_host(self) -> bool {
        self == HOST
    }

    /// The description of dense data; `shape` must outlive it.
    pub fn tensor(self, address: usize, dtype: DType, shape: &mut [i64]) -> fgs_dltensor {
        let (code, bits) = dtype.dlpack();
        fgs_dltensor {
            data: address as *mut c_void,
            device_type: self.kind,
            device_id: self.id,
            ndim: shape.len() as i32,
            dtype_code: code,
            dtype_bits: bits,
            dtype_lanes: 1,
            shape: shape.as_mut_ptr(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        }
    }
}

fn can_be_read(bytes: &Range<usize>) -> bool {
    bytes.is_empty() || is_readable(bytes.start) && is_readable(bytes.end - 1)
}

fn ask_cuda(address: usize) -> Said {
    // CUpointer_attribute: the kind of memory (2: a device's), and the device's number.
    const MEMORY_TYPE: c_int = 2;
    const DEVICE_ORDINAL: c_int = 9;
    // CUresult: memory that it does not know; a driver that nobody has initialized, that has no device, that is a stub.
    const NONE_OF_ITS: [c_int; 4] = [1, 3, 34, 100];
    static ATTRIBUTE: Real = Real::new(Library::Cuda, c"cuPointerGetAttribute", None);
    let function = ATTRIBUTE.address();
    if function.is_null() {
        return Said::Nothing;
    }
    let ask = |attribute| {
        let mut value: c_uint = 0;
        // SAFETY: cuPointerGetAttribute has this type since CUDA 4, and both attributes are 32 bits.
        let status = unsafe {
            let function: unsafe extern "C" fn(*mut c_void, c_int, u64) -> c_int = std::mem::transmute(function);
            function((&raw mut value).cast(), attribute, address as u64)
        };
        if status == 0 { Ok(value) } else { Err(status) }
    };
    match ask(MEMORY_TYPE) {
        Ok(2) => ask(DEVICE_ORDINAL).map_or_else(Said::Error, |id| Said::Device(id as i32)),
        Ok(_) => Said::Host,
        Err(status) if NONE_OF_ITS.contains(&status) => Said::Host,
        Err(status) => Said::Error(status),
    }
}
