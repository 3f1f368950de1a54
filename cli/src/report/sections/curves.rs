//! Forgetting curves: every metric of every task over steps.

use maud::{Markup, html};

use super::{Part, between, missing, stretches};
use crate::report::charts::Paint;
use crate::report::charts::lines::{Band, Lines, Series, Stroke};
use crate::report::data::Data;
use crate::report::findings::{Findings, Outcome};
use crate::report::words::figure;

pub fn section(data: &Data) -> Markup {
    let Some(main) = data.main_metric() else {
        return missing(
            "curves",
            "Forgetting curves",
            "No evaluation was reported, so there are no forgetting curves. Call fgs_record_loss or fgs_record_eval for every \
             task that has been trained, a few times in each later task.",
        );
    };
    let names = &data.catalog.names;
    let mut metrics: Vec<u16> = data.evaluations.keys().copied().collect();
    metrics.sort_by_key(|&metric| metric != main);
    let counts = data.evaluations.values().flat_map(|tasks| tasks.values()).map(|list| list.len() as u64);
    Part {
        id: "curves",
        subject: "Forgetting curves",
        title: title(data),
        note: html! {
            "n = " (between(counts)) " evaluations of each task. A task's line is drawn boldly while it is trained itself; vertical \
             lines are switches of task. The trainer reports values without errors, so there are no bands."
        },
        body: html! {
            @for metric in metrics {
                @let higher = names.metrics.get(&metric).is_some_and(|metric| metric.higher_is_better);
                @let y_name = format!("{} ({} is better)", names.metric(metric), if higher { "higher" } else { "lower" });
                figure { (chart(data, metric, &y_name, if metric == main { 300.0 } else { 220.0 })) }
            }
        },
    }
    .draw()
}

fn title(data: &Data) -> String {
    match Findings::of(data).outcome {
        Outcome::Forgotten { worst, .. } => format!(
            "The {} of {} went from {} at the end of its own training to {}",
            data.catalog.names.metric(worst.metric),
            data.task(worst.task),
            figure(worst.own),
            figure(worst.now)
        ),
        Outcome::NotWorse { .. } => "No earlier task is worse than at the end of its own training".into(),
        _ => "How each task is doing while others are trained".into(),
    }
}

fn chart(data: &Data, metric: u16, y_name: &str, height: f64) -> Markup {
    let mut series = Vec::new();
    for (index, (&task, evaluations)) in data.evaluations[&metric].iter().enumerate() {
        let paint = Paint::category(index);
        let points: Vec<(f64, f64)> = evaluations.iter().map(|e| (e.step as f64, e.value)).collect();
        for span in data.spans.iter().filter(|span| span.task == task) {
            let end = span.end.map_or(f64::INFINITY, |end| end as f64);
            // A task begins with the number of the last step before it: what was evaluated then was before.
            let is_own = |step: f64| (step > span.begin as f64 || span.begin == 0) && step <= end;
            let own = points.iter().copied().filter(|(step, _)| is_own(*step)).collect();
            series.push(Series { name: String::new(), paint: paint.clone(), stroke: Stroke::Bold, points: own });
        }
        series.push(Series { name: data.task(task), paint, stroke: Stroke::Solid, points });
    }
    let stretches = stretches(data, None);
    let (width, band, level) = (920.0, Band::default(), None);
    Lines { y_name, width, height, series, stretches: &stretches, band, level }.draw()
}
