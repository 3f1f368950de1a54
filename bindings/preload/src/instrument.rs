//! The library, through its C functions, as a Rust value: statuses become results with the library's sentence.

use std::ffi::{CStr, CString, c_void};

use forgetscope::abi::{self, fgs_dltensor, fgs_scope, fgs_shard, fgs_status, fgs_tensor};
use forgetscope::ring::Reader;

/// `FGS_MAGIC` of the header.
const MAGIC: u32 = 0x3153_4746;

pub type Outcome<T = ()> = Result<T, String>;

/// What is measured of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorId(u32);

#[cfg(test)]
impl TensorId {
    pub fn of_test(id: u32) -> Self {
        Self(id)
    }
}

/// A tensor to register: the fields of `fgs_tensor` that are used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub numel: u64,
    /// Rows and columns; both 0: flat.
    pub shape: (u64, u64),
    pub role: u32,
    pub layer: Option<u32>,
    pub expert: Option<u32>,
    pub group: u32,
    pub head_layout: u32,
    pub head_axis: Option<u32>,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_offset: u32,
    pub kv_head_offset: u32,
    /// Which of several equal copies this process has; `None`: it has a part of its own.
    pub replica: Option<u32>,
}

/// An open scope. Closed by [`Instrument::close`]; dropping it leaves the scope alone, which is right in forked children.
#[derive(Debug)]
pub struct Instrument {
    scope: *mut fgs_scope,
}

// SAFETY: functions on a scope may be called from any thread, says the header.
unsafe impl Send for Instrument {}

/// What the ring says of this process.
pub struct Identity {
    pub ring: String,
    pub instance: [u8; 16],
    pub rank: u32,
    pub world: u32,
}

fn check(status: fgs_status) -> Outcome {
    if status as i32 >= 0 {
        return Ok(());
    }
    // SAFETY: never NULL, terminated, and valid until the next call on this thread.
    Err(unsafe { CStr::from_ptr(abi::fgs_last_error()) }.to_string_lossy().into_owned())
}

fn text(name: &str) -> Outcome<CString> {
    CString::new(name).map_err(|_| format!("the name '{}' contains a NUL byte", name.replace('\0', "?")))
}

impl Instrument {
    pub fn open() -> Outcome<Self> {
        let mut scope = std::ptr::null_mut();
        // SAFETY: no options, and `scope` is writable.
        check(unsafe { abi::fgs_open(std::ptr::null(), &mut scope) })?;
        Ok(Self { scope })
    }

    pub fn identity(&self) -> Outcome<Identity> {
        let mut path = c"".as_ptr();
        // SAFETY: the scope is open; the text belongs to it.
        let path = unsafe {
            check(abi::fgs_ring_path(self.scope, &mut path))?;
            CStr::from_ptr(path)
        };
        let ring = path.to_string_lossy().into_owned();
        let reader = Reader::open(&ring).map_err(|error| error.to_string())?;
        let header = reader.header();
        Ok(Identity { ring, instance: header.instance, rank: header.rank, world: header.world })
    }

    pub fn register(&self, spec: &Spec) -> Outcome<TensorId> {
        let name = text(&spec.name)?;
        let number = |value: Option<u32>| value.map_or(-1, |value| value as i32);
        let tensor = fgs_tensor {
            size: size_of::<fgs_tensor>() as u32,
            magic: MAGIC,
            name: name.as_ptr(),
            numel: spec.numel,
            rows: spec.shape.0,
            cols: spec.shape.1,
            role: spec.role,
            layer: number(spec.layer),
            expert: number(spec.expert),
            group: spec.group,
            head_layout: spec.head_layout,
            head_axis: spec.head_axis.unwrap_or(u32::MAX),
            head_count: spec.heads,
            kv_head_count: spec.kv_heads,
            head_offset: spec.head_offset,
            kv_head_offset: spec.kv_head_offset,
            flags: if spec.replica.is_some() { abi::fgs_tensor_flag::FGS_TENSOR_REPLICATED as u32 } else { 0 },
            replica: spec.replica.unwrap_or(0),
            tied_to: u32::MAX,
            layer_count: 1,
        };
        let mut id = 0;
        // SAFETY: the scope is open, `tensor` and its name live, `id` is writable.
        check(unsafe { abi::fgs_register(self.scope, &tensor, &mut id) })?;
        Ok(TensorId(id))
    }

    /// # Safety
    /// The tensor must describe memory that stays readable until it is bound to something else or unbound.
    pub unsafe fn bind_parameter(&self, id: TensorId, tensor: &fgs_dltensor, first: Option<u64>) -> Outcome {
        let shard = first.map(shard);
        // SAFETY: the scope is open; memory is the caller's promise.
        check(unsafe { abi::fgs_bind_shard(self.scope, id.0, PARAM, tensor, pointer(shard.as_ref())) })
    }

    pub fn unbind_parameter(&self, id: TensorId) -> Outcome {
        // SAFETY: the scope is open; NULL unbinds.
        check(unsafe { abi::fgs_bind(self.scope, id.0, PARAM, std::ptr::null()) })
    }

    /// Begins a step; says whether it is sampled.
    pub fn step_begin(&self, step: u64) -> Outcome<bool> {
        let mut is_sampled = 0;
        // SAFETY: the scope is open, `is_sampled` writable.
        unsafe {
            check(abi::fgs_step_begin(self.scope, step))?;
            check(abi::fgs_step_sampled(self.scope, &mut is_sampled))?;
        }
        Ok(is_sampled != 0)
    }

    /// The step that goes on is not completed, and counted as such. A step of the same number that ends before anything is
    /// seen of it takes its place, so that a task may end.
    pub fn give_up_step(&self, step: u64) -> Outcome {
        // SAFETY: the scope is open; without gradients nothing is read.
        unsafe {
            check(abi::fgs_step_begin(self.scope, step))?;
            check(abi::fgs_step_end(self.scope, 0, std::ptr::null_mut()))
        }
    }

    /// # Safety
    /// The tensor must describe memory that is readable and not written to during the call, in the order of the stream.
    pub unsafe fn feed(
        &self,
        id: TensorId,
        tensor: &fgs_dltensor,
        first: Option<u64>,
        scale: f64,
        stream: usize,
    ) -> Outcome {
        let shard = first.map(shard);
        // SAFETY: the scope is open; memory is the caller's promise.
        check(unsafe {
            abi::fgs_gradient_feed(self.scope, id.0, tensor, pointer(shard.as_ref()), scale, stream as *mut c_void)
        })
    }

    /// # Safety
    /// Bound parameters must be readable and not written to during the call, in the order of the stream.
    pub unsafe fn gradients_ready(&self, scale: f64, stream: usize) -> Outcome {
        // SAFETY: the scope is open; memory is the caller's promise.
        check(unsafe { abi::fgs_gradients_ready(self.scope, scale, 0, stream as *mut c_void) })
    }

    /// # Safety
    /// As for [`Instrument::gradients_ready`].
    pub unsafe fn step_end(&self, stream: usize) -> Outcome {
        // SAFETY: the scope is open; memory is the caller's promise.
        check(unsafe { abi::fgs_step_end(self.scope, 1, stream as *mut c_void) })
    }

    pub fn task_begin(&self, name: &str) -> Outcome {
        let name = text(name)?;
        // SAFETY: the scope is open, the name terminated.
        check(unsafe { abi::fgs_task_begin(self.scope, name.as_ptr()) })
    }

    /// # Safety
    /// Bound parameters must be readable and not written to during the call.
    pub unsafe fn task_end(&self) -> Outcome {
        // SAFETY: the scope is open; memory is the caller's promise.
        check(unsafe { abi::fgs_task_end(self.scope) })
    }

    /// # Safety
    /// As for [`Instrument::task_end`].
    pub unsafe fn snapshot(&self) -> Outcome {
        // SAFETY: the scope is open; memory is the caller's promise.
        check(unsafe { abi::fgs_snapshot(self.scope, std::ptr::null(), std::ptr::null_mut()) })
    }

    pub fn set_every(&self, every: u64) -> Outcome {
        // SAFETY: the scope is open.
        check(unsafe { abi::fgs_set_every(self.scope, every) })
    }

    /// Waits until everything is in the ring.
    pub fn flush(&self) -> Outcome {
        // SAFETY: the scope is open.
        check(unsafe { abi::fgs_flush(self.scope) })
    }

    pub fn close(self) {
        // SAFETY: the scope is open and not used afterwards.
        unsafe { abi::fgs_close(self.scope) };
    }
}

const PARAM: u32 = abi::fgs_data::FGS_PARAM as u32;

/// One run of elements from `offset` on.
fn shard(offset: u64) -> fgs_shard {
    fgs_shard { size: size_of::<fgs_shard>() as u32, magic: MAGIC, offset, run_length: 0, run_step: 0, run_count: 0 }
}

fn pointer<T>(value: Option<&T>) -> *const T {
    value.map_or(std::ptr::null(), std::ptr::from_ref)
}
