//! The handle of a scope: owned by the caller between `fgs_open` and `fgs_close`.

use super::boundary::{Failure, Outcome, guard};
use super::status::fgs_status;
use crate::device::Stream;
use crate::device::cuda::load_driver;
use crate::scope::schema::Fault;
use crate::scope::{Front, Scope};
use crate::stats::linalg;
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// An open instrument. Opaque; one per process or one per model, as the trainer likes.
///
/// All functions that take a scope may be called from any thread; calls on one scope are carried out one after another.
pub struct fgs_scope {
    /// `None`: disabled, every call is a no-op.
    scope: Option<Scope>,
    pub(super) ring_path: CString,
    /// Number of forks when it was opened.
    generation: u32,
}

/// Forks that this process descends from since the library was loaded.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn before_fork() {
    linalg::hold_for_fork();
}

extern "C" fn after_fork() {
    linalg::release_after_fork();
}

extern "C" fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    linalg::release_after_fork();
}

impl fgs_scope {
    pub(super) fn new(scope: Option<Scope>) -> Self {
        static ONCE: Once = Once::new();
        // Threads do not survive a fork: a child must not wait for them, nor for what they hold.
        // SAFETY: the handlers touch an atomic and one lock, which is never held across calls into the trainer, so the
        // thread that forks does not hold it. Failing (no memory) leaves forks unnoticed.
        ONCE.call_once(|| unsafe {
            libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork_in_child));
        });
        let path = scope.as_ref().map(|scope| scope.ring_path().as_os_str().as_encoded_bytes().to_vec());
        let ring_path = CString::new(path.unwrap_or_default()).unwrap_or_default();
        Self { scope, ring_path, generation: GENERATION.load(Ordering::Relaxed) }
    }

    pub(super) fn is_forked(&self) -> bool {
        self.generation != GENERATION.load(Ordering::Relaxed)
    }

    pub(super) fn into_scope(self) -> Option<Scope> {
        self.scope
    }
}

/// The scope behind a handle; `None` if it is disabled.
///
/// # Safety
/// `handle` must be NULL or come from `fgs_open` and not have been closed.
pub(super) unsafe fn scope<'a>(handle: *const fgs_scope) -> Outcome<Option<&'a Scope>> {
    // SAFETY: the caller's promise.
    let Some(handle) = (unsafe { handle.as_ref() }) else { return Err(Failure::null("scope")) };
    if handle.scope.is_some() && handle.is_forked() {
        let text = "scope: this process was forked after fgs_open; open a scope of its own";
        return Err(Failure::new(fgs_status::FGS_ERROR_FORKED, text));
    }
    Ok(handle.scope.as_ref())
}

/// Runs a call on the calling side of a scope; does nothing if it is disabled.
///
/// # Safety
/// As for [`scope`].
pub(super) unsafe fn with_front(handle: *const fgs_scope, call: impl FnOnce(&mut Front) -> Outcome<()>) -> Outcome {
    // SAFETY: the same promise.
    if let Some(scope) = unsafe { scope(handle) }? {
        let mut front = scope.front();
        let call = AssertUnwindSafe(|| {
            #[cfg(test)]
            tests::panic_if_wanted();
            call(&mut front)
        });
        match catch_unwind(call) {
            Ok(outcome) => outcome?,
            Err(panic) => {
                front.give_up_everything();
                front.fault(Fault::Panic);
                // The boundary of the function makes a status of it.
                resume_unwind(panic);
            }
        }
    }
    Ok(fgs_status::FGS_OK)
}

/// The body of a function that does nothing but a call on the calling side: failures and panics become statuses.
///
/// # Safety
/// As for [`scope`].
pub(super) unsafe fn call(handle: *const fgs_scope, body: impl FnOnce(&mut Front) -> Outcome<()>) -> fgs_status {
    // SAFETY: the same promise.
    guard(|| unsafe { with_front(handle, body) })
}

/// The same in the order of `stream`. Without a CUDA driver there is only NULL.
///
/// # Safety
/// As for [`scope`].
pub(super) unsafe fn call_on(
    handle: *const fgs_scope,
    stream: *mut c_void,
    body: impl FnOnce(&mut Front) -> Outcome<()>,
) -> fgs_status {
    let ordered = |front: &mut Front| {
        if !stream.is_null() {
            let refused = |error| format!("stream: {error}; host memory needs no stream: pass NULL");
            load_driver().map_err(|error| Failure::new(fgs_status::FGS_ERROR_UNSUPPORTED, refused(error)))?;
        }
        front.on(Stream(stream));
        body(front)
    };
    // SAFETY: the same promise.
    unsafe { call(handle, ordered) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::bind::fgs_bind;
    use crate::abi::boundary::guard;
    use crate::abi::catalog::{fgs_register, fgs_tensor};
    use crate::abi::text::MAGIC;
    use crate::ring::Reader;
    use crate::scope::Options;
    use std::cell::Cell;

    thread_local! {
        /// The next call of this thread panics.
        static PANIC: Cell<bool> = const { Cell::new(false) };
    }

    pub fn panic_if_wanted() {
        assert!(!PANIC.replace(false), "on purpose");
    }

    #[test]
    fn a_panic_inside_a_call_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.ring");
        let options = Options { ring_path: Some(path.clone()), ..Options::default() };
        let mut handle = fgs_scope::new(Some(Scope::open(options).unwrap()));
        let (name, mut id) = (c"weight", u32::MAX);
        // SAFETY: all-zero bytes are a value of every field.
        let mut tensor: fgs_tensor = unsafe { std::mem::zeroed() };
        (tensor.size, tensor.magic) = (size_of::<fgs_tensor>() as u32, MAGIC);
        (tensor.name, tensor.numel, tensor.layer_count) = (name.as_ptr(), 4, 1);
        (tensor.layer, tensor.expert, tensor.tied_to) = (-1, -1, u32::MAX);
        let gradient = 0;
        // SAFETY (all calls): the handle is alive and not shared, and so is what the pointers point to.
        let calls: [(&str, &mut dyn FnMut(*mut fgs_scope) -> fgs_status); 3] = [
            ("any", &mut |scope| guard(|| unsafe { with_front(scope, |_| Ok(())) })),
            ("fgs_register", &mut |scope| unsafe { fgs_register(scope, &tensor, &mut id) }),
            ("fgs_bind", &mut |scope| unsafe { fgs_bind(scope, 0, gradient, std::ptr::null()) }),
        ];
        let count = calls.len() as u64;
        for (name, call) in calls {
            PANIC.set(true);
            assert_eq!(call(&mut handle), fgs_status::FGS_ERROR_INTERNAL, "{name}");
        }
        assert_eq!(id, u32::MAX);
        // SAFETY: as above.
        let status = guard(|| unsafe { with_front(&handle, |front| Ok(front.step_begin(1)?)) });
        assert_eq!(status, fgs_status::FGS_OK, "the scope goes on");
        handle.into_scope().unwrap().close();
        assert_eq!(Reader::open(path).unwrap().counter(Fault::Panic as usize), count);
    }

    #[test]
    fn a_panic_puts_moved_parameters_back() {
        use crate::abi::tensor::fgs_dltensor;
        use crate::scope::CurvatureSettings;
        let directory = tempfile::tempdir().unwrap();
        let options = Options { ring_path: Some(directory.path().join("run.ring")), ..Options::default() };
        let mut handle = fgs_scope::new(Some(Scope::open(options).unwrap()));
        let (mut parameters, mut gradient, mut shape, mut id) = ([1.0f32, -2.0, 3.0, 0.5], [1.0f32; 4], [4i64], 0);
        let before = parameters.map(f32::to_bits);
        // SAFETY: all-zero bytes are a value of every field.
        let mut tensor: fgs_tensor = unsafe { std::mem::zeroed() };
        (tensor.size, tensor.magic) = (size_of::<fgs_tensor>() as u32, MAGIC);
        (tensor.name, tensor.numel, tensor.layer_count) = (c"weight".as_ptr(), 4, 1);
        (tensor.layer, tensor.expert, tensor.tied_to) = (-1, -1, u32::MAX);
        let (places, read) = ([gradient.as_mut_ptr(), parameters.as_mut_ptr()], &raw const parameters);
        // SAFETY (all calls): the handle is alive and not shared, and so is what the pointers point to.
        assert_eq!(unsafe { fgs_register(&mut handle, &tensor, &mut id) }, fgs_status::FGS_OK);
        for (what, data) in (0..).zip(places) {
            // SAFETY: as above.
            let mut bound: fgs_dltensor = unsafe { std::mem::zeroed() };
            (bound.data, bound.device_type, bound.ndim, bound.shape) = (data.cast(), 1, 1, shape.as_mut_ptr());
            (bound.dtype_code, bound.dtype_bits, bound.dtype_lanes) = (2, 32, 1);
            // SAFETY: as above.
            assert_eq!(unsafe { fgs_bind(&mut handle, id, what, &bound) }, fgs_status::FGS_OK);
        }
        let call = |call: &dyn Fn(&mut Front) -> Outcome<()>| {
            // SAFETY: as above.
            guard(|| unsafe { with_front(&handle, call) })
        };
        // SAFETY: as above.
        let begin = |front: &mut Front| Ok(unsafe { front.curvature_begin("a", CurvatureSettings::default()) }?);
        assert_eq!(call(&begin), fgs_status::FGS_OK);
        for _ in 0..2 {
            assert_eq!(call(&|front| Ok(front.curvature_next().map(drop)?)), fgs_status::FGS_OK);
            assert_eq!(call(&|front| Ok(front.curvature_submit(1.0, 1.0)?)), fgs_status::FGS_OK);
        }
        // SAFETY: the array is alive; the library writes to it only during calls.
        let now = || unsafe { read.read() }.map(f32::to_bits);
        assert_ne!(now(), before, "moved");
        PANIC.set(true);
        assert_eq!(call(&|_| Ok(())), fgs_status::FGS_ERROR_INTERNAL);
        assert_eq!(now(), before);
        handle.into_scope().unwrap().close();
    }

    /// A drain thread of this process may be inside the algebra at the moment of the fork.
    #[test]
    fn a_child_is_not_left_without_algebra() {
        use ndarray::{Array1, Array2};
        use std::sync::Barrier;
        use std::sync::atomic::AtomicBool;
        let _registers_the_handlers = fgs_scope::new(None);
        let solve = |n| linalg::solve_positive_definite(&Array2::eye(n), &Array1::ones(n)).unwrap();
        let (started, done) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                started.wait();
                while !done.load(Ordering::Relaxed) {
                    solve(192);
                }
            });
            started.wait();
            let children: Vec<_> = (0..30)
                .map(|_| {
                    // SAFETY: the child only computes, which allocates at most, and ends without returning. A child that
                    // waits for ever is ended by the alarm.
                    unsafe {
                        let child = libc::fork();
                        if child == 0 {
                            libc::alarm(10);
                            libc::_exit(i32::from(solve(2)[1] != 1.0));
                        }
                        child
                    }
                })
                .collect();
            done.store(true, Ordering::Relaxed);
            for child in children {
                let mut status = -1;
                // SAFETY: `status` is writable.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                assert_eq!(status, 0, "the child did not end by itself, with 0");
            }
        });
    }
}
