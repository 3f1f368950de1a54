//! Steps that are captured into a CUDA graph: their passes run at every replay, without a call.
//!
//! A graph repeats its launches with the parameters of the capture. So what changes lives on the device: a counter of
//! replays, which says whether one is due and which result slot it takes (kernels/tick.cu). Everything that a captured pass
//! reads or writes is its own or is kept for as long as the graph could run, which only the end of the scope tells. What a
//! capture must not contain (uploads, zeroing) is done at once, on a stream of the library's own.

use super::CudaError;
use super::driver::{Result, call};
use super::jobs::Decode;
use super::memory::{Buffer, Context, Kind};
use super::module::Kernels;
use super::pass::{Cached, Launch};
use super::plan::{Plan, Tables};
use super::results::{Health, Results, Slot};
use super::table::{self, Control, SlotHeader, TickParams};
use crate::device::{Lost, Pending, Stream};
use cudarc::driver::sys::{self, CUevent, CUstream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Measured replays whose results may wait to be taken; further ones are left out until some are.
const SLOTS: usize = 4;

/// What the device and the drain thread tell each other about a captured step.
#[derive(Debug)]
pub struct Replays {
    /// Three words of mapped memory: results taken, due replays left out, all replays.
    words: Buffer,
    /// The slots of the pass that is last in the step, and the number before its first result.
    last: parking_lot::Mutex<Option<(Vec<Arc<Slot>>, u64)>>,
}

impl Replays {
    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: pinned host memory of at least three words, which lives as long as this; both sides write whole words.
        unsafe { AtomicU64::from_ptr(self.words.host().cast::<u64>().add(index)) }
    }

    /// Which replay the n-th measured one was, counted from 1; `None` while it is not complete.
    pub fn number_of(&self, n: u64) -> Option<u64> {
        let last = self.last.lock();
        let (slots, first) = last.as_ref()?;
        let slot = &slots[n as usize % slots.len()];
        slot.has(first + n).then(|| slot.values::<u64>(std::mem::offset_of!(SlotHeader, replay), 1)[0])
    }

    /// So many results were taken: their slots may be filled again.
    pub fn take(&self, taken: u64) {
        self.word(0).store(taken, Ordering::Release);
    }

    /// Replays that were due and found no free slot.
    pub fn left_out(&self) -> u64 {
        self.word(1).load(Ordering::Relaxed)
    }

    /// Replays that the device has run.
    pub fn count(&self) -> u64 {
        self.word(2).load(Ordering::Relaxed)
    }
}

/// A step that is being captured.
struct Capture {
    stream: Stream,
    /// Address of the replay counter.
    control: u64,
    replays: Arc<Replays>,
}

/// A stream of the library's own.
pub struct OwnStream(CUstream);

// SAFETY: a handle that may be used from any thread.
unsafe impl Send for OwnStream {}

impl OwnStream {
    /// The context must be current.
    pub fn new() -> Result<Self> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { call!(cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))? };
        Ok(Self(stream))
    }

    /// What comes next waits for an event.
    pub fn after(&self, event: Option<CUevent>) -> Result<()> {
        match event {
            // SAFETY: both are the library's own.
            Some(event) => unsafe { call!(cuStreamWaitEvent(self.0, event, 0)) },
            None => Ok(()),
        }
    }

    /// Writes bytes to device memory, now. `staging` is pinned and has them.
    fn upload(&self, target: &Buffer, staging: &Buffer, bytes: usize) -> Result<()> {
        // SAFETY: both buffers are as long, and nobody else's yet.
        unsafe {
            call!(cuMemcpyHtoDAsync_v2(target.address(), staging.host().cast(), bytes, self.0))?;
            call!(cuStreamSynchronize(self.0))
        }
    }

    /// Writes zeros, now.
    pub fn zero(&self, ranges: &[(u64, usize)]) -> Result<()> {
        for (address, bytes) in ranges {
            // SAFETY: the library's own memory, which nothing uses yet.
            unsafe { call!(cuMemsetD8Async(*address, 0, *bytes, self.0))? };
        }
        // SAFETY: the stream is ours.
        unsafe { call!(cuStreamSynchronize(self.0)) }
    }

    /// Back to the driver; the context must be current.
    pub fn close(&mut self) {
        // SAFETY: created by `new`, and not used again. The driver may be gone already, and says so.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// What captured passes use, kept until the scope closes: nothing says when a graph is destroyed.
#[derive(Default)]
pub struct Captured {
    current: Option<Capture>,
    own: Option<OwnStream>,
    kept: Vec<Arc<Buffer>>,
    replays: Vec<Arc<Replays>>,
    passes: Vec<(Arc<Cached>, Vec<Arc<Slot>>)>,
}

impl Captured {
    pub fn is_empty(&self) -> bool {
        self.replays.is_empty()
    }

    pub fn close(&mut self) {
        if let Some(own) = &mut self.own {
            own.close();
        }
    }

    /// The library's own stream.
    pub fn own(&mut self) -> Result<&OwnStream> {
        let own = match self.own.take() {
            Some(own) => own,
            None => OwnStream::new()?,
        };
        Ok(self.own.insert(own))
    }

    fn pinned_zeros(&mut self, context: &Arc<Context>, bytes: usize) -> Result<Buffer> {
        let buffer = context.allocate(Kind::Pinned, bytes)?;
        // SAFETY: the buffer is ours and as long.
        unsafe { buffer.host().write_bytes(0, buffer.bytes()) };
        Ok(buffer)
    }

    fn device_zeros(&mut self, context: &Arc<Context>, bytes: usize) -> Result<Buffer> {
        let buffer = context.allocate(Kind::Device, bytes)?;
        self.own()?.zero(&[(buffer.address(), buffer.bytes())])?;
        Ok(buffer)
    }

    /// Begins a step whose passes go into a graph: the first of its nodes counts replays.
    pub fn begin(
        &mut self,
        context: &Arc<Context>,
        kernels: &Kernels,
        stream: Stream,
        every: u64,
    ) -> Result<Arc<Replays>> {
        let control = self.device_zeros(context, size_of::<Control>())?;
        let words = self.pinned_zeros(context, 24)?;
        let params = TickParams {
            control: control.address(),
            consumed: words.address(),
            dropped: words.address() + 8,
            replays: words.address() + 16,
            every,
            slots: SLOTS as u64,
        };
        let (control, replays) = (Arc::new(control), Arc::new(Replays { words, last: Default::default() }));
        // Before the launch: whatever comes after it may fail, and the node is in the graph.
        self.kept.push(control.clone());
        self.replays.push(replays.clone());
        // SAFETY: control and words are kept until the scope closes.
        unsafe { kernels.tick.launch(1, 0, stream.0.cast(), &params)? };
        self.current = Some(Capture { stream, control: control.address(), replays: replays.clone() });
        Ok(replays)
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.current = None;
    }

    /// A pass of the step that is being captured. `keep`: memory of kept values that it uses.
    #[allow(clippy::too_many_arguments)] // what a pass is made of
    pub fn pass<T: Send + 'static>(
        &mut self,
        context: &Arc<Context>,
        kernels: &Kernels,
        health: &Arc<Health>,
        stream: Stream,
        first: u64,
        tables: Tables,
        decode: Decode<T>,
        keep: Vec<Arc<Buffer>>,
    ) -> Result<Pending<T>> {
        let plan = Plan::new(tables, |stage, rows| kernels.room(stage, rows))?;
        let Some(capture) = &self.current else {
            return Err(CudaError::Pointer("the stream is being captured into a graph outside a step".into()));
        };
        if capture.stream != stream {
            return Err(CudaError::Pointer("a captured step uses one stream".into()));
        }
        let (control, replays) = (capture.control, capture.replays.clone());
        let done = self.device_zeros(context, 4)?;
        let cached = Arc::new(Cached::new(context, plan)?);
        let own = self.own()?;
        cached.upload(|tables, staging, bytes| own.upload(tables, staging, bytes))?;
        // Kernels find a slot by its distance from the first.
        let bytes = cached.plan.slot_bytes.next_multiple_of(64);
        let slots = Slot::ring(context.allocate(Kind::Pinned, SLOTS * bytes)?, bytes, SLOTS);
        let sums = context.allocate(Kind::Device, cached.plan.most(|stage| stage.sums_bytes))?;
        let partials = context.allocate(Kind::Device, cached.plan.most(|stage| stage.partial_bytes))?;
        let [done, sums, partials] = [done, sums, partials].map(|buffer| {
            let buffer = Arc::new(buffer);
            self.kept.push(buffer.clone());
            buffer.address()
        });
        let landing =
            table::Landing { slot: slots[0].address(), slot_bytes: bytes as u64, sequence: first, done, control };
        // Before the launches: one of them may fail, and those before it are in the graph.
        self.kept.extend(keep);
        self.passes.push((cached.clone(), slots.clone()));
        let launch = Launch { landing, sums, partials, scale: 1.0 };
        // SAFETY: tables, scratch memory, slots and control are kept until the scope closes; the trainer's memory is
        // readable whenever the graph runs, as it is for the trainer's own nodes.
        unsafe { cached.launch(kernels, stream.0.cast(), &launch)? };
        *replays.last.lock() = Some((slots.clone(), first));
        let health = health.clone();
        Ok(Pending::repeating(move |n| {
            let slot = &slots[n as usize % slots.len()];
            if !slot.has(first + n) {
                return health.failure().map(|reason| Err(Lost(reason)));
            }
            Some(Ok(decode(&Results { plan: &cached.plan, slot })))
        }))
    }
}
