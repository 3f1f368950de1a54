//! The loss landscape of each task: its spectrum at the end of its training and now, and what a table can say of it.

use maud::{Markup, html};

use super::{Part, columns, missing, of_reference, or_nothing, with_error};
use crate::format::{count, number};
use crate::report::charts::Paint;
use crate::report::charts::lines::{Lines, Series, Stroke};
use crate::report::charts::spectrum::{Spectrum, draw};
use crate::report::data::{Curvature, Data, Fisher, Landscape, Landscapes, Secant};
use crate::report::findings::{Findings, flatness};
use crate::report::words::{figure, landscape_in_words};

pub fn section(data: &Data) -> Markup {
    let shown: Vec<(u16, &Landscapes)> = data
        .landscapes
        .iter()
        .filter(|(_, found)| {
            !matches!(found.then_and_now(), (None, None)) || found.fisher.is_some() || found.secant.is_some()
        })
        .map(|(task, found)| (*task, found))
        .collect();
    if shown.is_empty() {
        return missing(
            "landscape",
            "Loss landscape",
            "The loss landscape was not measured. It takes gradients of a fixed batch of a task at weights that forgetscope moves and \
             puts back (fgs_curvature_begin), at the end of the task and again later; a Fisher spectrum takes a reference of at least \
             four batches (fgs_reference_add).",
        );
    }
    Part {
        id: "landscape",
        subject: "Loss landscape",
        title: title(data),
        note: html! {
            "Hessian of the loss on a fixed batch of the task. Stems: spectral density (stochastic Lanczos quadrature), the number of \
             eigenvalues near a value, both axes logarithmic; dots: single eigenvalues. Traces: ± standard error over random vectors, not \
             over batches. Relative trace: Σθᵢ²Hᵢᵢ, which does not change when weights are rescaled; largest and trace do. Effective rank: \
             tr²H/tr H². Ratio: now over then, null 1; below 1 is flatter; none where the value at the end of the task is not above two \
             errors. Where the gradient norm has grown, the curvature now is that of a slope and not of the minimum that was left. Along \
             the drift: curvature towards where the weights have gone (null: trace over the number of parameters). Along old \
             eigenvectors: the mean curvature now along the steepest directions of then. Fisher: covariance of batch gradients, not the \
             Hessian. Secant: curvature along the drift averaged over the way, null 0."
        },
        body: html! {
            @for (task, found) in &shown {
                (of_reference(data, *task, &caption(data, *task, found), figures(data, found)))
            }
        },
    }
    .draw()
}

/// Of the headline's task if it was compared, or else of the first that was.
fn title(data: &Data) -> String {
    let flattening = |task: &u16| data.landscapes.get(task).and_then(Landscapes::flattening);
    let reference = Findings::of(data).reference.filter(|task| flattening(task).is_some());
    let Some(task) = reference.or(data.landscapes.keys().copied().find(|task| flattening(task).is_some())) else {
        return "How curved the loss of each task is".into();
    };
    if let Some(found) = flatness(&data.landscapes[&task]) {
        return landscape_in_words(&data.task(task), &found).trim_end_matches('.').into();
    }
    let is_relative = flattening(&task).is_some_and(|found| found.relative_trace.is_finite());
    let by = if is_relative { ", by its relative trace" } else { "" };
    format!("The loss landscape of {} cannot be told from that at its end{by}", data.task(task))
}

fn caption(data: &Data, task: u16, found: &Landscapes) -> String {
    let (then, now) = found.then_and_now();
    let at = |what: &str, run: Option<(u64, &Landscape)>| run.map(|(step, _)| format!("{what} step {}", count(step)));
    let steps: Vec<String> = [at("base at", then), at("now at", now)].into_iter().flatten().collect();
    let steps = if steps.is_empty() { String::new() } else { format!(": {}", steps.join(", ")) };
    format!("loss of {}{steps}", data.task(task))
}

fn figures(data: &Data, found: &Landscapes) -> Markup {
    let (then, now) = found.then_and_now();
    let spectra = [("at the end of its training", 4, then), ("now", 0, now)];
    let spectra = spectra.into_iter().filter_map(|(name, paint, run)| {
        let (_, run) = run?;
        let eigenvalues = run.eigenvalues.values().map(|found| (found.value, found.residual)).collect();
        Some(Spectrum { name: name.into(), paint: Paint::category(paint), density: run.density.clone(), eigenvalues })
    });
    let spectra: Vec<Spectrum> = spectra.collect();
    let (then, now) = (then.map(|run| run.1), now.map(|run| run.1));
    let path = now.filter(|run| run.path.iter().filter(|point| point.1.is_finite()).count() > 1);
    html! {
        (draw(&spectra))
        div.pair {
            @if then.or(now).is_some() { div { (table(then, now)) } }
            div {
                @if let Some(run) = path { (loss_path(&run.path)) }
                (for_nothing(found.fisher.as_ref(), found.secant.as_ref()))
                @if let Some(run) = now.or(then).filter(|run| !run.blocks.is_empty()) { (blocks(data, run)) }
            }
        }
    }
}

/// What a row of the table says of a run.
type Quantity = (&'static str, fn(&Curvature) -> String);

fn table(then: Option<&Landscape>, now: Option<&Landscape>) -> Markup {
    let quantities: [Quantity; 8] = [
        ("largest eigenvalue", |c| or_nothing(c.largest)),
        ("trace", |c| with_error(c.trace, c.trace_error)),
        ("relative trace", |c| with_error(c.relative_trace, c.relative_trace_error)),
        ("effective rank", |c| or_nothing(c.effective_rank)),
        ("along the drift", |c| or_nothing(c.along_drift)),
        ("along old eigenvectors", |c| or_nothing(c.along_old)),
        ("gradient norm", |c| or_nothing(c.gradient_norm)),
        ("loss", |c| or_nothing(c.loss)),
    ];
    let flattening = now.and_then(|run| run.flattening);
    let ratio = |name: &str| {
        let Some(found) = flattening else { return or_nothing(f64::NAN) };
        match name {
            "largest eigenvalue" => or_nothing(found.largest),
            "trace" => with_error(found.trace, found.trace_error),
            "relative trace" => with_error(found.relative_trace, found.relative_trace_error),
            "gradient norm" => or_nothing(found.gradient_norm),
            _ => String::new(),
        }
    };
    let of = |run: Option<&Landscape>, text: fn(&Curvature) -> String| {
        run.and_then(|run| run.curvature.as_ref()).map_or_else(|| or_nothing(f64::NAN), text)
    };
    let rows: Vec<Vec<Markup>> = quantities
        .into_iter()
        .map(|(name, text)| {
            vec![html! { (name) }, html! { (of(then, text)) }, html! { (of(now, text)) }, html! { (ratio(name)) }]
        })
        .collect();
    if now.is_none() {
        let rows: Vec<Vec<Markup>> = rows.into_iter().map(|row| row.into_iter().take(2).collect()).collect();
        return columns(&["", "then"], &rows);
    }
    columns(&["", "then", "now", "ratio"], &rows)
}

/// The loss on the straight line from the snapshot to the weights as they are.
fn loss_path(path: &[(f64, f64)]) -> Markup {
    let points = path.to_vec();
    let series = vec![Series { name: String::new(), paint: Paint::category(0), stroke: Stroke::Solid, points }];
    let x_name = Some("way from the end of the task (0) to now (1)");
    Lines { x_name, y_name: "loss", width: 460.0, height: 220.0, series, ..Lines::default() }.draw()
}

fn for_nothing(fisher: Option<&Fisher>, secant: Option<&Secant>) -> Markup {
    let mut rows = Vec::new();
    if let Some(found) = fisher {
        let unit = if found.is_unscaled { " (batch size unknown: ratios only)" } else { "" };
        let largest: Vec<String> = found.eigenvalues.iter().filter(|v| v.is_finite()).map(|v| figure(*v)).collect();
        let null = figure(found.trace / (found.batches - 1.0));
        rows.push(vec![html! { "Fisher, largest" (unit) }, html! { (largest.join(", ")) }]);
        rows.push(vec![html! { "its null: noise alike in all directions" }, html! { (null) " each" }]);
        let rank = format!("{} of at most {}", or_nothing(found.effective_rank), figure(found.batches - 1.0));
        rows.push(vec![html! { "Fisher, trace; effective rank" }, html! { (or_nothing(found.trace)) "; " (rank) }]);
    }
    if let Some(found) = secant.filter(|found| found.curvature.is_finite()) {
        rows.push(vec![html! { "secant along the drift" }, html! { (with_error(found.curvature, found.error)) }]);
        let sizes = format!("{}; {} at step {}", figure(found.distance), number(found.batches), count(found.step));
        rows.push(vec![html! { "secant, distance; batches" }, html! { (sizes) }]);
    }
    html! { @if !rows.is_empty() { (columns(&["from references", ""], &rows)) } }
}

/// The tensors with the largest eigenvalues of their own blocks.
fn blocks(data: &Data, run: &Landscape) -> Markup {
    let mut blocks: Vec<(u32, Curvature)> = run.blocks.iter().map(|(tensor, found)| (*tensor, *found)).collect();
    blocks.sort_by(|a, b| b.1.largest.total_cmp(&a.1.largest));
    let rows: Vec<Vec<Markup>> = blocks
        .iter()
        .take(8)
        .map(|(tensor, found)| {
            vec![
                html! { (data.catalog.names.tensor(*tensor).unwrap_or_default()) },
                html! { (or_nothing(found.largest)) },
                html! { (with_error(found.trace, found.trace_error)) },
            ]
        })
        .collect();
    columns(&["block by itself", "largest", "trace"], &rows)
}
