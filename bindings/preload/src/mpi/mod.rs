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
use crate::real::{Library, Real, c_name, call, interpose};
use crate::signature::Kind;
use crate::watch;
use handles::{Handle, Handles, member};
use requests::settle;

/// MPI_ERR_OTHER, near enough: returned where there is no MPI to call.
const MISSING: c_int = 16;

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
    let count = elements(count);
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

/// A reduction that goes on until `request` has completed.
///
/// # Safety
/// `request` must point to the request that the real function has written.
unsafe fn started(request: *const c_void, reduced: impl FnOnce(bool) -> Option<Ticket>) {
    // SAFETY: the caller's promise. One that is null already is complete.
    let pending = unsafe { Handles::get().request(request, 0) };
    let ticket = reduced(pending.is_none());
    if let (Some(pending), Some(ticket)) = (pending, ticket) {
        requests::keep(pending, ticket);
    }
}

/// Parts of all ranks that are gathered next to one another, in order of rank; otherwise it is not one buffer.
///
/// # Safety
/// `counts` and `displacements` must have an element for each rank.
unsafe fn gathered_parts(
    counts: *const c_int,
    displacements: *const c_int,
    datatype: Handle,
    communicator: Handle,
    address: *const c_void,
) {
    let Some(member) = member(communicator) else { return };
    // SAFETY: the caller's promise.
    let of = |list: *const c_int, rank: u32| i64::from(unsafe { *list.add(rank as usize) });
    let first = of(displacements, 0);
    let mut end = first;
    for rank in 0..member.size {
        if of(displacements, rank) != end {
            return;
        }
        end += of(counts, rank);
    }
    let bytes = Handles::get().dtype(datatype).map_or(0, |dtype| dtype.bytes() as i64);
    let address = address.wrapping_byte_offset((first * bytes) as isize);
    gathered((end - first).max(0) as u64, datatype, communicator, address);
}

fn elements(count: c_int) -> u64 {
    count.max(0) as u64
}

type In = *const c_void;
type Out = *mut c_void;
type Ints = *mut c_int;

// MPI's promises, which are those of its callers: a count and a displacement for each rank, as many requests as are counted.
interpose! {
    Library::Mpi, "P", MISSING;

    fn MPI_Allreduce(send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle) => |real|
        around(real, || _ = reduced(count, datatype, op, communicator, receive, true));

    fn MPI_Iallreduce(
        send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) => |real| around(real, || {
        let reduced = |is_complete| reduced(count, datatype, op, communicator, receive, is_complete);
        // SAFETY: the real function has succeeded, so it has written the request.
        unsafe { started(request, reduced) }
    });

    fn MPI_Reduce_scatter(
        send: In, receive: Out, counts: *const c_int, datatype: Handle, op: Handle, communicator: Handle,
    ) => |real| around(real, || {
        // SAFETY: MPI's promise.
        let of_rank = |rank: u32| elements(unsafe { *counts.add(rank as usize) });
        scattered(of_rank, datatype, op, communicator, receive);
    });

    fn MPI_Reduce_scatter_block(
        send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle,
    ) => |real| around(real, || scattered(|_| elements(count), datatype, op, communicator, receive));

    fn MPI_Allgather(
        send: In, send_count: c_int, send_type: Handle,
        receive: Out, count: c_int, datatype: Handle, communicator: Handle,
    ) => |real| around(real, || {
        let Some(member) = member(communicator) else { return };
        gathered(elements(count) * u64::from(member.size), datatype, communicator, receive);
    });

    fn MPI_Allgatherv(
        send: In, send_count: c_int, send_type: Handle,
        receive: Out, counts: *const c_int, displacements: *const c_int, datatype: Handle, communicator: Handle,
    ) => |real| around(real, || {
        // SAFETY: MPI's promise.
        unsafe { gathered_parts(counts, displacements, datatype, communicator, receive) }
    });

    fn MPI_Bcast(buffer: Out, count: c_int, datatype: Handle, root: c_int, communicator: Handle) => |real|
        around(real, || gathered(elements(count), datatype, communicator, buffer));

    // SAFETY of what follows: MPI's promise.
    fn MPI_Wait(request: Out, status: Out) => |real| unsafe { settle(request, 1, real) };
    fn MPI_Test(request: Out, flag: Ints, status: Out) => |real| unsafe { settle(request, 1, real) };
    fn MPI_Waitall(count: c_int, requests: Out, statuses: Out) => |real| unsafe { settle(requests, count, real) };
    fn MPI_Testall(count: c_int, requests: Out, flag: Ints, statuses: Out) =>
        |real| unsafe { settle(requests, count, real) };
    fn MPI_Waitany(count: c_int, requests: Out, index: Ints, status: Out) =>
        |real| unsafe { settle(requests, count, real) };
    fn MPI_Testany(count: c_int, requests: Out, index: Ints, flag: Ints, status: Out) =>
        |real| unsafe { settle(requests, count, real) };
    fn MPI_Waitsome(count: c_int, requests: Out, completed: Ints, indices: Ints, statuses: Out) =>
        |real| unsafe { settle(requests, count, real) };
    fn MPI_Testsome(count: c_int, requests: Out, completed: Ints, indices: Ints, statuses: Out) =>
        |real| unsafe { settle(requests, count, real) };

    // Nothing follows: the scope is closed while everything is still there.
    fn MPI_Finalize() => |real| {
        if is_on() {
            quietly(engine::close);
        }
        real()
    };
}
