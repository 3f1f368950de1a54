//! Memory that the library takes of a device, and pinned host memory that both sides see.
//!
//! Nothing is allocated or freed in a step that is like the one before: freeing would make the device wait. What is given
//! back is kept and handed out again for the same size, which is what references and snapshots of the next task ask for;
//! it returns to the driver when there is no room left, or at the end.

use super::driver::{self, Current, Relaxed, Result, call};
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// Sizes are multiples of this.
const GRAIN: usize = 512;

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Device,
    /// Pinned host memory, mapped into the device's addresses, which the host writes or reads.
    Pinned,
    /// The same for values that only kernels use: what is released may still be written by one, which is in order for the
    /// next kernel, but not for the host.
    Spilled,
}

/// The context of a device, and the memory taken there.
#[derive(Debug)]
pub struct Context {
    pub ordinal: u32,
    pub device: CUdevice,
    pub handle: CUcontext,
    /// The context is the primary one and was retained by us.
    is_retained: bool,
    pool: Mutex<HashMap<(Kind, usize), Vec<Address>>>,
}

// SAFETY: a context's handle may be used from any thread; the driver locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

#[derive(Clone, Copy, Debug)]
struct Address {
    device: CUdeviceptr,
    host: *mut u8,
}

// SAFETY: an address that belongs to whoever has the Buffer, or to the pool.
unsafe impl Send for Address {}

impl Context {
    /// The context that the trainer uses on this thread if it is of the device, else the device's primary one, which is
    /// what the runtime API and every framework use.
    pub fn of(ordinal: u32) -> Result<Arc<Self>> {
        let device = driver::device(ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: both calls write one handle.
        unsafe { call!(cuCtxGetCurrent(&mut handle))? };
        let mut is_retained = false;
        if handle.is_null() || current_device() != Some(device) {
            // SAFETY: writes one handle. Retaining keeps the context alive without making it ours to destroy.
            unsafe { call!(cuDevicePrimaryCtxRetain(&mut handle, device))? };
            is_retained = true;
        }
        Ok(Arc::new(Self { ordinal, device, handle, is_retained, pool: Mutex::default() }))
    }

    /// Makes the context current for as long as the result lives.
    pub fn enter(&self) -> Result<Current> {
        Current::enter(self.handle)
    }

    /// The same for sizes that differ from call to call: rounded up by up to an eighth, so that few sizes are kept.
    pub fn allocate_about(self: &Arc<Self>, kind: Kind, bytes: usize) -> Result<Buffer> {
        self.allocate(kind, bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(1)))
    }

    /// Memory of at least so many bytes, with whatever was there before.
    pub fn allocate(self: &Arc<Self>, kind: Kind, bytes: usize) -> Result<Buffer> {
        let bytes = bytes.max(1).next_multiple_of(GRAIN);
        let pooled = self.pool.lock().get_mut(&(kind, bytes)).and_then(Vec::pop);
        let address = match pooled {
            Some(address) => address,
            None => {
                let _current = self.enter()?;
                let _relaxed = Relaxed::enter()?;
                match take(kind, bytes) {
                    Err(error) if error.is_out_of_memory() => {
                        self.trim();
                        take(kind, bytes)?
                    }
                    taken => taken?,
                }
            }
        };
        Ok(Buffer { context: self.clone(), kind, bytes, address })
    }

    /// Returns what nobody uses to the driver.
    fn trim(&self) {
        for ((kind, _), addresses) in self.pool.lock().drain() {
            addresses.into_iter().for_each(|address| free(kind, address));
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Ok(_current) = self.enter() {
            self.trim();
        }
        if self.is_retained {
            // SAFETY: retained once, by `of`. At the end of a process the driver may be gone already, and says so.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

fn current_device() -> Option<CUdevice> {
    let mut device = 0;
    // SAFETY: writes one integer.
    unsafe { call!(cuCtxGetDevice(&mut device)) }.ok().map(|()| device)
}

fn take(kind: Kind, bytes: usize) -> Result<Address> {
    let mut device: CUdeviceptr = 0;
    match kind {
        Kind::Device => {
            // SAFETY: writes one address; the context is current.
            unsafe { call!(cuMemAlloc_v2(&mut device, bytes))? };
            Ok(Address { device, host: std::ptr::null_mut() })
        }
        Kind::Pinned | Kind::Spilled => {
            let mut host: *mut c_void = std::ptr::null_mut();
            let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
            // SAFETY: writes one address; the context is current.
            unsafe { call!(cuMemHostAlloc(&mut host, bytes, flags))? };
            // SAFETY: the host address is that of mapped memory.
            let mapped = unsafe { call!(cuMemHostGetDevicePointer_v2(&mut device, host, 0)) };
            let address = Address { device, host: host.cast() };
            if mapped.is_err() {
                free(kind, address);
            }
            mapped.map(|()| address)
        }
    }
}

/// Nothing can be done about a failure: the driver is gone, or the context is.
fn free(kind: Kind, address: Address) {
    // SAFETY: the address was taken by `take`, and nobody uses it any more.
    let _ = unsafe {
        match kind {
            Kind::Device => sys::cuMemFree_v2(address.device),
            Kind::Pinned | Kind::Spilled => sys::cuMemFreeHost(address.host.cast()),
        }
    };
}

/// A piece of memory. Dropped, it goes back to the pool of its context: whoever drops it sees to it that what was enqueued
/// on it is ordered before whatever the next owner enqueues.
#[derive(Debug)]
pub struct Buffer {
    context: Arc<Context>,
    kind: Kind,
    bytes: usize,
    address: Address,
}

impl Buffer {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// As the device sees it.
    pub fn address(&self) -> u64 {
        self.address.device
    }

    /// As the host sees it; NULL for device memory.
    pub fn host(&self) -> *mut u8 {
        self.address.host
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.context.pool.lock().entry((self.kind, self.bytes)).or_default().push(self.address);
    }
}

// SAFETY: see Address.
unsafe impl Sync for Address {}
