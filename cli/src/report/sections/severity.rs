//! Attention heads on earlier tasks' text: what they add to the residual stream now, against what further training on the
//! same task would have changed.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Part, between, columns, missing, of_reference, or_nothing};
use crate::format::{count, number};
use crate::report::charts::heat::{Cell, Heat, Legend, Mark, cell_size};
use crate::report::charts::intervals::{Intervals, Row};
use crate::report::data::{AttentionHeads, Data, HeadChange, HeadId, Severity};
use crate::report::findings::Findings;
use crate::report::words::{capitalised, cosine, cosine_error, figure, severity_in_words};

/// Heads in the table of what they attend to.
const ROWS: usize = 6;
/// Factors over the null that the colours may end at.
const LIMITS: [f64; 9] = [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

pub fn section(data: &Data) -> Markup {
    let shown: BTreeMap<u16, &AttentionHeads> = data
        .attention
        .iter()
        .filter(|(_, heads)| heads.latest().next().is_some() || !attended(heads).is_empty())
        .map(|(reference, heads)| (*reference, heads))
        .collect();
    if shown.is_empty() {
        return missing(
            "severity",
            "What heads add",
            "What attention heads add and attend to was not compared. It takes probes of an earlier task with fgs_probe_head_output and \
             fgs_probe_attention, passes with continued_updates for the null, and fgs_head_effect for the effect on the loss.",
        );
    }
    let ratios = shown.values().flat_map(|heads| heads.latest()).map(|(_, head)| head.over_null());
    let largest = ratios
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .map(|ratio| ratio.max(1.0 / ratio))
        .fold(1.0, f64::max);
    let limit = LIMITS.into_iter().find(|limit| *limit >= largest).unwrap_or(LIMITS[LIMITS.len() - 1]);
    let has_changes = shown.values().any(|heads| heads.latest().next().is_some());
    Part {
        id: "severity",
        subject: "What heads add",
        title: title(data),
        note: note(data, &shown),
        body: html! {
            @for (reference, heads) in &shown {
                @if heads.latest().next().is_some() {
                    (of_reference(data, *reference, &caption(data, *reference, heads), html! { div.maps {
                        (map(heads, limit))
                        (attention_table(heads))
                    } }))
                } @else {
                    (of_reference(data, *reference, &format!("text of {}", data.task(*reference)), attention_table(heads)))
                }
            }
            @if has_changes { (legend(limit)) }
            (depth(data, &shown))
        },
    }
    .draw()
}

fn title(data: &Data) -> String {
    let findings = Findings::of(data);
    match (findings.reference, &findings.severity) {
        (Some(task), Some(found)) => capitalised(&severity_in_words(&data.task(task), found)),
        _ => "What attention heads add and attend to".into(),
    }
}

fn note(data: &Data, shown: &BTreeMap<u16, &AttentionHeads>) -> Markup {
    let rows = shown.values().flat_map(|heads| attended(heads)).map(|(_, _, rows)| rows as u64);
    html! {
        "Rows are layers, columns are heads. Colour: change of what a head adds to the residual stream of the earlier task's text since the \
         end of that task, over the median of what as many updates on that task itself would have changed (null 1; logarithmic). "
        @match data.catalog.names.attributes.get("severity") {
            Some(predicate) => { (capitalised(predicate)) ". " }
            None => {}
        }
        "Hatched: undetermined, since there is no null for the head. Effect: loss now less loss with the head's old weights put back, all \
         others as they are now; positive is harm. Table: the heads whose attention has moved most, by Jensen–Shannon divergence from the \
         base (null 0, at most 0.69 nats; n = " (between(rows)) " rows), entropy in nats, and the share that the first key gets (sink)."
    }
}

/// The false discovery rate that the ring's predicate names.
fn false_discovery_rate(predicate: &str) -> Option<f64> {
    predicate.split_once("q ≤ ")?.1.split_whitespace().next()?.parse().ok().filter(|rate| (0.0..=1.0).contains(rate))
}

fn caption(data: &Data, reference: u16, heads: &AttentionHeads) -> String {
    let class = |least| heads.latest().filter(|(_, head)| head.severity >= Some(least)).count();
    let (changed, severe) = (class(Severity::Changed), class(Severity::Severe));
    let undetermined = heads.latest().filter(|(_, head)| head.severity.is_none()).count();
    let total = heads.latest().count();
    let mut text = format!("text of {}: of {} heads, {changed} changed", data.task(reference), count(total as u64));
    match heads.latest().any(|(_, head)| head.effect.is_finite()) {
        _ if changed == 0 => {}
        true => text += &format!(", {severe} of them severe"),
        false => text += "; how severe is not known (fgs_head_effect)",
    }
    if undetermined > 0 {
        text += &format!("; {undetermined} undetermined");
    }
    let rate = data.catalog.names.attributes.get("severity").and_then(|predicate| false_discovery_rate(predicate));
    if let Some(rate) = rate.filter(|_| changed > 0) {
        let (share, expected) = (number(100.0 * rate), figure(rate * changed as f64));
        text +=
            &format!(". At a false discovery rate of {share} %, at most {expected} of these are expected by chance");
    }
    let extrapolated = heads.latest().filter(|(_, head)| head.is_extrapolated);
    let updates = extrapolated.map(|(_, head)| head.updates).fold(f64::NAN, f64::max);
    if let Some(null) = heads.null_updates().filter(|_| updates.is_finite()) {
        let (null, updates) = (number(null), number(updates));
        text += &format!(". The null is extrapolated: measured over up to {null} updates, these are after {updates}");
    }
    text + "."
}

fn map(heads: &AttentionHeads, limit: f64) -> Markup {
    let layers = heads.latest().map(|((layer, _), _)| layer + 1).max().unwrap_or(0);
    let columns = heads.latest().map(|((_, head), _)| head + 1).max().unwrap_or(0);
    let cells = heads.latest().map(|(id, head)| cell(id, head, limit)).collect();
    Heat { title: "change over the null", cells, layers, heads: columns }.draw(cell_size(layers, columns))
}

fn cell((layer, head): HeadId, found: &HeadChange, limit: f64) -> Cell {
    let ratio = found.over_null();
    let is_noise = found.severity.is_none() || ratio.is_nan() || ratio <= 0.0;
    let mark = match found.severity {
        Some(Severity::Severe) => Mark::Thick,
        Some(Severity::Changed) => Mark::Thin,
        _ => Mark::None,
    };
    let mut title = format!(
        "layer {layer} head {head}: change {} of the residual stream, {} times the null, output cosine {}, q = {}",
        figure(found.change),
        or_nothing(ratio),
        or_nothing(found.output_cosine),
        or_nothing(found.q_value)
    );
    if found.effect.is_finite() {
        title += &format!(", effect {} ± {}", figure(found.effect), cosine_error(found.effect_error));
    }
    title += if is_noise { ": undetermined" } else { [": unchanged", ": changed", ": severe"][mark as usize] };
    let mut lines = vec![format!("{}×", crate::format::significant(ratio, 2))];
    if mark == Mark::Thick {
        lines.push(format!("+{}", crate::format::significant(found.effect, 1)));
    }
    // More change than usual has the colour of harm.
    let share = -(ratio.ln() / limit.ln());
    Cell { layer, head, share: if share.is_finite() { share } else { 0.0 }, lines, mark, is_noise, title }
}

fn legend(limit: f64) -> Markup {
    let (low, high) = (format!("{}×", number(limit)), format!("1/{}", number(limit)));
    Legend {
        scale: [&low, "1", &high],
        name: "change over its null",
        noise: "undetermined: no null",
        frames: Some(["changed", "severe, with its effect"]),
    }
    .draw()
}

/// Heads whose attention was compared: id, divergence, rows; the largest divergence first.
fn attended(heads: &AttentionHeads) -> Vec<(HeadId, f64, f64)> {
    let latest = heads.attention.iter().filter_map(|(id, looks)| Some((*id, looks.latest()?.found)));
    let mut found: Vec<(HeadId, f64, f64)> =
        latest.filter(|(_, a)| a.divergence.is_finite()).map(|(id, a)| (id, a.divergence, a.rows)).collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found
}

fn attention_table(heads: &AttentionHeads) -> Markup {
    let rows: Vec<Vec<Markup>> = attended(heads)
        .iter()
        .take(ROWS)
        .filter_map(|(id, divergence, _)| {
            let looks = &heads.attention[id];
            let found = looks.latest()?.found;
            let usual = looks.continued.iter().map(|look| look.found.divergence).fold(f64::NAN, f64::max);
            Some(vec![
                html! { "layer " (id.0) " head " (id.1) },
                html! { (figure(*divergence)) },
                html! { (or_nothing(usual)) },
                html! { (or_nothing(found.entropy_base)) " → " (or_nothing(found.entropy)) },
                html! { (or_nothing(found.sink_base)) " → " (or_nothing(found.sink)) },
            ])
        })
        .collect();
    html! {
        @if !rows.is_empty() {
            div.beside { (columns(&["attention", "divergence", "continued", "entropy", "sink"], &rows)) }
        }
    }
}

/// Lower against upper layers, a row for each earlier task.
fn depth(data: &Data, shown: &BTreeMap<u16, &AttentionHeads>) -> Markup {
    let rows: Vec<Row> = shown
        .iter()
        .filter_map(|(reference, heads)| {
            let found = heads.depth.latest()?.found;
            let task = data.task(*reference);
            let title = format!(
                "{task}: upper layers {} ({} heads), lower {} ({} heads); difference {} ({} to {}, {} %)",
                figure(found.upper),
                number(found.upper_heads),
                figure(found.lower),
                number(found.lower_heads),
                figure(found.difference),
                figure(found.low),
                figure(found.high),
                number(100.0 * found.confidence)
            );
            Some(Row {
                name: crate::format::shortened(&task, 10),
                value: found.difference,
                low: found.low,
                high: found.high,
                title,
            })
        })
        .filter(|row| row.value.is_finite())
        .collect();
    let least = 0.1 * rows.iter().map(|row| row.value.abs()).fold(0.0, f64::max);
    html! {
        @if !rows.is_empty() {
            h3 { "Upper against lower layers" }
            (Intervals { rows, width: 460.0, axis_name: "mean change of upper layers' heads less that of lower ones", least, text: small }.draw())
            p.note { "Bars: 95 % bootstrap over heads. Coloured where it leaves out 0; blue: upper layers, nearer to the output, changed more." }
        }
    }
}

/// Changes may be far below what two decimals show.
fn small(value: f64) -> String {
    if value.abs() < 0.1 { figure(value) } else { cosine(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::Purpose;

    #[test]
    fn the_rate_is_read_from_the_predicate() {
        let predicate =
            "severity 1: changed if q ≤ 0.05 against continued training and beyond the null's 99 % quantile";
        assert_eq!(false_discovery_rate(predicate), Some(0.05));
        assert_eq!(false_discovery_rate("severity 9: another rule"), None);
        assert_eq!(false_discovery_rate("q ≤ many"), None);
    }

    fn head(severity: f64, updates: f64) -> HeadChange {
        let value = |name: &str| match name {
            "contribution_change" => 0.06,
            "null_median" => 0.01,
            "severity" => severity,
            "updates" => updates,
            "effect" => 0.031,
            _ => 0.01,
        };
        HeadChange::of(value, updates > 50.0)
    }

    #[test]
    fn chance_and_extrapolation_are_said() {
        let mut data = Data::default();
        data.catalog.names.attributes.insert("severity".into(), "changed if q ≤ 0.05 against it".into());
        let mut heads = AttentionHeads::default();
        for (id, severity) in [(0, 0.0), (1, 1.0), (2, 2.0), (3, f64::NAN)] {
            let looks = heads.changes.entry((0, id)).or_default();
            looks.add(Purpose::Continued, 10, head(f64::NAN, 40.0));
            looks.add(Purpose::Later, 20, head(severity, 120.0));
        }
        let said = caption(&data, 0, &heads);
        assert!(said.contains("of 4 heads, 2 changed, 1 of them severe; 1 undetermined"), "{said}");
        assert!(said.contains("false discovery rate of 5 %, at most 0.1 of these"), "{said}");
        assert!(said.contains("measured over up to 40 updates, these are after 120"), "{said}");
    }

    #[test]
    fn a_cell_says_its_class_and_hides_what_is_undetermined() {
        let severe = cell((2, 1), &head(2.0, 9.0), 10.0);
        assert_eq!(
            (severe.mark, severe.is_noise, &severe.lines[..]),
            (Mark::Thick, false, &["6×".into(), "+0.03".into()][..])
        );
        assert!((severe.share + 6f64.log10()).abs() < 1e-12 && severe.title.ends_with(": severe"));
        let unknown = cell((2, 1), &head(f64::NAN, 9.0), 10.0);
        assert!(unknown.is_noise && unknown.title.ends_with(": undetermined"));
    }
}
