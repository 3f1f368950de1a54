//! Handles of the two families of MPI libraries: Open MPI's are addresses of objects, MPICH's are 32-bit numbers.
//!
//! Both travel through as 64 bits, untouched. Which family it is, a symbol tells that only Open MPI has.

use std::ffi::c_void;
use std::sync::OnceLock;

use crate::memory::DType;
use crate::objects;

/// A handle as it is passed to functions. Of MPICH's only the lower 32 bits mean anything.
pub type Handle = usize;

/// What the handles of the library are.
#[derive(Clone, Copy, Debug)]
pub struct Handles {
    is_number: bool,
    float: Handle,
    double: Handle,
    sum: Handle,
    pub world: Handle,
    null_request: Handle,
}

impl Handles {
    /// Those of the library that is loaded.
    pub fn get() -> &'static Self {
        static HANDLES: OnceLock<Handles> = OnceLock::new();
        HANDLES.get_or_init(|| {
            let address = |name| objects::variable(name).unwrap_or(0);
            let float = address(c"ompi_mpi_float");
            if float == 0 {
                // mpi.h of MPICH and of what is compatible with it.
                return Self {
                    is_number: true,
                    float: 0x4c00040a,
                    double: 0x4c00080b,
                    sum: 0x58000003,
                    world: 0x44000000,
                    null_request: 0x2c000000,
                };
            }
            Self {
                is_number: false,
                float,
                double: address(c"ompi_mpi_double"),
                sum: address(c"ompi_mpi_op_sum"),
                world: address(c"ompi_mpi_comm_world"),
                null_request: address(c"ompi_request_null"),
            }
        })
    }

    /// The handle without what a register may hold above it.
    pub fn clean(&self, handle: Handle) -> Handle {
        if self.is_number { handle & 0xffff_ffff } else { handle }
    }

    pub fn dtype(&self, datatype: Handle) -> Option<DType> {
        match self.clean(datatype) {
            datatype if datatype == self.float => Some(DType::F32),
            datatype if datatype == self.double => Some(DType::F64),
            _ => None,
        }
    }

    pub fn is_sum(&self, op: Handle) -> bool {
        self.clean(op) == self.sum
    }

    /// Handle `index` of an array.
    ///
    /// # Safety
    /// `handles` must point to more than `index` handles.
    pub unsafe fn read(&self, handles: *const c_void, index: usize) -> Handle {
        // SAFETY: the caller's promise.
        unsafe {
            match self.is_number {
                true => handles.cast::<u32>().add(index).read() as usize,
                false => handles.cast::<usize>().add(index).read(),
            }
        }
    }

    /// Request `index` of an array; `None` if it is MPI_REQUEST_NULL.
    ///
    /// # Safety
    /// `requests` must point to more than `index` requests.
    pub unsafe fn request(&self, requests: *const c_void, index: usize) -> Option<Handle> {
        // SAFETY: the caller's promise.
        let request = unsafe { self.read(requests, index) };
        (request != self.null_request).then_some(request)
    }
}
