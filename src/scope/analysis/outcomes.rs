//! Evaluations per metric, and what they say of forgetting.

use super::publisher::Publisher;
use super::rollup::Subject;
use crate::ring::Record;
use crate::scope::message::TaskId;
use crate::scope::schema::kind;
use crate::stats::forgetting::Outcomes;
use crate::stats::stage::stage;
use std::collections::{BTreeMap, VecDeque};

/// The outcomes of every metric.
#[derive(Default)]
pub struct OutcomeTable {
    metrics: BTreeMap<u16, Outcomes>,
    /// Which tasks were trained, in order, for metrics that come later.
    history: Vec<Option<TaskId>>,
    /// The metric that is the loss.
    loss: Option<u16>,
    /// The latest losses of the task in training since it began: (step, loss).
    curve: VecDeque<(u64, f64)>,
    /// Latest forgetting of each task by its loss.
    forgetting: BTreeMap<TaskId, f64>,
}

/// Evaluations that the stage of a loss curve is judged by.
const STAGE_WINDOW: usize = 8;

impl OutcomeTable {
    pub fn add_metric(&mut self, id: u16, higher_is_better: bool, is_loss: bool) {
        if is_loss {
            self.loss = Some(id);
        }
        let mut outcomes = Outcomes::new(higher_is_better);
        self.history.iter().for_each(|task| outcomes.train(*task));
        self.metrics.insert(id, outcomes);
    }

    /// Training of a task begins, or of the current one ends.
    pub fn train(&mut self, task: Option<TaskId>) {
        self.history.push(task);
        self.curve.clear();
        self.metrics.values_mut().for_each(|outcomes| outcomes.train(task));
    }

    /// Publishes an evaluation with the forgetting that it shows.
    pub fn record(&mut self, publisher: &mut Publisher, task: TaskId, id: u16, value: f64, step: u64) {
        let Some(outcomes) = self.metrics.get_mut(&id) else { return };
        let found = outcomes.record(task, value);
        let record = |kind| Record { step, ..publisher.record(kind, Subject::MODEL) };
        let (evaluation, transfer) = (Record { reference: task, ..record(kind::EVALUATION) }, record(kind::TRANSFER));
        let metric = f64::from(id);
        let values = [value, found.best, found.own, found.maximum, found.since_own, metric];
        let transferred = outcomes.transfer();
        publisher.publish(evaluation, &values);
        if let Some(t) = transferred.filter(|_| !found.since_own.is_nan()) {
            let values = [t.backward, t.mean_maximum, t.mean_since_own, t.tasks as f64, metric];
            publisher.publish(transfer, &values);
        }
        if self.loss == Some(id) {
            self.forgetting.insert(task, found.since_own);
            if publisher.task == Some(task) {
                self.stage(publisher, task, value, step);
            }
        }
    }

    /// How much a task's loss has risen since the end of its own training; NaN if nobody said.
    pub fn forgetting_of_loss(&self, task: TaskId) -> f64 {
        self.forgetting.get(&task).copied().unwrap_or(f64::NAN)
    }

    /// Publishes the stage of the loss curve of the task in training.
    fn stage(&mut self, publisher: &mut Publisher, task: TaskId, loss: f64, step: u64) {
        self.curve.push_back((step, loss));
        if self.curve.len() > STAGE_WINDOW {
            self.curve.pop_front();
        }
        if let Some(found) = stage(self.curve.make_contiguous()) {
            let record = Record { step, reference: task, ..publisher.record(kind::STAGE, Subject::MODEL) };
            let count = self.curve.len() as f64;
            publisher.publish(record, &[f64::from(found.trend as u8), found.slope, found.error, loss, count]);
        }
    }
}
