//! Communicators, and which rank this process is in each.
//!
//! MPI is asked once, seven calls, and the answer kept until the communicator is freed: its handle may come again for another
//! one. Then a look costs a lock and a search, a few dozen nanoseconds.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

use parking_lot::Mutex;

use super::handles::{Handle, Handles};
use crate::boundary::{is_on, quietly};
use crate::real::{Library, Real, call};
use crate::signature::Communicator;

/// What MPI said; `None` of an intercommunicator.
static KNOWN: Mutex<BTreeMap<Handle, Option<Communicator>>> = Mutex::new(BTreeMap::new());

/// The communicator with this handle. `None` of an intercommunicator: what it reduces is the other group's, and arrays that
/// say how much have another length.
pub fn communicator(handle: Handle) -> Option<Communicator> {
    let handle = Handles::get().clean(handle);
    if let Some(known) = KNOWN.lock().get(&handle) {
        return *known;
    }
    let asked = ask(handle)?;
    KNOWN.lock().insert(handle, asked);
    asked
}

/// Calls the function that frees a communicator, whose handle may then be another's.
///
/// # Safety
/// `communicator` must be NULL or point to a handle.
pub unsafe fn free(communicator: *const c_void, real: impl FnOnce() -> c_int) -> c_int {
    if is_on() && !communicator.is_null() {
        quietly(|| {
            // SAFETY: the caller's promise.
            let handle = unsafe { Handles::get().read(communicator, 0) };
            KNOWN.lock().remove(&handle);
        });
    }
    real()
}

/// `None`: MPI did not answer.
fn ask(handle: Handle) -> Option<Option<Communicator>> {
    static IS_INTER: Real = Real::new(Library::Mpi, c"PMPI_Comm_test_inter", None);
    static RANK: Real = Real::new(Library::Mpi, c"PMPI_Comm_rank", None);
    static SIZE: Real = Real::new(Library::Mpi, c"PMPI_Comm_size", None);
    let number = |real: &Real| {
        let mut number: c_int = 0;
        let status = call!(real, 1, (handle, &mut number): (Handle, *mut c_int));
        u32::try_from(number).ok().filter(|_| status == 0)
    };
    if number(&IS_INTER)? != 0 {
        return Some(None);
    }
    Some(Some(Communicator { handle, rank: number(&RANK)?, size: number(&SIZE)?, first: first(handle) }))
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
    let status = call!(TRANSLATE, 1, (own, 1, &zero, world, &mut first):
        (Handle, c_int, *const c_int, Handle, *mut c_int));
    for group in [&mut own, &mut world] {
        call!(FREE, 1, (group): (*mut Handle));
    }
    u32::try_from(first).ok().filter(|_| status == 0)
}
