//! The kernels on one device: PTX that the driver compiles for it, once per context.

use super::CudaError;
use super::driver::{self, Result, call};
use super::memory::Context;
use super::plan::{Room, Stage};
use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction, CUfunction_attribute, CUmodule, CUstream};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// Threads of a block of the fused pass, and of those that move elements or finish a pass.
pub const MEASURE_THREADS: u32 = 128;
pub const MOVE_THREADS: u32 = 256;

/// Bytes of shared memory per row of buckets: 256 of fp32, or 128 of fp64.
const ROW_BYTES: u32 = 1024;

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    handle: CUfunction,
    threads: u32,
}

// SAFETY: a handle that may be used from any thread of the process.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// All kernels, loaded.
#[derive(Debug)]
pub struct Kernels {
    pub measure: Kernel,
    pub measure_wide: Kernel,
    pub finish: Kernel,
    pub tick: Kernel,
    pub rows: Kernel,
    pub attention: Kernel,
    pub gather: Kernel,
    pub scatter: Kernel,
    pub pack: Kernel,
    pub unpack: Kernel,
    /// Multiprocessors of the device.
    multiprocessors: u32,
    /// Rows of buckets that fit into a block's shared memory, narrow and wide.
    most_rows: [u32; 2],
    /// Of each kernel, by rows of buckets: blocks that a multiprocessor runs at the same time. Asked for once.
    at_once: [Mutex<BTreeMap<u32, u32>>; 2],
    modules: Vec<Module>,
    context: Arc<Context>,
}

#[derive(Debug)]
struct Module(CUmodule);

// SAFETY: as for Kernel.
unsafe impl Send for Module {}
// SAFETY: as for Kernel.
unsafe impl Sync for Module {}

/// PTX with the terminating zero that the driver wants.
macro_rules! ptx {
    ($name:literal) => {
        concat!(include_str!(concat!("kernels/", $name, ".ptx")), "\0")
    };
}

impl Kernels {
    /// Loads the kernels. The context must be current. Takes a second where the driver has not compiled them before; it
    /// keeps what it compiled on disk.
    pub fn load(context: &Arc<Context>) -> Result<Self> {
        let mut modules = Vec::new();
        let mut module = |ptx: &'static str| -> Result<CUmodule> {
            let mut module = std::ptr::null_mut();
            // SAFETY: PTX that ends with a zero; the context is current.
            let loaded = unsafe { call!(cuModuleLoadData(&mut module, ptx.as_ptr().cast())) };
            loaded.map_err(CudaError::of_loading)?;
            modules.push(Module(module));
            Ok(module)
        };
        let measure = module(ptx!("measure"))?;
        let finish = module(ptx!("finish"))?;
        let tick = module(ptx!("tick"))?;
        let rows = module(ptx!("rows"))?;
        let attention = module(ptx!("attention"))?;
        let moves = module(ptx!("move"))?;
        let pack = module(ptx!("pack"))?;
        let multiprocessors =
            driver::attribute(context.device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let mut kernels = Self {
            measure: kernel(measure, c"fgs_measure", MEASURE_THREADS)?,
            measure_wide: kernel(measure, c"fgs_measure_wide", MEASURE_THREADS)?,
            finish: kernel(finish, c"fgs_finish", MOVE_THREADS)?,
            tick: kernel(tick, c"fgs_tick", 1)?,
            rows: kernel(rows, c"fgs_rows", MEASURE_THREADS)?,
            attention: kernel(attention, c"fgs_attention", MEASURE_THREADS)?,
            gather: kernel(moves, c"fgs_gather", MOVE_THREADS)?,
            scatter: kernel(moves, c"fgs_scatter", MOVE_THREADS)?,
            pack: kernel(pack, c"fgs_pack", MOVE_THREADS)?,
            unpack: kernel(pack, c"fgs_unpack", MOVE_THREADS)?,
            multiprocessors,
            most_rows: [0; 2],
            at_once: Default::default(),
            modules,
            context: context.clone(),
        };
        let most = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most = driver::attribute(context.device, most)? as u32;
        kernels.most_rows = [kernels.measure.allow_shared(most)?, kernels.measure_wide.allow_shared(most)?];
        Ok(kernels)
    }

    /// The kernel of a stage.
    pub fn of(&self, stage: Stage) -> Kernel {
        if stage.is_wide() { self.measure_wide } else { self.measure }
    }

    /// What there is for a stage whose largest sketch has so many rows.
    pub fn room(&self, stage: Stage, rows: u32) -> Result<Room> {
        let most = self.most_rows[usize::from(stage.is_wide())];
        let shared_rows = rows.min(most);
        let mut known = self.at_once[usize::from(stage.is_wide())].lock();
        let at_once = match known.get(&shared_rows) {
            Some(&at_once) => at_once,
            None => {
                let at_once = self.of(stage).blocks_at_once(shared_rows)?;
                known.insert(shared_rows, at_once);
                at_once
            }
        };
        Ok(Room { blocks: (self.multiprocessors * at_once / stage.share() as u32).max(1), shared_rows })
    }

    /// Blocks that keep the device busy with moving elements.
    pub fn move_blocks(&self, elements: u64) -> u32 {
        elements.div_ceil(u64::from(MOVE_THREADS)).clamp(1, u64::from(self.multiprocessors) * 8) as u32
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            for module in &self.modules {
                // SAFETY: loaded by `load`; its kernels go with it. The driver may be gone already, and says so.
                let _ = unsafe { sys::cuModuleUnload(module.0) };
            }
        }
    }
}

fn kernel(module: CUmodule, name: &'static CStr, threads: u32) -> Result<Kernel> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: writes one handle; the name is terminated.
    unsafe { call!(cuModuleGetFunction(&mut handle, module, name.as_ptr()))? };
    Ok(Kernel { handle, threads })
}

/// Bytes of dynamic shared memory for so many rows of buckets.
pub fn shared_bytes(rows: u32) -> u32 {
    rows * ROW_BYTES
}

impl Kernel {
    /// Lets the kernel use as much dynamic shared memory as there is; returns the rows of buckets that fit.
    fn allow_shared(self, most: u32) -> Result<u32> {
        let mut own = 0;
        // SAFETY: the handle is of a loaded module; the first call writes one integer.
        unsafe {
            call!(cuFuncGetAttribute(
                &mut own,
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                self.handle
            ))?;
            let rows = most.saturating_sub(own as u32) / ROW_BYTES;
            call!(cuFuncSetAttribute(
                self.handle,
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes(rows) as i32,
            ))?;
            Ok(rows)
        }
    }

    /// Blocks of the kernel that a multiprocessor runs at the same time, each with so many rows of buckets.
    fn blocks_at_once(self, rows: u32) -> Result<u32> {
        let mut blocks = 0;
        let bytes = shared_bytes(rows) as usize;
        // SAFETY: the handle is of a loaded module; writes one integer.
        unsafe {
            call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.handle, self.threads as i32, bytes))?;
        }
        Ok(blocks.max(1) as u32)
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// `params` must be the struct that the kernel takes, and every address in it must be what kernels/tables.cuh says,
    /// until the stream has run the launch. The context must be current and the stream be of it.
    pub unsafe fn launch<P: Pod>(self, blocks: u32, shared: u32, stream: CUstream, params: &P) -> Result<()> {
        let mut arguments: [*mut c_void; 1] = [(&raw const *params).cast_mut().cast()];
        let none = std::ptr::null_mut();
        // SAFETY: the driver copies the parameters before it returns; the rest is the caller's promise.
        unsafe {
            call!(cuLaunchKernel(
                self.handle,
                blocks,
                1,
                1,
                self.threads,
                1,
                1,
                shared,
                stream,
                arguments.as_mut_ptr(),
                none
            ))
        }
    }
}
