//! Which task is trained: said by variables beforehand, or by `forgetscope ctl` while it runs.
//!
//! Everything happens between two steps. Cost in a step: one comparison, and a look at the control page.

use std::collections::BTreeMap;

use forgetscope::control::{Answer, Command, Server};

use crate::instrument::{Instrument, Outcome};

/// Said where somebody asks for drift and there is nothing to measure it on.
const INVISIBLE: &str = "no parameters are visible; drift is not measured";

/// Tasks that are planned, and the one that is trained.
#[derive(Debug)]
pub struct Tasks {
    planned: BTreeMap<u64, String>,
    current: Option<String>,
    /// Takes commands; `None` if the page could not be made.
    server: Option<Server>,
}

impl Tasks {
    pub fn new(planned: BTreeMap<u64, String>, server: Option<Server>) -> Self {
        Self { planned, current: None, server }
    }

    /// Step `step` is about to begin. `parameters`: whether they are visible.
    ///
    /// # Safety
    /// Bound parameters must be readable and not written to during the call.
    pub unsafe fn before(&mut self, step: u64, instrument: &Instrument, parameters: bool) -> Outcome {
        // SAFETY: the caller's promise.
        let planned = unsafe { self.begin_planned(step, instrument) };
        while let Some(command) = self.server.as_mut().and_then(|server| server.poll(step)) {
            // SAFETY: the caller's promise.
            let answer = match unsafe { self.carry_out(&command, instrument, parameters) } {
                Ok(text) => Answer::done(step, text),
                Err(text) => Answer::refused(step, text),
            };
            self.server.iter().for_each(|server| server.answer(&answer));
        }
        planned
    }

    /// The task that is due begins. Several are only when measuring begins late: then those before the last are over.
    unsafe fn begin_planned(&mut self, step: u64, instrument: &Instrument) -> Outcome {
        if self.planned.first_key_value().is_none_or(|(&first, _)| first > step) {
            return Ok(());
        }
        let later = self.planned.split_off(&(step + 1));
        let mut due = std::mem::replace(&mut self.planned, later).into_values();
        if let Some(name) = due.next_back() {
            // SAFETY: the caller's promise.
            unsafe { self.begin(&name, instrument) }?;
        }
        match due.collect::<Vec<_>>() {
            over if over.is_empty() => Ok(()),
            over => {
                Err(format!("FGS_PRELOAD_TASKS: measuring begins with step {step}, after {} was over", over.join(", ")))
            }
        }
    }

    /// The process ends, and with it the task.
    ///
    /// # Safety
    /// As for [`Tasks::before`].
    pub unsafe fn end(&mut self, instrument: &Instrument) -> Outcome {
        self.server = None;
        match self.current.take() {
            // SAFETY: the caller's promise.
            Some(_) => unsafe { instrument.task_end() },
            None => Ok(()),
        }
    }

    /// A task begins; the one before ends.
    unsafe fn begin(&mut self, name: &str, instrument: &Instrument) -> Outcome {
        if self.current.as_deref() == Some(name) {
            return Err(format!("task '{name}' is being trained already"));
        }
        if self.current.take().is_some() {
            // SAFETY: the caller's promise.
            unsafe { instrument.task_end() }?;
        }
        instrument.task_begin(name)?;
        self.current = Some(name.into());
        Ok(())
    }

    /// Returns what is to be said beside "done", or why it was refused.
    unsafe fn carry_out(
        &mut self,
        command: &Command,
        instrument: &Instrument,
        parameters: bool,
    ) -> Outcome<&'static str> {
        let remark = if parameters { "" } else { INVISIBLE };
        match command {
            Command::TaskBegin(name) => {
                let ends_one = self.current.is_some();
                // SAFETY: the caller's promise.
                unsafe { self.begin(name, instrument) }?;
                Ok(if ends_one { remark } else { "" })
            }
            Command::TaskEnd => {
                if self.current.take().is_none() {
                    return Err("no task has begun".into());
                }
                // SAFETY: the caller's promise.
                unsafe { instrument.task_end() }?;
                Ok(remark)
            }
            Command::Snapshot if !parameters => Err(INVISIBLE.into()),
            Command::Snapshot if self.current.is_none() => Err("no task has begun; a snapshot belongs to one".into()),
            // SAFETY: the caller's promise.
            Command::Snapshot => unsafe { instrument.snapshot() }.map(|()| ""),
            Command::Every(steps) => instrument.set_every(*steps).map(|()| ""),
            Command::Cancel => Ok(""),
        }
    }
}
