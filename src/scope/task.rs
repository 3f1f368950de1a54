//! Tasks on the calling side: exact references and snapshots, and when they were taken.

use super::message::{Origin, ReferenceStep, TaskId};
use super::probe::Base;
use super::queue::Queue;
use super::storage::{Budget, Exact};
use crate::device::SliceRead;

/// An exact reference: per slice the sum of batch gradients, where the budget allowed to keep it.
#[derive(Debug, Default)]
pub struct ExactReference {
    /// Number of updates made before it was taken.
    pub epoch: u64,
    pub batches: u32,
    pub sums: Vec<Option<Exact>>,
    /// No sum was changed since its values were settled.
    settled: bool,
}

impl ExactReference {
    pub fn new(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// Counts a batch that was added to the sums.
    pub fn count_batch(&mut self) {
        self.batches += 1;
        self.settled = false;
    }

    /// Sums stay as they are for now.
    fn settle(&mut self, queue: &Queue, budget: &mut Budget) {
        if !std::mem::replace(&mut self.settled, true) {
            self.sums.iter_mut().flatten().for_each(|sum| budget.settle(queue, sum));
        }
    }
}

/// A task.
#[derive(Debug)]
pub struct Task {
    pub name: String,
    /// Reference at the weights of the snapshot.
    pub frozen: Option<ExactReference>,
    /// Reference at later weights.
    pub refreshed: Option<ExactReference>,
    /// Exact snapshot of the parameters, per slice.
    pub snapshot: Option<Vec<Option<Exact>>>,
    /// Number of updates made before its snapshot was taken or its training ended.
    pub anchor: Option<u64>,
    /// The pass over its probe that later ones are compared with.
    pub base: Option<Base>,
}

impl Task {
    pub fn new(name: String) -> Self {
        Self { name, frozen: None, refreshed: None, snapshot: None, anchor: None, base: None }
    }

    /// Gradients are compared with this.
    pub fn reference(&self) -> Option<&ExactReference> {
        self.refreshed.as_ref().or(self.frozen.as_ref())
    }

    pub fn origin(&self) -> Option<Origin> {
        match (&self.refreshed, &self.frozen) {
            (Some(_), _) => Some(Origin::Refreshed),
            (None, Some(frozen)) => Some(if self.is_anchor(frozen.epoch) { Origin::Frozen } else { Origin::Refreshed }),
            (None, None) => None,
        }
    }

    /// What a reference taken after `epoch` updates is.
    pub fn origin_at(&self, epoch: u64, is_current: bool) -> Origin {
        if is_current || self.is_anchor(epoch) { Origin::Frozen } else { Origin::Refreshed }
    }

    /// The task's final weights, as far as they are known, are those after `epoch` updates.
    pub fn is_anchor(&self, epoch: u64) -> bool {
        self.anchor.is_none_or(|anchor| anchor == epoch)
    }

    /// The reference that a batch at `epoch` belongs to, and whether the batch begins it.
    pub fn reference_for(&mut self, origin: Origin, epoch: u64, budget: &mut Budget) -> (&mut ExactReference, bool) {
        let slot = match origin {
            Origin::Frozen => {
                // A new frozen reference makes a refreshed one of the past obsolete.
                if let Some(old) = self.refreshed.take() {
                    budget.release(old.sums.into_iter().flatten());
                }
                &mut self.frozen
            }
            Origin::Refreshed => &mut self.refreshed,
        };
        let first = slot.as_ref().is_none_or(|reference| reference.epoch != epoch);
        if first && let Some(old) = slot.take() {
            budget.release(old.sums.into_iter().flatten());
        }
        (slot.get_or_insert_with(|| ExactReference::new(epoch)), first)
    }

    /// Before its references are compared with.
    pub fn settle(&mut self, queue: &Queue, budget: &mut Budget) {
        self.frozen.iter_mut().chain(&mut self.refreshed).for_each(|reference| reference.settle(queue, budget));
    }

    /// Its weights, as far as they are known, were left behind before `epoch` updates.
    pub fn is_left_at(&self, epoch: u64) -> bool {
        self.anchor.is_some_and(|anchor| anchor != epoch)
    }

    /// There is something of it to compare with: it was trained, or a reference or snapshot was given.
    pub fn is_kept(&self) -> bool {
        self.anchor.is_some() || self.reference().is_some() || self.snapshot.is_some()
    }

    /// Exact reference of now for what is read of a slice.
    pub fn kept_reference(&self, slice: usize, read: &SliceRead) -> Option<&Exact> {
        kept(&self.reference()?.sums, slice, read)
    }

    /// Exact reference at the snapshot, likewise.
    pub fn kept_anchor(&self, slice: usize, read: &SliceRead) -> Option<&Exact> {
        kept(&self.frozen.as_ref()?.sums, slice, read)
    }

    /// Exact snapshot, likewise.
    pub fn kept_snapshot(&self, slice: usize, read: &SliceRead) -> Option<&Exact> {
        kept(self.snapshot.as_ref()?, slice, read)
    }
}

/// What is kept of a slice, if it covers all that is looked at: bindings may have changed since it was taken.
fn kept<'a>(list: &'a [Option<Exact>], slice: usize, read: &SliceRead) -> Option<&'a Exact> {
    list.get(slice)?.as_ref().filter(|exact| exact.covers(read))
}

/// The tasks of a scope.
#[derive(Debug, Default)]
pub struct Tasks {
    pub list: Vec<Task>,
    pub current: Option<TaskId>,
}

impl Tasks {
    /// The task called `name`, and whether it is new.
    pub fn id(&mut self, name: &str) -> (TaskId, bool) {
        match self.list.iter().position(|task| task.name == name) {
            Some(id) => (id as TaskId, false),
            None => {
                self.list.push(Task::new(name.into()));
                ((self.list.len() - 1) as TaskId, true)
            }
        }
    }

    /// The tasks that a step's references are of, in their order.
    pub fn compared_in(&self, references: &[ReferenceStep]) -> Vec<&Task> {
        references.iter().map(|reference| &self.list[usize::from(reference.task)]).collect()
    }

    /// Tasks other than the current one of which something is kept: those that may be forgotten.
    pub fn earlier(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        let current = self.current;
        (0..).zip(&self.list).filter(move |(id, task)| Some(*id) != current && task.is_kept())
    }
}
