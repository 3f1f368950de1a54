//! The driver, called so that nothing it does can harm the trainer.
//!
//! libcuda is looked for when the first CUDA tensor is bound, never linked. cudarc panics where the library or a symbol
//! is missing, so both are asked for first. Every call is checked; what fails becomes a [`CudaError`] that names the call.

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUpointer_attribute, CUresult};
use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

/// What the driver could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error("there is no CUDA driver on this machine: libcuda.so.1 cannot be loaded")]
    Missing,
    #[error("the CUDA driver is too old: it lacks {0}; update it to one of CUDA 11.4 or newer")]
    Old(&'static str),
    #[error("{call} failed: {name}")]
    Call { call: &'static str, code: u32, name: String },
    /// The device failed before, and is not called any more.
    #[error("the device failed before: {0}")]
    Failed(String),
    #[error("{0}")]
    Pointer(String),
}

impl CudaError {
    /// The context is lost: every later call would fail too.
    pub fn is_sticky(&self) -> bool {
        // Deinitialised, invalid or destroyed context, uncorrectable errors of memory and links, illegal addresses and
        // instructions, asserts, timeouts.
        matches!(self, Self::Call { code: 4 | 201 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 721, .. })
            || matches!(self, Self::Failed(_))
    }

    /// The same of loading a kernel, where two codes say what is wrong with the machine.
    pub fn of_loading(self) -> Self {
        match self {
            Self::Call { code: 222, .. } => Self::Old("PTX 7.4"),
            Self::Call { code: 209 | 218, .. } => {
                Self::Pointer("the device is too old: kernels need compute capability 8.0 or higher".into())
            }
            other => other,
        }
    }

    /// There was no room.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Call { code: 2, .. })
    }
}

pub type Result<T> = std::result::Result<T, CudaError>;

/// Every function that the library calls.
const FUNCTIONS: [&str; 39] = [
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuPointerGetAttributes",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostGetDevicePointer_v2",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuLaunchKernel",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamGetCtx",
    "cuStreamDestroy_v2",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
];

/// Loads and initialises the driver, once per process.
pub fn load() -> Result<()> {
    static LOADED: OnceLock<Result<()>> = OnceLock::new();
    LOADED.get_or_init(initialize).clone()
}

fn initialize() -> Result<()> {
    // SAFETY: loads libcuda.so.1, whose initialisers every CUDA program runs.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Missing);
    }
    // SAFETY: the library is there. Symbols are only looked up, not called.
    let library = unsafe { sys::culib() };
    let is_missing = |name: &&&str| {
        // SAFETY: as above.
        unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
    };
    if let Some(missing) = FUNCTIONS.iter().find(is_missing) {
        return Err(CudaError::Old(missing));
    }
    // SAFETY: the symbol is there; zero is the only legal argument.
    check("cuInit", unsafe { sys::cuInit(0) })
}

/// A result of the driver's.
pub fn check(call: &'static str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(CudaError::Call { call, code: error as u32, name: name(error) }),
    }
}

fn name(error: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a static string, or leaves NULL. A driver that lacks the function is none that `load`
    // was asked for; cudarc would panic, and the panic boundary of the C ABI catches it.
    let found = unsafe { sys::cuGetErrorName(error, &mut text) };
    if found != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("CUDA error {}", error as u32);
    }
    // SAFETY: the driver's strings are terminated and live for ever.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Calls a function of the driver's: `call!(cuInit(0))`. To be used inside `unsafe`.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::device::cuda::driver::check(
            stringify!($function),
            ::cudarc::driver::sys::$function($($argument),*),
        )
    };
}
pub(super) use call;

/// The device with this ordinal.
pub fn device(ordinal: u32) -> Result<CUdevice> {
    load()?;
    let (mut count, mut device) = (0, 0);
    // SAFETY: both write one integer.
    unsafe {
        call!(cuDeviceGetCount(&mut count))?;
        if ordinal >= count as u32 {
            return Err(CudaError::Pointer(format!("there is no CUDA device {ordinal}; there are {count}")));
        }
        call!(cuDeviceGet(&mut device, ordinal as i32))?;
    }
    Ok(device)
}

/// A property of a device.
pub fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: writes one integer.
    unsafe { call!(cuDeviceGetAttribute(&mut value, attribute, device))? };
    Ok(value)
}

/// Bytes of memory that a device has.
pub fn memory_bytes(device: CUdevice) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: writes one integer.
    unsafe { call!(cuDeviceTotalMem_v2(&mut bytes, device))? };
    Ok(bytes as u64)
}

/// Refuses addresses that kernels on a device cannot read: of pageable host memory, freed or never allocated, of another
/// device, or beyond the end of their allocation. Pieces of virtual memory that were mapped side by side are one allocation.
///
/// Costs a microsecond per piece. Nothing is said of memory that is freed later.
pub fn check_pointer(address: usize, bytes: usize, ordinal: u32) -> Result<()> {
    device(ordinal)?;
    let end = address.checked_add(bytes).ok_or_else(|| CudaError::Pointer(format!("{bytes} bytes are too many")))?;
    let mut from = address;
    while from < end {
        let Range { kind, owner, start, size } = range_of(from)?;
        if kind == UNKNOWN && from == address {
            return Err(CudaError::Pointer(format!(
                "{address:#x} is not memory that CUDA knows: host memory, or freed, or never allocated"
            )));
        }
        if kind == UNKNOWN {
            let beyond = end - from;
            return Err(CudaError::Pointer(format!(
                "{bytes} bytes from {address:#x} on reach {beyond} bytes beyond the end of their allocation"
            )));
        }
        // Memory of the host that is pinned can be read by every device.
        if kind != HOST && owner != ordinal as i32 {
            return Err(CudaError::Pointer(format!(
                "{from:#x} is memory of CUDA device {owner}, not of device {ordinal}"
            )));
        }
        // A driver that does not know the range says nothing of its end.
        from = if size == 0 { end } else { start.saturating_add(size).max(from + 1) };
    }
    Ok(())
}

/// No memory that the driver knows, and memory of the host: values of CU_POINTER_ATTRIBUTE_MEMORY_TYPE.
const UNKNOWN: u32 = 0;
const HOST: u32 = 1;

/// What the driver knows of the memory at an address.
struct Range {
    kind: u32,
    /// Ordinal of its device.
    owner: i32,
    start: usize,
    size: usize,
}

fn range_of(address: usize) -> Result<Range> {
    let (mut kind, mut owner, mut start, mut size) = (UNKNOWN, -1i32, 0 as CUdeviceptr, 0usize);
    let mut attributes = [
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
    ];
    let mut values: [*mut c_void; 4] =
        [(&raw mut kind).cast(), (&raw mut owner).cast(), (&raw mut start).cast(), (&raw mut size).cast()];
    // SAFETY: four attributes, and for each a place of the type that it has. Any address may be asked about.
    unsafe {
        call!(cuPointerGetAttributes(4, attributes.as_mut_ptr(), values.as_mut_ptr(), address as CUdeviceptr))?;
    }
    Ok(Range { kind, owner, start: start as usize, size })
}

/// Makes a context current on this thread for as long as it lives, and restores the one before.
pub struct Current {
    is_pushed: bool,
}

impl Current {
    pub fn enter(context: CUcontext) -> Result<Self> {
        // SAFETY: the context lives as long as its device does, which the caller holds.
        unsafe {
            let mut now = std::ptr::null_mut();
            call!(cuCtxGetCurrent(&mut now))?;
            if now == context {
                return Ok(Self { is_pushed: false });
            }
            call!(cuCtxPushCurrent_v2(context))?;
        }
        Ok(Self { is_pushed: true })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.is_pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: pops what `enter` pushed on this thread. A failure leaves nothing that could be done.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
        }
    }
}

/// Lets this thread allocate while some stream is being captured, for as long as it lives.
pub struct Relaxed {
    before: sys::CUstreamCaptureMode,
}

impl Relaxed {
    pub fn enter() -> Result<Self> {
        let mut before = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges this thread's mode with the value.
        unsafe { call!(cuThreadExchangeStreamCaptureMode(&mut before))? };
        Ok(Self { before })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: puts back what `enter` found.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.before) };
    }
}
