//! The results as text for people and as JSON for programs.

use std::fmt::Write;

use forgetscope::stats::correlation::Coefficient;
use forgetscope::stats::forecast::Validation;
use serde_json::{Value, json};

use super::case::Case;
use super::forecast::Forecast;
use super::{Measure, Relation};
use crate::format::{NOTHING, number, plural};

/// Cases, relations and the forecast, as aligned columns.
pub fn text(
    runs: &[String],
    cases: &[Case],
    relations: &[Relation],
    forecast: Option<&(Forecast, Validation)>,
) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} of {}: each earlier task while a later one was trained\n",
        plural(cases.len() as u64, "case"),
        plural(runs.len() as u64, "run")
    );
    let _ = writeln!(out, "{:<30} {:>24} {:>24}   n", "with forgetting", "Pearson r [95 %]", "Spearman ρ [95 %]");
    for Relation { measure, correlation } in relations {
        let (pearson, spearman) = (coefficient(&correlation.pearson), coefficient(&correlation.spearman));
        let _ = writeln!(out, "{:<30} {pearson:>24} {spearman:>24} {:>3}", measure.title(), correlation.pairs);
    }
    let _ = writeln!(
        out,
        "\nIntervals resample whole runs; with fewer than three there are none. Measured in the first steps of the later\n\
         task, except similarity (before it) and excess loss (after it)."
    );
    let Some((forecast, validation)) = forecast else {
        let _ = writeln!(out, "\nNo forecast: it takes at least two runs.");
        return out;
    };
    let _ = writeln!(
        out,
        "\nForecast of a rise beyond {} from the first {} % of a task's steps, each run by the model of the others:\n",
        number(forecast.threshold),
        number(100.0 * forecast.early)
    );
    let width = cases.iter().map(|case| case.earlier.len() + case.later.len() + 3).max().unwrap_or(0).max(8);
    let _ = writeln!(out, "{:<5} {:<width$} {:>6} {:>10}  beyond", "run", "earlier, later", "risk", "forgotten");
    for (case, risk) in cases.iter().zip(&validation.risks) {
        let pair = format!("{} → {}", case.earlier, case.later);
        let beyond = if case.forgetting > forecast.threshold { "yes" } else { "no" };
        let risk = if risk.is_nan() { NOTHING.into() } else { format!("{:.0} %", 100.0 * risk) };
        let _ = writeln!(out, "{:<5} {pair:<width$} {risk:>6} {:>10}  {beyond}", case.run, number(case.forgetting));
    }
    let verdict = if forecast.brier < forecast.brier_base { "better than" } else { "no better than" };
    let _ = writeln!(
        out,
        "\nBrier score {:.3}, {verdict} always saying the rate of the other runs ({:.3}); 0 is perfect.",
        forecast.brier, forecast.brier_base
    );
    out
}

/// `0.91 [0.80, 0.97]`.
fn coefficient(found: &Coefficient) -> String {
    let two = |value: f64| if value.is_nan() { NOTHING.to_string() } else { format!("{value:.2}") };
    format!("{} [{}, {}]", two(found.value), two(found.low), two(found.high))
}

/// The same for programs; what is not a number is null.
pub fn json(
    runs: &[String],
    cases: &[Case],
    relations: &[Relation],
    forecast: Option<&(Forecast, Validation)>,
) -> Value {
    let coefficient = |c: &Coefficient| json!({ "value": c.value, "low": c.low, "high": c.high });
    let case = |(index, case): (usize, &Case)| {
        let measures = Measure::ALL.map(|measure| (measure.name().to_owned(), json!(case.value(measure))));
        json!({
            "run": runs.get(case.run), "earlier": case.earlier, "later": case.later, "forgetting": case.forgetting,
            "is_next": case.is_next, "early_steps": case.early_steps, "measures": serde_json::Map::from_iter(measures),
            "risk": forecast.map(|(_, validation)| validation.risks[index]),
        })
    };
    let relation = |Relation { measure, correlation }: &Relation| {
        json!({
            "measure": measure.name(), "pearson": coefficient(&correlation.pearson),
            "spearman": coefficient(&correlation.spearman), "cases": correlation.pairs, "runs": correlation.runs,
        })
    };
    json!({
        "runs": runs,
        "cases": cases.iter().enumerate().map(case).collect::<Vec<_>>(),
        "relations": relations.iter().map(relation).collect::<Vec<_>>(),
        "forecast": forecast.map(|(forecast, _)| forecast.to_json()),
    })
}
