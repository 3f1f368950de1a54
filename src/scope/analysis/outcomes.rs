//! Evaluations per metric, and what they say of forgetting.

use super::publisher::Publisher;
use super::rollup::Subject;
use crate::ring::Record;
use crate::scope::message::TaskId;
use crate::scope::schema::kind;
use crate::stats::forgetting::Outcomes;
use std::collections::BTreeMap;

/// The outcomes of every metric.
#[derive(Default)]
pub struct OutcomeTable {
    metrics: BTreeMap<u16, Outcomes>,
    /// Which tasks were trained, in order, for metrics that come later.
    history: Vec<Option<TaskId>>,
}

impl OutcomeTable {
    pub fn add_metric(&mut self, id: u16, higher_is_better: bool) {
        let mut outcomes = Outcomes::new(higher_is_better);
        self.history.iter().for_each(|task| outcomes.train(*task));
        self.metrics.insert(id, outcomes);
    }

    /// Training of a task begins, or of the current one ends.
    pub fn train(&mut self, task: Option<TaskId>) {
        self.history.push(task);
        self.metrics.values_mut().for_each(|outcomes| outcomes.train(task));
    }

    /// Publishes an evaluation with the forgetting that it shows.
    pub fn record(&mut self, publisher: &mut Publisher, task: TaskId, metric: u16, value: f64, step: u64) {
        let Some(outcomes) = self.metrics.get_mut(&metric) else { return };
        let found = outcomes.record(task, value);
        let record = |kind| Record { step, ..publisher.record(kind, Subject::MODEL) };
        let (evaluation, transfer) = (Record { reference: task, ..record(kind::EVALUATION) }, record(kind::TRANSFER));
        let metric = f64::from(metric);
        let values = [value, found.best, found.own, found.maximum, found.since_own, metric];
        let transferred = outcomes.transfer();
        publisher.publish(evaluation, &values);
        if let Some(t) = transferred.filter(|_| !found.since_own.is_nan()) {
            let values = [t.backward, t.mean_maximum, t.mean_since_own, t.tasks as f64, metric];
            publisher.publish(transfer, &values);
        }
    }
}
