//! Enqueuing: what a device keeps between calls, and the launches of a pass.

use super::CudaError;
use super::capture::Captured;
use super::driver::{Result, call};
use super::memory::{Buffer, Context, Kind};
use super::module::{Kernels, shared_bytes};
use super::plan::{Plan, Tables};
use super::results::{Health, Landing, Slot};
use super::table::{self, FINISHERS, FinishParams, Item, MeasureParams, Run};
use super::values::{CudaValues, Used};
use crate::device::Stream;
use cudarc::driver::sys::{self, CUevent, CUstream};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Plans that are kept. A trainer has one per pass; who feeds tensors one by one from changing buffers has more, and
/// uploads tables anyway.
const PLANS: usize = 64;

/// What is between two calls.
pub struct State {
    context: Arc<Context>,
    /// Least recently used first.
    plans: Vec<Arc<Cached>>,
    slots: Slots,
    /// Partial sums and sketches of the pass that runs.
    sums: Option<Buffer>,
    partials: Option<Buffer>,
    /// Zero between launches: how many blocks of the one that runs are done.
    done: Option<Buffer>,
    /// Number of the latest result.
    sequence: u64,
    captures: u64,
    /// Recorded after the latest work, on the stream that it is on; there may have been none yet.
    event: Event,
    has_worked: bool,
    /// Memory that something enqueued reads, until its result has landed.
    in_flight: Vec<(Arc<Slot>, u64, Vec<Buffer>)>,
    pub captured: Captured,
}

struct Event(CUevent);

// SAFETY: a handle that may be used from any thread.
unsafe impl Send for Event {}

/// A plan whose tables are on the device.
pub struct Cached {
    pub plan: Plan,
    bytes: Vec<u8>,
    tables: Buffer,
    /// What the upload reads.
    staging: Buffer,
    /// Number of the latest launch's result.
    latest: AtomicU64,
}

/// What a plan's launches use besides its tables.
pub struct Launch {
    pub landing: table::Landing,
    /// Partial sums and sketches, as long as the plan says.
    pub sums: u64,
    pub partials: u64,
    /// What values are multiplied by where jobs say so.
    pub scale: f32,
}

impl Cached {
    /// The tables in pinned memory; they are still to be uploaded.
    pub fn new(context: &Arc<Context>, plan: Plan) -> Result<Self> {
        let bytes = plan.bytes();
        let tables = context.allocate_about(Kind::Device, bytes.len())?;
        let staging = context.allocate_about(Kind::Pinned, bytes.len())?;
        // SAFETY: the buffer is at least as long as the bytes, and nobody else has it.
        unsafe { staging.host().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(Self { plan, bytes, tables, staging, latest: AtomicU64::new(0) })
    }

    /// Hands target, source and length of the upload to `copy`.
    pub fn upload(&self, copy: impl FnOnce(&Buffer, &Buffer, usize) -> Result<()>) -> Result<()> {
        copy(&self.tables, &self.staging, self.bytes.len())
    }

    /// Enqueues the launches.
    ///
    /// # Safety
    /// The tables must have been uploaded in the stream's order. They, and what `launch` names, must live until the stream
    /// has run the launches; the memory that jobs named must be readable, and kept values writable, in its order.
    pub unsafe fn launch(&self, kernels: &Kernels, stream: CUstream, launch: &Launch) -> Result<()> {
        let Plan { items, runs, stages, .. } = &self.plan;
        let &Launch { landing, sums, partials, scale } = launch;
        let runs_at = self.tables.address() + (items.len() * size_of::<Item>()) as u64;
        let pairs_at = runs_at + (runs.len() * size_of::<Run>()) as u64;
        for (number, arranged) in stages.iter().enumerate() {
            let at = self.tables.address() + (arranged.items.start * size_of::<Item>()) as u64;
            let count = arranged.items.len() as u32;
            let stage = arranged.stage;
            let measure = MeasureParams {
                items: at,
                runs: runs_at,
                pairs: pairs_at,
                sums,
                partials,
                control: landing.control,
                tiles: arranged.tiles,
                item_count: count,
                blocks: arranged.blocks,
                shared_rows: arranged.shared_rows,
                scale,
            };
            let finish = FinishParams {
                landing,
                items: at,
                sums,
                partials,
                is_wide: u32::from(stage.is_wide()),
                is_last: u32::from(number + 1 == stages.len()),
            };
            let blocks = arranged.blocks * stage.share() as u32;
            let shared = shared_bytes(arranged.shared_rows);
            // SAFETY: the tables are as the plan says; the rest is the caller's promise.
            unsafe {
                kernels.of(stage).launch(blocks, shared, stream, &measure)?;
                kernels.finish.launch(count * FINISHERS, 0, stream, &finish)?;
            }
        }
        Ok(())
    }

    /// Nothing of the plan is still to run.
    fn is_idle(&self, landed: u64) -> bool {
        self.latest.load(Ordering::Relaxed) <= landed
    }
}

/// Result slots by size. Plans of the same size share them: a plan whose tables changed has the slots of the one before.
#[derive(Default)]
struct Slots {
    by_size: HashMap<usize, Vec<Arc<Slot>>>,
}

impl Slots {
    /// A slot that nobody waits for, or a new one. Never waits: who feeds tensor by tensor holds a slot for each until the
    /// step or batch is complete.
    fn take(&mut self, context: &Arc<Context>, bytes: usize) -> Result<Arc<Slot>> {
        let slots = self.by_size.entry(bytes).or_default();
        // The list's own is the only count.
        let is_free = |slot: &Arc<Slot>| Arc::strong_count(slot) == 1;
        if let Some(free) = slots.iter().find(|slot| is_free(slot)) {
            return Ok(free.clone());
        }
        let slot = Arc::new(Slot::new(context.allocate(Kind::Pinned, bytes)?));
        slots.push(slot.clone());
        Ok(slot)
    }

    /// The highest number that has landed: passes run in the order of their numbers.
    fn landed(&self) -> u64 {
        self.by_size.values().flatten().map(|slot| slot.sequence()).max().unwrap_or(0)
    }
}

impl State {
    /// The context must be current.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { call!(cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32))? };
        Ok(Self {
            context: context.clone(),
            plans: Vec::new(),
            slots: Slots::default(),
            sums: None,
            partials: None,
            done: None,
            sequence: 0,
            captures: 0,
            event: Event(event),
            has_worked: false,
            in_flight: Vec::new(),
            captured: Captured::default(),
        })
    }

    /// Frees what is the driver's. The context must be current, and nothing be running.
    pub fn close(&mut self) {
        // SAFETY: created by `new`, and not used again. The driver may be gone already, and says so.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event.0) };
        self.captured.close();
    }

    /// Waits until everything that was enqueued has run.
    pub fn wait(&mut self) -> Result<()> {
        if !self.has_worked {
            return Ok(());
        }
        // SAFETY: the event was created by `new`.
        unsafe { call!(cuEventSynchronize(self.event.0)) }
    }

    /// Waits for graphs too, of which nothing else tells when they have run: for everything in the context.
    pub fn wait_all(&mut self) -> Result<()> {
        if !self.captured.is_empty() {
            // SAFETY: the context is current.
            unsafe { call!(cuCtxSynchronize())? };
        }
        self.wait()
    }

    /// What is enqueued on the library's own stream comes after everything before it.
    pub fn order_own(&mut self) -> Result<()> {
        let event = self.has_worked.then_some(self.event.0);
        self.captured.own()?.after(event)
    }

    /// Enqueues `work` on `stream`, after everything before it on any stream and before everything after it: all passes share
    /// copies and scratch memory. Of work that fails halfway something may run, so it is ordered too.
    pub fn on<T>(&mut self, stream: Stream, work: impl FnOnce(&mut Self, CUstream) -> Result<T>) -> Result<T> {
        let handle: CUstream = stream.0.cast();
        if is_capturing(handle)? {
            return Err(CudaError::Pointer("this call cannot be captured into a graph; only steps can".into()));
        }
        self.expect_own(stream)?;
        // Also where the handle is the same: it may be another stream, of another thread or made anew.
        if self.has_worked {
            // SAFETY: the event was created by `new` and recorded below; the stream is the trainer's.
            unsafe { call!(cuStreamWaitEvent(handle, self.event.0, 0))? };
        }
        let worked = work(self, handle);
        // SAFETY: the event was created by `new`; the stream is the trainer's.
        unsafe { call!(cuEventRecord(self.event.0, handle))? };
        self.has_worked = true;
        worked
    }

    /// The stream is of this device's context. A scope may have tensors on several devices, but a stream is of one.
    fn expect_own(&self, stream: Stream) -> Result<()> {
        if owns(&self.context, stream)? {
            return Ok(());
        }
        let ordinal = self.context.ordinal;
        Err(CudaError::Pointer(format!(
            "the stream is not of CUDA device {ordinal}, which has the tensors; where a scope has tensors on several devices, \
             pass the default stream"
        )))
    }

    /// Number of the next result.
    pub fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Number before the first result of a captured pass: far from those of others, of which there will be fewer.
    pub fn next_captured(&mut self) -> u64 {
        self.captures += 1;
        self.captures << 40
    }

    /// Keeps memory until what reads it has landed.
    pub fn keep(&mut self, slot: Arc<Slot>, sequence: u64, buffers: Vec<Buffer>) {
        self.in_flight.retain(|(slot, sequence, _)| !slot.has(*sequence));
        self.in_flight.push((slot, sequence, buffers));
    }

    /// The counter of finished blocks; zero when it is handed out the first time.
    pub fn done(&mut self, stream: CUstream) -> Result<u64> {
        if self.done.is_none() {
            let buffer = self.context.allocate(Kind::Device, 4)?;
            // SAFETY: the buffer is ours.
            unsafe { call!(cuMemsetD8Async(buffer.address(), 0, buffer.bytes(), stream))? };
            self.done = Some(buffer);
        }
        Ok(self.done.as_ref().map_or(0, Buffer::address))
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Enqueues the launches of a pass.
    pub fn enqueue(
        &mut self,
        kernels: &Kernels,
        health: &Arc<Health>,
        stream: CUstream,
        cached: &Cached,
        scale: f32,
    ) -> Result<Landing> {
        let slot = self.slots.take(&self.context, cached.plan.slot_bytes)?;
        let sequence = self.next();
        cached.latest.store(sequence, Ordering::Relaxed);
        let done = self.done(stream)?;
        let landing =
            table::Landing { slot: slot.address(), slot_bytes: slot.bytes() as u64, sequence, done, control: 0 };
        let sums = grow(&mut self.sums, &self.context, cached.plan.most(|stage| stage.sums_bytes))?;
        let partials = grow(&mut self.partials, &self.context, cached.plan.most(|stage| stage.partial_bytes))?;
        // SAFETY: tables, scratch memory and slot live until the result has landed, or are handed on to work that is ordered
        // behind; the trainer's memory is readable in the order of its stream (Memory::on_device).
        unsafe { cached.launch(kernels, stream, &Launch { landing, sums, partials, scale })? };
        Ok(Landing::new(slot, sequence, health.clone()))
    }

    /// The plan of these tables: one that is on the device already, or a new one, uploaded in the order of the stream.
    pub fn plan(&mut self, kernels: &Kernels, stream: CUstream, tables: Tables) -> Result<Arc<Cached>> {
        let plan = Plan::new(tables, |stage, rows| kernels.room(stage, rows))?;
        let bytes = plan.bytes();
        if let Some(at) =
            self.plans.iter().rposition(|cached| cached.bytes == bytes && cached.plan.stages == plan.stages)
        {
            let cached = self.plans.remove(at);
            self.plans.push(cached.clone());
            return Ok(cached);
        }
        if self.plans.len() >= PLANS
            && let Some(idle) = self.plans.iter().position(|cached| cached.is_idle(self.slots.landed()))
        {
            self.plans.remove(idle);
        }
        let cached = Arc::new(Cached::new(&self.context, plan)?);
        // The upload reads until what is enqueued next has landed, whichever it is.
        cached.latest.store(self.sequence + 1, Ordering::Relaxed);
        // SAFETY: both buffers are as long, and the plan keeps both for as long as something of it is still to run.
        cached.upload(|tables, staging, bytes| unsafe {
            call!(cuMemcpyHtoDAsync_v2(tables.address(), staging.host().cast(), bytes, stream))
        })?;
        self.plans.push(cached.clone());
        Ok(cached)
    }

    /// Writes the zeros of values that are used for the first time.
    pub fn fill(&mut self, stream: CUstream, used: &mut Used) -> Result<()> {
        for (address, bytes) in &used.fresh {
            // SAFETY: values of the library's own.
            unsafe { call!(cuMemsetD8Async(*address, 0, *bytes, stream))? };
        }
        used.filled();
        Ok(())
    }

    /// Copies values into others, from `at` on.
    pub fn copy(&mut self, stream: Stream, source: &CudaValues, target: &CudaValues, at: usize) -> Result<()> {
        self.on(stream, |state, stream| {
            state.fill(stream, &mut Used::of([source, target]))?;
            let bytes = 4 * source.len.min(target.len.saturating_sub(at));
            let to = target.buffer.address() + 4 * at as u64;
            // SAFETY: inside both buffers, which are the library's own and not the same.
            unsafe { call!(cuMemcpyDtoDAsync_v2(to, source.buffer.address(), bytes, stream)) }
        })
    }
}

/// The stream is one of this context's.
pub fn owns(context: &Context, stream: Stream) -> Result<bool> {
    /// Below are the default streams, which every context has.
    const HANDLES: usize = 3;
    if (stream.0 as usize) < HANDLES {
        return Ok(true);
    }
    let mut of = std::ptr::null_mut();
    // SAFETY: writes one handle; legal whatever the stream is doing.
    unsafe { call!(cuStreamGetCtx(stream.0.cast(), &mut of))? };
    Ok(of == context.handle)
}

/// Work on the stream goes into a graph instead of running.
pub fn is_capturing(stream: CUstream) -> Result<bool> {
    /// CU_STREAM_LEGACY.
    const LEGACY: usize = 1;
    if stream as usize <= LEGACY {
        // The legacy default stream cannot be captured, and asking about it would disturb the capture of another.
        return Ok(false);
    }
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: writes one word; legal whatever the stream is doing.
    unsafe { call!(cuStreamIsCapturing(stream, &mut status))? };
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Address of at least so many bytes. The old buffer goes back to the pool: whoever gets it next is ordered behind.
fn grow(buffer: &mut Option<Buffer>, context: &Arc<Context>, bytes: usize) -> Result<u64> {
    if buffer.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
        *buffer = Some(context.allocate(Kind::Device, bytes)?);
    }
    Ok(buffer.as_ref().map_or(0, Buffer::address))
}
