//! Facts of the run: what was sampled, what was lost, what went wrong, and how the instrument was set.

use std::time::Duration;

use maud::{Markup, html};

use crate::format::{count, duration, moment, number, plural};
use crate::report::data::Data;

pub fn section(data: &Data) -> Markup {
    let names = &data.catalog.names;
    let counters: Vec<(String, u64)> = data
        .catalog
        .counters
        .iter()
        .enumerate()
        .filter(|(_, value)| **value > 0)
        .map(|(index, value)| (names.counter(index as u8), *value))
        .collect();
    html! {
        section id="facts" {
            p.subject { "Facts of the run" }
            div.tables {
                (table("Run", &run(data)))
                (table("Records", &records(data)))
                (table("References", &references(data)))
                (table("Options", &names.attributes.iter().filter(|(_, value)| !value.is_empty()).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()))
            }
            h3 { "Faults" }
            @if counters.is_empty() {
                p { "No fault was counted." }
            } @else {
                table { tbody { @for (name, value) in &counters { tr { th scope="row" { (name) } td { (count(*value)) } } } } }
            }
        }
    }
}

fn table(name: &str, rows: &[(String, String)]) -> Markup {
    html! {
        @if !rows.is_empty() {
            table {
                caption { (name) }
                tbody { @for (key, value) in rows { tr { th scope="row" { (key) } td { (value) } } } }
            }
        }
    }
}

fn run(data: &Data) -> Vec<(String, String)> {
    let (facts, steps) = (&data.catalog.facts, &data.steps);
    let mut rows = vec![
        ("began".into(), moment(facts.created_realtime_ns)),
        ("state".into(), facts.state.clone()),
        ("process".into(), facts.pid.to_string()),
        ("rank".into(), format!("{} of {}", facts.rank, facts.world)),
    ];
    if let (Some(first), Some(last)) = (steps.first, steps.last) {
        rows.push(("steps".into(), format!("{} to {}", count(first), count(last))));
        rows.push(("sampled steps".into(), count(steps.sampled)));
        rows.push(("updates skipped".into(), count(steps.skipped)));
        rows.push(("steps with NaN or ∞".into(), count(steps.non_finite)));
        let cost = 1e3 * steps.cost_seconds / steps.sampled.max(1) as f64;
        rows.push(("cost of a sampled step".into(), format!("{} ms on average", number(cost))));
    }
    if let (Some(first), Some(last)) = (steps.first_time, steps.last_time) {
        rows.push(("time covered".into(), duration(Duration::from_nanos(last.saturating_sub(first)))));
    }
    if data.ranks.len() > 1 {
        rows.push(("ranks recorded".into(), data.ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")));
    }
    rows
}

fn records(data: &Data) -> Vec<(String, String)> {
    let facts = &data.catalog.facts;
    vec![
        ("read from".into(), if data.is_recording { "a recording".into() } else { "the ring in shared memory".into() }),
        ("records".into(), count(facts.records)),
        ("overwritten before".into(), count(facts.overwritten)),
        ("lost on the way".into(), count(facts.lost)),
        ("tensors".into(), count(data.catalog.names.tensors.len() as u64)),
    ]
}

fn references(data: &Data) -> Vec<(String, String)> {
    data.origins
        .iter()
        .map(|(task, origin)| (data.task(*task), if origin.is_empty() { "sketched".into() } else { origin.clone() }))
        .collect()
}

/// What a reader must know before reading on: that the page does not show everything.
pub fn caveats(data: &Data) -> Vec<String> {
    let facts = &data.catalog.facts;
    let mut caveats = Vec::new();
    if facts.overwritten > 0 {
        let missing = plural(facts.overwritten, "earlier record");
        caveats.push(match data.is_recording {
            true => format!("{missing} had been overwritten when the recording began."),
            false => format!(
                "The ring holds the latest {} only; {missing} are gone. `forgetscope record` keeps all.",
                plural(facts.records, "record")
            ),
        });
    }
    if facts.lost > 0 {
        caveats.push(format!("{} were lost because the reader was behind.", plural(facts.lost, "record")));
    }
    if facts.world > 1 {
        caveats.push(format!(
            "This page shows rank {} of {}: what other ranks hold of the model is not in it.",
            facts.rank, facts.world
        ));
    }
    if facts.state == "running" {
        caveats.push("The run goes on; this is how it was when the page was made.".into());
    }
    if facts.state == "died" {
        caveats.push("The run died without closing its ring: this is all it left.".into());
    }
    caveats
}
