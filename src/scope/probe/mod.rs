//! Probes: fixed batches of a task on which the model is looked at from inside.
//!
//! A *pass* is one forward run over all batches of a task's probe at fixed weights. The trainer says which batch comes and
//! hands over each layer's activations as they appear; a few sampled tokens of each are copied inside the call, so the
//! trainer may reuse its buffers at once. Nothing is computed on the trainer's thread but rows of attention that it does
//! not store itself. The whole pass goes to the drain thread at its end, or not at all.
//!
//! A pass over the task that is being trained becomes the task's *base*, as does the first pass of any other task; later
//! passes are compared with it.

mod attention;
mod memory;
mod open;
mod pass;
mod sampling;

pub use attention::{Attention, Mask};
pub use memory::{Lease, ProbeMemory};
pub use open::{OpenPass, Outputs};
pub use pass::{AttentionPass, LayerPass, OutputsPass, Pass, PassDraft, Purpose, RouterPass};

use super::message::{HeadEffect, Message, TaskId};
use super::queue::Queue;
use super::schema::Fault;
use super::{Error, Front, Result, error::invalid};
use crate::device::Strided;
use crate::ring::monotonic_ns;

/// What later passes of a task have to fit.
#[derive(Clone, Debug)]
pub struct Base {
    /// Updates before it was taken.
    epoch: u64,
    /// Sequences and their length, per batch.
    shapes: Vec<(u64, u64)>,
}

impl Front {
    /// A pass over the probe of `task` begins. `continued`: the weights are those after so many more updates on the task
    /// itself, in the run of that number, and the pass says what change is usual. `base`: it becomes the base whatever task is being trained.
    pub fn probe_begin(&mut self, task: &str, continued: Option<(u64, u32)>, base: bool) -> Result<()> {
        self.wait_for_replays();
        self.expect_idle("fgs_probe_begin")?;
        let known = self.tasks.list.iter().position(|known| known.name == task);
        let earlier = known.and_then(|id| self.tasks.list[id].base.as_ref());
        let is_current = known.is_some() && self.tasks.current.map(usize::from) == known;
        let epoch = self.updates;
        let purpose = match (continued, earlier) {
            (Some((0, _)), _) => {
                return Err(invalid!("probe.continued_updates: 0 updates after the base there is nothing to see"));
            }
            (Some(_), _) if base => {
                return Err(invalid!("probe.continued_updates: a pass for the null cannot be the base as well"));
            }
            (Some(_), None) => {
                return Err(invalid!(
                    "probe.continued_updates: task '{task}' has no base pass yet that this one could continue from"
                ));
            }
            (Some((updates, run)), Some(_)) => Purpose::Null { updates, run },
            (None, Some(earlier)) if !base && !is_current => {
                Purpose::Later { updates: epoch.saturating_sub(earlier.epoch) }
            }
            (None, None) if !base && !is_current && known.is_some_and(|id| self.tasks.list[id].is_left_at(epoch)) => {
                return Err(invalid!(
                    "probe.task: no pass over the probe of '{task}' was kept at its end, and these are other weights; take a \
                     pass before fgs_task_end, or make this one the base with FGS_PROBE_BASE"
                ));
            }
            _ => Purpose::Base,
        };
        let task = self.task(task)?;
        self.give_up_pass();
        let pass = Pass {
            task,
            trained: self.tasks.current,
            step: self.step.number,
            time_ns: monotonic_ns(),
            purpose,
            epoch,
            batches: Vec::new(),
            sequences: Vec::new(),
            labels: Vec::new(),
            layers: Default::default(),
            lease: Default::default(),
        };
        self.probe = Some(OpenPass::new(pass, self.probe_memory.lease()));
        Ok(())
    }

    /// A batch of the pass begins: `sequences` of `length` tokens. `labels`: a class per token or per sequence, or nothing.
    pub fn probe_batch(&mut self, sequences: u64, length: u64, labels: &[i32]) -> Result<()> {
        let (pass, options) = (self.probe.as_mut().ok_or_else(|| no_pass("fgs_probe_batch"))?, &self.options);
        pass.batch(sequences, length, labels, options)
    }

    /// Hidden states of a layer: tokens × width, the residual stream after the layer.
    pub fn probe_hidden(&mut self, layer: u32, hidden: Strided) -> Result<()> {
        let (pass, memory, queue) = self.open_pass("fgs_probe_hidden")?;
        pass.hidden(layer, hidden, queue, memory)
    }

    /// Attention of a layer.
    pub fn probe_attention(&mut self, layer: u32, attention: Attention) -> Result<()> {
        let (pass, memory, queue) = self.open_pass("fgs_probe_attention")?;
        pass.attention(layer, attention, queue, memory)
    }

    /// What the heads of a layer put out, before the output projection: tokens × heads × width. `projection`: model width ×
    /// (heads · width); without it the bound output projection of the layer is taken, if there is one.
    pub fn probe_head_output(&mut self, layer: u32, outputs: Outputs) -> Result<()> {
        let bound = || self.catalog.output_projection(layer, outputs.heads, outputs.first_head);
        let projection = outputs.projection.or_else(bound);
        let (pass, memory, queue) = self.open_pass("fgs_probe_head_output")?;
        pass.outputs(layer, Outputs { projection, ..outputs }, queue, memory)
    }

    /// What a router puts out: tokens × experts, before the softmax; `top_k` experts are chosen.
    pub fn probe_router(&mut self, layer: u32, logits: Strided, top_k: u32) -> Result<()> {
        let (pass, memory, queue) = self.open_pass("fgs_probe_router")?;
        pass.router(layer, logits, top_k, queue, memory)
    }

    /// The pass is complete.
    pub fn probe_end(&mut self) -> Result<()> {
        let pass = self.probe.take().ok_or_else(|| no_pass("fgs_probe_end"))?;
        if pass.is_over_budget() {
            // What it was to replace is of other weights.
            if let Some(task) = pass.replaces_base_of() {
                self.forget_bases(task);
            }
            self.fault(Fault::ProbeLeftOut);
            return Ok(());
        }
        let (draft, shapes) = pass.finish()?;
        let pass = &draft.pass;
        let state = &mut self.tasks.list[usize::from(pass.task)];
        match (pass.purpose, &state.base) {
            (Purpose::Base, _) => state.base = Some(Base { epoch: pass.epoch, shapes }),
            (_, Some(base)) if base.shapes != shapes => {
                return Err(invalid!(
                    "fgs_probe_end: the batches of this pass are {shapes:?} (sequences, length), those of the base pass of \
                     task '{}' are {:?}; a probe's batches are always the same",
                    state.name,
                    base.shapes
                ));
            }
            _ => {}
        }
        self.drain.send(Message::Probe(Box::new(draft)));
        Ok(())
    }

    /// The pass will not be complete.
    pub fn probe_abandon(&mut self) -> Result<()> {
        self.open_pass("fgs_probe_abandon")?;
        self.give_up_pass();
        Ok(())
    }

    /// The loss of `task` now and with the old weights of one head put back, as the trainer measured it.
    pub fn head_effect(&mut self, task: &str, effect: HeadEffect) -> Result<()> {
        if !(effect.loss.is_finite() && effect.restored.is_finite()) {
            let (loss, restored) = (effect.loss, effect.restored);
            return Err(invalid!("loss: {loss} and loss_restored: {restored} must both be finite"));
        }
        if effect.error < 0.0 {
            return Err(invalid!("error: {} is below zero; pass NaN if it is not known", effect.error));
        }
        let Some(task) = self.tasks.list.iter().position(|known| known.name == task) else {
            return Err(Error::NotFound(format!("task: there is no task called '{task}'")));
        };
        self.drain.send(Message::HeadEffect(HeadEffect { task: task as u16, step: self.step.number, ..effect }));
        Ok(())
    }

    /// What later passes and curvature runs of a task are compared with is not valid any more.
    pub(super) fn forget_bases(&mut self, task: TaskId) {
        self.tasks.list[usize::from(task)].base = None;
        self.forget_eigenvectors(task);
        self.drain.send(Message::ForgetBases(task));
    }

    /// A pass that was begun and not ended is forgotten.
    pub(super) fn give_up_pass(&mut self) {
        if self.probe.take().is_some() {
            self.fault(Fault::ProbeAbandoned);
        }
    }

    fn open_pass(&mut self, function: &str) -> Result<(&mut OpenPass, &ProbeMemory, &Queue)> {
        let pass = self.probe.as_mut().ok_or_else(|| no_pass(function))?;
        Ok((pass, &self.probe_memory, &self.queue))
    }
}

fn no_pass(function: &str) -> Error {
    Error::WrongPhase(format!("{function}: no pass over a probe has begun; call fgs_probe_begin first"))
}
