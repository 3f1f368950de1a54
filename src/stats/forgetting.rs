//! Outcomes: how much of each earlier task is lost, from evaluations.
//!
//! a(l, j) is the evaluation of task j at the end of task l (the last one recorded while l was trained); a(now, j) is the
//! latest. Two definitions of forgetting are in use and both are given, named:
//!
//! - *maximum* (Chaudhry et al. 2018): best earlier a(l, j) over l before now, minus a(now, j);
//! - *own* (as Avalanche's `Forgetting` metric computes it): a(j, j) minus a(now, j).
//!
//! Backward transfer (Lopez-Paz & Ranzato 2017) is the mean over earlier tasks of a(now, j) − a(j, j): negative when
//! tasks are forgotten. For a loss, where lower is better, signs are turned, so that positive forgetting always means
//! "worse than it was" and negative transfer always means forgetting.

use std::collections::BTreeMap;

/// The evaluations of one metric.
#[derive(Clone, Debug)]
pub struct Outcomes {
    higher_is_better: bool,
    /// Tasks in the order in which their training first began.
    order: Vec<u16>,
    /// Latest value of each task.
    latest: BTreeMap<u16, f64>,
    /// a(l, j): key (l, j).
    matrix: BTreeMap<(u16, u16), f64>,
    current: Option<u16>,
}

/// Forgetting of one task as of its latest evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forgetting {
    pub value: f64,
    /// Best value at the end of any task so far; NaN if there is none.
    pub best: f64,
    /// Value at the end of its own training; NaN if that has not ended.
    pub own: f64,
    /// Chaudhry's maximum variant; NaN while the task itself is being trained for the first time.
    pub maximum: f64,
    /// Avalanche's variant; NaN likewise.
    pub since_own: f64,
}

/// Backward transfer and mean forgetting over the tasks that have both an own and a latest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    pub backward: f64,
    pub mean_maximum: f64,
    pub mean_since_own: f64,
    /// Tasks averaged over.
    pub tasks: usize,
}

impl Outcomes {
    pub fn new(higher_is_better: bool) -> Self {
        let (order, latest, matrix) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { higher_is_better, order, latest, matrix, current: None }
    }

    /// Training of `task` begins; `None`: it ended and none follows yet.
    pub fn train(&mut self, task: Option<u16>) {
        if let Some(task) = task
            && !self.order.contains(&task)
        {
            self.order.push(task);
        }
        self.current = task.or(self.current);
    }

    /// An evaluation of `task` now. Non-finite values are kept as they are: a diverged loss is an outcome.
    pub fn record(&mut self, task: u16, value: f64) -> Forgetting {
        self.latest.insert(task, value);
        if let Some(current) = self.current {
            self.matrix.insert((current, task), value);
        }
        self.forgetting(task, value)
    }

    /// How much better `x` is than `y`, in the metric's own unit.
    fn better_by(&self, x: f64, y: f64) -> f64 {
        if self.higher_is_better { x - y } else { y - x }
    }

    fn forgetting(&self, task: u16, value: f64) -> Forgetting {
        let own = match self.current {
            Some(current) if current != task => self.matrix.get(&(task, task)).copied().unwrap_or(f64::NAN),
            _ => f64::NAN,
        };
        let ended = self.order.iter().filter(|&&l| Some(l) != self.current);
        let best = ended
            .filter_map(|&l| self.matrix.get(&(l, task)).copied())
            .filter(|v| !v.is_nan())
            .reduce(|x, y| if self.better_by(x, y) > 0.0 { x } else { y })
            .unwrap_or(f64::NAN);
        let maximum = if own.is_nan() { f64::NAN } else { self.better_by(best, value) };
        Forgetting { value, best, own, maximum, since_own: self.better_by(own, value) }
    }

    /// Averages over all tasks trained before the current one; `None` if there is none with both values.
    pub fn transfer(&self) -> Option<Transfer> {
        let all: Vec<Forgetting> = self
            .order
            .iter()
            .filter_map(|task| Some(self.forgetting(*task, *self.latest.get(task)?)))
            .filter(|f| !f.since_own.is_nan())
            .collect();
        let n = all.len() as f64;
        (!all.is_empty()).then(|| Transfer {
            backward: -all.iter().map(|f| f.since_own).sum::<f64>() / n,
            mean_maximum: all.iter().map(|f| f.maximum).sum::<f64>() / n,
            mean_since_own: all.iter().map(|f| f.since_own).sum::<f64>() / n,
            tasks: all.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three tasks trained in sequence; accuracy matrix R[l][j].
    fn run(higher_is_better: bool, sign: f64) -> Outcomes {
        let r = [[0.9, 0.3, 0.1], [0.6, 0.8, 0.2], [0.5, 0.7, 0.95]];
        let mut outcomes = Outcomes::new(higher_is_better);
        for (l, row) in r.iter().enumerate() {
            outcomes.train(Some(l as u16));
            for (j, value) in row.iter().enumerate() {
                outcomes.record(j as u16, sign * 0.0); // an earlier evaluation within the task is replaced
                outcomes.record(j as u16, sign * value);
            }
        }
        outcomes
    }

    #[test]
    fn matches_the_definitions() {
        for (higher, sign) in [(true, 1.0), (false, -1.0)] {
            let mut outcomes = run(higher, sign);
            let first = outcomes.record(0, sign * 0.5);
            assert!((first.maximum - 0.4).abs() < 1e-15 && (first.since_own - 0.4).abs() < 1e-15);
            let second = outcomes.record(1, sign * 0.7);
            assert!((second.since_own - 0.1).abs() < 1e-15);
            let third = outcomes.record(2, sign * 0.95);
            assert!(third.since_own.is_nan() && third.maximum.is_nan(), "still being trained");
            let transfer = outcomes.transfer().unwrap();
            // GEM: mean of R[2][j] − R[j][j] = ((.5 − .9) + (.7 − .8))/2.
            assert!((transfer.backward + 0.25).abs() < 1e-15);
            assert_eq!(transfer.tasks, 2);
        }
    }

    #[test]
    fn maximum_looks_at_all_earlier_tasks() {
        // Task 0 improved while task 1 was trained, then fell.
        let mut outcomes = Outcomes::new(true);
        for (task, value) in [(0, 0.5), (1, 0.7)] {
            outcomes.train(Some(task));
            outcomes.record(0, value);
        }
        outcomes.train(Some(2));
        let found = outcomes.record(0, 0.4);
        assert!((found.maximum - 0.3).abs() < 1e-15 && (found.since_own - 0.1).abs() < 1e-15);
    }

    #[test]
    fn nothing_to_say_before_a_task_ended() {
        let mut outcomes = Outcomes::new(true);
        assert!(outcomes.record(0, 0.5).maximum.is_nan(), "no task at all");
        outcomes.train(Some(0));
        outcomes.record(0, 0.5);
        assert!(outcomes.transfer().is_none());
    }
}
