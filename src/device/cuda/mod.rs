//! Tensors in the memory of a CUDA device: kernels on the trainer's stream, results that land in pinned host memory.
//!
//! The library is a guest. It uses the context that the trainer uses and restores what was current; in a step it enqueues
//! launches and nothing that waits, allocates or frees. A pass is one fused launch over all slices and a small finishing
//! one ([`plan`], [`jobs`]); what they read beside the trainer's memory are tables that stay on the device until a pointer
//! changes. Results are written to mapped pinned memory ([`results`]), where the drain thread looks for them without a CUDA
//! call. Passes on different streams are ordered by an event, since they share copies and scratch memory.
//!
//! Errors cost the pass that they hit; one that the driver never recovers from ends measuring on the device. The trainer
//! sees neither.

mod capture;
mod driver;
mod jobs;
mod memory;
mod module;
mod moves;
mod pack;
mod pass;
mod plan;
mod probe;
mod results;
mod table;
mod values;

pub use capture::Replays;
pub use driver::{CudaError, check_pointer, load as load_driver};
pub use values::CudaValues;

use super::{
    AccumulateFound, AccumulateJob, AttentionFound, AttentionJob, Device, GatherJob, GradientFound, GradientJob, Home,
    Keeping, Lost, Packing, ParameterFound, ParameterJob, Pending, Place, RowsJob, ScatterJob, Stream, TaskJob, Values,
};
use driver::{Current, Result};
use jobs::Decode;
use memory::{Context, Kind};
use module::Kernels;
use parking_lot::Mutex;
use pass::{Cached, State, is_capturing, owns};
use plan::Tables;
use results::{Health, Landing, Results};
use std::sync::Arc;
use std::time::Duration;
use values::Used;

/// How often parameters are written before it is given up, with a longer pause each time: half a second in all.
const WRITES: u32 = 9;

/// A CUDA device.
pub struct Cuda {
    context: Arc<Context>,
    kernels: Kernels,
    memory_bytes: u64,
    packing: Packing,
    health: Arc<Health>,
    state: Mutex<State>,
}

impl Cuda {
    /// Gets the device with this ordinal ready. Takes up to a second the first time.
    pub fn open(ordinal: u32, packing: Packing) -> Result<Arc<Self>> {
        let context = Context::of(ordinal)?;
        let _current = context.enter()?;
        let _relaxed = driver::Relaxed::enter()?;
        let kernels = Kernels::load(&context)?;
        let memory_bytes = driver::memory_bytes(context.device)?;
        let state = Mutex::new(State::new(&context)?);
        Ok(Arc::new(Self { context, kernels, memory_bytes, packing, health: Arc::default(), state }))
    }

    /// Why nothing is measured on the device any more.
    pub fn failure(&self) -> Option<String> {
        self.health.failure()
    }

    /// Waits until everything that was enqueued has run, graphs too. What cannot be waited for is not.
    pub fn wait_all(&self) {
        let _ = self.guarded(|| self.state.lock().wait_all());
    }

    /// Waits until everything that was enqueued has run: where the trainer waits anyway, as when a scope closes. What will
    /// not land any more is lost from then on.
    pub fn settle_all(&self) {
        let waited = self.guarded(|| self.state.lock().wait_all());
        if let Err(error) = waited {
            self.health.fail(&error.to_string());
        }
    }

    /// Runs something with the context current, unless the device failed before. Remembers failures that stay.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(reason) = self.health.failure() {
            return Err(CudaError::Failed(reason));
        }
        let outcome = self.context.enter().and_then(|_current: Current| work());
        if let Err(error) = &outcome
            && error.is_sticky()
        {
            self.health.fail(&error.to_string());
        }
        outcome
    }

    /// Enqueues a pass: now, or into the graph that the stream is being captured into.
    fn pass<T: Send + 'static>(
        self: &Arc<Self>,
        stream: Stream,
        tables: Tables,
        decode: Decode<T>,
        mut used: Used,
        scale: f32,
    ) -> Pending<T> {
        let Self { kernels, health, context, .. } = &**self;
        let enqueued = self.guarded(|| {
            let mut state = self.state.lock();
            if is_capturing(stream.0.cast())? {
                let _relaxed = driver::Relaxed::enter()?;
                if !owns(context, stream)? {
                    return Err(CudaError::Pointer("the stream that is captured is of another device".into()));
                }
                let first = state.next_captured();
                state.order_own()?;
                let captured = &mut state.captured;
                captured.own()?.zero(&used.fresh)?;
                used.filled();
                return captured.pass(
                    context,
                    kernels,
                    health,
                    stream,
                    first,
                    tables,
                    decode,
                    std::mem::take(&mut used.buffers),
                );
            }
            let (cached, landing) = state.on(stream, |state, stream| {
                state.fill(stream, &mut used)?;
                let cached = state.plan(kernels, stream, tables)?;
                let landing = state.enqueue(kernels, health, stream, &cached, scale)?;
                Ok((cached, landing))
            })?;
            let (cuda, decode) = (self.clone(), Arc::new(decode));
            let pending = landed(landing, cached.clone(), decode.clone());
            Ok(pending.with_again(move |stream| cuda.pass_again(stream, &cached, &decode, scale)))
        });
        enqueued.unwrap_or_else(|error| self.lost(&error))
    }

    /// Enqueues a pass that was made before.
    fn pass_again<T: Send + 'static>(
        &self,
        stream: Stream,
        cached: &Arc<Cached>,
        decode: &Arc<Decode<T>>,
        scale: f32,
    ) -> Pending<T> {
        let Self { kernels, health, .. } = self;
        let enqueue = |state: &mut State, stream| state.enqueue(kernels, health, stream, cached, scale);
        let enqueued = self.guarded(|| self.state.lock().on(stream, enqueue));
        match enqueued {
            Ok(landing) => landed(landing, cached.clone(), decode.clone()),
            Err(error) => self.lost(&error),
        }
    }

    /// The stream is being captured into a graph. Asked at every step, so without a context of ours: a thread that has none
    /// captures nothing.
    pub fn is_capturing(&self, stream: Stream) -> bool {
        !self.health.has_failed()
            && is_capturing(stream.0.cast()).unwrap_or(false)
            && owns(&self.context, stream).unwrap_or(false)
    }

    /// From here to [`end_capture`](Cuda::end_capture), passes on `stream` go into a graph; of its replays every so many-th
    /// is measured, the first one too.
    pub fn begin_capture(&self, stream: Stream, every: u64) -> Result<Arc<Replays>> {
        self.guarded(|| {
            let _relaxed = driver::Relaxed::enter()?;
            let mut state = self.state.lock();
            state.order_own()?;
            state.captured.begin(&self.context, &self.kernels, stream, every)
        })
    }

    pub fn end_capture(&self) {
        self.state.lock().captured.end();
    }

    fn lost<T: Send + 'static>(&self, error: &CudaError) -> Pending<T> {
        Pending::lost(Lost(format!("CUDA device {}: {error}", self.context.ordinal)))
    }
}

/// The results of a plan, once they are there.
fn landed<T: Send + 'static>(landing: Landing, cached: Arc<Cached>, decode: Arc<Decode<T>>) -> Pending<T> {
    Pending::landing(move || {
        let found = landing.look()?;
        Some(found.map(|slot| decode(&Results { plan: &cached.plan, slot })))
    })
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Buffers must not go back to the driver under a kernel that is still to run.
        self.settle_all();
        if let Ok(_current) = self.context.enter() {
            self.state.get_mut().close();
        }
    }
}

impl Device for Arc<Cuda> {
    fn values(&self, _: Place, len: usize, keeping: Keeping, home: Home) -> Option<Values> {
        let kind = if home == Home::Pinned { Kind::Spilled } else { Kind::Device };
        let format = values::format_for(keeping);
        let bytes = values::bytes_of(format, len);
        let buffer = self.guarded(|| self.context.allocate(kind, bytes)).ok()?;
        let is_sum = keeping == Keeping::Sum;
        Some(Values::from(CudaValues::new(buffer, len, format, is_sum)))
    }

    fn value_bytes(&self, _: Place, len: usize, keeping: Keeping) -> u64 {
        values::bytes_of(values::format_for(keeping), len) as u64
    }

    fn copy_values(&self, stream: Stream, source: &Values, target: &mut Values, at: usize) -> bool {
        let (Some(source), Some(target)) = (source.cuda(), target.cuda()) else { return false };
        self.guarded(|| self.state.lock().copy(stream, source, target, at)).is_ok()
    }

    fn settle(&self, stream: Stream, values: &mut Values) {
        let Some(values) = values.cuda_mut() else { return };
        // What cannot be packed stays as it is; a failure that matters stays too, and is seen by the pass that follows.
        let _ = self.guarded(|| self.state.lock().pack(&self.kernels, stream, values, self.packing));
    }

    fn gradients(&self, stream: Stream, jobs: Vec<GradientJob>) -> Pending<Vec<GradientFound>> {
        if jobs.is_empty() {
            return Pending::nothing();
        }
        let mut tables = Tables::default();
        let used =
            Used::of(jobs.iter().flat_map(|job| job.references.iter().flatten().filter_map(|kept| kept.values.cuda())));
        let decode = jobs::gradients(&mut tables, jobs);
        self.pass(stream, tables, decode, used, 1.0)
    }

    fn accumulate(&self, stream: Stream, mut jobs: Vec<AccumulateJob>) -> Pending<Vec<AccumulateFound>> {
        let mut sums = jobs.iter_mut().filter_map(|job| job.sum.as_mut()?.1.cuda_mut());
        let mut unpack = |sum| self.state.lock().unpack(&self.kernels, stream, sum);
        if let Err(error) = self.guarded(|| sums.try_for_each(&mut unpack)) {
            return self.lost(&error);
        }
        // The scale of a batch changes from call to call, so it is no part of the tables: jobs of one scale are one pass.
        let mut passes = Vec::new();
        let mut jobs = jobs.into_iter().peekable();
        while let Some(AccumulateJob { scale, .. }) = jobs.peek() {
            let scale = *scale;
            let of_scale: Vec<_> = std::iter::from_fn(|| jobs.next_if(|job| job.scale == scale)).collect();
            let mut tables = Tables::default();
            let used = Used::of(of_scale.iter().filter_map(|job| job.sum.as_ref()?.1.cuda()));
            let decode = jobs::accumulate(&mut tables, of_scale);
            passes.push(self.pass(stream, tables, decode, used, scale));
        }
        Pending::all(passes).map(|found| found.into_iter().flatten().collect())
    }

    fn parameters(&self, stream: Stream, jobs: Vec<ParameterJob>) -> Pending<Vec<ParameterFound>> {
        if jobs.is_empty() {
            return Pending::nothing();
        }
        let mut tables = Tables::default();
        let kept = jobs.iter().flat_map(|job| {
            let tasks = job.tasks.iter().flat_map(TaskJob::kept);
            tasks.chain(job.copy.as_ref().map(|copy| &*copy.values))
        });
        let used = Used::of(kept.filter_map(Values::cuda));
        let decode = jobs::parameters(&mut tables, jobs);
        self.pass(stream, tables, decode, used, 1.0)
    }

    fn rows(&self, stream: Stream, job: RowsJob) -> Pending<Vec<f32>> {
        self.probe_rows(stream, job)
    }

    fn attention(&self, stream: Stream, job: AttentionJob) -> Pending<AttentionFound> {
        self.probe_attention(stream, job)
    }

    fn memory_bytes(&self, _: Place) -> u64 {
        self.memory_bytes
    }
}

impl Cuda {
    /// Reads slices into vectors; waits for them. Returns how many values are not finite afterwards.
    pub fn gather(&self, stream: Stream, jobs: &mut [GatherJob]) -> Result<u64> {
        self.guarded(|| self.state.lock().gather(&self.kernels, stream, jobs))
    }

    /// Copies values that the library keeps; waits for them. `false`: the device failed.
    pub fn read(&self, stream: Stream, values: &CudaValues, out: &mut [f32]) -> bool {
        self.guarded(|| self.state.lock().read(&self.kernels, stream, values, out)).is_ok()
    }

    /// Writes slices of the parameters; waits for them. The same values may be written again, so what fails is tried again:
    /// otherwise the trainer would go on from parameters that are not its own.
    /// `false`: it cannot be done.
    pub fn scatter(&self, stream: Stream, jobs: &[ScatterJob]) -> bool {
        for attempt in 0..WRITES {
            match self.guarded(|| self.state.lock().scatter(&self.kernels, stream, jobs)) {
                Ok(()) => return true,
                Err(error) if error.is_sticky() => return false,
                Err(_) => std::thread::sleep(Duration::from_millis(1 << attempt)),
            }
        }
        false
    }
}
