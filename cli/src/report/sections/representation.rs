//! Hidden states of earlier tasks' text, layer by layer: how like they are to those at the end of the task.

use maud::{Markup, html};

use super::{
    Part, Points, between, columns, layer_lines, missing, of_reference, or_nothing, stretches, width_of, with_error,
};
use crate::format::{count, significant};
use crate::report::charts::lines::{Band, Lines};
use crate::report::data::{Data, Layer, Layers};
use crate::report::findings::Findings;
use crate::report::words::{capitalised, cosine, cosine_error, furthest_in_words};

/// Rows of the table: with more layers, those that have changed most.
const ROWS: usize = 16;

pub fn section(data: &Data) -> Markup {
    let shown: Vec<(u16, &Layers)> = data
        .representations
        .iter()
        .filter(|(_, layers)| layers.values().any(|layer| layer.latest().is_some()))
        .map(|(reference, layers)| (*reference, layers))
        .collect();
    if shown.is_empty() {
        return missing(
            "representation",
            "Representation by layer",
            "Representations were not compared. That takes hidden states of a fixed set of an earlier task's batches \
             (fgs_probe_begin, fgs_probe_batch, fgs_probe_hidden, fgs_probe_end), once at the end of that task and again later.",
        );
    }
    let layers = || shown.iter().flat_map(|(_, layers)| layers.values());
    let counts = layers().map(|layer| layer.states.later.len() as u64);
    let tokens = layers().filter_map(|layer| Some(layer.latest()?.found.tokens as u64));
    let has_continued = layers().any(|layer| layer.continued().is_some());
    Part {
        id: "representation",
        subject: "Representation by layer",
        title: title(data, &shown),
        note: html! {
            "Debiased linear CKA between a layer's hidden states of the earlier task's text at the end of that task and later: \
             1 is unchanged (the tokens are the same), 0 unrelated; n = " (between(tokens)) " tokens, " (between(counts))
            " passes; ± standard error (jackknife over sequences). Darker lines are later layers."
            @if has_continued {
                " Grey: what further training on the earlier task itself leaves, from the lowest to the highest over layers and passes."
            } @else {
                " How much further training on the earlier task itself would change was not measured (continued_updates of fgs_probe_begin)."
            }
            " Biased CKA, which published figures often are, is now " (range(layers().filter_map(|layer| Some(layer.latest()?.found.biased))))
            "; it depends on the number of tokens. Mean shift: distance of the \
             means over the spread at the base. Effective rank: participation ratio of the covariance. Bold in the last column: the layer's \
             likeness to the next one has changed by more than two standard errors, which marks it as critical; which of the two moved \
             is not known."
        },
        body: html! {
            div.pair { @for (reference, layers) in &shown {
                (of_reference(data, *reference, &caption(data, *reference, layers), html! {
                    (chart(data, *reference, layers, width_of(shown.len())))
                    (table(layers))
                }))
            } }
        },
    }
    .draw()
}

fn title(data: &Data, shown: &[(u16, &Layers)]) -> String {
    let findings = Findings::of(data);
    match (findings.reference, &findings.representation) {
        (Some(task), Some(found)) => capitalised(&furthest_in_words(&data.task(task), found)),
        _ => format!("How each layer represents the text of {}", data.task(shown[0].0)),
    }
}

/// Two digits.
fn short(value: f64) -> String {
    significant(value, 2)
}

/// `0.61 to 0.74`.
fn range(values: impl Iterator<Item = f64>) -> String {
    let (low, high) =
        values.fold((f64::NAN, f64::NAN), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    if low == high { or_nothing(low) } else { format!("{} to {}", or_nothing(low), or_nothing(high)) }
}

/// With the step of the base.
fn caption(data: &Data, reference: u16, layers: &Layers) -> String {
    let base = layers.values().find_map(|layer| layer.states.base);
    let base = base.map_or_else(String::new, |step| format!(", against step {}", count(step)));
    format!("text of {}{base}", data.task(reference))
}

fn chart(data: &Data, reference: u16, layers: &Layers, width: f64) -> Markup {
    let points = |layer: &Layer| {
        let looks = layer.states.later.iter();
        looks.map(|look| (look.step as f64, look.found.cka)).collect::<Points>()
    };
    let measured: Vec<(u32, Points)> =
        layers.iter().filter(|(_, layer)| layer.latest().is_some()).map(|(n, layer)| (*n, points(layer))).collect();
    let last = |index: usize| measured[index].1.last().map_or(f64::NAN, |point| point.1);
    let lowest = (0..measured.len()).map(last).fold(f64::NAN, f64::min);
    let series = layer_lines(&measured, |index| last(index) == lowest);
    let continued = || layers.values().flat_map(|layer| &layer.states.continued).map(|look| look.found.cka);
    let (low, high) = (continued().fold(f64::NAN, f64::min), continued().fold(f64::NAN, f64::max));
    let stretches = stretches(data, Some(reference));
    let ends = stretches.iter().flat_map(|stretch| [stretch.begin, stretch.end]);
    let ends = ends.chain(measured.iter().flat_map(|(_, points)| points.iter().map(|point| point.0)));
    let (first, end) = ends.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), x| (low.min(x), high.max(x)));
    let band = Band { points: vec![(first, low, high), (end, low, high)], paint: None };
    let (y_name, level) = ("debiased CKA with the end of the task", Some(1.0));
    Lines { y_name, width, height: 260.0, series, stretches: &stretches, band, level, ..Lines::default() }.draw()
}

fn table(layers: &Layers) -> Markup {
    let mut all: Vec<(u32, &Layer)> = layers.iter().map(|(number, layer)| (*number, layer)).collect();
    all.retain(|(_, layer)| layer.latest().is_some());
    let left_out = all.len().saturating_sub(ROWS);
    if left_out > 0 {
        let cka = |layer: &Layer| layer.latest().map_or(f64::NAN, |look| look.found.cka);
        all.sort_by(|a, b| cka(a.1).total_cmp(&cka(b.1)));
        all.truncate(ROWS);
        all.sort_by_key(|(number, _)| *number);
    }
    let rows: Vec<Vec<Markup>> = all.iter().map(|(number, layer)| row(*number, layer)).collect();
    html! {
        (columns(&["layer", "CKA", "continued", "mean shift", "effective rank", "change to next"], &rows))
        @if left_out > 0 { p.note { "The " (count(ROWS as u64)) " layers that have changed most, of " (count((ROWS + left_out) as u64)) "." } }
    }
}

fn row(number: u32, layer: &Layer) -> Vec<Markup> {
    let Some(now) = layer.latest().map(|look| look.found) else { return Vec::new() };
    let neighbour = layer.neighbours.latest().map(|look| look.found);
    let change = neighbour.map_or_else(|| or_nothing(f64::NAN), |found| with_error(found.change, found.error));
    vec![
        html! { (number) },
        html! { span title={ "biased CKA " (or_nothing(now.biased)) } { (cosine(now.cka)) " ± " (cosine_error(now.error)) } },
        html! { (or_nothing(layer.continued().unwrap_or(f64::NAN))) },
        html! { (or_nothing(now.mean_shift)) },
        html! { (short(now.effective_rank_base)) " → " (short(now.effective_rank)) },
        html! { @if layer.is_critical() { b { (change) } } @else { (change) } },
    ]
}
