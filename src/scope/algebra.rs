//! The algebra thread: dense algebra over probes, a layer at a time.
//!
//! An eigendecomposition of order 1,024 takes a fifth of a second and a pass over a large model's probe a minute. Sampled
//! steps must not wait for that, so it has a thread of its own, which is started with the first probe. What it finds goes
//! back to the drain thread as messages: the ring has one writer.

use super::analysis::{Probes, Subject};
use super::message::{HeadEffect, Message, TaskId};
use super::probe::Pass;
use super::schema::Fault;
use crate::device::cpu::set_float_mode;
use crate::ring::{Record, VALUES, monotonic_ns};
use crate::thread::spawn;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What is left to be done, in the order of the calls.
pub enum Work {
    Pass(Box<Pass>),
    Effect {
        effect: HeadEffect,
        /// The task that was being trained.
        trained: Option<TaskId>,
        /// How much of the task's loss is forgotten as of then; NaN if nobody said.
        forgetting: f64,
    },
    /// What was kept of the task is no base any more.
    Forget(TaskId),
    /// To be answered when everything before it is in the ring.
    Flush(Sender<()>),
}

/// The drain thread's end.
pub struct Algebra {
    sender: Sender<Work>,
    thread: JoinHandle<()>,
}

/// Where results come back: the drain thread's own channel, as long as the scope is there.
pub type Results = Weak<Sender<Message>>;

/// Records on their way to the ring.
pub struct Outbox {
    rank: u32,
    results: Results,
    records: Vec<Record>,
}

impl Algebra {
    pub fn start(mut probes: Probes, rank: u32, results: Results) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let mut outbox = Outbox { rank, results, records: Vec::new() };
        let thread = spawn("fgs-algebra", move || run(&mut probes, &mut outbox, &receiver))?;
        Ok(Self { sender, thread })
    }

    pub fn send(&self, work: Work) {
        // The receiver lives as long as the thread.
        let _ = self.sender.send(work);
    }

    /// No more work comes. The thread does what is left, says so, and ends.
    pub fn finish(self) -> JoinHandle<()> {
        self.thread
    }
}

fn run(probes: &mut Probes, outbox: &mut Outbox, receiver: &Receiver<Work>) {
    set_float_mode();
    for work in receiver {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match work {
            Work::Pass(pass) => probes.pass(*pass, outbox),
            Work::Effect { effect, trained, forgetting } => probes.effect(outbox, effect, trained, forgetting),
            Work::Forget(task) => probes.forget(task),
            Work::Flush(answer) => outbox.post(Message::Flushed(answer)),
        }));
        // A bug in a statistic costs that statistic, not the others.
        if outcome.is_err() {
            outbox.post(Message::Fault { code: Fault::Panic as u8, step: 0 });
        }
        outbox.send();
    }
    outbox.post(Message::AlgebraEnded);
}

impl Outbox {
    /// A record of now.
    pub fn record(&self, kind: u16, subject: Subject) -> Record {
        let Subject { level, tensor, slice } = subject;
        Record { time_ns: monotonic_ns(), kind, level, rank: self.rank, tensor, slice, ..Record::default() }
    }

    /// Keeps a record with these values; the rest of the ten stay NaN.
    pub fn publish(&mut self, mut record: Record, values: &[f64]) {
        debug_assert!(values.len() <= VALUES);
        record.values[..values.len()].copy_from_slice(values);
        self.records.push(record);
    }

    /// Hands the records over.
    pub fn send(&mut self) {
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            self.post(Message::Records(records));
        }
    }

    fn post(&self, message: Message) {
        // Without a scope nobody waits for results.
        if let Some(sender) = self.results.upgrade() {
            let _ = sender.send(message);
        }
    }
}
