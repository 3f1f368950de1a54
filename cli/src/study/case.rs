//! One earlier task while one later task was trained: what was measured, and what was forgotten.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::evidence::{Evidence, KINDS};
use super::measure::Measure;
use crate::recording::Recording;

/// One earlier task while one later task was trained.
#[derive(Clone, Debug)]
pub struct Case {
    /// Number of the run, in the order given.
    pub run: usize,
    pub earlier: String,
    pub later: String,
    /// Rise of the earlier task's loss while the later one was trained; NaN if nobody said, or if it is not over.
    pub forgetting: f64,
    /// Nothing was trained between the two.
    pub is_next: bool,
    /// The later task has been trained to its end.
    pub is_over: bool,
    /// Updates of the later task that the measurements are from.
    pub early_steps: u64,
    pub values: BTreeMap<Measure, f64>,
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

/// The cases of a recording whose outcome is known. `early`: share of the later task's steps whose measurements count.
pub fn cases_of(recording: &Recording, run: usize, early: f64) -> Result<Vec<Case>> {
    let names = &recording.catalog.names;
    let mut evidence = Evidence::default();
    recording.records(&KINDS, |record| evidence.absorb(names, record))?;
    let mut cases = evidence.cases(run, early, &|task| names.task(task).unwrap_or_default());
    cases.retain(|case| case.is_over && case.forgetting.is_finite());
    if cases.is_empty() {
        bail!(
            "it has no earlier task whose loss was recorded (fgs_record_loss) before and after a later task; leave this \
             recording out, or record a run of two tasks or more to its end"
        );
    }
    Ok(cases)
}

/// A case of which one thing was measured.
#[cfg(test)]
pub fn case_of(measure: Measure, value: f64, forgetting: f64) -> Case {
    let values = BTreeMap::from([(measure, value)]);
    Case {
        run: 0,
        earlier: "a".into(),
        later: "b".into(),
        forgetting,
        is_next: true,
        is_over: true,
        early_steps: 9,
        values,
    }
}
