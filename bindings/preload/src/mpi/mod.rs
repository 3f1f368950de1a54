//! The functions of MPI that are interposed, in their C form. Not seen: calls from Fortran, large-count functions (`_c`),
//! persistent collectives (`_init`).
//!
//! Each calls the real one with the arguments as they came. Sums of float and double are gradients; what is gathered or
//! broadcast may be parameters. Results are always in the receive buffer, also with MPI_IN_PLACE.

mod handles;
mod requests;

use std::ffi::{c_int, c_void};
use std::ops::Range;

use crate::boundary::{around, is_on, quietly};
use crate::engine::{self, Buffer, Collective, Ticket};
use crate::real::{Library, Real, call};
use crate::signature::Kind;
use crate::watch;
use handles::{Handle, Handles, member};

/// MPI_ERR_OTHER, near enough: returned where there is no MPI to call.
const MISSING: c_int = 16;

/// The next definition of a function, else MPI's own under its other name.
macro_rules! real {
    ($name:literal, $twin:literal) => {{
        static REAL: Real = Real::new(Library::Mpi, $name, Some($twin));
        &REAL
    }};
}

/// A collective was called: `count` elements of `datatype` in all, of which `local` are at `address`.
fn issued(
    kind: Kind,
    communicator: Handle,
    datatype: Handle,
    count: u64,
    local: Range<u64>,
    address: *const c_void,
    is_complete: bool,
) -> Option<Ticket> {
    let handles = Handles::get();
    let Some(dtype) = handles.dtype(datatype) else {
        watch::left_out(0);
        return None;
    };
    let buffer = Buffer { address: address as usize, local, dtype, stream: 0, is_measured: false };
    let communicator = handles.clean(communicator);
    engine::issued(Collective { kind, communicator, count, buffer, member }, is_complete)
}

/// A reduction that leaves the whole result everywhere.
fn reduced(
    count: c_int,
    datatype: Handle,
    op: Handle,
    communicator: Handle,
    address: *const c_void,
    is_complete: bool,
) -> Option<Ticket> {
    watch::seen();
    if !Handles::get().is_sum(op) {
        watch::left_out(0);
        return None;
    }
    let count = count.max(0) as u64;
    issued(Kind::Reduce, communicator, datatype, count, 0..count, address, is_complete)
}

/// A reduction that leaves each rank its part. `counts`: elements of each rank.
fn scattered(counts: impl Fn(u32) -> u64, datatype: Handle, op: Handle, communicator: Handle, address: *const c_void) {
    watch::seen();
    let Some(member) = member(communicator).filter(|_| Handles::get().is_sum(op)) else {
        watch::left_out(0);
        return;
    };
    let first: u64 = (0..member.rank).map(&counts).sum();
    let local = first..first + counts(member.rank);
    let count = local.end + (member.rank + 1..member.size).map(&counts).sum::<u64>();
    issued(Kind::Reduce, communicator, datatype, count, local, address, true);
}

/// Parameters, perhaps.
fn gathered(count: u64, datatype: Handle, communicator: Handle, address: *const c_void) {
    watch::seen();
    issued(Kind::Gather, communicator, datatype, count, 0..count, address, true);
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Allreduce(
    send: *const c_void,
    receive: *mut c_void,
    count: c_int,
    datatype: Handle,
    op: Handle,
    communicator: Handle,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Allreduce", c"PMPI_Allreduce"), MISSING, (send, receive, count, datatype, op, communicator):
            (*const c_void, *mut c_void, c_int, Handle, Handle, Handle))
    };
    around(real, || _ = reduced(count, datatype, op, communicator, receive, true))
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Iallreduce(
    send: *const c_void,
    receive: *mut c_void,
    count: c_int,
    datatype: Handle,
    op: Handle,
    communicator: Handle,
    request: *mut c_void,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Iallreduce", c"PMPI_Iallreduce"), MISSING,
            (send, receive, count, datatype, op, communicator, request):
            (*const c_void, *mut c_void, c_int, Handle, Handle, Handle, *mut c_void))
    };
    around(real, || {
        // SAFETY: the real function has written the request. One that is null already is complete.
        let pending = unsafe { Handles::get().request(request, 0) };
        let ticket = reduced(count, datatype, op, communicator, receive, pending.is_none());
        if let (Some(pending), Some(ticket)) = (pending, ticket) {
            requests::keep(pending, ticket);
        }
    })
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Reduce_scatter(
    send: *const c_void,
    receive: *mut c_void,
    counts: *const c_int,
    datatype: Handle,
    op: Handle,
    communicator: Handle,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Reduce_scatter", c"PMPI_Reduce_scatter"), MISSING,
            (send, receive, counts, datatype, op, communicator):
            (*const c_void, *mut c_void, *const c_int, Handle, Handle, Handle))
    };
    // SAFETY: there is a count for each rank, or the real function would have failed.
    let of_rank = |rank: u32| unsafe { *counts.add(rank as usize) }.max(0) as u64;
    around(real, || scattered(of_rank, datatype, op, communicator, receive))
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Reduce_scatter_block(
    send: *const c_void,
    receive: *mut c_void,
    count: c_int,
    datatype: Handle,
    op: Handle,
    communicator: Handle,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Reduce_scatter_block", c"PMPI_Reduce_scatter_block"), MISSING,
            (send, receive, count, datatype, op, communicator):
            (*const c_void, *mut c_void, c_int, Handle, Handle, Handle))
    };
    around(real, || scattered(|_| count.max(0) as u64, datatype, op, communicator, receive))
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Allgather(
    send: *const c_void,
    send_count: c_int,
    send_type: Handle,
    receive: *mut c_void,
    count: c_int,
    datatype: Handle,
    communicator: Handle,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Allgather", c"PMPI_Allgather"), MISSING,
            (send, send_count, send_type, receive, count, datatype, communicator):
            (*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle))
    };
    around(real, || {
        let Some(member) = member(communicator) else { return };
        gathered(count.max(0) as u64 * u64::from(member.size), datatype, communicator, receive);
    })
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Allgatherv(
    send: *const c_void,
    send_count: c_int,
    send_type: Handle,
    receive: *mut c_void,
    counts: *const c_int,
    displacements: *const c_int,
    datatype: Handle,
    communicator: Handle,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Allgatherv", c"PMPI_Allgatherv"), MISSING,
            (send, send_count, send_type, receive, counts, displacements, datatype, communicator):
            (*const c_void, c_int, Handle, *mut c_void, *const c_int, *const c_int, Handle, Handle))
    };
    around(real, || {
        let Some(member) = member(communicator) else { return };
        // SAFETY: there are counts and displacements for each rank, or the real function would have failed.
        let of = |list: *const c_int, rank: u32| i64::from(unsafe { *list.add(rank as usize) });
        let first = of(displacements, 0);
        let mut end = first;
        for rank in 0..member.size {
            if of(displacements, rank) != end {
                // With gaps, or in another order: not one buffer.
                return;
            }
            end += of(counts, rank);
        }
        let bytes = Handles::get().dtype(datatype).map_or(0, |dtype| dtype.bytes() as i64);
        let address = receive.wrapping_byte_offset((first * bytes) as isize);
        gathered((end - first).max(0) as u64, datatype, communicator, address);
    })
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Bcast(
    buffer: *mut c_void,
    count: c_int,
    datatype: Handle,
    root: c_int,
    communicator: Handle,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Bcast", c"PMPI_Bcast"), MISSING, (buffer, count, datatype, root, communicator):
            (*mut c_void, c_int, Handle, c_int, Handle))
    };
    around(real, || gathered(count.max(0) as u64, datatype, communicator, buffer))
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Wait(request: *mut c_void, status: *mut c_void) -> c_int {
    let real = || call!(real!(c"MPI_Wait", c"PMPI_Wait"), MISSING, (request, status): (*mut c_void, *mut c_void));
    // SAFETY: one request, says MPI.
    unsafe { requests::settle(request, 1, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Test(request: *mut c_void, flag: *mut c_int, status: *mut c_void) -> c_int {
    let real = || {
        call!(real!(c"MPI_Test", c"PMPI_Test"), MISSING, (request, flag, status):
            (*mut c_void, *mut c_int, *mut c_void))
    };
    // SAFETY: one request, says MPI.
    unsafe { requests::settle(request, 1, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Waitall(count: c_int, requests: *mut c_void, statuses: *mut c_void) -> c_int {
    let real = || {
        call!(real!(c"MPI_Waitall", c"PMPI_Waitall"), MISSING, (count, requests, statuses):
            (c_int, *mut c_void, *mut c_void))
    };
    // SAFETY: as many requests, says MPI.
    unsafe { requests::settle(requests, count, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Testall(
    count: c_int,
    requests: *mut c_void,
    flag: *mut c_int,
    statuses: *mut c_void,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Testall", c"PMPI_Testall"), MISSING, (count, requests, flag, statuses):
            (c_int, *mut c_void, *mut c_int, *mut c_void))
    };
    // SAFETY: as many requests, says MPI.
    unsafe { requests::settle(requests, count, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Waitany(
    count: c_int,
    requests: *mut c_void,
    index: *mut c_int,
    status: *mut c_void,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Waitany", c"PMPI_Waitany"), MISSING, (count, requests, index, status):
            (c_int, *mut c_void, *mut c_int, *mut c_void))
    };
    // SAFETY: as many requests, says MPI.
    unsafe { requests::settle(requests, count, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Testany(
    count: c_int,
    requests: *mut c_void,
    index: *mut c_int,
    flag: *mut c_int,
    status: *mut c_void,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Testany", c"PMPI_Testany"), MISSING, (count, requests, index, flag, status):
            (c_int, *mut c_void, *mut c_int, *mut c_int, *mut c_void))
    };
    // SAFETY: as many requests, says MPI.
    unsafe { requests::settle(requests, count, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Waitsome(
    count: c_int,
    requests: *mut c_void,
    completed: *mut c_int,
    indices: *mut c_int,
    statuses: *mut c_void,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Waitsome", c"PMPI_Waitsome"), MISSING, (count, requests, completed, indices, statuses):
            (c_int, *mut c_void, *mut c_int, *mut c_int, *mut c_void))
    };
    // SAFETY: as many requests, says MPI.
    unsafe { requests::settle(requests, count, real) }
}

/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Testsome(
    count: c_int,
    requests: *mut c_void,
    completed: *mut c_int,
    indices: *mut c_int,
    statuses: *mut c_void,
) -> c_int {
    let real = || {
        call!(real!(c"MPI_Testsome", c"PMPI_Testsome"), MISSING, (count, requests, completed, indices, statuses):
            (c_int, *mut c_void, *mut c_int, *mut c_int, *mut c_void))
    };
    // SAFETY: as many requests, says MPI.
    unsafe { requests::settle(requests, count, real) }
}

/// Nothing follows: the scope is closed while everything is still there.
///
/// # Safety
/// As for MPI's own function.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn MPI_Finalize() -> c_int {
    if is_on() {
        quietly(engine::close);
    }
    call!(real!(c"MPI_Finalize", c"PMPI_Finalize"), MISSING, (): ())
}
