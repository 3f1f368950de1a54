//! A calibrated forecast: fitted to the cases of a study, kept as a file, applied to other runs.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use forgetscope::stats::forecast::{Case as Fitted, Feature, Model, RIDGE, Validation, leave_one_run_out};
use serde_json::{Value, json};

use super::case::Case;
use super::measure::Measure;

/// A forecast with all that is needed to judge it.
#[derive(Clone, Debug)]
pub struct Forecast {
    model: Model,
    measures: Vec<Measure>,
    /// Forgetting beyond this is what the risk is of, in units of the loss.
    pub threshold: f64,
    /// Share of a task's steps that it looks at.
    pub early: f64,
    pub runs: usize,
    pub cases: usize,
    /// Share of cases that were beyond the threshold.
    pub rate: f64,
    /// Left one run out.
    pub brier: f64,
    pub brier_base: f64,
}

/// Fits a forecast of forgetting beyond `threshold` to all cases, and judges it by leaving out one run at a time. `None`
/// with fewer than two runs.
pub fn forecast(cases: &[Case], threshold: f64, early: f64) -> Option<(Forecast, Validation)> {
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
        runs: validation.runs,
        cases: validation.cases,
        rate: fitted.iter().filter(|case| case.happened).count() as f64 / fitted.len() as f64,
        brier: validation.brier,
        brier_base: validation.brier_base,
    };
    Some((forecast, validation))
}

impl Forecast {
    /// The risk that the case's earlier task is forgotten beyond the threshold.
    pub fn risk(&self, case: &Case) -> f64 {
        self.model.risk(&self.measures.iter().map(|&measure| case.value(measure)).collect::<Vec<_>>())
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
            "runs": self.runs,
            "cases": self.cases,
            "rate": self.rate,
            "brier_leave_one_run_out": self.brier,
            "brier_of_the_rate": self.brier_base,
            "intercept": self.model.intercept,
            "features": self.measures.iter().zip(&self.model.features).map(feature).collect::<Vec<_>>(),
        })
    }

    /// Reads what `forgetscope study --forecast` wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
        let wrong = || anyhow!("{} is no forecast; make one with `forgetscope study --forecast`", path.display());
        let value: Value = serde_json::from_str(&text).map_err(|_| wrong())?;
        if value["forgetscope_forecast"] != 1 {
            bail!(wrong());
        }
        let number = |key: &str| value[key].as_f64().ok_or_else(wrong);
        let count = |key: &str| value[key].as_u64().map(|count| count as usize).ok_or_else(wrong);
        let (mut measures, mut features) = (Vec::new(), Vec::new());
        for feature in value["features"].as_array().ok_or_else(wrong)? {
            let number = |key: &str| feature[key].as_f64().ok_or_else(wrong);
            measures.push(feature["name"].as_str().and_then(Measure::from_name).ok_or_else(wrong)?);
            let (mean, deviation, weight) = (number("mean")?, number("deviation")?, number("weight")?);
            features.push(Feature { mean, deviation, weight });
        }
        Ok(Self {
            model: Model { intercept: number("intercept")?, features },
            measures,
            threshold: number("threshold")?,
            early: number("early_share")?,
            runs: count("runs")?,
            cases: count("cases")?,
            rate: number("rate")?,
            brier: number("brier_leave_one_run_out")?,
            brier_base: number("brier_of_the_rate")?,
        })
    }
}
