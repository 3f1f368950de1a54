//! The loss landscape around the weights, by reverse communication: the library moves the parameters and says what it wants
//! computed there, the trainer answers with gradients, as with ARPACK.
//!
//! Nothing of the model need be known: products with the Hessian are differences of gradients. From the first request to
//! the end the parameters are the library's. Whatever happens, they end as they began, bit for bit, by a copy: when the run
//! is complete, when the trainer ends it, begins a step, ends a task, binds other parameters or closes the scope, when a
//! gradient is not finite, and after a panic.

mod claim;
mod lanczos;
mod plan;
mod run;
mod space;
mod sums;
mod work;

use super::catalog::Source;
use super::message::{Message, Origin, TaskId};
use super::schema::{Fault, flag};
use super::step::check_scale;
use super::{Error, Front, Result, error::invalid};
use run::{Ended, Run};
use space::Space;
use std::collections::BTreeMap;
pub use sums::{BlockSums, CurvatureSums};
use work::{Earlier, Eigenvectors};

/// What a run measures, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lanczos steps from each starting vector.
    pub lanczos_steps: u32,
    /// Samples of traces.
    pub trace_vectors: u32,
    /// Starting vectors of Lanczos.
    pub density_vectors: u32,
    /// Eigenvalues that are published; at a task's base, eigenvectors that are kept.
    pub eigenvectors: u32,
    /// Points of the loss between the snapshot and the weights, both included; 0: none.
    pub path_points: u32,
    /// Products of each of the three parts of Hutch++.
    pub block_vectors: u32,
    /// Tensors that are looked at by themselves.
    pub blocks: Vec<u32>,
    /// Length of a step over that of the weights.
    pub relative_step: f64,
    /// Of the random vectors.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lanczos_steps: 32,
            trace_vectors: 8,
            density_vectors: 1,
            eigenvectors: 3,
            path_points: 0,
            block_vectors: 4,
            blocks: Vec::new(),
            relative_step: 1e-3,
            seed: 0,
        }
    }
}

/// What the trainer is to compute at the parameters as they are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing any more.
    Done,
    /// The gradient of the probe batch, and its loss.
    Gradient,
    /// The loss of the probe batch alone.
    Loss,
}

/// A request, with how many were made before it and how many there will be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub want: Want,
    pub index: u32,
    pub total: u32,
}

/// Runs of a scope, one at a time.
#[derive(Default)]
pub struct Curvature {
    state: State,
    /// Eigenvectors at the base of each task.
    kept: BTreeMap<TaskId, Eigenvectors>,
    /// The parameters of the run that ended last could not be put back, and nobody was told yet.
    left_moved: bool,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Running(Box<Run>),
    /// The run is complete and nobody has ended it yet.
    Complete(u32),
}

/// More vectors than this are a mistake.
const MOST: u32 = 1 << 12;
const MOST_PRODUCTS: u64 = 1 << 20;

impl Settings {
    /// Lanczos steps in a space, which cannot be more than it has dimensions.
    fn steps(&self, space: &Space) -> usize {
        (self.lanczos_steps as usize).min(space.elements)
    }

    /// Relative error of a product: gradients are rounded to 2⁻²⁴ of themselves, and differ by `relative_step` of them.
    fn resolution(&self) -> f64 {
        2f64.powi(-24) / self.relative_step
    }

    fn check(&self) -> Result<()> {
        for (name, count, least) in [
            ("lanczos_steps", self.lanczos_steps, 1),
            ("trace_vectors", self.trace_vectors, 0),
            ("density_vectors", self.density_vectors, 0),
            ("eigenvectors", self.eigenvectors, 0),
            ("path_points", self.path_points, 0),
            ("block_vectors", self.block_vectors, 1),
            ("block_count", self.blocks.len().try_into().unwrap_or(u32::MAX), 0),
        ] {
            if !(least..=MOST).contains(&count) {
                return Err(invalid!("curvature.{name}: {count} is not between {least} and {MOST}"));
            }
        }
        let [lanczos, density, block, blocks] =
            [self.lanczos_steps, self.density_vectors, self.block_vectors, self.blocks.len() as u32].map(u64::from);
        let products = density * lanczos + blocks * (lanczos + 3 * block);
        if products > MOST_PRODUCTS {
            return Err(invalid!(
                "curvature.lanczos_steps: {products} products with the Hessian, for all starting vectors and blocks, are more \
                 than {MOST_PRODUCTS}"
            ));
        }
        if self.path_points == 1 {
            return Err(invalid!("curvature.path_points: 1 is not a line; 0 for none, else 2 or more"));
        }
        // Beyond a tenth of the weights the third derivative is no correction any more.
        if !(self.relative_step > 0.0 && self.relative_step <= 0.1) {
            return Err(invalid!("curvature.relative_step: {} is not above 0 and at most 0.1", self.relative_step));
        }
        Ok(())
    }
}

impl Front {
    /// A run for `task` begins; the parameters are copied.
    ///
    /// # Safety
    /// Until the run is over, the bound parameters must be writable, and be used by nobody else during calls.
    pub unsafe fn curvature_begin(&mut self, task: &str, settings: Settings) -> Result<()> {
        settings.check()?;
        self.wait_for_replays();
        self.expect_idle("fgs_curvature_begin")?;
        if self.pending.is_some() {
            return Err(Error::WrongPhase(
                "fgs_curvature_begin: a reference batch is half fed; complete it with fgs_reference_add first".into(),
            ));
        }
        // SAFETY: the caller's promise.
        let (space, is_partial, claim) = unsafe { Space::of(&self.catalog, self.options.world_size) }?;
        for (position, block) in settings.blocks.iter().enumerate() {
            self.catalog.tensor(*block)?;
            if space.parts.iter().all(|part| part.tensor != *block) || settings.blocks[..position].contains(block) {
                return Err(invalid!(
                    "curvature.blocks: tensor {block} is listed twice, or has no parameter and gradient bound"
                ));
            }
        }
        // A name that is new becomes a task only if nothing is refused.
        let known = self.tasks.list.iter().position(|known| known.name == task).map(|id| id as TaskId);
        let state = known.map(|id| &self.tasks.list[usize::from(id)]);
        let is_current = known.is_some() && self.tasks.current == known;
        let is_base = state.is_none_or(|state| state.origin_at(self.updates, is_current) == Origin::Frozen);
        let earlier = Earlier {
            snapshot: state.and_then(|state| state.snapshot.as_deref()),
            eigenvectors: known.and_then(|id| self.curvature.kept.get(&id)),
        };
        let run = Run::new(settings, space, &earlier, &self.queue.device, &mut self.budget, is_base);
        let mut run = run.map_err(|missing| {
            Error::Config(format!(
                "budget_bytes: {missing} bytes are missing for copies of the parameters and vectors as long as they are; \
                 raise FGS_BUDGET_BYTES or FGS_REFERENCE_BUDGET"
            ))
        })?;
        let copied = run.keep_originals(&self.catalog, &self.queue).and_then(|bad| match bad {
            0 => self.task(task),
            bad => Err(invalid!("fgs_curvature_begin: {bad} parameters are not finite")),
        });
        run.sums.task = copied.inspect_err(|_| self.budget.give_back(run.reserved))?;
        run.sums.step = self.step.number;
        run.sums.flags = if is_base { flag::BASE } else { 0 } | if is_partial { flag::PARTIAL } else { 0 };
        // What a pass saw so far and what it would see now are of different weights.
        self.give_up_pass();
        run.claim = claim;
        self.curvature.state = State::Running(Box::new(run));
        Ok(())
    }

    /// Moves the parameters and says what is wanted there.
    pub fn curvature_next(&mut self) -> Result<Request> {
        let Self { curvature, tasks, queue, .. } = self;
        let Curvature { state, kept, .. } = curvature;
        let run = match state {
            State::Running(run) if run.is_waiting => {
                return Err(Error::WrongPhase(
                    "fgs_curvature_next: the last request has not been answered; call fgs_curvature_submit first"
                        .into(),
                ));
            }
            State::Running(run) => run,
            State::Complete(total) => return Ok(Request { want: Want::Done, index: *total, total: *total }),
            State::Idle => return Err(no_run("fgs_curvature_next")),
        };
        let task = run.sums.task;
        let snapshot = tasks.list[usize::from(task)].snapshot.as_deref();
        let Some(request) = run.request(queue, &Earlier { snapshot, eigenvectors: kept.get(&task) }) else {
            self.give_up_curvature();
            self.expect_put_back("fgs_curvature_next")?;
            return Err(Error::System(
                "fgs_curvature_next: the device failed; the run has ended and the parameters are as they were".into(),
            ));
        };
        if request.want == Want::Done {
            self.complete_curvature();
            self.expect_put_back("fgs_curvature_next")?;
        }
        Ok(request)
    }

    /// Takes the loss, and the bound gradients times `scale`, at the parameters as they are now.
    pub fn curvature_submit(&mut self, loss: f64, scale: f64) -> Result<()> {
        check_scale(scale)?;
        let Self { curvature, catalog, queue, .. } = self;
        let run = match &mut curvature.state {
            State::Running(run) if run.is_waiting => run,
            State::Running(_) | State::Complete(_) => {
                return Err(Error::WrongPhase(
                    "fgs_curvature_submit: nothing was asked for; call fgs_curvature_next first".into(),
                ));
            }
            State::Idle => return Err(no_run("fgs_curvature_submit")),
        };
        let bad = if loss.is_finite() {
            match run.accept(catalog, queue, loss, scale)? {
                None => return Ok(()),
                Some(Ended::Complete) => {
                    self.complete_curvature();
                    return self.expect_put_back("fgs_curvature_submit");
                }
                Some(Ended::NonFinite(count)) => format!("fgs_curvature_submit: {count} values of the gradient are"),
            }
        } else {
            format!("loss: {loss} is")
        };
        self.give_up_curvature();
        self.expect_put_back("fgs_curvature_submit")?;
        Err(invalid!("{bad} not finite; the run has ended and the parameters are as they were"))
    }

    /// Ends a run, complete or not. Without one it does nothing.
    pub fn curvature_end(&mut self) -> Result<()> {
        self.give_up_curvature();
        self.expect_put_back("fgs_curvature_end")
    }

    /// The run that ended last has left the parameters as they were. Said once.
    fn expect_put_back(&mut self, function: &str) -> Result<()> {
        if !std::mem::take(&mut self.curvature.left_moved) {
            return Ok(());
        }
        Err(Error::System(format!(
            "{function}: the device failed while the parameters were put back, and they are not as they were; load a \
             checkpoint"
        )))
    }

    fn put_back(&mut self, run: &Run) {
        if !run.restore(&self.queue) {
            self.curvature.left_moved = true;
            self.fault(Fault::LeftMoved);
        }
    }

    /// Puts the parameters back and forgets a run that is not complete.
    pub fn give_up_curvature(&mut self) {
        if let State::Running(run) = std::mem::take(&mut self.curvature.state) {
            self.put_back(&run);
            self.budget.give_back(run.reserved);
            self.fault(Fault::Curvature);
        }
    }

    /// The directions that a task's base kept are not its own any more.
    pub(super) fn forget_eigenvectors(&mut self, task: TaskId) {
        let old = self.curvature.kept.remove(&task);
        self.budget.give_back(old.map_or(0, |old| old.bytes()));
    }

    /// Other parameters were bound: a run puts back those that it knows, which the trainer keeps until the call returns.
    pub(super) fn after_binding(&mut self, source: Source) {
        if source != Source::Gradient {
            self.give_up_curvature();
        }
    }

    /// The parameters are not the library's at present.
    pub(super) fn expect_unmoved(&self, function: &str) -> Result<()> {
        match self.curvature.state {
            State::Running(_) => Err(Error::WrongPhase(format!(
                "{function}: a curvature run is going on and has moved the parameters; call fgs_curvature_end first"
            ))),
            _ => Ok(()),
        }
    }

    /// Puts the parameters back and hands over what was found.
    fn complete_curvature(&mut self) {
        let State::Running(run) = std::mem::take(&mut self.curvature.state) else { return };
        // The task may be at home from now on, and memory is given back.
        self.changed();
        self.put_back(&run);
        let (reserved, is_base) = (run.reserved, run.is_base);
        let (_, total) = run.progress();
        let (eigenvectors, sums) = run.finish();
        let task = sums.task;
        let is_current = self.tasks.current == Some(task);
        if is_base {
            if !is_current {
                // A task that is not trained here is at home where it was first looked at.
                self.tasks.list[usize::from(task)].anchor.get_or_insert(self.updates);
            }
            let kept = eigenvectors.as_ref().map_or(0, Eigenvectors::bytes);
            self.budget.give_back(reserved - kept);
            let old = match eigenvectors {
                Some(eigenvectors) => self.curvature.kept.insert(task, eigenvectors),
                None => self.curvature.kept.remove(&task),
            };
            self.budget.give_back(old.map_or(0, |old| old.bytes()));
        } else {
            self.budget.give_back(reserved);
        }
        self.drain.send(Message::Curvature(Box::new(sums)));
        self.curvature.state = State::Complete(total);
    }
}

fn no_run(function: &str) -> Error {
    Error::WrongPhase(format!("{function}: no run is going on; call fgs_curvature_begin first"))
}
