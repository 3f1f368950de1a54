//! The functions of MPI that are interposed, in their C form, blocking or not, with counts of 32 or 64 bits. Not seen: calls
//! from Fortran and persistent collectives (`_init`).
//!
//! Each calls the real one with the arguments as they came, or its twin with counts of 32 bits where there is no real one.
//! Sums of float and double are gradients; what is gathered or broadcast may be parameters. Results are always in the receive
//! buffer, also with MPI_IN_PLACE.

mod communicators;
mod handles;
mod requests;

use std::ffi::{c_int, c_void};
use std::ops::Range;

use crate::boundary::{around, is_on, quietly};
use crate::engine::{self, Collective};
use crate::memory::{Buffer, DType};
use crate::real::{Library, Real, c_name, call, interpose};
use crate::session::Ticket;
use crate::signature::{Communicator, Kind};
use crate::watch;
use communicators::{communicator, free};
use handles::{Handle, Handles};
use requests::{look, settle};

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

/// A collective that could be one of a training step.
struct Interesting {
    dtype: DType,
    communicator: Communicator,
    address: usize,
}

impl Call {
    /// Looks at the type, at the operation of a reduction, and at the communicator, in this order and before anything else.
    fn interesting(self, op: Option<Handle>) -> Option<Interesting> {
        watch::seen();
        let handles = Handles::get();
        let dtype = handles.dtype(self.datatype).filter(|_| op.is_none_or(|op| handles.is_sum(op)));
        let found = dtype.and_then(|dtype| Some((dtype, communicator(self.communicator)?)));
        if found.is_none() {
            watch::left_out(0);
        }
        let (dtype, communicator) = found?;
        Some(Interesting { dtype, communicator, address: self.address as usize })
    }

    /// A reduction that leaves the whole result everywhere.
    fn reduced(self, count: u64, op: Handle, is_complete: bool) -> Option<Ticket> {
        self.interesting(Some(op))?.issued(Kind::Reduce, false, count, 0..count, is_complete)
    }

    /// A reduction that leaves each rank its part. `counts`: elements of each rank.
    fn scattered(self, counts: impl Fn(u32) -> u64, op: Handle, is_complete: bool) -> Option<Ticket> {
        let found = self.interesting(Some(op))?;
        let Communicator { rank, size, .. } = found.communicator;
        let first: u64 = (0..rank).map(&counts).sum();
        let local = first..first + counts(rank);
        let count = local.end + (rank + 1..size).map(&counts).sum::<u64>();
        found.issued(Kind::Reduce, true, count, local, is_complete)
    }

    /// Perhaps parameters: all of them in one buffer.
    fn copied(self, count: u64, is_complete: bool) -> Option<Ticket> {
        self.interesting(None)?.issued(Kind::Gather, false, count, 0..count, is_complete)
    }

    /// The same, `count` from each rank.
    fn gathered(self, count: u64, is_complete: bool) -> Option<Ticket> {
        let found = self.interesting(None)?;
        let count = count * u64::from(found.communicator.size);
        found.issued(Kind::Gather, false, count, 0..count, is_complete)
    }

    /// The same, another number from each. Only if they lie next to one another in order of rank; otherwise it is not one
    /// buffer.
    ///
    /// # Safety
    /// `counts` and `displacements` must have an element for each rank, unless it is an intercommunicator.
    unsafe fn gathered_parts(
        self,
        counts: *const c_int,
        displacements: *const c_int,
        is_complete: bool,
    ) -> Option<Ticket> {
        let mut found = self.interesting(None)?;
        // SAFETY: the caller's promise; an intercommunicator is not interesting.
        let of = |list: *const c_int, rank: u32| i64::from(unsafe { *list.add(rank as usize) });
        let first = of(displacements, 0);
        let mut end = first;
        for rank in 0..found.communicator.size {
            if of(displacements, rank) != end {
                watch::left_out(0);
                return None;
            }
            end += of(counts, rank);
        }
        found.address = found.address.wrapping_add_signed((first * found.dtype.bytes() as i64) as isize);
        let count = elements(end - first);
        found.issued(Kind::Gather, false, count, 0..count, is_complete)
    }
}

impl Interesting {
    /// It was called: `count` elements in all, of which `local` are at the address.
    fn issued(
        self,
        kind: Kind,
        is_scattered: bool,
        count: u64,
        local: Range<u64>,
        is_complete: bool,
    ) -> Option<Ticket> {
        let Self { dtype, communicator, address } = self;
        let buffer = Buffer { library: Library::Mpi, address, local, dtype, stream: 0, is_measured: false };
        engine::issued(Collective { kind, is_scattered, communicator, count, buffer }, is_complete)
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

/// Calls the function with counts of 32 bits, for a library that has no other (MPI 3): programs that look for the one with 64
/// find ours. What is after the communicator are the counts.
macro_rules! narrow {
    ($name:ident($($argument:ident: $type:ty),*), $communicator:ident, $($count:ident),+) => {{
        static REAL: Real = Real::new(
            Library::Mpi,
            c_name(concat!(stringify!($name), "\0")),
            Some(c_name(concat!("P", stringify!($name), "\0"))),
        );
        match ($(c_int::try_from($count),)+) {
            ($(Ok($count),)+) => call!(REAL, REAL.missing(MISSING), ($($argument),*): ($($type),*)),
            _ => too_many($communicator),
        }
    }};
}

/// More elements than the library can count: its error, in the trainer's way of handling errors.
#[cold]
fn too_many(communicator: Handle) -> c_int {
    static HANDLER: Real = Real::new(Library::Mpi, c"PMPI_Comm_call_errhandler", None);
    const MPI_ERR_COUNT: c_int = 2;
    call!(HANDLER, MISSING, (communicator, MPI_ERR_COUNT): (Handle, c_int));
    MPI_ERR_COUNT
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

    fn MPI_Allreduce_c(send: In, receive: Out, count: Large, datatype: Handle, op: Handle, communicator: Handle) or {
        narrow!(
            MPI_Allreduce(send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle),
            communicator, count
        )
    } => |real|
        around(real, || _ = Call { datatype, communicator, address: receive }.reduced(elements(count), op, true));

    fn MPI_Iallreduce(
        send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) => |real| started(real, request, |is_complete| {
        Call { datatype, communicator, address: receive }.reduced(elements(count), op, is_complete)
    });

    fn MPI_Iallreduce_c(
        send: In, receive: Out, count: Large, datatype: Handle, op: Handle, communicator: Handle, request: Out,
    ) or {
        narrow!(
            MPI_Iallreduce(send: In, receive: Out, count: c_int, datatype: Handle, op: Handle, communicator: Handle,
                request: Out),
            communicator, count
        )
    } => |real| started(real, request, |is_complete| {
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
    ) or {
        narrow!(
            MPI_Reduce_scatter_block(send: In, receive: Out, count: c_int, datatype: Handle, op: Handle,
                communicator: Handle),
            communicator, count
        )
    } => |real| around(real, || {
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
    ) or {
        narrow!(
            MPI_Allgather(send: In, send_count: c_int, send_type: Handle, receive: Out, count: c_int, datatype: Handle,
                communicator: Handle),
            communicator, send_count, count
        )
    } => |real|
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

    fn MPI_Bcast_c(buffer: Out, count: Large, datatype: Handle, root: c_int, communicator: Handle) or {
        narrow!(
            MPI_Bcast(buffer: Out, count: c_int, datatype: Handle, root: c_int, communicator: Handle),
            communicator, count
        )
    } => |real|
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

    fn MPI_Request_get_status(request: Handle, flag: Ints, status: Out) =>
        |real| unsafe { look(request, flag, real) };

    fn MPI_Comm_free(communicator: Out) => |real| unsafe { free(communicator, real) };

    fn MPI_Comm_disconnect(communicator: Out) => |real| unsafe { free(communicator, real) };

    // Nothing of MPI's follows: the scope is closed while everything is still there.
    fn MPI_Finalize() => |real| {
        if is_on() {
            quietly(engine::close_with_mpi);
        }
        real()
    };
}
