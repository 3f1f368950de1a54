//! The risks that a forecast gives from the first steps of each task, and what happened. Only with `--forecast`.

use maud::{Markup, html};

use super::Part;
use crate::format::{number, plural};
use crate::report::charts::bars::{Row, draw};
use crate::report::data::Data;
use crate::report::words::{figure, percent};
use crate::study::{Case, Forecast, Measure, Origin};

pub fn section(data: &Data) -> Markup {
    let Some(forecast) = &data.forecast else { return html! {} };
    let pairs = data.pairs();
    if pairs.is_empty() {
        return super::missing(
            "forecast",
            "Forecast",
            "There is nothing to foretell yet: the forecast speaks of an earlier task once the first steps of a later one are over.",
        );
    }
    let rows: Vec<Row> = pairs.iter().map(|case| row(forecast, case)).collect();
    let missing: Vec<&str> = forecast.missing(&pairs).into_iter().map(Measure::title).collect();
    let base = format!("rate {}", percent(forecast.rate));
    Part {
        id: "forecast",
        subject: "Forecast",
        title: title(forecast, &pairs),
        note: html! {
            "Risk that the loss of the earlier task rises by more than " (figure(forecast.threshold)) " while the later one is trained, from the \
             first " (percent(forecast.early)) " of its steps. A ridge logistic regression, calibrated on "
            (plural(forecast.cases as u64, "case")) " of " (plural(forecast.runs as u64, "run")) "; on runs that it had not seen its Brier \
             score was " (figure(forecast.brier)) ", that of always saying the rate " (figure(forecast.brier_base)) " (0 is perfect)"
            @if forecast.brier >= forecast.brier_base { ": it is no better than the rate, and its risks mean nothing" } ". "
            (relation(forecast, &Origin::of(&data.catalog)))
            (steps(forecast, &pairs))
            @if !missing.is_empty() {
                " Not measured in the first steps here, so that an average stands for it: " (missing.join("; ")) "."
            }
            " Dotted: the rate of those runs. Full circles: beyond the threshold."
        },
        body: draw(&rows, (forecast.rate, &base)),
    }
    .draw()
}

fn title(forecast: &Forecast, pairs: &[Case]) -> String {
    let known: Vec<(f64, bool)> = pairs
        .iter()
        .filter(|case| case.forgetting.is_finite())
        .map(|case| (forecast.risk(case), case.forgetting > forecast.threshold))
        .filter(|(risk, _)| risk.is_finite())
        .collect();
    if known.is_empty() {
        return "What the first steps foretell; what happens is not known yet".into();
    }
    let expected: f64 = known.iter().map(|(risk, _)| risk).sum();
    let happened = known.iter().filter(|(_, happened)| *happened).count();
    format!(
        "Of {}, {} were expected to be forgotten beyond {}; {happened} were",
        plural(known.len() as u64, "pair"),
        number((10.0 * expected).round() / 10.0),
        figure(forecast.threshold)
    )
}

/// Says so if the first steps are many more here than they were there, or many fewer.
fn steps(forecast: &Forecast, pairs: &[Case]) -> String {
    let (there, here) = (forecast.early_steps, pairs.first().map_or(0, |case| case.early_steps));
    if here <= 2 * there && there <= 2 * here {
        return String::new();
    }
    format!(
        " It was calibrated on the first {there} steps of a task and looks at {here} here: drift, CKA and the predicted change grow \
         with steps, so it is beyond what it knows."
    )
}

/// Whether the forecast may speak of this run.
fn relation(forecast: &Forecast, run: &Origin) -> String {
    if forecast.origins.iter().any(|origin| origin.instance == run.instance) {
        return "This very run is among them: agreement shows nothing here.".into();
    }
    if forecast.origins.iter().any(|origin| origin.has_the_shape_of(run)) {
        return "Those were models of the same size as this one, but another recipe or other data may break it.".into();
    }
    "Those were other models than this one: take the risks as an order at best.".into()
}

fn row(forecast: &Forecast, case: &Case) -> Row {
    let happened = case.forgetting.is_finite().then_some(case.forgetting > forecast.threshold);
    let outcome = match happened {
        Some(beyond) => {
            let (change, verb) =
                (figure(case.forgetting.abs()), if case.forgetting > 0.0 { "rose by" } else { "fell by" });
            format!("{verb} {change}{}", if beyond { ": beyond" } else { "" })
        }
        None if case.is_over => "not evaluated".into(),
        None => "not over yet".into(),
    };
    Row { name: format!("{}, while {}", case.earlier, case.later), share: forecast.risk(case), happened, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{case_of, forecast};

    fn calibrated() -> Forecast {
        let origin = Origin { instance: "ab".into(), run: String::new(), tasks: vec![], parameters: 9, layers: 2 };
        let cases: Vec<Case> = (0..8)
            .map(|k| Case { run: k / 2, ..case_of(Measure::Drift, k as f64, [0.1, 0.9][usize::from(k % 3 == 0)]) })
            .collect();
        forecast(&cases, 0.5, 0.15, vec![origin]).unwrap().0
    }

    #[test]
    fn the_forecast_says_what_it_is_of() {
        let forecast = calibrated();
        let run = |instance: &str, parameters| Origin {
            instance: instance.into(),
            run: String::new(),
            tasks: vec![],
            parameters,
            layers: 2,
        };
        assert!(relation(&forecast, &run("ab", 9)).starts_with("This very run"));
        assert!(relation(&forecast, &run("cd", 9)).starts_with("Those were models of the same size"));
        assert!(relation(&forecast, &run("cd", 10)).starts_with("Those were other models"));
    }

    #[test]
    fn what_happened_is_beside_the_risk() {
        let forecast = calibrated();
        let outcome =
            |forgetting, is_over| row(&forecast, &Case { is_over, ..case_of(Measure::Drift, 1.0, forgetting) });
        assert_eq!(
            (outcome(0.62, true).happened, outcome(0.62, true).outcome),
            (Some(true), "rose by 0.62: beyond".into())
        );
        assert_eq!(outcome(-0.1, true).outcome, "fell by 0.1");
        assert_eq!(outcome(f64::NAN, true).outcome, "not evaluated");
        assert_eq!(
            (outcome(f64::NAN, false).happened, outcome(f64::NAN, false).outcome),
            (None, "not over yet".into())
        );
        assert!(title(&forecast, &[case_of(Measure::Drift, 1.0, f64::NAN)]).contains("not known yet"));
    }
}
