//! Predicted against actual change of each earlier task's loss.

use maud::{Markup, html};

use super::{Part, between, missing, of_reference, stretches, width_of};
use crate::report::charts::Paint;
use crate::report::charts::lines::{Band, Lines, Series, Stroke};
use crate::report::data::{Data, Prediction};
use crate::report::findings::Findings;
use crate::report::words::figure;

pub fn section(data: &Data) -> Markup {
    if data.predictions.is_empty() {
        return missing(
            "prediction",
            "Predicted loss change",
            "No change of loss was predicted. It takes bound parameters, a snapshot of an earlier task, and the gradients of that \
             task's data at those weights (fgs_reference_add, 32 to 64 batches).",
        );
    }
    let counts = data.predictions.values().map(|list| list.len() as u64);
    let is_unscaled = data.predictions.values().flatten().any(|prediction| prediction.is_unscaled);
    Part {
        id: "prediction",
        subject: "Predicted loss change",
        title: title(data),
        note: html! {
            "Change of the earlier task's loss since it ended; n = " (between(counts)) " predictions. Predicted: first order \
             ⟨g" sub { "A" } ", θ − θ" sub { "A" } "⟩ plus quadratic ½ (θ − θ" sub { "A" } ")ᵀF (θ − θ" sub { "A" } ") with the empirical \
             Fisher information F in place of the Hessian. Path: Σ⟨g" sub { "A" } ", Δθ⟩ along the way. Tinted: ± two standard errors of the first-order term alone. Actual: evaluations of \
             the loss less its value when the task ended."
            @if is_unscaled { " The batch size of the reference is unknown, so the quadratic term lacks its factor and the total is too small." }
        },
        body: html! {
            div.pair { @for (&reference, predictions) in &data.predictions {
                (of_reference(data, reference, &format!("loss of {}", data.task(reference)), chart(data, reference, predictions)))
            } }
        },
    }
    .draw()
}

/// Changes of the loss that evaluations have shown. Empty for other metrics: the prediction is of the loss.
fn actual(data: &Data, task: u16) -> Vec<(f64, f64)> {
    let is_loss = |metric: u16| data.catalog.names.metrics.get(&metric).is_some_and(|metric| metric.name == "loss");
    let metric = data.main_metric().filter(|&metric| is_loss(metric));
    let evaluations = metric.and_then(|metric| data.evaluations.get(&metric)?.get(&task)).into_iter().flatten();
    evaluations.map(|e| (e.step as f64, e.value - e.own)).filter(|(_, change)| change.is_finite()).collect()
}

fn title(data: &Data) -> String {
    // The task that the headline is about, if there is something to compare it with.
    let compared = |task: u16| {
        let actual = actual(data, task).last()?.1;
        Some((task, data.predictions.get(&task)?.last()?.predicted, actual))
    };
    let headline = Findings::of(data).reference.and_then(compared);
    let first = headline.or_else(|| data.predictions.keys().find_map(|&task| compared(task)));
    match first.filter(|(_, predicted, _)| predicted.is_finite()) {
        Some((task, predicted, actual)) => {
            let (task, predicted, actual) = (data.task(task), signed(predicted), signed(actual));
            format!("The loss of {task} was predicted to change by {predicted}; it changed by {actual}")
        }
        None => "How the loss of earlier tasks is predicted to change".into(),
    }
}

fn signed(value: f64) -> String {
    let value = (value * 1000.0).round() / 1000.0;
    if value > 0.0 { format!("+{}", figure(value)) } else { figure(value) }
}

fn chart(data: &Data, reference: u16, predictions: &[Prediction]) -> Markup {
    let series = |name: &str, paint: usize, stroke: Stroke, value: fn(&Prediction) -> f64| Series {
        name: name.into(),
        paint: Paint::category(paint),
        stroke,
        points: predictions.iter().map(|prediction| (prediction.step as f64, value(prediction))).collect(),
    };
    let group = predictions.len().div_ceil(300).max(1);
    let band = predictions
        .iter()
        .step_by(group)
        .map(|p| (p.step as f64, p.predicted - 2.0 * p.first_order_error, p.predicted + 2.0 * p.first_order_error));
    let all = vec![
        series("first order", 4, Stroke::Dashed, |p| p.first_order),
        series("quadratic", 2, Stroke::Dashed, |p| p.quadratic),
        series("path", 3, Stroke::Dotted, |p| p.path),
        series("predicted", 0, Stroke::Solid, |p| p.predicted),
        Series {
            name: "actual".into(),
            paint: Paint("var(--ink)".into()),
            stroke: Stroke::Points,
            points: actual(data, reference),
        },
    ];
    let stretches = stretches(data, Some(reference));
    let width = width_of(data.predictions.len());
    let band = Band { points: band.collect(), paint: Some(Paint::category(0)) };
    let (y_name, level) = ("change of loss", Some(0.0));
    Lines { y_name, width, height: 260.0, series: all, stretches: &stretches, band, level, ..Lines::default() }.draw()
}
