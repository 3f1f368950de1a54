//! The spectrum of the empirical Fisher information of a task, from the batches of its reference.

use super::Analysis;
use super::rollup::Subject;
use crate::ring::Record;
use crate::scope::message::{Origin, TaskId};
use crate::scope::schema::{flag, kind};
use crate::stats::fisher::fisher;

impl Analysis {
    /// Publishes the spectrum as the batches so far show it.
    pub(super) fn fisher(&mut self, task: TaskId, origin: Origin, step: u64) {
        let Some(state) = self.tasks.get(&task) else { return };
        let (batches, flags) = match origin {
            Origin::Frozen => (&state.frozen, flag::FROZEN),
            Origin::Refreshed => (&state.refreshed, flag::REFRESHED),
        };
        let Some(batches) = batches else { return };
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

    /// The task ends: what the last batches added was not published yet.
    pub(super) fn fisher_at_end(&mut self, task: TaskId, step: u64) {
        let frozen = self.tasks.get(&task).and_then(|state| state.frozen.as_ref());
        if frozen.is_some_and(|batches| batches.list().len() >= 4 && !batches.list().len().is_power_of_two()) {
            self.fisher(task, Origin::Frozen, step);
        }
    }
}
