//! Drift by layer: how far the weights have moved since an earlier task ended.

use maud::{Markup, html};

use super::{Part, between, missing, of_reference, stretches, width_of};
use crate::report::charts::Paint;
use crate::report::charts::lines::{Band, Lines, Series, Stroke};
use crate::report::data::{Data, Drift};
use crate::report::findings::Findings;
use crate::report::words::{figure, percent};

/// With more layers than this, only some lines have their names beside them.
const NAMED: usize = 8;

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
    let unresolved = |drift: &Drift| drift.relative <= 2.0 * drift.resolution;
    let hidden =
        data.drift.values().flat_map(|layers| layers.values()).flatten().filter(|drift| unresolved(drift)).count();
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
                @let series = series(layers.iter().map(|(layer, series)| (*layer, &series[..])));
                @let stretches = stretches(data, Some(reference));
                @let width = width_of(data.drift.len());
                @let lines = Lines { y_name: "relative drift", width, height: 260.0, series, stretches: &stretches, band: Band::default(), level: Some(0.0) };
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

fn series<'a>(layers: impl Iterator<Item = (u32, &'a [Drift])>) -> Vec<Series> {
    let layers: Vec<_> = layers.collect();
    let n = layers.len();
    let last = |index: usize| layers[index].1.last().map_or(f64::NAN, |drift| drift.relative);
    let furthest = (0..n).max_by(|&a, &b| last(a).total_cmp(&last(b)));
    let is_named = |index: usize| {
        n <= NAMED || index == 0 || index == n - 1 || Some(index) == furthest || index.is_multiple_of(n.div_ceil(NAMED))
    };
    let one = |(index, (layer, drifts)): (usize, &(u32, &[Drift]))| Series {
        name: if is_named(index) { format!("layer {layer}") } else { String::new() },
        paint: Paint::ordered(index as f64 / (n - 1).max(1) as f64),
        stroke: Stroke::Solid,
        points: drifts
            .iter()
            .map(|drift| {
                (drift.step as f64, if drift.relative <= 2.0 * drift.resolution { f64::NAN } else { drift.relative })
            })
            .collect(),
    };
    layers.iter().enumerate().map(one).collect()
}
