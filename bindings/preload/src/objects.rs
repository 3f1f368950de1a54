//! The objects that the loader has loaded: the program and its libraries, whatever their files are called.
//!
//! The loader finds a name in its global scope: the program, what it is linked with, what was loaded with RTLD_GLOBAL. An
//! object that was loaded with RTLD_LOCAL is not in there, and its functions have to be asked for one object at a time.

use std::ffi::{CStr, CString, c_int, c_void};

/// A definition of a function: its address.
pub type Address = usize;

/// An object: where it is loaded, and the path of its file; the program's is empty.
#[derive(Clone, Debug)]
pub struct Object {
    base: usize,
    path: CString,
}

impl Object {
    /// The file's name without directories.
    pub fn file(&self) -> String {
        let path = self.path.to_string_lossy();
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }

    pub fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// What the object calls by this name if nobody stands before it: its own definition, or that of what it is linked
    /// with. The program's would be ours.
    fn definition(&self, name: &CStr) -> Option<Address> {
        let handle = self.open().filter(|_| !self.path.is_empty())?;
        // SAFETY: the handle is of this object, the name terminated.
        let found = unsafe {
            let found = libc::dlsym(handle, name.as_ptr()) as Address;
            libc::dlclose(handle);
            found
        };
        (found != 0 && !is_ours(found)).then_some(found)
    }

    /// The object once more: until the handle is closed it stays loaded.
    fn open(&self) -> Option<*mut c_void> {
        // SAFETY: the path is terminated; with RTLD_NOLOAD nothing is loaded or run.
        let handle = unsafe { libc::dlopen(self.path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(handle)
    }
}

/// The object that has this definition stays loaded from now on.
pub fn keep(definition: Address) {
    let base = containing(definition);
    let _kept = loaded().iter().find(|object| Some(object.base) == base).and_then(Object::open);
}

/// The next definition in the loader's global scope: that keeps other tools of the same kind in the chain.
pub fn next(name: &CStr) -> Option<Address> {
    // SAFETY: the name is terminated.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as Address;
    (found != 0).then_some(found)
}

/// A variable as the program sees it, which may have a copy of its own; else that of any object.
pub fn variable(name: &CStr) -> Option<Address> {
    // SAFETY: the name is terminated.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) } as Address;
    if found != 0 { Some(found) } else { definitions(name, |_| true).first().copied() }
}

/// All different definitions in the objects that are wanted, in the order in which they were loaded. A few microseconds per
/// object.
pub fn definitions(name: &CStr, is_wanted: impl Fn(&Object) -> bool) -> Vec<Address> {
    let mut found = Vec::new();
    for object in loaded().iter().filter(|object| is_wanted(object)) {
        let definition = object.definition(name).filter(|definition| !found.contains(definition));
        found.extend(definition);
    }
    found
}

/// The definition that one of the functions that are being called means: that of the nearest caller whose object has one. (A
/// caller may be missing, if its last act was the call.)
pub fn definition_for_caller(names: [Option<&CStr>; 2]) -> Option<Address> {
    let objects = loaded();
    let own = containing(loaded as *const () as usize)?;
    let mut before = own;
    for address in callers() {
        let Some(base) = containing(address).filter(|base| *base != own && *base != before) else { continue };
        before = base;
        let object = objects.iter().find(|object| object.base == base);
        let found = object.and_then(|object| names.iter().flatten().find_map(|name| object.definition(name)));
        if found.is_some() {
            return found;
        }
    }
    None
}

/// How many objects the loader has loaded so far: while that is the same, what was missing still is. A tenth of a
/// microsecond.
pub fn loads() -> u64 {
    let mut loads = 0;
    walk(&mut |info| {
        loads = info.dlpi_adds;
        false
    });
    loads
}

/// All objects, in the order in which they were loaded. About a microsecond per object.
pub fn loaded() -> Vec<Object> {
    let mut objects = Vec::new();
    walk(&mut |info| {
        if !info.dlpi_name.is_null() {
            // SAFETY: the loader gives a terminated name.
            let path = unsafe { CStr::from_ptr(info.dlpi_name) }.to_owned();
            objects.push(Object { base: info.dlpi_addr as usize, path });
        }
        true
    });
    objects
}

fn is_ours(address: Address) -> bool {
    containing(address) == containing(loaded as *const () as usize)
}

/// Where the object is loaded that has an address in one of its segments.
fn containing(address: usize) -> Option<usize> {
    let mut base = None;
    walk(&mut |info| {
        // SAFETY: the loader gives so many program headers.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let is_in = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
            let first = (info.dlpi_addr + header.p_vaddr) as usize;
            (first..first + header.p_memsz as usize).contains(&address)
        });
        base = is_in.then_some(info.dlpi_addr as usize);
        !is_in
    });
    base
}

/// Shows each object to `visit` until it has seen enough.
fn walk(visit: &mut dyn FnMut(&libc::dl_phdr_info) -> bool) {
    type Visit<'a> = &'a mut dyn FnMut(&libc::dl_phdr_info) -> bool;
    /// Called for each object; 1 ends the walk.
    unsafe extern "C" fn show(info: *mut libc::dl_phdr_info, _: usize, visit: *mut c_void) -> c_int {
        // SAFETY: the loader gives a valid object, and `visit` as it was passed.
        let (info, visit) = unsafe { (&*info, &mut *visit.cast::<Visit>()) };
        c_int::from(!visit(info))
    }
    let mut visit: Visit = visit;
    // SAFETY: the callback has the type that is asked for, and `visit` lives longer than the call. Nothing in it unwinds but
    // for want of memory.
    unsafe { libc::dl_iterate_phdr(Some(show), (&raw mut visit).cast()) };
}

/// Addresses within the functions that are being called on this thread, the innermost first. A few microseconds.
fn callers() -> Vec<usize> {
    const DEEPEST: usize = 64;
    const GO_ON: c_int = 0;
    const ENOUGH: c_int = 5;
    unsafe extern "C" {
        /// The unwinder's, which Rust's standard library needs too.
        fn _Unwind_Backtrace(
            visit: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(context: *mut c_void) -> usize;
    }
    unsafe extern "C" fn visit(context: *mut c_void, addresses: *mut c_void) -> c_int {
        // SAFETY: the unwinder gives a valid context, and `addresses` as it was passed.
        let (address, addresses) = unsafe { (_Unwind_GetIP(context), &mut *addresses.cast::<Vec<usize>>()) };
        // A return address may lie behind the end of a function that ends with a call.
        addresses.push(address.wrapping_sub(1));
        if addresses.len() < DEEPEST { GO_ON } else { ENOUGH }
    }
    let mut addresses: Vec<usize> = Vec::with_capacity(DEEPEST);
    // SAFETY: the callback has the type that is asked for, and `addresses` lives longer than the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut addresses).cast()) };
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_their_functions_are_found() {
        assert!(loads() > 2);
        let objects = loaded();
        assert!(objects[0].path.is_empty(), "the program comes first");
        let c = objects.iter().find(|object| object.file() == "libc.so.6").unwrap();
        assert!(c.path().starts_with('/'));
        let getpid = libc::getpid as *const () as usize;
        assert_eq!(containing(c.definition(c"getpid").unwrap()), Some(c.base));
        assert_eq!(definitions(c"getpid", |_| true).len(), 1, "however many objects are linked with it");
        assert!(definitions(c"getpid", |_| false).is_empty());
        assert_eq!(next(c"a_function_that_nobody_has"), None);
        assert!(getpid != 0 && variable(c"environ").is_some());
    }

    #[test]
    fn callers_are_this_test() {
        let own = containing(loaded as *const () as usize);
        assert!(own.is_some() && callers().len() > 2 && containing(callers()[0]) == own);
        assert_eq!(containing(0), None);
    }
}
