//! Steps inside a CUDA graph: called once, while the graph is captured, and measured at its replays.
//!
//! Whether a replay is measured is decided on the device, so a captured step is one schedule for all its tensors: the
//! shortest of theirs. What it is compared with is fixed by the capture: references, snapshots and tasks that come later
//! need a new one.

use super::Front;
use super::message::{Message, StepSums};
use super::schema::Fault;
use super::step::{Measured, StepDraft};
use crate::device::Replays;
use crate::ring::monotonic_ns;
use std::sync::Arc;

/// A captured step, on the drain thread.
pub struct CapturedStep {
    draft: StepDraft,
    replays: Arc<Replays>,
    /// Results that were taken, and replays known to be left out.
    taken: u64,
    left_out: u64,
}

impl CapturedStep {
    /// The next measured replay that is complete.
    pub fn next(&mut self) -> Option<StepDraft> {
        let replay = self.replays.number_of(self.taken)?;
        let draft = self.draft.nth(self.taken, replay);
        self.taken += 1;
        draft
    }

    /// The device may use the slots of what was taken so far again: it has landed.
    pub fn release(&self) {
        self.replays.take(self.taken);
    }

    /// Replays that were due, and were left out since the last time that this was asked.
    pub fn newly_left_out(&mut self) -> u64 {
        let left_out = self.replays.left_out();
        left_out - std::mem::replace(&mut self.left_out, left_out)
    }
}

/// The calling side's view of the graphs that were captured.
#[derive(Default)]
pub struct Captures {
    all: Vec<Capture>,
}

struct Capture {
    replays: Arc<Replays>,
    /// How many of them were counted.
    counted: u64,
    /// Step that was captured.
    step: u64,
}

impl Front {
    /// If the call's stream is being captured, the step goes into the graph, whether its number is due or not.
    pub(super) fn enter_capture(&mut self) {
        if self.step.measured.as_ref().is_some_and(|measured| measured.replays.is_some())
            || !self.queue.device.is_capturing(self.queue.stream)
        {
            return;
        }
        let every = self.schedules.iter().map(|schedule| schedule.every).filter(|every| *every > 0).min();
        let Some(every) = every else { return };
        match self.queue.device.begin_capture(self.queue.stream, every) {
            Ok(replays) => {
                let due = self.catalog.tensors.iter().map(|t| t.counts() && t.schedule.every > 0).collect();
                let (step, time_ns, references) = (self.step.number, monotonic_ns(), self.earlier_tasks());
                let mut measured =
                    Measured::new(StepSums { step, time_ns, references, ..StepSums::default() }, due, self.changes());
                measured.replays = Some(replays);
                self.step.measured = Some(Box::new(measured));
            }
            Err(_) => {
                // Training goes on without; an eager pass could not be captured either.
                self.step.measured = None;
                self.fault(Fault::Device);
            }
        }
    }

    /// The step is complete, and so is what the graph has of it.
    pub(super) fn send_captured(&mut self, draft: StepDraft, replays: Arc<Replays>) {
        self.queue.device.end_capture();
        if draft.nth(0, 1).is_none() {
            // Something of it is in host memory, or was refused.
            return self.fault(Fault::Device);
        }
        self.captures.all.push(Capture { replays: replays.clone(), counted: 0, step: self.step.number });
        self.drain.send(Message::Captured(Box::new(CapturedStep { draft, replays, taken: 0, left_out: 0 })));
    }

    /// Replays are steps without a call. Counts those that the device has run.
    pub(super) fn count_replays(&mut self) {
        for Capture { replays, counted, step } in &mut self.captures.all {
            let count = replays.count();
            let new = count - std::mem::replace(counted, count);
            self.updates += new;
            if new > 0 {
                self.step.number = step.wrapping_add(count - 1);
            }
        }
    }

    /// The same where the count decides what belongs to which weights: waits until replays that were launched have run. Calls
    /// like this are rare, and are outside steps.
    pub(super) fn wait_for_replays(&mut self) {
        if !self.captures.all.is_empty() && !self.queue.device.is_capturing(self.queue.stream) {
            self.queue.device.wait_all();
        }
        self.count_replays();
    }
}

/// The drain thread's list.
#[derive(Default)]
pub struct Replaying {
    all: Vec<CapturedStep>,
}

impl Replaying {
    pub fn push(&mut self, step: CapturedStep) {
        self.all.push(step);
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Hands every replay that is complete to `publish`.
    pub fn poll(&mut self, mut publish: impl FnMut(Message)) {
        for step in &mut self.all {
            while let Some(draft) = step.next() {
                publish(Message::Step(Box::new(draft)));
                step.release();
            }
            for _ in 0..step.newly_left_out() {
                publish(Message::Fault { code: Fault::Overrun as u8, step: 0 });
            }
        }
    }
}
