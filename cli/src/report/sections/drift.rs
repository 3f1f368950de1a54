//! Drift by layer: how far the weights have moved since an earlier task ended.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Part, between, layer_lines, missing, of_reference, stretches, width_of};
use crate::report::charts::lines::{Lines, Series};
use crate::report::data::{Data, Drift};
use crate::report::findings::Findings;
use crate::report::words::{figure, percent};

pub fn section(data: &Data) -> Markup {
    if data.drift.is_empty() {
        return missing(
            "drift",
            "Weight drift by layer",
            "Drift was not measured. It takes bound parameters (fgs_bind with FGS_PARAM or FGS_MASTER) and a snapshot of an earlier \
             task, which is taken when the task ends or by fgs_snapshot.",
        );
    }
    let counts = data.drift.values().flat_map(|layers| layers.values()).map(|series| series.len() as u64);
    let hidden =
        data.drift.values().flat_map(|layers| layers.values()).flatten().filter(|drift| is_unresolved(drift)).count();
    let resolution = data.drift.values().flat_map(|layers| layers.values()).flatten().map(|drift| drift.resolution);
    let resolution = resolution.filter(|resolution| resolution.is_finite()).fold(0.0, f64::max);
    Part {
        id: "drift",
        subject: "Weight drift by layer",
        title: title(data),
        note: html! {
            "‖θ − θ" sub { "A" } "‖ / ‖θ" sub { "A" } "‖ of all weights of a layer, θ" sub { "A" } " being the snapshot of the earlier task; n = " (between(counts))
            " sampled steps a line. The numbers resolve a relative drift of " (figure(resolution))
            @if hidden > 0 { "; " (hidden) " values that are not above twice that are left out" } ". Darker lines are later layers."
        },
        body: html! {
            div.pair { @for (&reference, layers) in &data.drift {
                @let series = series(layers);
                @let stretches = stretches(data, Some(reference));
                @let width = width_of(data.drift.len());
                @let lines = Lines { y_name: "relative drift", width, height: 260.0, series, stretches: &stretches, level: Some(0.0), ..Lines::default() };
                (of_reference(data, reference, &format!("since {} ended", data.task(reference)), lines.draw()))
            } }
        },
    }
    .draw()
}

fn title(data: &Data) -> String {
    let findings = Findings::of(data);
    match (findings.reference.map(|task| data.task(task)), findings.drift) {
        (Some(task), Some(drift)) if drift.is_unresolved => format!("No layer has measurably moved since {task} ended"),
        (Some(task), Some(drift)) => {
            format!(
                "Layer {} has moved furthest since {task} ended: {} of its norm",
                drift.layer,
                percent(drift.relative)
            )
        }
        _ => "How far each layer has moved".into(),
    }
}

/// One line a layer, without what rounding could explain.
fn series(layers: &BTreeMap<u32, Vec<Drift>>) -> Vec<Series> {
    let last = |drifts: &Vec<Drift>| drifts.last().map_or(f64::NAN, |drift| drift.relative);
    let furthest = layers.values().map(last).fold(f64::NAN, f64::max);
    let named: Vec<bool> = layers.values().map(|drifts| last(drifts) == furthest).collect();
    let point = |drift: &Drift| (drift.step as f64, if is_unresolved(drift) { f64::NAN } else { drift.relative });
    let lines = layers.iter().map(|(layer, drifts)| (*layer, drifts.iter().map(point).collect()));
    layer_lines(&lines.collect::<Vec<_>>(), |index| named[index])
}

/// Not above twice what the numbers can resolve.
fn is_unresolved(drift: &Drift) -> bool {
    drift.relative <= 2.0 * drift.resolution
}
