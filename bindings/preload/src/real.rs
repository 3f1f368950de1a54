//! Where the real functions are.
//!
//! The next definition in the order of the loader, if there is one: that keeps other tools of the same kind in the chain. A
//! library that was loaded with RTLD_LOCAL (PyTorch's NCCL) is not in that order; it is looked for among the loaded objects.
//! Found once, then one load.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A library whose functions are interposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Mpi,
    Nccl,
    Cuda,
}

impl Library {
    /// How the names of its files begin.
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Mpi => &["libmpi.so", "libmpich.so"],
            Self::Nccl => &["libnccl.so"],
            Self::Cuda => &["libcuda.so"],
        }
    }

    /// The path of the loaded object, if it is loaded. About a microsecond per object.
    pub fn path(self) -> Option<CString> {
        struct Found(Library, Option<CString>);
        /// Called for each object; 1 ends the walk.
        unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
            // SAFETY: the loader gives a valid object with a terminated name, and `found` as it was passed.
            let (name, found) = unsafe { ((*info).dlpi_name, &mut *found.cast::<Found>()) };
            if name.is_null() {
                return 0;
            }
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(name) };
            let path = name.to_string_lossy();
            let file = path.rsplit('/').next().unwrap_or_default();
            if !found.0.prefixes().iter().any(|prefix| file.starts_with(prefix)) {
                return 0;
            }
            found.1 = Some(name.to_owned());
            1
        }
        let mut found = Found(self, None);
        // SAFETY: the callback has the type that is asked for, and `found` lives longer than the call.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
        found.1
    }

    /// The next function of this name; NULL if there is none, or the library is not loaded.
    fn function(self, name: &CStr) -> *mut c_void {
        self.symbol(libc::RTLD_NEXT, name)
    }

    /// A variable as the program sees it: one that is not position-independent has copies of its own.
    pub fn variable(self, name: &CStr) -> *mut c_void {
        self.symbol(libc::RTLD_DEFAULT, name)
    }

    fn symbol(self, first: *mut c_void, name: &CStr) -> *mut c_void {
        // SAFETY: the name is terminated.
        let found = unsafe { libc::dlsym(first, name.as_ptr()) };
        if !found.is_null() {
            return found;
        }
        let Some(path) = self.path() else { return std::ptr::null_mut() };
        // SAFETY: the path is terminated; with RTLD_NOLOAD nothing is loaded or run. The handle is kept, which keeps the
        // library loaded.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
            if handle.is_null() { std::ptr::null_mut() } else { libc::dlsym(handle, name.as_ptr()) }
        }
    }
}

/// How many objects the loader has loaded so far: while that is the same, what was missing still is. A tenth of a
/// microsecond.
fn loads() -> u64 {
    unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _: usize, loads: *mut c_void) -> c_int {
        // SAFETY: the loader gives a valid object, and `loads` as it was passed.
        unsafe { *loads.cast::<u64>() = (*info).dlpi_adds };
        1
    }
    let mut loads = 0u64;
    // SAFETY: the callback has the type that is asked for, and `loads` lives longer than the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut loads).cast()) };
    loads
}

/// A function of a library, looked for at its first use.
pub struct Real {
    library: Library,
    name: &'static CStr,
    /// By another name, where the first is missing.
    twin: Option<&'static CStr>,
    address: AtomicPtr<c_void>,
    /// [`loads`] when it was looked for in vain.
    missed: AtomicU64,
}

impl Real {
    pub const fn new(library: Library, name: &'static CStr, twin: Option<&'static CStr>) -> Self {
        Self { library, name, twin, address: AtomicPtr::new(std::ptr::null_mut()), missed: AtomicU64::new(0) }
    }

    /// The function's address; NULL if the library is not there.
    #[inline]
    pub fn address(&self) -> *mut c_void {
        let address = self.address.load(Ordering::Acquire);
        if address.is_null() { self.find() } else { address }
    }

    #[cold]
    fn find(&self) -> *mut c_void {
        let loads = loads();
        if self.missed.load(Ordering::Relaxed) == loads {
            return std::ptr::null_mut();
        }
        let mut address = self.library.function(self.name);
        if address.is_null() {
            address = self.twin.map_or(address, |twin| self.library.function(twin));
        }
        self.address.store(address, Ordering::Release);
        if address.is_null() {
            self.missed.store(loads, Ordering::Relaxed);
        }
        address
    }

    /// Somebody called a function that nobody has.
    #[cold]
    pub fn missing(&self, status: c_int) -> c_int {
        let name = self.name.to_string_lossy();
        say!("{name} was called and its library is not loaded; the call fails with {status}");
        status
    }
}

/// A name of a function with what stands before it and a terminating NUL.
pub const fn c_name(terminated: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(terminated.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name ends with its only NUL"),
    }
}

/// Calls the function behind a [`Real`]: `call!(REAL, status where there is none, (arguments): (types))`.
macro_rules! call {
    ($real:expr, $missing:expr, ($($argument:expr),* $(,)?) : ($($type:ty),* $(,)?)) => {{
        let address = $real.address();
        if address.is_null() {
            $real.missing($missing)
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
/// `P`), and the status where the library is not there; then, as in C's declaration, name and arguments, and what is done:
/// an expression of the closure that makes the real call.
macro_rules! interpose {
    ($library:expr, $twin:literal, $missing:expr; $(
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) => |$real:ident| $body:expr;
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
            let $real = || call!(REAL, $missing, ($($argument),*): ($($type),*));
            $body
        }
    )* };
}
pub(crate) use interpose;

const _: () = assert!(size_of::<*const c_char>() == 8, "handles are passed through as 64 bits");
