//! A calibrated forecast: fitted to the cases of a study, kept as a file, applied to other runs.

use std::path::Path;

use anyhow::{Result, anyhow};
use forgetscope::stats::forecast::{Case as Fitted, Feature, Model, RIDGE, Validation, leave_one_run_out};
use serde_json::{Value, json};

use super::case::Case;
use super::measure::Measure;
use super::origin::Origin;

/// A forecast with all that is needed to judge it.
#[derive(Clone, Debug)]
pub struct Forecast {
    model: Model,
    measures: Vec<Measure>,
    /// Forgetting beyond this is what the risk is of, in units of the loss.
    pub threshold: f64,
    /// Share of a task's steps that it looks at, and how many steps that was (the median).
    pub early: f64,
    pub early_steps: u64,
    pub runs: usize,
    pub cases: usize,
    /// Share of cases that were beyond the threshold.
    pub rate: f64,
    /// Left one run out.
    pub brier: f64,
    pub brier_base: f64,
    /// The runs that it was fitted to.
    pub origins: Vec<Origin>,
}

/// Fits a forecast of forgetting beyond `threshold` to all cases, and judges it by leaving out one run at a time. `None`
/// with fewer than two runs.
pub fn forecast(cases: &[Case], threshold: f64, early: f64, origins: Vec<Origin>) -> Option<(Forecast, Validation)> {
    let fitted: Vec<Fitted> = cases
        .iter()
        .map(|case| Fitted { run: case.run, features: case.features(), happened: case.forgetting > threshold })
        .collect();
    let validation = leave_one_run_out(&fitted, RIDGE);
    if validation.brier.is_nan() {
        return None;
    }
    let model = Model::fit(&fitted.iter().collect::<Vec<_>>(), RIDGE)?;
    let forecast = Forecast {
        model,
        measures: Measure::FORECAST.to_vec(),
        threshold,
        early,
        early_steps: median(cases.iter().map(|case| case.early_steps).collect()),
        runs: validation.runs,
        cases: validation.cases,
        rate: fitted.iter().filter(|case| case.happened).count() as f64 / fitted.len() as f64,
        brier: validation.brier,
        brier_base: validation.brier_base,
        origins,
    };
    Some((forecast, validation))
}

fn median(mut steps: Vec<u64>) -> u64 {
    steps.sort_unstable();
    steps.get(steps.len() / 2).copied().unwrap_or(0)
}

impl Forecast {
    /// The risk that the case's earlier task is forgotten beyond the threshold.
    pub fn risk(&self, case: &Case) -> f64 {
        self.model.risk(&self.measures.iter().map(|&measure| case.value(measure)).collect::<Vec<_>>())
    }

    /// Measures that none of the cases has: their means stand for them.
    pub fn missing(&self, cases: &[Case]) -> Vec<Measure> {
        let is_missing = |measure: &Measure| cases.iter().all(|case| !case.value(*measure).is_finite());
        self.measures.iter().copied().filter(is_missing).collect()
    }

    pub fn to_json(&self) -> Value {
        let feature = |(measure, feature): (&Measure, &Feature)| {
            json!({
                "name": measure.name(), "mean": feature.mean, "deviation": feature.deviation, "weight": feature.weight
            })
        };
        json!({
            "forgetscope_forecast": 1,
            "event": "rise of an earlier task's loss beyond the threshold",
            "threshold": self.threshold,
            "early_share": self.early,
            "early_steps": self.early_steps,
            "runs": self.runs,
            "cases": self.cases,
            "rate": self.rate,
            "brier_leave_one_run_out": self.brier,
            "brier_of_the_rate": self.brier_base,
            "intercept": self.model.intercept,
            "features": self.measures.iter().zip(&self.model.features).map(feature).collect::<Vec<_>>(),
            "calibrated_on": self.origins.iter().map(Origin::to_json).collect::<Vec<_>>(),
        })
    }

    /// Reads what `forgetscope study --forecast` wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            anyhow!("cannot read {}: {error}; make a forecast with `forgetscope study --forecast`", path.display())
        })?;
        let value = serde_json::from_str(&text).ok();
        value.as_ref().and_then(Self::from_json).ok_or_else(|| {
            anyhow!(
                "{} is no forecast that this version reads; make one with `forgetscope study --forecast`",
                path.display()
            )
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        if value["forgetscope_forecast"] != 1 {
            return None;
        }
        let number = |key: &str| value[key].as_f64();
        let count = |key: &str| Some(value[key].as_u64()? as usize);
        let (mut measures, mut features) = (Vec::new(), Vec::new());
        for feature in value["features"].as_array()? {
            let number = |key: &str| feature[key].as_f64();
            measures.push(Measure::from_name(feature["name"].as_str()?)?);
            let deviation = number("deviation").filter(|deviation| *deviation > 0.0)?;
            features.push(Feature { mean: number("mean")?, deviation, weight: number("weight")? });
        }
        Some(Self {
            model: Model { intercept: number("intercept")?, features },
            measures,
            threshold: number("threshold")?,
            early: number("early_share").filter(|early| *early > 0.0 && *early <= 1.0)?,
            early_steps: value["early_steps"].as_u64()?,
            runs: count("runs")?,
            cases: count("cases")?,
            rate: number("rate")?,
            brier: number("brier_leave_one_run_out")?,
            brier_base: number("brier_of_the_rate")?,
            origins: value["calibrated_on"].as_array()?.iter().map(Origin::from_json).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::case_of;
    use super::*;

    /// Four runs of three cases, forgotten by as much as weights drift.
    fn cases() -> Vec<Case> {
        let case = |index: usize| {
            let drift = [0.1, -0.7, 1.3, -1.9, 0.6, 2.2, -0.4, -1.1, 0.9, 1.8, -2.4, -0.2][index];
            Case { run: index / 3, ..case_of(Measure::Drift, drift, drift) }
        };
        (0..12).map(case).collect()
    }

    fn origin() -> Origin {
        Origin { instance: "ab".into(), run: "first".into(), tasks: vec!["a".into()], parameters: 9, layers: 2 }
    }

    #[test]
    fn what_is_read_says_the_same_risks() {
        let (made, validation) = forecast(&cases(), 0.0, 0.15, vec![origin()]).unwrap();
        assert!(made.brier < 0.5 * made.brier_base, "the planted relation: {} {}", made.brier, made.brier_base);
        assert_eq!((made.runs, made.cases, made.rate, validation.risks.len()), (4, 12, 0.5, 12));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("forecast.json");
        std::fs::write(&path, made.to_json().to_string()).unwrap();
        let read = Forecast::read(&path).unwrap();
        // The file keeps every bit of a number.
        assert!(cases().iter().all(|case| read.risk(case) == made.risk(case)));
        assert_eq!((&read.origins, read.threshold, read.brier), (&made.origins, made.threshold, made.brier));
        assert!(read.risk(&cases()[5]) > 0.8 && read.risk(&cases()[10]) < 0.2);
        assert!(
            !read.missing(&cases()).contains(&Measure::Drift)
                && read.missing(&cases()).len() == Measure::FORECAST.len() - 1
        );
    }

    #[test]
    fn another_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("forecast.json");
        assert!(Forecast::read(&path).unwrap_err().to_string().contains("forgetscope study --forecast"));
        let (made, _) = forecast(&cases(), 0.0, 0.15, vec![origin()]).unwrap();
        let mut later = made.to_json();
        later["forgetscope_forecast"] = 2.into();
        let mut flat = made.to_json();
        flat["features"][0]["deviation"] = 0.into();
        for wrong in ["[]".into(), "no JSON".into(), later.to_string(), flat.to_string()] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Forecast::read(&path).unwrap_err().to_string().contains("is no forecast that this version reads"));
        }
    }

    #[test]
    fn one_run_is_too_few() {
        assert!(forecast(&cases()[..3], 0.0, 0.15, vec![origin()]).is_none());
    }
}
