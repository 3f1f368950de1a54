//! Which task is trained: said by variables beforehand, or by `forgetscope ctl` while it runs.
//!
//! Everything happens between two steps. Cost in a step: one comparison, and a look at the control page.

use std::collections::BTreeMap;

use forgetscope::control::{Answer, Command, Server, check_name};

use crate::instrument::{Instrument, Outcome};
use crate::parameters::Parameters;

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

    /// Step `step` is about to begin. At most one command is carried out before it: whoever sends more waits, not training.
    ///
    /// # Safety
    /// Bound parameters that are there must not be written to during the call.
    pub unsafe fn before(&mut self, step: u64, instrument: &Instrument, parameters: &mut Parameters) -> Outcome {
        // SAFETY: the caller's promise.
        let planned = unsafe { self.begin_planned(step, instrument, parameters) };
        if let Some(command) = self.server.as_mut().and_then(|server| server.poll(step)) {
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
    unsafe fn begin_planned(&mut self, step: u64, instrument: &Instrument, parameters: &mut Parameters) -> Outcome {
        if self.planned.first_key_value().is_none_or(|(&first, _)| first > step) {
            return Ok(());
        }
        let later = self.planned.split_off(&(step + 1));
        let mut due = std::mem::replace(&mut self.planned, later).into_values();
        if let Some(name) = due.next_back() {
            // SAFETY: the caller's promise.
            unsafe { self.begin(&name, instrument, parameters) }?;
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
    /// No parameters may be bound.
    pub unsafe fn end(&mut self, instrument: &Instrument) -> Outcome {
        self.server = None;
        match self.current.take() {
            // SAFETY: the caller's promise.
            Some(_) => unsafe { instrument.task_end() },
            None => Ok(()),
        }
    }

    /// A task begins; the one before ends, which it says. A name that cannot be one ends nothing.
    unsafe fn begin(&mut self, name: &str, instrument: &Instrument, parameters: &mut Parameters) -> Outcome<bool> {
        check_name(name)?;
        if self.current.as_deref() == Some(name) {
            return Err(format!("task '{name}' is being trained already"));
        }
        // SAFETY: the caller's promise.
        let has_ended = unsafe { self.end_current(instrument, parameters) }?;
        instrument.task_begin(name)?;
        self.current = Some(name.into());
        Ok(has_ended)
    }

    /// Whether there was one.
    unsafe fn end_current(&mut self, instrument: &Instrument, parameters: &mut Parameters) -> Outcome<bool> {
        if self.current.take().is_none() {
            return Ok(false);
        }
        look_after(parameters, instrument);
        // SAFETY: the caller's promise; what is still bound is there.
        unsafe { instrument.task_end() }?;
        Ok(true)
    }

    /// Returns what is to be said beside "done", or why it was refused.
    unsafe fn carry_out(
        &mut self,
        command: &Command,
        instrument: &Instrument,
        parameters: &mut Parameters,
    ) -> Outcome<&'static str> {
        let has_ended = match command {
            // SAFETY: the caller's promise.
            Command::TaskBegin(name) => unsafe { self.begin(name, instrument, parameters) }?,
            // SAFETY: the caller's promise.
            Command::TaskEnd => match unsafe { self.end_current(instrument, parameters) }? {
                true => true,
                false => return Err("no task has begun".into()),
            },
            Command::Snapshot => {
                look_after(parameters, instrument);
                if !parameters.are_visible() {
                    return Err(INVISIBLE.into());
                }
                if self.current.is_none() {
                    return Err("no task has begun; a snapshot belongs to one".into());
                }
                // SAFETY: the caller's promise; what is still bound is there.
                unsafe { instrument.snapshot() }?;
                false
            }
            Command::Every(steps) => instrument.set_every(*steps).map(|()| false)?,
            Command::Cancel => false,
        };
        Ok(if has_ended && !parameters.are_visible() { INVISIBLE } else { "" })
    }
}

/// Parameters are about to be read.
fn look_after(parameters: &mut Parameters, instrument: &Instrument) {
    parameters.check(instrument).unwrap_or_else(|gone| say!("{gone}"));
}
