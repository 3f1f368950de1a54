//! Interference by layer and head: the mean cosine between gradients and an earlier task's reference.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::{Part, between, missing, of_reference};
use crate::format::{count, plural};
use crate::report::charts::heat::{Cell, Heat, Legend, Mark, cell_size};
use crate::report::data::{Data, Means};
use crate::report::findings::{Findings, Head};
use crate::report::words::{cosine, cosine_error, head_name};

pub fn section(data: &Data) -> Markup {
    let (Some(task), maps) = data.latest_heads() else {
        return missing(
            "heads",
            "Interference by head",
            "No interference was measured in attention heads. It takes gradients (fgs_bind), tensors registered with their heads, \
             and an earlier task with a reference (fgs_reference_add, or a task that was trained while sampled).",
        );
    };
    let results: Vec<(u16, Vec<Head>)> = maps.iter().map(|(reference, heads)| (*reference, means(heads))).collect();
    let all = || results.iter().flat_map(|(_, heads)| heads);
    let limit = all().map(|head| head.cosine.abs()).fold(0.05, f64::max);
    let limit = (limit * 20.0).ceil() / 20.0;
    Part {
        id: "heads",
        subject: "Interference by head",
        title: title(data),
        note: html! {
            "Mean cosine between the gradient and the reference of the earlier task over n = " (between(all().map(|head| head.steps)))
            " sampled steps while " (data.task(task)) " was trained; rows are layers, columns are heads. Negative: a step along the \
             gradient undoes the earlier task. Hatched: within two null errors of 0, where a null error is what the cosine would be if \
             the sign of every coordinate's product were a fair coin. It is that of one step, since successive gradients are not \
             independent. Of cells without any relation about one in twenty is coloured."
        },
        body: html! {
            @for (reference, heads) in &results {
                (of_reference(data, *reference, &caption(data, *reference, heads), maps_of(data, heads, limit)))
            }
            (legend(limit))
        },
    }
    .draw()
}

fn legend(limit: f64) -> Markup {
    let (low, high) = (format!("{} against", cosine(-limit)), format!("along {}", cosine(limit)));
    let noise = "within 2 null errors of 0: no sign";
    Legend { scale: [&low, "0", &high], name: "mean cosine", noise, frames: None }.draw()
}

fn title(data: &Data) -> String {
    let findings = Findings::of(data);
    let (Some(reference), Some(heads)) = (findings.reference, findings.heads) else {
        return "Where training opposes earlier tasks".into();
    };
    let reference = data.task(reference);
    match &heads.opposing[..] {
        [] => format!("No head opposes {reference} beyond chance"),
        [head] => format!("One head opposes {reference} beyond chance: {}", head_name(data, head)),
        [head, ..] => {
            let n = count(heads.opposing.len() as u64);
            format!("{n} heads oppose {reference} beyond chance, most of all {}", head_name(data, head))
        }
    }
}

fn means(heads: &Means) -> Vec<Head> {
    let heads = heads.iter().map(|(key, mean)| {
        let (cosine, null_error, steps) = mean.result();
        Head { key: *key, cosine, null_error, steps }
    });
    heads.filter(|head| head.steps > 0).collect()
}

/// A value is noise unless it is known to be beyond its null.
fn is_noise(head: &Head) -> bool {
    head.null_error.is_nan() || head.cosine.abs() <= 2.0 * head.null_error
}

fn caption(data: &Data, reference: u16, heads: &[Head]) -> String {
    let against = heads.iter().filter(|head| !is_noise(head) && head.cosine < 0.0).count();
    let along = heads.iter().filter(|head| !is_noise(head) && head.cosine > 0.0).count();
    let (task, n) = (data.task(reference), plural(heads.len() as u64, "cell"));
    format!("against {task}: of {n}, {against} negative and {along} positive beyond two null errors")
}

fn maps_of(data: &Data, heads: &[Head], limit: f64) -> Markup {
    let names = &data.catalog.names;
    let roles: BTreeSet<u16> = heads.iter().map(|head| head.key.role).collect();
    let layers = heads.iter().map(|head| head.key.layer + 1).max().unwrap_or(0);
    let widest = heads.iter().map(|head| head.key.head + 1).max().unwrap_or(0);
    let size = cell_size(layers, widest);
    html! {
        div.maps {
            @for role in roles {
                @let of_role: Vec<&Head> = heads.iter().filter(|head| head.key.role == role).collect();
                @let columns = of_role.iter().map(|head| head.key.head + 1).max().unwrap_or(0);
                @let cells = of_role.iter().map(|head| cell(data, head, limit)).collect();
                (Heat { title: &title_of(&names.role(role)), cells, layers, heads: columns }.draw(size))
            }
        }
    }
}

/// The role's name; those that everybody knows by a letter are spelled out.
fn title_of(role: &str) -> String {
    match role {
        "q" => "q · query".into(),
        "k" => "k · key".into(),
        "v" => "v · value".into(),
        "o" => "o · output".into(),
        other => other.into(),
    }
}

fn cell(data: &Data, head: &Head, limit: f64) -> Cell {
    let Head { cosine: value, null_error, steps, .. } = *head;
    let verdict = if is_noise(head) { ": no sign" } else { "" };
    let (value_text, null) = (cosine(value), cosine_error(null_error));
    let title = format!("{}: mean cosine {value_text}, null error {null}, n = {steps}{verdict}", head_name(data, head));
    Cell {
        layer: head.key.layer,
        head: head.key.head,
        share: value / limit,
        lines: vec![value_text],
        mark: Mark::None,
        is_noise: is_noise(head),
        title,
    }
}
