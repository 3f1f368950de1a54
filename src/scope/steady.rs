//! Steps that are like the one before: nothing was bound, registered or kept since.
//!
//! What a sampled step asks of a device depends on what is bound and kept, and on nothing that training changes. So where a
//! device can make a pass again from what it has of it, a step takes the same passes without looking at a single tensor:
//! the calling side's cost no longer grows with the model. Host memory is read inside the call, and has no such passes.

use super::Front;
use super::draft::Recipe;
use super::gradients::GradientsDraft;
use super::message::ReferenceStep;
use super::movement::MovementDraft;
use super::step::Measured;
use super::updates::UpdatesDraft;
use std::sync::Arc;

/// The latest step that can be made again.
pub struct Steady {
    /// What was bound and kept then.
    changes: (u64, u64),
    /// Which of the schedules in use were due.
    schedules: Vec<bool>,
    pub due: Arc<[bool]>,
    /// Slices whose parameters are read before the update.
    pub taken: Arc<[bool]>,
    pub references: Vec<ReferenceStep>,
    pub movement: MovementDraft,
    pub gradients: GradientsDraft,
    pub updates: UpdatesDraft,
    /// Tensors that are measured, and whether there are others.
    pub tensors: u32,
    pub is_partial: bool,
}

impl Front {
    /// Before a call that changes what steps are compared with: replays until then belong to what was kept before.
    pub(super) fn before_change(&mut self) {
        self.wait_for_replays();
        self.changed();
    }

    /// What the passes of a step depend on has changed.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
    }

    pub(super) fn changes(&self) -> (u64, u64) {
        (self.changes, self.catalog.changes())
    }

    /// The step before, if `step` is like it.
    pub(super) fn steady(&self, step: u64) -> Option<&Steady> {
        let steady = self.steady.as_ref().filter(|steady| steady.changes == self.changes())?;
        let same = self.schedules.iter().map(|schedule| schedule.is_due(step)).eq(steady.schedules.iter().copied());
        same.then_some(steady)
    }

    /// Binding between the calls of a step, as where gradients get new memory before each, ends the likeness: passes made
    /// again would read what lay there before.
    pub(super) fn recheck_steady(&mut self) {
        let changes = self.changes();
        if let Some(measured) = &mut self.step.measured {
            measured.steady &= measured.changes == changes;
        }
    }

    /// A step that is complete, if it can be made again: not if anything was bound or registered since it began.
    pub(super) fn new_steady(&self, measured: &Measured, is_partial: bool) -> Option<Steady> {
        if measured.changes != self.changes() {
            return None;
        }
        let draft = &measured.draft;
        let [gradients] = &draft.gradients[..] else { return None };
        // Host memory has no recipes: nothing else is looked at.
        let gradients = gradients.with(&Recipe)?;
        let updates = draft.updates.as_ref()?.with(&Recipe)?;
        let movement = draft.movement.as_ref().filter(|movement| movement.is_steady())?.with(&Recipe)?;
        Some(Steady {
            changes: self.changes(),
            schedules: self.schedules.iter().map(|schedule| schedule.is_due(draft.sums.step)).collect(),
            due: measured.due.clone(),
            taken: measured.taken.clone(),
            references: draft.sums.references.clone(),
            movement,
            gradients,
            updates,
            tensors: draft.sums.tensors,
            is_partial,
        })
    }
}
