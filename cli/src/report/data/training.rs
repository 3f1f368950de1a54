//! When what was trained: sampled steps and the stretches of tasks.

use forgetscope::ring::Record;

/// The steps that were sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    pub sampled: u64,
    pub first: Option<u64>,
    pub last: Option<u64>,
    pub skipped: u64,
    pub non_finite: u64,
    pub cost_seconds: f64,
    /// Nanoseconds since 1970.
    pub first_time: Option<u64>,
    pub last_time: Option<u64>,
}

/// A stretch of training on one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub task: u16,
    pub begin: u64,
    /// `None`: it goes on, or its end is not in the records.
    pub end: Option<u64>,
}

impl Steps {
    pub fn add(&mut self, record: &Record, value: impl Fn(&str) -> f64) {
        self.sampled += 1;
        self.skipped += u64::from(value("applied") == 0.0);
        self.non_finite += u64::from(value("non_finite") > 0.0);
        self.cost_seconds += Some(value("cost_seconds")).filter(|cost| cost.is_finite()).unwrap_or(0.0);
        let least = |old: Option<u64>, new: u64| Some(old.map_or(new, |old| old.min(new)));
        let most = |old: Option<u64>, new: u64| Some(old.map_or(new, |old| old.max(new)));
        (self.first, self.last) = (least(self.first, record.step), most(self.last, record.step));
        self.first_time = least(self.first_time, record.time_ns);
        self.last_time = most(self.last_time, record.time_ns);
    }
}

impl Span {
    /// Takes in that a task began (0) or ended (1).
    pub fn event(spans: &mut Vec<Self>, task: u16, step: u64, event: f64) {
        let open = spans.iter_mut().rev().find(|span| span.task == task && span.end.is_none());
        match (event, open) {
            (0.0, None) => spans.push(Span { task, begin: step, end: None }),
            (1.0, Some(span)) => span.end = Some(step),
            _ => {}
        }
    }
}
