//! The functions of NCCL that are interposed.
//!
//! A collective is enqueued on a stream; so is what reads its result, right after it. Between ncclGroupStart and the last
//! ncclGroupEnd nothing is enqueued: what is called there is noted and looked at afterwards.

mod capture;
mod group;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::boundary::{around, whatever};
use crate::engine::{self, Collective};
use crate::memory::{Buffer, DType};
use crate::real::{Library, Real, c_name, call, interpose};
use crate::signature::{Communicator, Kind};
use crate::watch;

type Handle = usize;

/// ncclInProgress.
const IN_PROGRESS: c_int = 7;
/// ncclSystemError: returned where there is no NCCL to call.
const MISSING: c_int = 2;

/// Numbers of ncclDataType_t.
fn dtype(datatype: c_int) -> Option<DType> {
    match datatype {
        6 => Some(DType::F16),
        7 => Some(DType::F32),
        8 => Some(DType::F64),
        9 => Some(DType::Bf16),
        _ => None,
    }
}

/// Numbers of ncclRedOp_t: a sum, an average, or a sum with a factor that the trainer made (from 5 on).
fn is_sum(op: c_int) -> bool {
    op == 0 || op >= 4
}

/// The communicator with this handle: two loads in NCCL. Which rank of the job is its first is not known.
fn communicator(handle: Handle) -> Option<Communicator> {
    static RANK: Real = Real::new(Library::Nccl, c"ncclCommUserRank", Some(c"pncclCommUserRank"));
    static SIZE: Real = Real::new(Library::Nccl, c"ncclCommCount", Some(c"pncclCommCount"));
    let number = |real: &Real| {
        let mut number: c_int = 0;
        let status = call!(real, MISSING, (handle, &mut number): (Handle, *mut c_int));
        u32::try_from(number).ok().filter(|_| status == 0)
    };
    Some(Communicator { handle, rank: number(&RANK)?, size: number(&SIZE)?, first: None })
}

/// A collective that was called, as it is noted within a group.
struct Called {
    kind: Kind,
    /// Elements of each rank, or of all.
    count: usize,
    /// Each rank has a part: `count` is that of one.
    is_per_rank: bool,
    datatype: c_int,
    communicator: Handle,
    stream: Handle,
    /// Where the result is.
    address: *const c_void,
}

impl Called {
    /// The collective is enqueued.
    fn enqueued(self) {
        let Some(dtype) = dtype(self.datatype) else {
            watch::left_out(0);
            return;
        };
        if capture::is_going_on(self.stream) {
            return;
        }
        let Some(communicator) = communicator(self.communicator) else {
            watch::left_out(0);
            return;
        };
        let each = self.count as u64;
        let count = if self.is_per_rank { each * u64::from(communicator.size) } else { each };
        let is_scattered = self.is_per_rank && self.kind == Kind::Reduce;
        let first = each * u64::from(communicator.rank);
        let local = if is_scattered { first..first + each } else { 0..count };
        let (address, stream) = (self.address as usize, self.stream);
        let buffer = Buffer { library: Library::Nccl, address, local, dtype, stream, is_measured: false };
        engine::issued(Collective { kind: self.kind, is_scattered, communicator, count, buffer }, true);
    }
}

/// The body of an interposed collective: the real call, and then what is to be known of it; `None`: nothing.
fn collective(real: impl FnOnce() -> c_int, called: impl FnOnce() -> Option<Called>) -> c_int {
    whatever(real, |status| match status {
        0 => {
            watch::seen();
            match called() {
                Some(called) => group::note(called).map_or((), Called::enqueued),
                None => watch::left_out(0),
            }
        }
        IN_PROGRESS => {
            watch::seen();
            say_that_it_does_not_block(1);
        }
        _ => {}
    })
}

/// Collectives are enqueued at some later time, which nobody tells.
#[cold]
fn say_that_it_does_not_block(collectives: usize) {
    static SAID: AtomicBool = AtomicBool::new(false);
    (0..collectives).for_each(|_| watch::left_out(0));
    if !SAID.swap(true, Ordering::Relaxed) {
        say!("an NCCL communicator does not block; its collectives are not measured");
    }
}

type In = *const c_void;
type Out = *mut c_void;

interpose! {
    Library::Nccl, "p", MISSING;

    fn ncclAllReduce(
        send: In, receive: Out, count: usize, datatype: c_int, op: c_int, communicator: Handle, stream: Handle,
    ) => |real| collective(real, || is_sum(op).then_some(Called {
        kind: Kind::Reduce, is_per_rank: false, address: receive, count, datatype, communicator, stream,
    }));

    fn ncclReduceScatter(
        send: In, receive: Out, count: usize, datatype: c_int, op: c_int, communicator: Handle, stream: Handle,
    ) => |real| collective(real, || is_sum(op).then_some(Called {
        kind: Kind::Reduce, is_per_rank: true, address: receive, count, datatype, communicator, stream,
    }));

    fn ncclAllGather(
        send: In, receive: Out, count: usize, datatype: c_int, communicator: Handle, stream: Handle,
    ) => |real| collective(real, || Some(Called {
        kind: Kind::Gather, is_per_rank: true, address: receive, count, datatype, communicator, stream,
    }));

    fn ncclBroadcast(
        send: In, receive: Out, count: usize, datatype: c_int, root: c_int, communicator: Handle, stream: Handle,
    ) => |real| collective(real, || Some(Called {
        kind: Kind::Gather, is_per_rank: false, address: receive, count, datatype, communicator, stream,
    }));

    fn ncclBcast(
        buffer: Out, count: usize, datatype: c_int, root: c_int, communicator: Handle, stream: Handle,
    ) => |real| collective(real, || Some(Called {
        kind: Kind::Gather, is_per_rank: false, address: buffer, count, datatype, communicator, stream,
    }));

    fn ncclGroupStart() => |real| around(real, group::start);

    fn ncclGroupEnd() => |real| whatever(real, |status| {
        let called = group::end();
        match status {
            0 => called.into_iter().for_each(Called::enqueued),
            IN_PROGRESS if !called.is_empty() => say_that_it_does_not_block(called.len()),
            // After a failure nothing of it is known to be enqueued.
            _ => (0..called.len()).for_each(|_| watch::left_out(0)),
        }
    });
}
