//! Handles of the two families of MPI libraries: Open MPI's are addresses of objects, MPICH's are 32-bit numbers.
//!
//! Both travel through as 64 bits, untouched. Which family it is, a symbol tells that only Open MPI has.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use crate::engine::Member;
use crate::memory::DType;
use crate::real::{Library, Real, call};

/// A handle as it is passed to functions. Of MPICH's only the lower 32 bits mean anything.
pub type Handle = usize;

/// What the handles of the library are.
#[derive(Clone, Copy, Debug)]
pub struct Handles {
    is_number: bool,
    float: Handle,
    double: Handle,
    sum: Handle,
    world: Handle,
    null_request: Handle,
}

impl Handles {
    /// Those of the library that is loaded.
    pub fn get() -> &'static Self {
        static HANDLES: OnceLock<Handles> = OnceLock::new();
        HANDLES.get_or_init(|| {
            let address = |name| Library::Mpi.variable(name) as usize;
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

    /// Request `index` of an array; `None` if it is MPI_REQUEST_NULL.
    ///
    /// # Safety
    /// `requests` must point to more than `index` requests.
    pub unsafe fn request(&self, requests: *const c_void, index: usize) -> Option<Handle> {
        // SAFETY: the caller's promise.
        let request = unsafe {
            match self.is_number {
                true => requests.cast::<u32>().add(index).read() as usize,
                false => requests.cast::<usize>().add(index).read(),
            }
        };
        (request != self.null_request).then_some(request)
    }
}

/// This process in a communicator. A few dozen nanoseconds, but for `first`: three more calls.
pub fn member(communicator: Handle) -> Option<Member> {
    static RANK: Real = Real::new(Library::Mpi, c"PMPI_Comm_rank", None);
    static SIZE: Real = Real::new(Library::Mpi, c"PMPI_Comm_size", None);
    let (mut rank, mut size): (c_int, c_int) = (0, 0);
    let status = call!(RANK, 1, (communicator, &mut rank): (Handle, *mut c_int));
    let status = status | call!(SIZE, 1, (communicator, &mut size): (Handle, *mut c_int));
    if status != 0 {
        return None;
    }
    Some(Member { rank: rank as u32, size: size as u32, first: first(communicator) })
}

/// The first rank of a communicator, as a rank of MPI_COMM_WORLD.
fn first(communicator: Handle) -> Option<u32> {
    static GROUP: Real = Real::new(Library::Mpi, c"PMPI_Comm_group", None);
    static TRANSLATE: Real = Real::new(Library::Mpi, c"PMPI_Group_translate_ranks", None);
    static FREE: Real = Real::new(Library::Mpi, c"PMPI_Group_free", None);
    // Large enough for a handle of either family; MPICH fills the lower half.
    let group = |communicator: Handle| {
        let mut group: Handle = 0;
        let status = call!(GROUP, 1, (communicator, &mut group): (Handle, *mut Handle));
        (status == 0).then_some(group)
    };
    let mut own = group(communicator)?;
    let mut world = group(Handles::get().world)?;
    let (zero, mut first): (c_int, c_int) = (0, -1);
    let types = call!(TRANSLATE, 1, (own, 1, &zero, world, &mut first):
        (Handle, c_int, *const c_int, Handle, *mut c_int));
    for group in [&mut own, &mut world] {
        call!(FREE, 1, (group): (*mut Handle));
    }
    u32::try_from(first).ok().filter(|_| types == 0)
}
