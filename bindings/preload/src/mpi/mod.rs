//! The functions of MPI that are interposed, in their C form, blocking or not, with counts of 32 or 64 bits. Not seen: calls
//! from Fortran and persistent collectives (`_init`).
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

/// What a call says of a collective, which is the same in all its forms.
#[derive(Clone, Copy)]
struct Call {
    datatype: Handle,
    communicator: Handle,
    /// Where the result will be.
    address: *const c_void,
}

impl Call {
    /// It was called: `count` elements in all, of which `local` are at the address.
    fn issued(self, kind: Kind, count: u64, local: Range<u64>, is_complete: bool) -> Option<Ticket> {
        let handles = Handles::get();
        let Some(dtype) = handles.dtype(self.datatype) else {
            watch::left_out(0);
            return None;
        };
        let buffer = Buffer { address: self.address as usize, local, dtype, stream: 0, is_measured: false };
        let communicator = handles.clean(self.communicator);
        engine::issued(Collective { kind, communicator, count, buffer, member }, is_complete)
    }

    /// A reduction that leaves the whole result everywhere.
    fn reduced(self, count: u64, op: Handle, is_complete: bool) -> Option<Ticket> {
        watch::seen();
        if !Handles::get().is_sum(op) {
            watch::left_out(0);
            return None;
        }
        self.issued(Kind::Reduce, count, 0..count, is_complete)
    }

    /// A reduction that leaves each rank its part. `counts`: elements of each rank.
    fn scattered(self, counts: impl Fn(u32) -> u64, op: Handle, is_complete: bool) -> Option<Ticket> {
        watch::seen();
        let Some(member) = member(self.communicator).filter(|_| Handles::get().is_sum(op)) else {
            watch::left_out(0);
            return None;
        };
        let first: u64 = (0..member.rank).map(&counts).sum();
        let local = first..first + counts(member.rank);
        let count = local.end + (member.rank + 1..member.size).map(&counts).sum::<u64>();
        self.issued(Kind::Reduce, count, local, is_complete)
    }

    /// Perhaps parameters: all of them in one buffer.
    fn copied(self, count: u64, is_complete: bool) -> Option<Ticket> {
        watch::seen();
        self.issued(Kind::Gather, count, 0..count, is_complete)
    }

    /// The same, `count` from each rank.
    fn gathered(self, count: u64, is_complete: bool) -> Option<Ticket> {
        let size = member(self.communicator)?.size;
        self.copied(count * u64::from(size), is_complete)
    }

    /// The same, another number from each. Only if they lie next to one another in order of rank; otherwise it is not one
    /// buffer.
    ///
    /// # Safety
    /// `counts` and `displacements` must have an element for each rank.
    unsafe fn gathered_parts(
        self,
        counts: *const c_int,
        displacements: *const c_int,
        is_complete: bool,
    ) -> Option<Ticket> {
        let member = member(self.communicator)?;
        // SAFETY: the caller's promise.
        let of = |list: *const c_int, rank: u32| i64::from(unsafe { *list.add(rank as usize) });
        let first = of(displacements, 0);
        let mut end = first;
        for rank in 0..member.size {
            if of(displacements, rank) != end {
                return None;
            }
            end += of(counts, rank);
        }
        let bytes = Handles::get().dtype(self.datatype).map_or(0, |dtype| dtype.bytes() as i64);
        let address = self.address.wrapping_byte_offset((first * bytes) as isize);
        Self { address, ..self }.copied(elements(end - first), is_complete)
    }
}

/// A collective that goes on until `request` has completed: the real call, and then the look at it.
fn started(real: impl FnOnce() -> c_int, request: *const c_void, issued: impl FnOnce(bool) -> Option<Ticket>) -> c_int {
    around(real, || {
        // SAFETY: the real function has succeeded, so it has written the request. One that is null already is complete.
        let pending = unsafe { Handles::get().request(request, 0) };
        let ticket = issued(pending.is_none());
        if let (Some(pending), Some(ticket)) = (pending, ticket) {
            requests::keep(pending, ticket);
        }
    })
}

fn elements(count: impl Into<i64>) -> u64 {
    count.into().max(0) as u64
}

type In = *const c_void;
type Out = *mut c_void;
type Ints = *mut c_int;
type Counts = *const c_int;
/// MPI_Count, of functions whose names end in `_c`.
type Large = i64;

// SAFETY of all of them: MPI's promises, which are those of its callers. There is a count and a displacement for each rank,
// and there are as many requests as are counted.
interpose! {
    Library::Mpi, "P", MISSING;

    fn MPI_Allreduce(send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle) => |real|
        around(real, || _ = Call { datatype, communicator, address: receive }.reduced(elements(count), op, true));

    fn MPI_Allreduce_c(send: In, receive: Out, count: Large, datatype: Handle, op: Handle, communicator: Handle) => |real|
        around(real, || _ = Call { datatype, communicator, address: receive }.reduced(elements(count), op, true));

    fn MPI_Iallreduce(
        send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        Call { datatype, communicator, address: receive }.reduced(elements(count), op, is_complete)
    });

    fn MPI_Iallreduce_c(
        send: In, receive: Out, count: Large, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        Call { datatype, communicator, address: receive }.reduced(elements(count), op, is_complete)
    });

    fn MPI_Reduce_scatter(
        send: In, receive: Out, counts: Counts, datatype: Handle, op: Handle, communicator: Handle,
    ) => |real| around(real, || {
        let of_rank = |rank: u32| elements(unsafe { *counts.add(rank as usize) });
        Call { datatype, communicator, address: receive }.scattered(of_rank, op, true);
    });

    fn MPI_Ireduce_scatter(
        send: In, receive: Out, counts: Counts, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        let of_rank = |rank: u32| elements(unsafe { *counts.add(rank as usize) });
        Call { datatype, communicator, address: receive }.scattered(of_rank, op, is_complete)
    });

    fn MPI_Reduce_scatter_block(
        send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle,
    ) => |real| around(real, || {
        Call { datatype, communicator, address: receive }.scattered(|_| elements(count), op, true);
    });

    fn MPI_Reduce_scatter_block_c(
        send: In, receive: Out, count: Large, datatype: Handle, op: Handle, communicator: Handle,
    ) => |real| around(real, || {
        Call { datatype, communicator, address: receive }.scattered(|_| elements(count), op, true);
    });

    fn MPI_Ireduce_scatter_block(
        send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        Call { datatype, communicator, address: receive }.scattered(|_| elements(count), op, is_complete)
    });

    fn MPI_Allgather(
        send: In, send_count: c_int, send_type: Handle,
        receive: Out, count: c_int, datatype: Handle, communicator: Handle,
    ) => |real|
        around(real, || _ = Call { datatype, communicator, address: receive }.gathered(elements(count), true));

    fn MPI_Allgather_c(
        send: In, send_count: Large, send_type: Handle,
        receive: Out, count: Large, datatype: Handle, communicator: Handle,
    ) => |real|
        around(real, || _ = Call { datatype, communicator, address: receive }.gathered(elements(count), true));

    fn MPI_Iallgather(
        send: In, send_count: c_int, send_type: Handle,
        receive: Out, count: c_int, datatype: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        Call { datatype, communicator, address: receive }.gathered(elements(count), is_complete)
    });

    fn MPI_Allgatherv(
        send: In, send_count: c_int, send_type: Handle,
        receive: Out, counts: Counts, displacements: Counts, datatype: Handle, communicator: Handle,
    ) => |real| around(real, || {
        let call = Call { datatype, communicator, address: receive };
        unsafe { call.gathered_parts(counts, displacements, true) };
    });

    fn MPI_Iallgatherv(
        send: In, send_count: c_int, send_type: Handle,
        receive: Out, counts: Counts, displacements: Counts, datatype: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        let call = Call { datatype, communicator, address: receive };
        unsafe { call.gathered_parts(counts, displacements, is_complete) }
    });

    fn MPI_Bcast(buffer: Out, count: c_int, datatype: Handle, root: c_int, communicator: Handle) => |real|
        around(real, || _ = Call { datatype, communicator, address: buffer }.copied(elements(count), true));

    fn MPI_Bcast_c(buffer: Out, count: Large, datatype: Handle, root: c_int, communicator: Handle) => |real|
        around(real, || _ = Call { datatype, communicator, address: buffer }.copied(elements(count), true));

    fn MPI_Ibcast(
        buffer: Out, count: c_int, datatype: Handle, root: c_int, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        Call { datatype, communicator, address: buffer }.copied(elements(count), is_complete)
    });

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
