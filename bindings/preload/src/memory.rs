//! Where a buffer lies, as a DLPack tensor says it.
//!
//! A process without libcuda has host memory only. With it the driver is asked, about 100 ns, in sampled steps only.

use std::ffi::{c_int, c_uint, c_void};

use forgetscope::abi::fgs_dltensor;

use crate::real::{Library, Real};

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

impl Device {
    /// The device that holds the address.
    pub fn of(address: usize) -> Self {
        // CUpointer_attribute: the kind of memory (2: a device's), and the device's number.
        const MEMORY_TYPE: c_int = 2;
        const DEVICE_ORDINAL: c_int = 9;
        static ATTRIBUTE: Real = Real::new(Library::Cuda, c"cuPointerGetAttribute", None);
        let function = ATTRIBUTE.address();
        if function.is_null() {
            return HOST;
        }
        let ask = |attribute| {
            let mut value: c_uint = 0;
            // SAFETY: cuPointerGetAttribute has this type since CUDA 4, and both attributes are 32 bits.
            let status = unsafe {
                let function: unsafe extern "C" fn(*mut c_void, c_int, u64) -> c_int = std::mem::transmute(function);
                function((&raw mut value).cast(), attribute, address as u64)
            };
            (status == 0).then_some(value)
        };
        match (ask(MEMORY_TYPE), ask(DEVICE_ORDINAL)) {
            (Some(2), Some(id)) => Self { kind: 2, id: id as i32 },
            _ => HOST,
        }
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
