//! Conflicts by role: the share of coordinates in which the gradient and the reference have opposing signs.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Part, between, missing, of_reference, stretches};
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
                (of_reference(data, *reference, &format!("against {}", data.task(*reference)), chart(data, *reference, roles)))
            } }
        },
    }
    .draw()
}

/// The role that conflicts most in the latest step, if that is outside its band.
fn title(data: &Data, shown: &BTreeMap<u16, Roles>) -> String {
    let latest = shown.iter().flat_map(|(reference, roles)| {
        roles.iter().filter_map(|(role, series)| Some((*reference, *role, *series.last()?)))
    });
    let beyond = latest.filter(|(.., conflict)| conflict.fraction > 0.5 + half_width(conflict.active));
    match beyond.max_by(|a, b| a.2.fraction.total_cmp(&b.2.fraction)) {
        Some((reference, role, conflict)) => {
            let (role, task) = (data.catalog.names.role(role), data.task(reference));
            format!(
                "Signs conflict most in {role}: {} of its coordinates oppose {task} at the last step",
                percent(conflict.fraction)
            )
        }
        None => "At the last step no role conflicts more than fair signs would".into(),
    }
}

/// Two standard errors of the share under fair signs.
fn half_width(active: f64) -> f64 {
    2.0 * 0.5 / active.sqrt()
}

fn chart(data: &Data, reference: u16, roles: &Roles) -> Markup {
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
    Lines { y_name, width: 460.0, height: 260.0, series: series.collect(), stretches: &stretches, band, level }.draw()
}
