//! A file as an array of atomic words, shared with other processes.
//!
//! Every access to the ring, the catalog's text included, goes through `AtomicU64`: whatever another process does to the
//! bytes at the same time, a racing read here gives some value and never undefined behaviour. The rest of the ring is
//! therefore safe code.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// What a mapping allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Loads only, and only relaxed ones with fences: see `sync::load_acquire`. A store would be a segmentation fault.
    Read,
    ReadWrite,
}

/// A mapped file; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and its words are atomics.
unsafe impl Send for Map {}
// SAFETY: as above; `&Map` gives out nothing but `&[AtomicU64]`.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the first `bytes` bytes of `file`, which must be that long. Bytes after the last whole word are not seen.
    pub fn new(file: &File, bytes: u64, access: Access) -> io::Result<Self> {
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory; `file` is open.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Map { base, bytes: length })
    }

    /// Makes the pages of a byte range present, so that the first lap through the ring takes no page faults.
    ///
    /// Only a saving: kernels before 5.14 refuse, and the pages then come one by one.
    pub fn populate(&self, offset: u64, bytes: u64) {
        let (offset, bytes) = (offset as usize, bytes as usize);
        assert!(offset + bytes <= self.bytes);
        // SAFETY: the range lies within the mapping, and populating changes no contents.
        unsafe {
            let start = self.base.as_ptr().byte_add(offset);
            libc::madvise(start.cast(), bytes, libc::MADV_POPULATE_WRITE);
        }
    }
}

impl Deref for Map {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `bytes` long and lives as long as `self`. Other processes may write to
        // it, which atomics permit. Should the file be cut short, an access raises SIGBUS, which ends the process but
        // is no undefined behaviour; the reader's guard makes that unlikely.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes / size_of::<AtomicU64>()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped by `new`, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
