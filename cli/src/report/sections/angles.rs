//! Principal angles between a layer's leading subspaces at the end of a task and now, against those of random halves of
//! the task's own text.

use maud::{Markup, html};

use super::{Part, between, missing, of_reference, width_of};
use crate::format::count;
use crate::report::charts::against_null::{Row, draw};
use crate::report::data::{Angles, Data, Layers};
use crate::report::findings::Findings;
use crate::report::words::figure;

/// Below this gap the last axes of a subspace are nearly interchangeable, so that its angles say little.
const SMALL_GAP: f64 = 0.05;

pub fn section(data: &Data) -> Markup {
    let shown: Vec<(u16, Vec<(u32, Angles)>)> =
        data.representations.iter().map(|(reference, layers)| (*reference, latest(layers))).collect();
    let shown: Vec<_> = shown.into_iter().filter(|(_, layers)| !layers.is_empty()).collect();
    if shown.is_empty() {
        return missing(
            "angles",
            "Principal angles",
            "Principal angles were not measured. They take hidden states of an earlier task's batches at its end and later \
             (fgs_probe_begin, fgs_probe_hidden).",
        );
    }
    let all = || shown.iter().flat_map(|(_, layers)| layers.iter().map(|(_, angles)| angles));
    let doubtful = all().filter(|angles| has_small_gap(angles)).count();
    Part {
        id: "angles",
        subject: "Principal angles",
        title: title(data, &shown),
        note: html! {
            "Mean principal angle between the leading subspaces of a layer's hidden states at the end of the earlier task and now, of k = "
            (between(all().map(|angles| angles.dimensions as u64))) " dimensions; n = " (between(all().map(|angles| angles.tokens as u64)))
            " tokens. Null: halves of the task's own sequences at the same weights; the line is its mean, the bar ends at its 95th \
             percentile. Halves have half the tokens, so the null is about √2 too large, on the careful side. Largest angles are in the \
             tooltips: they move first, and with a small gap behind the last axis they mean nothing."
            @if doubtful > 0 {
                " Hollow also where that gap is below " (figure(SMALL_GAP)) " of the axis' variance (" (count(doubtful as u64)) " of "
                (count(all().count() as u64)) "): the axes there are nearly interchangeable, whatever the angle."
            }
        },
        body: html! {
            div.pair { @for (reference, layers) in &shown {
                @let rows: Vec<Row> = layers.iter().map(|(layer, angles)| row(*layer, angles)).collect();
                (of_reference(data, *reference, &format!("text of {}", data.task(*reference)),
                    draw(&rows, width_of(shown.len()), "mean principal angle, degrees", degrees)))
            } }
        },
    }
    .draw()
}

fn latest(layers: &Layers) -> Vec<(u32, Angles)> {
    let found = layers.iter().filter_map(|(number, layer)| Some((*number, layer.angles.latest()?.found)));
    found.filter(|(_, angles)| angles.mean.is_finite()).collect()
}

fn has_small_gap(angles: &Angles) -> bool {
    angles.eigengap.min(angles.eigengap_base) < SMALL_GAP
}

fn title(data: &Data, shown: &[(u16, Vec<(u32, Angles)>)]) -> String {
    let reference = Findings::of(data).reference;
    let Some((task, layers)) = shown.iter().find(|(task, _)| Some(*task) == reference).or(shown.first()) else {
        return String::new();
    };
    let beyond = layers.iter().filter(|(_, angles)| angles.mean > angles.null_high && !has_small_gap(angles)).count();
    let (task, n) = (data.task(*task), layers.len());
    match beyond {
        0 => format!(
            "In none of {n} layers has the leading subspace of {task} turned more than halves of its text differ"
        ),
        k if k == n => {
            format!("In all {n} layers the leading subspace of {task} has turned more than halves of its text differ")
        }
        k => format!(
            "In {k} of {n} layers the leading subspace of {task} has turned more than halves of its text differ"
        ),
    }
}

fn degrees(value: f64) -> String {
    format!("{value:.1}°")
}

fn row(layer: u32, angles: &Angles) -> Row {
    let Angles { mean, max, null_mean, null_high, eigengap, eigengap_base, .. } = *angles;
    let title = format!(
        "layer {layer}: mean angle {}, largest {}; null {} on average, {} at 95 %; gap {} now, {} then",
        degrees(mean),
        degrees(max),
        degrees(null_mean),
        degrees(null_high),
        figure(eigengap),
        figure(eigengap_base)
    );
    let is_doubtful = has_small_gap(angles);
    Row { name: format!("layer {layer}"), value: mean, null: (null_mean, null_high), is_doubtful, title }
}
