//! What the records of a run say of its cases.

use std::collections::BTreeMap;

use forgetscope::ring::{NONE16, Record};

use super::case::Case;
use super::measure::Measure;
use crate::names::Names;

/// Kinds of records that cases are made of.
pub const KINDS: [&str; 9] =
    ["step", "task", "evaluation", "interference", "corrected", "drift", "prediction", "representation", "similarity"];

/// A value of the model at a step, of a pair of tasks: (trained, reference).
type Series = BTreeMap<(u16, u16), Vec<(u64, f64)>>;

/// What cases need of a run's records, of which nothing else is kept.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Task, first step, last step; in order of begin.
    spans: Vec<(u16, u64, Option<u64>)>,
    /// Losses by task.
    losses: BTreeMap<u16, Vec<(u64, f64)>>,
    gradients: BTreeMap<u16, Vec<(u64, f64)>>,
    cosines: Series,
    interference: Series,
    drift: Series,
    predicted: Series,
    /// One value per layer and pass.
    cka: Series,
    /// By pair of tasks, lower id first: step and share between chance and ceiling.
    similarity: Series,
    /// The latest step of any record.
    latest: u64,
}

impl Evidence {
    /// Takes a record in; those of other kinds pass by.
    pub fn absorb(&mut self, names: &Names, record: &Record) {
        let value = |name: &str| names.value(record, name);
        let level = names.level(record.level);
        let pair = (record.task, record.reference);
        let push = |series: &mut Series, value: f64| {
            if value.is_finite() {
                series.entry(pair).or_default().push((record.step, value));
            }
        };
        self.latest = self.latest.max(record.step);
        match (names.kind(record.kind).as_str(), level.as_str()) {
            ("task", _) => {
                let open = self.spans.iter_mut().rev().find(|span| span.0 == record.reference && span.2.is_none());
                match (value("event"), open) {
                    (0.0, None) => self.spans.push((record.reference, record.step, None)),
                    (1.0, Some(span)) => span.2 = Some(record.step),
                    _ => {}
                }
            }
            ("evaluation", _) => {
                let is_loss = |metric: u16| names.metrics.get(&metric).is_some_and(|metric| metric.name == "loss");
                if is_loss(value("metric") as u16) {
                    self.losses.entry(record.reference).or_default().push((record.step, value("value")));
                }
            }
            ("step", _) if record.task != NONE16 => {
                // Clipping is in the scale: after it, most gradients are as large as each other.
                let norm = value("gradient_norm") / value("scale");
                self.gradients.entry(record.task).or_default().push((record.step, norm));
            }
            ("corrected", "model") => push(&mut self.cosines, value("cosine")),
            ("interference", "model") => push(&mut self.interference, value("cosine")),
            ("drift", "model") => push(&mut self.drift, value("relative")),
            ("prediction", _) => push(&mut self.predicted, value("predicted")),
            ("representation", "layer") if !["base", "continued"].iter().any(|flag| names.has_flag(record, flag)) => {
                push(&mut self.cka, value("cka"));
            }
            ("similarity", "model") => {
                let (overlap, chance) = (value("overlap"), value("overlap_null"));
                push(&mut self.similarity, (overlap - chance) / (value("overlap_ceiling") - chance));
            }
            _ => {}
        }
    }

    /// Every earlier task while every later one was trained. A later task that goes on is taken to be as long as the one
    /// before it, and left out until its first steps are over.
    pub fn cases(&self, run: usize, early: f64, name: &dyn Fn(u16) -> String) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut length = 0;
        for (index, &(later, begin, end)) in self.spans.iter().enumerate() {
            length = end.map_or(length, |end| end.saturating_sub(begin));
            let until = begin + (length as f64 * early).ceil() as u64;
            if length == 0 || self.latest < until {
                continue;
            }
            let mut earlier: Vec<u16> = self.spans[..index].iter().map(|span| span.0).filter(|&t| t != later).collect();
            earlier.sort_unstable();
            earlier.dedup();
            for task in earlier {
                let forgetting = end.and_then(|end| self.rise(task, begin, end)).unwrap_or(f64::NAN);
                let values = self.values(task, later, begin, until, end);
                let is_next = self.spans[index - 1].0 == task;
                let (earlier, later, is_over) = (name(task), name(later), end.is_some());
                let early_steps = until - begin;
                cases.push(Case { run, earlier, later, forgetting, is_next, is_over, early_steps, values });
            }
        }
        cases
    }

    /// How much a task's loss rose from the last evaluation at `begin` or before to the last at `end` or before.
    fn rise(&self, task: u16, begin: u64, end: u64) -> Option<f64> {
        let losses = self.losses.get(&task)?;
        let before = losses.iter().rev().find(|(step, _)| *step <= begin)?;
        let after = losses.iter().rev().find(|(step, _)| *step <= end).filter(|after| after.0 > before.0)?;
        Some(after.1 - before.1).filter(|rise| rise.is_finite())
    }

    fn values(&self, earlier: u16, later: u16, begin: u64, until: u64, end: Option<u64>) -> BTreeMap<Measure, f64> {
        let inside = |step: u64| step >= begin && step <= until;
        let of = |series: &Series| {
            let all = series.get(&(later, earlier)).map_or(&[][..], Vec::as_slice);
            all.iter().filter(|point| inside(point.0)).copied().collect::<Vec<_>>()
        };
        let mean = |points: &[(u64, f64)]| {
            let sum: f64 = points.iter().map(|point| point.1).sum();
            (!points.is_empty()).then(|| sum / points.len() as f64)
        };
        let last = |points: &[(u64, f64)]| points.last().map(|point| point.1);
        let gradients = self.gradients.get(&later).map_or(&[][..], Vec::as_slice);
        let is_usable = |point: &&(u64, f64)| inside(point.0) && point.1 > 0.0 && point.1.is_finite();
        let gradients: Vec<_> = gradients.iter().filter(is_usable).copied().collect();
        // What changed before the later task began is not its doing, so only what came since counts.
        let before = |series: &Series| -> Vec<(u64, f64)> {
            let of_earlier = series.iter().filter(|((_, reference), _)| *reference == earlier);
            let mut points: Vec<_> = of_earlier.flat_map(|(_, all)| all).filter(|p| p.0 <= begin).copied().collect();
            points.sort_by_key(|point| point.0);
            points
        };
        let latest = |points: Vec<(u64, f64)>| {
            let step = points.last().map(|point| point.0);
            mean(&points.into_iter().filter(|point| Some(point.0) == step).collect::<Vec<_>>())
        };
        let own = self.spans.iter().rfind(|span| span.0 == earlier && span.2.is_some_and(|end| end <= begin));
        let own_end = own.and_then(|span| span.2);
        let cka_drop = latest(of(&self.cka)).map(|now| latest(before(&self.cka)).unwrap_or(1.0) - now);
        let drift = last(&of(&self.drift)).map(|now| {
            let then = last(&before(&self.drift)).unwrap_or(0.0);
            // Far from each other, two stretches of a way through many dimensions are at right angles.
            (now * now - then * then).sqrt().ln()
        });
        // Similarity is measured before the later task begins, at the weights that it begins with.
        let pair = (earlier.min(later), earlier.max(later));
        let similarity = self.similarity.iter().filter(|((a, b), _)| (*a.min(b), *a.max(b)) == pair);
        let similarity = similarity.flat_map(|(_, points)| points).rfind(|point| point.0 <= begin);
        let found = [
            (Measure::NewGradient, mean(&gradients).map(f64::ln)),
            (Measure::GradientCosine, last(&of(&self.cosines))),
            (Measure::Interference, mean(&of(&self.interference))),
            (Measure::Drift, drift.filter(|drift| drift.is_finite())),
            (Measure::Predicted, last(&of(&self.predicted))),
            (Measure::CkaDrop, cka_drop),
            (Measure::Similarity, similarity.map(|point| point.1)),
            (Measure::ForgottenBefore, own_end.map(|end| self.rise(earlier, end, begin).unwrap_or(0.0))),
            (Measure::ExcessLoss, end.and_then(|end| self.rise(later, begin, end)).map(|rise| -rise)),
        ];
        found.into_iter().filter_map(|(measure, value)| Some((measure, value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Task 0 for steps 0 to 100, task 1 from there to 200.
    fn evidence() -> Evidence {
        let mut evidence =
            Evidence { spans: vec![(0, 0, Some(100)), (1, 100, Some(200))], latest: 200, ..Evidence::default() };
        evidence.losses.insert(0, vec![(0, 5.0), (100, 2.0), (150, 2.5), (200, 3.0), (250, 9.0)]);
        evidence.losses.insert(1, vec![(100, 4.0), (200, 1.5)]);
        evidence.gradients.insert(1, vec![(90, 99.0), (100, 1.0), (110, 3.0), (130, 50.0)]);
        evidence.drift.insert((1, 0), vec![(110, 0.1), (120, 0.2), (121, 0.9)]);
        evidence.cka.insert((1, 0), vec![(110, 0.9), (110, 0.7), (200, 0.1)]);
        evidence.similarity.insert((1, 0), vec![(100, 0.25), (200, 0.75)]);
        evidence
    }

    #[test]
    fn gradients_are_as_large_as_before_clipping() {
        let mut names = Names::default();
        forgetscope::scope::schema::entries().for_each(|entry| names.add(entry));
        let mut step = Record { kind: forgetscope::scope::schema::kind::STEP, task: 1, step: 9, ..Record::default() };
        step.values[..3].copy_from_slice(&[1.0, 1.0, 0.25]);
        let mut evidence = Evidence::default();
        evidence.absorb(&names, &step);
        assert_eq!(evidence.gradients[&1], [(9, 4.0)]);
    }

    #[test]
    fn a_case_is_what_the_first_steps_show_and_what_happened() {
        let cases = evidence().cases(7, 0.2, &|task| format!("t{task}"));
        let [case] = &cases[..] else { panic!("{cases:?}") };
        assert_eq!((case.run, case.earlier.as_str(), case.later.as_str(), case.early_steps), (7, "t0", "t1", 20));
        assert_eq!(case.forgetting, 1.0);
        assert_eq!(case.value(Measure::NewGradient), 2f64.ln());
        assert_eq!(case.value(Measure::Drift), 0.2f64.ln());
        assert!((case.value(Measure::CkaDrop) - 0.2).abs() < 1e-15);
        assert_eq!(case.value(Measure::Similarity), 0.25);
        assert_eq!(case.value(Measure::ExcessLoss), 2.5);
        assert!(case.value(Measure::Predicted).is_nan());
        assert_eq!(case.features().len(), Measure::FORECAST.len());
    }

    #[test]
    fn only_the_task_before_is_next() {
        let mut three = evidence();
        (three.latest, three.spans) = (300, vec![(0, 0, Some(100)), (1, 100, Some(200)), (2, 200, Some(300))]);
        let cases = three.cases(0, 0.2, &|task| format!("t{task}"));
        let next: Vec<(&str, bool)> = cases.iter().map(|case| (case.earlier.as_str(), case.is_next)).collect();
        assert_eq!(next, [("t0", true), ("t0", false), ("t1", true)]);
    }

    #[test]
    fn a_task_without_an_end_or_without_losses_has_no_outcome() {
        let mut open = evidence();
        (open.spans[1].2, open.latest) = (None, 110);
        assert!(open.cases(0, 0.2, &|_| String::new()).is_empty(), "its first steps are not over");
        open.latest = 120;
        let [case] = &open.cases(0, 0.2, &|_| String::new())[..] else { panic!("one earlier task") };
        assert!(!case.is_over && case.forgetting.is_nan() && case.early_steps == 20);
        assert!(case.value(Measure::Drift).is_finite() && case.value(Measure::ExcessLoss).is_nan());
        let mut silent = evidence();
        silent.losses.remove(&0);
        let [case] = &silent.cases(0, 0.2, &|_| String::new())[..] else { panic!("one earlier task") };
        assert!(case.is_over && case.forgetting.is_nan());
    }
}
