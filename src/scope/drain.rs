//! The drain thread: takes messages in the order of the calls and publishes what follows from them.
//!
//! A message whose results are still on their way is waited for before the next is taken, so the ring has the order of the
//! calls. Small messages are never dropped. Sampled steps carry sketches of the whole model, so only a few may wait: when
//! evaluation is behind, the next sampled step is left out and counted, and the trainer never waits.

use super::analysis::Analysis;
use super::capture::Replaying;
use super::message::Message;
use super::schema::Fault;
use super::{Error, Options, Result};
use crate::device::cpu::set_float_mode;
use crate::ring::Writer;
use crate::thread::spawn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Sampled steps that may wait: for evaluation, or for a device that the trainer runs ahead of.
const WAITING: usize = 8;

/// Reference batches that may wait. A trainer adds dozens of them in a row, and may be far ahead of its device.
const BATCHES: usize = 16;

/// Readers take a writer for stuck when its heartbeat is older than a few of these.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Replays of captured steps land without a message: they are looked for so often.
const REPLAYS: Duration = Duration::from_millis(2);

/// How many of the large messages wait.
#[derive(Default)]
struct Backlog {
    steps: AtomicUsize,
    batches: AtomicUsize,
}

impl Backlog {
    /// Where a message is counted; small ones are not.
    fn counter(&self, message: &Message) -> Option<&AtomicUsize> {
        match message {
            Message::Step(_) => Some(&self.steps),
            Message::Reference(_) => Some(&self.batches),
            _ => None,
        }
    }
}

/// The calling side's end.
pub struct Drain {
    /// Shared with nobody; the algebra thread has a weak one.
    sender: Arc<Sender<Message>>,
    backlog: Arc<Backlog>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    /// Starts the thread, which owns the ring from now on.
    pub fn start(writer: Writer, options: &Options) -> Result<Self> {
        let (sender, receiver) = channel();
        let backlog = Arc::new(Backlog::default());
        let sender = Arc::new(sender);
        let analysis = Analysis::new(writer, options, Arc::downgrade(&sender));
        let thread = spawn("fgs-drain", {
            let backlog = backlog.clone();
            move || run(analysis, &receiver, &backlog)
        })
        .map_err(|error| Error::System(format!("cannot start the thread that writes the ring: {error}")))?;
        Ok(Self { sender, backlog, thread: Some(thread) })
    }

    /// Another sampled step may be sent.
    pub fn has_room(&self) -> bool {
        self.backlog.steps.load(Ordering::Relaxed) < WAITING
    }

    /// Waits until another reference batch may be sent: outside steps, and only for a device that is that far behind.
    pub fn wait_for_batches(&self) {
        let is_alive = || self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        while self.backlog.batches.load(Ordering::Relaxed) >= BATCHES && is_alive() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Hands a message over. Never waits.
    pub fn send(&self, message: Message) {
        if let Some(counter) = self.backlog.counter(&message) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        // The receiver lives as long as the thread; if that panicked, measuring is over and training goes on.
        let _ = self.sender.send(message);
    }

    /// A channel that is answered when everything sent so far is in the ring.
    pub fn flush(&self) -> Receiver<()> {
        let (answer, answered) = channel();
        self.send(Message::Flush(answer));
        answered
    }

    /// Publishes everything, closes the ring, ends the thread.
    pub fn close(mut self) {
        self.send(Message::Close);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook; there is nothing left to do about it.
            let _ = thread.join();
        }
    }
}

fn run(mut analysis: Analysis, receiver: &Receiver<Message>, backlog: &Backlog) {
    set_float_mode();
    let mut replaying = Replaying::default();
    loop {
        let patience = if replaying.is_empty() { HEARTBEAT } else { REPLAYS };
        let received = receiver.recv_timeout(patience);
        // Before the message: a flush has what the device has run.
        replaying.poll(|message| guarded(&mut analysis, |analysis| analysis.handle(message)));
        match received {
            Ok(Message::Captured(step)) => replaying.push(*step),
            Ok(Message::Close) => {
                if !analysis.finish_algebra() {
                    return analysis.close();
                }
            }
            Ok(Message::AlgebraEnded) => return analysis.close(),
            Ok(message) => {
                let counter = backlog.counter(&message);
                guarded(&mut analysis, |analysis| analysis.handle(message));
                if let Some(counter) = counter {
                    counter.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The scope was dropped without being closed: the ring stays as it is and readers see that it died.
            Err(RecvTimeoutError::Disconnected) => return,
        }
        analysis.heartbeat();
    }
}

/// A bug in a statistic costs that statistic, not the others and not the ring.
fn guarded(analysis: &mut Analysis, work: impl FnOnce(&mut Analysis)) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(analysis)));
    if outcome.is_err() {
        analysis.handle(Message::Fault { code: Fault::Panic as u8, step: 0 });
    }
}
