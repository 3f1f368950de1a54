//! Early warning: from the first steps of a new task, the risk that an earlier one is forgotten beyond a threshold.
//!
//! A ridge logistic regression on standardised features (size of the new gradient, corrected cosine, drift, predicted loss
//! change): few cases and correlated features allow no more. Its calibration is judged by leaving one run out at a time:
//! the model that speaks of a run has seen no step of it. The Brier score (Brier 1950), the mean squared distance of risk
//! from what happened, stands beside that of always saying the base rate; a forecast that does not beat it says nothing.
//!
//! Cost: a few Newton steps on as many unknowns as there are features.

use super::linalg::solve_positive_definite;
use ndarray::{Array1, Array2};

/// Weight of the penalty ½·ridge·|w|² against the sum of log-losses: with standardised features, a prior belief that one
/// standard deviation changes the log-odds by about one.
pub const RIDGE: f64 = 1.0;

/// Newton steps; the objective is strictly convex and converges in less than ten.
const STEPS: usize = 50;

/// One earlier task while one later task was trained.
#[derive(Clone, Debug)]
pub struct Case {
    /// Cases of one run are left out together.
    pub run: usize,
    /// NaN: not measured; stands for the mean.
    pub features: Vec<f64>,
    /// It was forgotten beyond the threshold.
    pub happened: bool,
}

/// A fitted regression.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub intercept: f64,
    pub features: Vec<Feature>,
}

/// A feature is used as (value − mean)/deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feature {
    pub mean: f64,
    pub deviation: f64,
    /// Change of the log-odds per standard deviation.
    pub weight: f64,
}

/// How good forecasts are of runs that the model has not seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// Per case, by the model that has not seen its run; NaN if no model could be fitted.
    pub risks: Vec<f64>,
    /// Mean (risk − happened)².
    pub brier: f64,
    /// The same for always saying how often it happened in the other runs.
    pub brier_base: f64,
    pub cases: usize,
    pub runs: usize,
}

impl Model {
    /// Fits all cases. `None` without cases, or if they have different numbers of features.
    pub fn fit(cases: &[&Case], ridge: f64) -> Option<Self> {
        let count = cases.first()?.features.len();
        if cases.iter().any(|case| case.features.len() != count) {
            return None;
        }
        let mut features: Vec<Feature> = (0..count).map(|k| standard(cases, k)).collect();
        let rows: Vec<Vec<f64>> = cases
            .iter()
            .map(|case| {
                let scaled = features.iter().zip(&case.features).map(|(feature, &value)| feature.scaled(value));
                std::iter::once(1.0).chain(scaled).collect()
            })
            .collect();
        let mut weights = Array1::<f64>::zeros(count + 1);
        for _ in 0..STEPS {
            // The intercept is hardly penalised: the base rate is not to be shrunk, but the system has to stay definite.
            let penalty = |k: usize| if k == 0 { 1e-6 } else { ridge };
            let mut hessian =
                Array2::from_shape_fn((count + 1, count + 1), |(i, j)| if i == j { penalty(i) } else { 0.0 });
            let mut gradient = Array1::from_shape_fn(count + 1, |k| penalty(k) * weights[k]);
            for (row, case) in rows.iter().zip(cases) {
                let risk = logistic(row.iter().zip(&weights).map(|(x, w)| x * w).sum());
                let (off, spread) = (risk - f64::from(u8::from(case.happened)), risk * (1.0 - risk));
                for (i, x) in row.iter().enumerate() {
                    gradient[i] += off * x;
                    for (j, y) in row.iter().enumerate() {
                        hessian[[i, j]] += spread * x * y;
                    }
                }
            }
            let step = solve_positive_definite(&hessian, &gradient)?;
            // Far from the optimum a full step may overshoot; the log-odds change by at most a few units at a time.
            let largest = step.iter().fold(0.0f64, |most, part| most.max(part.abs()));
            weights.scaled_add(-1.0 / (largest / 4.0).max(1.0), &step);
            if largest < 1e-12 {
                break;
            }
        }
        features.iter_mut().zip(weights.iter().skip(1)).for_each(|(feature, &weight)| feature.weight = weight);
        Some(Self { intercept: weights[0], features })
    }

    /// The risk, between 0 and 1. NaN if the number of features is another one.
    pub fn risk(&self, features: &[f64]) -> f64 {
        if features.len() != self.features.len() {
            return f64::NAN;
        }
        let parts = self.features.iter().zip(features).map(|(feature, &value)| feature.weight * feature.scaled(value));
        logistic(self.intercept + parts.sum::<f64>())
    }
}

impl Feature {
    fn scaled(&self, value: f64) -> f64 {
        if value.is_finite() { (value - self.mean) / self.deviation } else { 0.0 }
    }
}

/// Mean and deviation of a feature over the cases that have it.
fn standard(cases: &[&Case], k: usize) -> Feature {
    let values: Vec<f64> = cases.iter().map(|case| case.features[k]).filter(|value| value.is_finite()).collect();
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    // What does not vary is no feature: its scaled value is zero whatever the divisor.
    let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
    Feature { mean, deviation, weight: 0.0 }
}

fn logistic(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-log_odds).exp())
}

/// Forecasts every run by the model of all other runs.
pub fn leave_one_run_out(cases: &[Case], ridge: f64) -> Validation {
    let mut runs: Vec<usize> = cases.iter().map(|case| case.run).collect();
    runs.sort_unstable();
    runs.dedup();
    let mut risks = vec![f64::NAN; cases.len()];
    let mut base = vec![f64::NAN; cases.len()];
    for &run in &runs {
        let others: Vec<&Case> = cases.iter().filter(|case| case.run != run).collect();
        let Some(model) = Model::fit(&others, ridge) else { continue };
        let rate = others.iter().filter(|case| case.happened).count() as f64 / others.len() as f64;
        for (index, case) in cases.iter().enumerate().filter(|(_, case)| case.run == run) {
            (risks[index], base[index]) = (model.risk(&case.features), rate);
        }
    }
    let score = |said: &[f64]| {
        let off = said.iter().zip(cases).filter(|(risk, _)| risk.is_finite());
        let squares: Vec<f64> = off.map(|(risk, case)| (risk - f64::from(u8::from(case.happened))).powi(2)).collect();
        if squares.is_empty() { f64::NAN } else { squares.iter().sum::<f64>() / squares.len() as f64 }
    };
    let (brier, brier_base) = (score(&risks), score(&base));
    Validation { risks, brier, brier_base, cases: cases.len(), runs: runs.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;
    use proptest::prelude::*;

    /// Cases whose log-odds are 2·x₀; x₁ is noise.
    fn cases(runs: usize, seed: u64) -> Vec<Case> {
        let mut random = Random::new(seed);
        (0..runs * 3)
            .map(|index| {
                let features = vec![random.normal(), random.normal()];
                Case { run: index / 3, happened: random.uniform() < logistic(2.0 * features[0]), features }
            })
            .collect()
    }

    #[test]
    fn finds_the_odds_that_cases_were_drawn_with() {
        let cases = cases(700, 3);
        let model = Model::fit(&cases.iter().collect::<Vec<_>>(), RIDGE).unwrap();
        // Standard error of a logistic weight here: 1/√(n·E[p(1−p)x²]) ≈ 1/√(2100·.09) = .07.
        let weight = |k: usize| model.features[k].weight / model.features[k].deviation;
        assert!((weight(0) - 2.0).abs() < 0.3 && weight(1).abs() < 0.25, "{model:?}");
        let validation = leave_one_run_out(&cases, RIDGE);
        assert!(validation.brier < 0.85 * validation.brier_base, "{} {}", validation.brier, validation.brier_base);
        assert_eq!((validation.cases, validation.runs), (2100, 700));
    }

    /// At the optimum of the penalised likelihood Σ(risk − happened)·x + ridge·w = 0.
    #[test]
    fn solves_the_penalised_likelihood() {
        let cases = cases(20, 5);
        let model = Model::fit(&cases.iter().collect::<Vec<_>>(), 0.5).unwrap();
        for k in 0..2 {
            let off = |case: &Case| model.risk(&case.features) - f64::from(u8::from(case.happened));
            let score: f64 = cases.iter().map(|case| off(case) * model.features[k].scaled(case.features[k])).sum();
            assert!((score + 0.5 * model.features[k].weight).abs() < 1e-9);
        }
    }

    #[test]
    fn features_without_meaning_do_not_beat_the_base_rate() {
        let mut random = Random::new(8);
        let mut cases = cases(60, 7);
        cases.iter_mut().for_each(|case| case.features = vec![random.normal(), random.normal()]);
        let validation = leave_one_run_out(&cases, RIDGE);
        assert!(validation.brier > 0.97 * validation.brier_base, "{} {}", validation.brier, validation.brier_base);
    }

    #[test]
    fn separable_missing_and_constant_features_are_no_trouble() {
        let case = |run, x, happened| Case { run, features: vec![x, 1.0, f64::NAN], happened };
        let cases: Vec<Case> = (0..6).map(|k| case(k, k as f64, k >= 3)).collect();
        let model = Model::fit(&cases.iter().collect::<Vec<_>>(), RIDGE).unwrap();
        assert!(model.risk(&[0.0, 1.0, f64::NAN]) < 0.3 && model.risk(&[5.0, 1.0, 2.0]) > 0.7);
        assert!(model.risk(&[f64::NAN, 1.0, 2.0]).is_finite());
        assert!(model.risk(&[1.0]).is_nan());
        assert!(leave_one_run_out(&[], RIDGE).brier.is_nan());
        assert!(leave_one_run_out(&cases[..1], RIDGE).brier.is_nan(), "one run leaves nothing to learn from");
    }

    proptest! {
        #[test]
        fn risks_are_probabilities_and_units_do_not_matter(seed in 0u64..500, scale in 0.01f64..100.0) {
            let cases = cases(8, seed);
            let scaled: Vec<Case> = cases
                .iter()
                .map(|case| Case { features: case.features.iter().map(|x| x * scale).collect(), ..case.clone() })
                .collect();
            let (one, other) = (leave_one_run_out(&cases, RIDGE), leave_one_run_out(&scaled, RIDGE));
            for (one, other) in one.risks.iter().zip(&other.risks) {
                prop_assert!((0.0..=1.0).contains(one) && (one - other).abs() < 1e-6);
            }
        }
    }
}
