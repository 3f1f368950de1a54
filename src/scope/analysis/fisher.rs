//! The spectrum of the empirical Fisher information of a task, from the batches of its reference.

use super::rollup::Subject;
use super::sketches::Batches;
use super::{Analysis, TaskState};
use crate::ring::Record;
use crate::scope::message::{Origin, TaskId};
use crate::scope::schema::{flag, kind};
use crate::stats::fisher::fisher;

impl Analysis {
    /// Publishes the spectrum as the batches so far show it.
    pub(super) fn fisher(&mut self, task: TaskId, origin: Origin, step: u64) {
        let Some(state) = self.tasks.get_mut(&task) else { return };
        let (batches, flags) = match origin {
            Origin::Frozen => (&state.frozen, flag::FROZEN),
            Origin::Refreshed => (&state.refreshed, flag::REFRESHED),
        };
        let Some(batches) = batches else { return };
        if origin == Origin::Frozen {
            state.fisher_batches = batches.list().len();
        }
        let examples = batches.examples;
        // Without the number of examples the factor is missing, and only the shape means something.
        let Some(found) = fisher(&batches.gram(), if examples > 0.0 { examples } else { 1.0 }) else { return };
        let mut record = Record { step, reference: task, ..self.publisher.record(kind::FISHER, Subject::MODEL) };
        record.flags |= flags | if examples > 0.0 { 0 } else { flag::UNSCALED };
        let mut values = [f64::NAN; 9];
        values.iter_mut().zip(found.eigenvalues.iter().take(5)).for_each(|(value, found)| *value = *found);
        values[5..].copy_from_slice(&[found.trace, found.effective_rank, batches.list().len() as f64, examples]);
        self.publisher.publish(record, &values);
    }

    /// A task begins or ends, or the scope is closed: references are complete, and what their last batches added was not
    /// published yet.
    pub(super) fn fisher_due(&mut self, step: u64) {
        let count = |batches: &Option<Batches>| batches.as_ref().map_or(0, |batches| batches.list().len());
        let is_due = |(_, state): &(&TaskId, &TaskState)| {
            count(&state.frozen) >= 4 && count(&state.frozen) != state.fisher_batches
        };
        let due: Vec<TaskId> = self.tasks.iter().filter(is_due).map(|(task, _)| *task).collect();
        due.into_iter().for_each(|task| self.fisher(task, Origin::Frozen, step));
    }
}
