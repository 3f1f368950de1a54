//! The instrument: options, the catalog of tensors, tasks, the schedule, the life of one step.
//!
//! A scope has two sides. The *calling side* ([`Front`], behind a mutex) runs on the trainer's threads: it knows where
//! data lies, decides what is read, asks the device for sums, and hands over what it asked for as a [`draft`]. The *drain
//! side* ([`drain`], [`analysis`]) is one thread, which waits for what is not there yet, turns sums into statistics and
//! publishes them, and a second one ([`algebra`]) for probes, whose matrices take seconds. Messages go one way; nothing
//! flows back to training but a count of how many steps are still waiting.

mod algebra;
mod analysis;
mod capture;
mod catalog;
mod curvature;
mod draft;
mod drain;
mod error;
mod gradients;
mod heads;
mod message;
mod movement;
mod options;
mod probe;
mod queue;
mod references;
mod schedule;
pub mod schema;
mod secant;
mod shard;
mod steady;
mod step;
mod storage;
mod task;
mod updates;

pub use catalog::{Data, EXPERT, REPLICATED, Source, TIED, TensorSpec};
pub use curvature::{Request as CurvatureRequest, Settings as CurvatureSettings, Want as CurvatureWant};
pub(crate) use error::invalid;
pub use error::{Error, Result};
pub use heads::{HeadLayout, HeadMap};
pub use message::HeadEffect;
pub use options::{Environment, Layer, Options, is_disabled};
pub use probe::{Attention, Mask, Outputs};
pub use schedule::Rule;
pub use shard::{Shard, View};

use crate::device::Memory;
use crate::device::cpu::{Cpu, host_memory_bytes};
use crate::device::{Machine, Stream};
use crate::ring::{Entry, Writer, WriterOptions, default_path};
use capture::Captures;
use catalog::Catalog;
use curvature::Curvature;
use drain::Drain;
use message::Message;
use movement::Before;
use parking_lot::Mutex;
use probe::{OpenPass, ProbeMemory};
use queue::Queue;
use references::PendingBatch;
use schedule::Schedule;
use schema::{Fault, TaskEvent};
use std::path::{Path, PathBuf};
use steady::Steady;
use step::StepState;
use storage::{Budget, Limit};
use task::Tasks;

/// An open instrument.
pub struct Scope {
    front: Mutex<Front>,
    ring: PathBuf,
}

/// The calling side.
pub struct Front {
    options: Options,
    queue: Queue,
    budget: Budget,
    catalog: Catalog,
    /// The different schedules in use: what a step that is not sampled looks at.
    schedules: Vec<Schedule>,
    tasks: Tasks,
    metrics: Vec<Metric>,
    step: StepState,
    copies: Vec<Option<Before>>,
    /// A reference batch that is being fed.
    pending: Option<PendingBatch>,
    /// A pass over a probe that is going on.
    probe: Option<OpenPass>,
    probe_memory: ProbeMemory,
    curvature: Curvature,
    captures: Captures,
    /// The latest step, if it can be made again.
    steady: Option<Steady>,
    /// Counts what the passes of a step depend on, besides the catalog.
    changes: u64,
    /// Updates that were applied so far: tells whether two moments saw the same weights.
    updates: u64,
    drain: Drain,
}

struct Metric {
    name: String,
    higher_is_better: bool,
}

/// How often steps are sampled, for readers. The latest holds.
fn every_attribute(every: u64) -> Entry {
    Entry::Attribute { key: "every".into(), value: every.to_string() }
}

/// The metric that `fgs_record_loss` records.
pub const LOSS: &str = "loss";

impl Scope {
    /// Opens an instrument: creates its ring and starts its threads.
    pub fn open(options: Options) -> Result<Self> {
        let cpu = Cpu::new(options.device_threads())
            .map_err(|error| Error::System(format!("cannot start the threads of the CPU device: {error}")))?;
        let path =
            options.ring_path.clone().unwrap_or_else(|| default_path(options.ring_directory.as_deref(), options.rank));
        let mut writer_options = WriterOptions::new(&path);
        writer_options.slots = options.ring_slots;
        writer_options.rank = options.rank;
        writer_options.world = options.world_size;
        writer_options.schema_hash = schema::hash();
        // Names of hundreds of thousands of tensors and heads; pages are taken only as they are used.
        writer_options.catalog_bytes = 64 << 20;
        let writer = Writer::create(&writer_options)?;
        let limit = options.budget_bytes.map_or(Limit::Share(options.reference_budget), Limit::Bytes);
        // Probes are kept in host memory, wherever the tensors lie.
        let probe_memory = ProbeMemory::new((host_memory_bytes() as f64 * options.probe_budget) as u64);
        let drain = Drain::start(writer, &options)?;
        for entry in schema::entries() {
            drain.send(Message::Name(entry));
        }
        let attributes = [
            ("run", options.run.clone()),
            ("forgetscope", env!("CARGO_PKG_VERSION").into()),
            ("sketch_head", options.sketch_head.to_string()),
            ("sketch_matrix", options.sketch_matrix.to_string()),
            ("window", options.window.to_string()),
            ("severity", options.severity.describe()),
            ("command", std::env::args_os().next().unwrap_or_default().to_string_lossy().into_owned()),
        ];
        for (key, value) in attributes {
            drain.send(Message::Name(Entry::Attribute { key: key.into(), value }));
        }
        drain.send(Message::Name(every_attribute(options.every)));
        let schedules = vec![Schedule::common(&options)];
        let front = Front {
            queue: Queue::new(Machine::new(cpu).with_packing(options.reference_format)),
            budget: Budget::new(limit).with_spills(options.reference_spill),
            options,
            catalog: Catalog::default(),
            schedules,
            tasks: Tasks::default(),
            metrics: Vec::new(),
            step: StepState::default(),
            copies: Vec::new(),
            pending: None,
            probe: None,
            probe_memory,
            curvature: Curvature::default(),
            captures: Captures::default(),
            steady: None,
            changes: 0,
            updates: 0,
            drain,
        };
        Ok(Self { front: Mutex::new(front), ring: path })
    }

    /// The calling side, for one call.
    pub fn front(&self) -> parking_lot::MutexGuard<'_, Front> {
        self.front.lock()
    }

    /// File of the ring.
    pub fn ring_path(&self) -> &Path {
        &self.ring
    }

    /// Waits until everything handed over so far is in the ring.
    pub fn flush(&self) -> Result<()> {
        let answer = self.front.lock().drain.flush();
        answer.recv().map_err(|_| Error::System("the thread that writes the ring has ended".into()))
    }

    /// Publishes everything, marks the ring closed, ends the threads.
    pub fn close(self) {
        let mut front = self.front.into_inner();
        front.give_up_curvature();
        // What is on its way lands, or never will.
        front.queue.device.settle_all();
        front.drain.close();
    }
}

impl Front {
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Device memory is read in the order of `stream` from now on.
    pub fn on(&mut self, stream: Stream) {
        self.queue.stream = stream;
    }

    /// Adds a tensor to the catalog.
    pub fn register(&mut self, spec: TensorSpec) -> Result<u32> {
        let id = self.catalog.register(spec, &self.options)?;
        let schedule = self.catalog.tensors[id as usize].schedule;
        if !self.schedules.contains(&schedule) {
            self.schedules.push(schedule);
        }
        if !self.catalog.tensors[id as usize].slices().is_empty() {
            self.announce(id);
        }
        Ok(id)
    }

    /// Adds tensors with consecutive ids, all or none, and returns the first id. They differ in name and layer only, so
    /// what is refused of one but not of the first is its name.
    pub fn register_all(&mut self, specs: Vec<TensorSpec>) -> Result<u32> {
        specs.iter().try_for_each(|spec| self.catalog.check_name(&spec.name))?;
        let mut ids = specs.into_iter().map(|spec| self.register(spec));
        let first = ids.next().ok_or_else(|| invalid!("tensor.layer_count: there are no layers"))??;
        ids.try_for_each(|id| id.map(drop))?;
        Ok(first)
    }

    /// Says where local data of a tensor lies from now on.
    pub fn bind(&mut self, id: u32, source: Source, data: Data, shard: Option<Shard>) -> Result<()> {
        self.reach(data)?;
        if self.catalog.bind(id, source, data, shard, &self.options)? {
            self.announce(id);
        }
        self.after_binding(source);
        Ok(())
    }

    /// The device that reads the data is there.
    fn reach(&self, data: Data) -> Result<()> {
        let place = data.memory.place;
        self.queue.device.reach(place).map_err(|error| Error::Unsupported(format!("tensor.device: {place}: {error}")))
    }

    /// Where data is bound, and how many bytes it spans.
    pub fn bound(&self, id: u32, source: Source) -> Result<(Memory, usize)> {
        self.catalog.bound(id, source).map(|bound| (bound.memory(), bound.bytes()))
    }

    /// The data that is bound lies at another address from now on.
    ///
    /// # Safety
    /// As for [`Memory::moved`].
    pub unsafe fn rebind(&mut self, id: u32, source: Source, base: *const u8) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.catalog.rebind(id, source, base) }?;
        self.after_binding(source);
        Ok(())
    }

    pub fn unbind(&mut self, id: u32, source: Source) -> Result<()> {
        self.catalog.unbind(id, source)?;
        self.after_binding(source);
        Ok(())
    }

    /// From now on steps are sampled when (step − start_step) is a multiple of `every`; 0: never. Tensors with a rule of
    /// their own keep it.
    pub fn set_every(&mut self, every: u64) -> Result<()> {
        self.before_change();
        self.expect_no_step("fgs_set_every")?;
        self.options.every = every;
        self.schedules = vec![Schedule::common(&self.options)];
        for tensor in &mut self.catalog.tensors {
            tensor.schedule = Schedule::of(&self.options, &tensor.spec.name)?;
            if !self.schedules.contains(&tensor.schedule) {
                self.schedules.push(tensor.schedule);
            }
        }
        self.drain.send(Message::Name(every_attribute(every)));
        Ok(())
    }

    /// The step that is going on is sampled.
    pub fn is_sampled(&self) -> bool {
        self.step.measured.is_some()
    }

    /// How many layers a stacked buffer of this tensor holds; 1 if it stands alone.
    pub fn stack(&self, id: u32) -> Result<(u32, u64)> {
        let spec = &self.catalog.tensor(id)?.spec;
        Ok((spec.stack, spec.numel))
    }

    /// Tells the other side of a tensor whose slices are known now.
    fn announce(&mut self, id: u32) {
        for entry in self.catalog.entries(id) {
            self.drain.send(Message::Name(entry));
        }
        let slices = self.catalog.tensors[id as usize].slices();
        self.drain.send(Message::Slices(self.catalog.slices[slices].to_vec()));
    }

    /// Training of a task begins; a name seen before returns to that task.
    pub fn task_begin(&mut self, name: &str) -> Result<()> {
        self.before_change();
        self.expect_idle("fgs_task_begin")?;
        self.give_up_pass();
        if let Some(current) = self.tasks.current {
            let current = &self.tasks.list[usize::from(current)];
            return Err(Error::WrongPhase(format!(
                "fgs_task_begin: task '{}' has not ended; call fgs_task_end first",
                current.name
            )));
        }
        let task = self.task(name)?;
        self.tasks.current = Some(task);
        // Training moves the task's own weights: what was kept of the old ones is no base any more.
        self.forget_bases(task);
        self.event(task, TaskEvent::Begin);
        Ok(())
    }

    /// Training of the current task ends. Takes a snapshot if parameters are bound and options say so.
    pub fn task_end(&mut self) -> Result<()> {
        self.before_change();
        self.expect_no_step("fgs_task_end")?;
        self.give_up_pass();
        let Some(task) = self.tasks.current else {
            return Err(Error::WrongPhase("fgs_task_end: no task has begun; call fgs_task_begin first".into()));
        };
        self.give_up_curvature();
        let state = &self.tasks.list[usize::from(task)];
        let is_fresh = state.snapshot.is_some() && state.anchor == Some(self.updates);
        if self.options.snapshot_at_task_end && !is_fresh {
            self.take_snapshot(task);
        }
        let state = &mut self.tasks.list[usize::from(task)];
        if state.snapshot.is_none() {
            state.anchor = Some(self.updates);
        }
        self.tasks.current = None;
        self.event(task, TaskEvent::End);
        Ok(())
    }

    /// Keeps the parameters as they are now as the snapshot of `task`, or of the current task.
    pub fn snapshot(&mut self, task: Option<&str>) -> Result<()> {
        self.before_change();
        self.expect_idle("fgs_snapshot")?;
        let task = match task {
            Some(name) => self.task(name)?,
            None => self.tasks.current.ok_or_else(|| {
                Error::WrongPhase("fgs_snapshot: no task has begun; name one or call fgs_task_begin first".into())
            })?,
        };
        self.take_snapshot(task);
        Ok(())
    }

    /// A loss or another metric of a task, as the trainer measured it now.
    pub fn evaluation(&mut self, task: &str, metric: &str, value: f64, higher_is_better: bool) -> Result<()> {
        self.count_replays();
        let known = self.metrics.iter().position(|known| known.name == metric);
        let direction = known.map(|id| self.metrics[id].higher_is_better).or((metric == LOSS).then_some(false));
        if direction.is_some_and(|direction| direction != higher_is_better) {
            return Err(invalid!("higher_is_better: metric '{metric}' has the opposite direction"));
        }
        if metric.is_empty() || self.metrics.len() > usize::from(u16::MAX) {
            return Err(invalid!("metric: '{metric}' is empty, or one more than the 65536 that there can be"));
        }
        let task = self.task(task)?;
        let id = match known {
            Some(id) => id as u16,
            None => {
                let id = self.metrics.len() as u16;
                self.metrics.push(Metric { name: metric.into(), higher_is_better });
                self.drain.send(Message::Name(Entry::Metric { id, name: metric.into(), higher_is_better }));
                self.drain.send(Message::Metric { id, higher_is_better, is_loss: metric == LOSS });
                id
            }
        };
        self.drain.send(Message::Evaluation { task, metric: id, value, step: self.step.number });
        Ok(())
    }

    /// The task called `name`, made known if it is new.
    fn task(&mut self, name: &str) -> Result<message::TaskId> {
        if name.is_empty() {
            return Err(invalid!("task: the name is empty"));
        }
        if self.tasks.list.len() >= usize::from(u16::MAX) && self.tasks.list.iter().all(|task| task.name != name) {
            return Err(invalid!("task: '{name}' would be task number 65536, one more than there can be"));
        }
        let (id, is_new) = self.tasks.id(name);
        if is_new {
            self.drain.send(Message::Name(Entry::Task { id, name: name.into() }));
        }
        Ok(id)
    }

    fn event(&self, task: message::TaskId, event: TaskEvent) {
        self.drain.send(Message::Task { task, event, step: self.step.number });
    }

    /// Counts a fault and publishes it.
    pub fn fault(&self, fault: Fault) {
        self.drain.send(Message::Fault { code: fault as u8, step: self.step.number });
    }

    /// Nothing is going on: the parameters are the trainer's, as they are between steps.
    fn expect_idle(&self, function: &str) -> Result<()> {
        self.expect_no_step(function)?;
        self.expect_unmoved(function)
    }

    fn expect_no_step(&self, function: &str) -> Result<()> {
        match self.step.phase {
            step::Phase::Idle => Ok(()),
            _ => Err(Error::WrongPhase(format!(
                "{function}: step {} has not ended; call fgs_step_end first",
                self.step.number
            ))),
        }
    }
}
