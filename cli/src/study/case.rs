//! The cases of a recording: each earlier task while each later one was trained.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use forgetscope::ring::{NONE16, Record};

use super::measure::Measure;
use crate::names::Names;
use crate::recording::Recording;

/// One earlier task while one later task was trained.
#[derive(Clone, Debug)]
pub struct Case {
    /// Number of the run, in the order given.
    pub run: usize,
    pub earlier: String,
    pub later: String,
    /// Rise of the earlier task's loss while the later one was trained.
    pub forgetting: f64,
    /// Updates of the later task that the measurements are from.
    pub early_steps: u64,
    values: BTreeMap<Measure, f64>,
}

impl Case {
    /// NaN if it was not measured.
    pub fn value(&self, measure: Measure) -> f64 {
        self.values.get(&measure).copied().unwrap_or(f64::NAN)
    }

    pub fn features(&self) -> Vec<f64> {
        Measure::FORECAST.iter().map(|&measure| self.value(measure)).collect()
    }
}

/// Kinds of records that cases are made of.
const KINDS: [&str; 9] =
    ["step", "task", "evaluation", "interference", "corrected", "drift", "prediction", "representation", "similarity"];

/// The cases of a recording. `early`: share of the later task's steps whose measurements count.
pub fn cases_of(recording: &Recording, run: usize, early: f64) -> Result<Vec<Case>> {
    let names = &recording.catalog.names;
    let mut events = Events::default();
    recording.records(&KINDS, |record| events.absorb(names, record))?;
    let cases = events.cases(run, early, &|task| names.task(task).unwrap_or_default());
    if cases.is_empty() {
        bail!("it has no earlier task whose loss was recorded (fgs_record_loss) before and after a later task");
    }
    Ok(cases)
}

/// A value of the model at a step, of a pair of tasks: (trained, reference).
type Series = BTreeMap<(u16, u16), Vec<(u64, f64)>>;

/// What is needed of the records.
#[derive(Default)]
struct Events {
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
}

impl Events {
    fn absorb(&mut self, names: &Names, record: &Record) {
        let value = |name: &str| names.value(record, name);
        let level = names.level(record.level);
        let pair = (record.task, record.reference);
        let push = |series: &mut Series, value: f64| {
            if value.is_finite() {
                series.entry(pair).or_default().push((record.step, value));
            }
        };
        match (names.kind(record.kind).as_str(), level.as_str()) {
            ("task", _) => match value("event") {
                0.0 => self.spans.push((record.reference, record.step, None)),
                1.0 => {
                    let open = self.spans.iter_mut().rev().find(|span| span.0 == record.reference && span.2.is_none());
                    if let Some(span) = open {
                        span.2 = Some(record.step);
                    }
                }
                _ => {}
            },
            ("evaluation", _) => {
                let is_loss = |metric: u16| names.metrics.get(&metric).is_some_and(|metric| metric.name == "loss");
                if is_loss(value("metric") as u16) {
                    self.losses.entry(record.reference).or_default().push((record.step, value("value")));
                }
            }
            ("step", _) if record.task != NONE16 => {
                self.gradients.entry(record.task).or_default().push((record.step, value("gradient_norm")));
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

    fn cases(&self, run: usize, early: f64, name: &dyn Fn(u16) -> String) -> Vec<Case> {
        let mut cases = Vec::new();
        for (index, &(later, begin, end)) in self.spans.iter().enumerate() {
            let Some(end) = end.filter(|&end| end > begin) else { continue };
            let until = begin + ((end - begin) as f64 * early).ceil() as u64;
            let mut earlier: Vec<u16> = self.spans[..index].iter().map(|span| span.0).filter(|&t| t != later).collect();
            earlier.sort_unstable();
            earlier.dedup();
            for task in earlier {
                let Some(forgetting) = self.rise(task, begin, end) else { continue };
                let values = self.values(task, later, begin, until, end);
                let (earlier, later) = (name(task), name(later));
                cases.push(Case { run, earlier, later, forgetting, early_steps: until - begin, values });
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

    fn values(&self, earlier: u16, later: u16, begin: u64, until: u64, end: u64) -> BTreeMap<Measure, f64> {
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
        let gradients: Vec<_> = gradients.iter().filter(|point| inside(point.0)).copied().collect();
        let cka = of(&self.cka);
        let latest = cka.last().map(|point| point.0);
        let latest_cka: Vec<_> = cka.iter().filter(|point| Some(point.0) == latest).copied().collect();
        // Similarity is measured before the later task begins, at the weights that the earlier one left.
        let pair = (earlier.min(later), earlier.max(later));
        let similarity = self.similarity.iter().filter(|((a, b), _)| (*a.min(b), *a.max(b)) == pair);
        let similarity = similarity.flat_map(|(_, points)| points).filter(|point| point.0 <= begin).next_back();
        let found = [
            (Measure::NewGradient, mean(&gradients).map(f64::ln)),
            (Measure::GradientCosine, last(&of(&self.cosines))),
            (Measure::Interference, mean(&of(&self.interference))),
            (Measure::Drift, last(&of(&self.drift)).map(f64::ln)),
            (Measure::Predicted, last(&of(&self.predicted))),
            (Measure::CkaDrop, mean(&latest_cka).map(|cka| 1.0 - cka)),
            (Measure::Similarity, similarity.map(|point| point.1)),
            (Measure::ExcessLoss, self.rise(later, begin, end).map(|rise| -rise)),
        ];
        found.into_iter().filter_map(|(measure, value)| Some((measure, value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Task 0 for steps 0 to 100, task 1 from there to 200.
    fn events() -> Events {
        let mut events = Events { spans: vec![(0, 0, Some(100)), (1, 100, Some(200))], ..Events::default() };
        events.losses.insert(0, vec![(0, 5.0), (100, 2.0), (150, 2.5), (200, 3.0), (250, 9.0)]);
        events.losses.insert(1, vec![(100, 4.0), (200, 1.5)]);
        events.gradients.insert(1, vec![(90, 99.0), (100, 1.0), (110, 3.0), (130, 50.0)]);
        events.drift.insert((1, 0), vec![(110, 0.1), (120, 0.2), (121, 0.9)]);
        events.cka.insert((1, 0), vec![(110, 0.9), (110, 0.7), (200, 0.1)]);
        events.similarity.insert((1, 0), vec![(100, 0.25), (200, 0.75)]);
        events
    }

    #[test]
    fn a_case_is_what_the_first_steps_show_and_what_happened() {
        let cases = events().cases(7, 0.2, &|task| format!("t{task}"));
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
    fn a_task_without_an_end_or_without_losses_is_no_case() {
        let mut open = events();
        open.spans[1].2 = None;
        assert!(open.cases(0, 0.2, &|_| String::new()).is_empty());
        let mut silent = events();
        silent.losses.remove(&0);
        assert!(silent.cases(0, 0.2, &|_| String::new()).is_empty());
    }
}
