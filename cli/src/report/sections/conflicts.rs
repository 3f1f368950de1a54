//! Conflicts by role: the share of coordinates in which the gradient and the reference have opposing signs.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Part, between, missing, of_reference, stretches, width_of};
use crate::report::charts::Paint;
use crate::report::charts::lines::{Band, Lines, Series, Stroke};
use crate::report::data::{Conflict, Data};
use crate::report::words::percent;

/// Roles that have heat maps or are large; norms and biases would only crowd the figure.
const SHOWN: [&str; 8] = ["q", "k", "v", "o", "qkv", "mlp_in", "mlp_out", "mlp_gate"];

type Roles = BTreeMap<u16, Vec<Conflict>>;

pub fn section(data: &Data) -> Markup {
    let measured = |conflict: &Conflict| conflict.fraction.is_finite() && conflict.active > 0.0;
    let shown: BTreeMap<u16, Roles> = data
        .conflicts
        .iter()
        .map(|(reference, roles)| {
            let roles = roles.iter().filter(|(role, series)| {
                SHOWN.contains(&data.catalog.names.role(**role).as_str()) && series.iter().any(measured)
            });
            (*reference, roles.map(|(role, series)| (*role, series.clone())).collect())
        })
        .filter(|(_, roles): &(u16, Roles)| !roles.is_empty())
        .collect();
    if shown.is_empty() {
        return missing(
            "conflicts",
            "Conflicts by role",
            "Conflicts of sign were not measured. They take exact references of whole roles: raise the option reference_budget, or \
             give references with fgs_reference_add.",
        );
    }
    let counts = shown.values().flat_map(|roles| roles.values()).map(|series| series.len() as u64);
    Part {
        id: "conflicts",
        subject: "Conflicts by role",
        title: title(data, &shown),
        note: html! {
            "Share of the coordinates in which gradient and reference have opposing signs; n = " (between(counts)) " sampled steps a \
             line. Grey: 0.5 ± 2 · 0.5/√(coordinates), what independent fair signs would give, for the role with the fewest \
             coordinates. Coordinates of a real gradient are not independent, so a line just outside the band means little."
        },
        body: html! {
            div.pair { @for (reference, roles) in &shown {
                (of_reference(data, *reference, &format!("against {}", data.task(*reference)), chart(data, *reference, roles, width_of(shown.len()))))
            } }
        },
    }
    .draw()
}

/// The role that conflicts most while the last task is trained, if any does more than fair signs would.
fn title(data: &Data, shown: &BTreeMap<u16, Roles>) -> String {
    let begin = data.spans.last().map_or(0, |span| span.begin);
    let task = data.spans.last().map_or_else(|| "the last task".into(), |span| data.task(span.task));
    let conflicting = shown.iter().flat_map(|(reference, roles)| {
        roles.iter().filter_map(move |(role, series)| Some((*reference, *role, conflicting(series, begin)?)))
    });
    match conflicting.max_by(|a, b| a.2.total_cmp(&b.2)) {
        Some((reference, role, mean)) => {
            let (role, reference) = (data.catalog.names.role(role), data.task(reference));
            format!(
                "Signs conflict most in {role}: while {task} is trained, {} of its coordinates oppose {reference} on average",
                percent(mean)
            )
        }
        None => format!("While {task} is trained, no role conflicts more than fair signs would"),
    }
}

/// The mean share from a step on, if it is above one half by more than fair signs do in a single step, and by more than
/// two standard errors as the steps themselves scatter.
fn conflicting(series: &[Conflict], begin: u64) -> Option<f64> {
    let since = series.iter().filter(|conflict| conflict.step >= begin && conflict.fraction.is_finite());
    let (shares, widths): (Vec<f64>, Vec<f64>) =
        since.map(|conflict| (conflict.fraction, half_width(conflict.active))).unzip();
    let n = shares.len() as f64;
    if n < 4.0 {
        return None;
    }
    let mean = shares.iter().sum::<f64>() / n;
    let variance = shares.iter().map(|share| (share - mean) * (share - mean)).sum::<f64>() / (n - 1.0);
    let bound = (widths.iter().sum::<f64>() / n).max(2.0 * (variance / n).sqrt());
    (mean - 0.5 > bound).then_some(mean)
}

/// Two standard errors of the share under fair signs.
fn half_width(active: f64) -> f64 {
    2.0 * 0.5 / active.sqrt()
}

fn chart(data: &Data, reference: u16, roles: &Roles, width: f64) -> Markup {
    let names = &data.catalog.names;
    let order = |role: u16| SHOWN.iter().position(|shown| *shown == names.role(role)).unwrap_or(0);
    let series = roles.iter().map(|(&role, conflicts)| Series {
        name: names.role(role),
        paint: Paint::category(order(role)),
        stroke: if names.role(role).starts_with("mlp") { Stroke::Dashed } else { Stroke::Solid },
        points: conflicts.iter().map(|conflict| (conflict.step as f64, conflict.fraction)).collect(),
    });
    // The widest band at every step: that of the fewest coordinates.
    let mut fewest: BTreeMap<u64, f64> = BTreeMap::new();
    for conflict in roles.values().flatten().filter(|conflict| conflict.active > 0.0) {
        let entry = fewest.entry(conflict.step).or_insert(conflict.active);
        *entry = entry.min(conflict.active);
    }
    let group = fewest.len().div_ceil(300).max(1);
    let points = fewest
        .iter()
        .step_by(group)
        .map(|(step, active)| (*step as f64, 0.5 - half_width(*active), 0.5 + half_width(*active)));
    let band = Band { points: points.collect(), paint: None };
    let stretches = stretches(data, Some(reference));
    let (y_name, level) = ("share of coordinates in conflict", Some(0.5));
    Lines {
        y_name,
        width,
        height: 260.0,
        series: series.collect(),
        stretches: &stretches,
        band,
        level,
        ..Lines::default()
    }
    .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(shares: [f64; 4]) -> Vec<Conflict> {
        shares
            .iter()
            .enumerate()
            .map(|(step, &fraction)| Conflict { step: step as u64, fraction, active: 1e4 })
            .collect()
    }

    #[test]
    fn one_step_does_not_make_a_conflict() {
        assert_eq!(conflicting(&series([0.5, 0.5, 0.49, 0.6]), 0), None, "the steps scatter more than that");
        assert_eq!(conflicting(&series([0.505; 4]), 0), None, "fair signs do as much");
        assert_eq!(conflicting(&series([0.55; 4]), 0), Some(0.55));
        assert_eq!(conflicting(&series([0.55; 4]), 1), None, "too few steps");
    }
}
