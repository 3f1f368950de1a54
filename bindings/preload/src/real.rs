//! Where the real functions are.
//!
//! The next definition in the order of the loader, if there is one. A library that was loaded with RTLD_LOCAL (PyTorch's NCCL)
//! is not in that order; it is looked for in all loaded objects, whatever it is called. Found once, then one load; of a
//! library that was loaded out of sight also a look whether another one has come (0.1 µs).
//!
//! Several copies that know nothing of each other: each caller gets the one that it would get without us, and nothing is
//! measured, since handles of one mean nothing to the other.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use parking_lot::Mutex;

use crate::boundary;
use crate::objects::{self, Address, Object};

/// A library whose functions are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Mpi,
    Nccl,
    Cuda,
}

impl Library {
    /// How the names of its files begin, as far as is known.
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Mpi => &["libmpi.so", "libmpich.so", "libmpi_cray", "libmpi_ibm.so", "libmpi_abi.so"],
            Self::Nccl => &["libnccl.so", "librccl.so"],
            Self::Cuda => &["libcuda.so"],
        }
    }

    fn is(self, object: &Object) -> bool {
        self.prefixes().iter().any(|prefix| object.file().starts_with(prefix))
    }

    /// The path of the loaded object, if it is loaded by a name that is known.
    pub fn path(self) -> Option<String> {
        objects::loaded().iter().find(|object| self.is(object)).map(Object::path)
    }

    /// Where else than in the loader's order its functions may be. The driver's file has the same name everywhere.
    fn may_be_in(self, object: &Object) -> bool {
        self != Self::Cuda || self.is(object)
    }
}

/// A function of a library, looked for at its first use.
pub struct Real {
    library: Library,
    name: &'static CStr,
    /// By another name, where the first is missing.
    twin: Option<&'static CStr>,
    /// In the loader's order: the same for all callers.
    next: AtomicPtr<c_void>,
    elsewhere: Mutex<Elsewhere>,
}

/// What is known of a function that is not in the loader's order.
#[derive(Clone, Copy)]
struct Elsewhere {
    /// [`objects::loads`] when it was looked for.
    loads: u64,
    found: Found,
}

#[derive(Clone, Copy)]
enum Found {
    Nothing,
    One(Address),
    Several,
}

impl Real {
    pub const fn new(library: Library, name: &'static CStr, twin: Option<&'static CStr>) -> Self {
        let elsewhere = Mutex::new(Elsewhere { loads: 0, found: Found::Nothing });
        Self { library, name, twin, next: AtomicPtr::new(std::ptr::null_mut()), elsewhere }
    }

    /// The function's address for whoever called this thread's interposed function; NULL if there is none.
    #[inline]
    pub fn address(&self) -> *mut c_void {
        let next = self.next.load(Ordering::Acquire);
        if next.is_null() { self.elsewhere() } else { next }
    }

    fn names(&self) -> [Option<&'static CStr>; 2] {
        [Some(self.name), self.twin]
    }

    #[cold]
    fn elsewhere(&self) -> *mut c_void {
        let loads = objects::loads();
        let Elsewhere { loads: before, mut found } = *self.elsewhere.lock();
        if before != loads {
            // Without the lock: another thread may call us from inside the loader.
            found = self.look(found);
            *self.elsewhere.lock() = Elsewhere { loads, found };
        }
        match found {
            Found::Nothing => self.next.load(Ordering::Acquire),
            Found::One(address) => address as *mut c_void,
            Found::Several => {
                say_that_there_are_several(self.name);
                let in_order = || self.names().into_iter().flatten().find_map(objects::next);
                let meant = objects::definition_for_caller(self.names()).or_else(in_order);
                meant.map_or(std::ptr::null_mut(), |address| address as *mut c_void)
            }
        }
    }

    /// `before`: what was found among fewer objects.
    fn look(&self, before: Found) -> Found {
        let is_wanted = |object: &Object| self.library.may_be_in(object);
        for name in self.names().into_iter().flatten() {
            // Who has called one copy goes on with it, also when another comes into the loader's order.
            if let (Found::Nothing, Some(next)) = (before, objects::next(name)) {
                self.next.store(next as *mut c_void, Ordering::Release);
                return Found::Nothing;
            }
            match objects::definitions(name, is_wanted)[..] {
                [] => {}
                [only] => {
                    objects::keep(only);
                    return Found::One(only);
                }
                _ => return Found::Several,
            }
        }
        Found::Nothing
    }

    /// Somebody called a function that nobody has.
    #[cold]
    pub fn missing(&self, status: c_int) -> c_int {
        let name = self.name.to_string_lossy();
        match self.elsewhere.lock().found {
            Found::Several => say!(
                "{name} is in several libraries and it cannot be told which one is meant; the call fails with {status}. \
                 Without LD_PRELOAD it would not"
            ),
            _ => say!("{name} was called and its library is not loaded; the call fails with {status}"),
        }
        status
    }
}

/// Which library's handles are given is not known any more.
#[cold]
fn say_that_there_are_several(name: &CStr) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if boundary::is_on() && !SAID.swap(true, Ordering::Relaxed) {
        boundary::turn_off();
        say!(
            "several loaded libraries have a {} of their own; each is called as before, and nothing is measured any more",
            name.to_string_lossy()
        );
    }
}

/// A name of a function with what stands before it and a terminating NUL.
pub const fn c_name(terminated: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(terminated.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name ends with its only NUL"),
    }
}

/// Calls the function behind a [`Real`]: `call!(REAL, what is done where there is none, (arguments): (types))`.
macro_rules! call {
    ($real:expr, $missing:expr, ($($argument:expr),* $(,)?) : ($($type:ty),* $(,)?)) => {{
        let address = $real.address();
        if address.is_null() {
            $missing
        } else {
            // SAFETY: the address is that of the function of this name, whose C declaration has these types.
            unsafe {
                let function: unsafe extern "C-unwind" fn($($type),*) -> std::ffi::c_int = std::mem::transmute(address);
                function($($argument),*)
            }
        }
    }};
}
pub(crate) use call;

/// Defines functions that stand before those of a library. `library`, what stands before the other name of each (MPI's
/// `P`), and the status where the library is not there; then, as in C's declaration, name and arguments, what is done where
/// there is no such function if that is something else than to fail, and what is done: an expression of the closure that
/// makes the real call.
macro_rules! interpose {
    ($library:expr, $twin:literal, $missing:expr; $(
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(or $instead:block)? => |$real:ident| $body:expr;
    )*) => { $(
        /// # Safety
        /// As for the library's own function of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($($argument: $type),*) -> std::ffi::c_int {
            static REAL: Real = Real::new(
                $library,
                c_name(concat!(stringify!($name), "\0")),
                Some(c_name(concat!($twin, stringify!($name), "\0"))),
            );
            #[allow(unreachable_code)]
            let missing = || {
                $(return $instead;)?
                REAL.missing($missing)
            };
            let $real = || call!(REAL, missing(), ($($argument),*): ($($type),*));
            $body
        }
    )* };
}
pub(crate) use interpose;

const _: () = assert!(size_of::<*const std::ffi::c_char>() == 8, "handles are passed through as 64 bits");
