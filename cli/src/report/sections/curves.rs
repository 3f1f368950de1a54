//! Forgetting curves: every metric of every task over steps.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Part, between, missing, stretches};
use crate::report::charts::Paint;
use crate::report::charts::lines::{Lines, Piece, Series, Stroke};
use crate::report::data::{Data, Evaluation, Stage, Trend};
use crate::report::findings::{Findings, Outcome};
use crate::report::words::{cosine_error, figure};

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
            @if !data.stages.is_empty() {
                " The strip below the loss is the stage of the task in training, from the slope of ln loss over its last \
                 evaluations (at most 8): " (stage_key(Trend::Descent)) " descent and " (stage_key(Trend::Rise)) " rise are beyond two \
                 standard errors of the fit, " (stage_key(Trend::Plateau)) " plateau is not."
            }
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
    let is_loss = data.catalog.names.metrics.get(&metric).is_some_and(|metric| metric.name == "loss");
    let strip = if is_loss { stages(data, &data.evaluations[&metric]) } else { Vec::new() };
    Lines { y_name, width: 920.0, height, series, stretches: &stretches, strip, ..Lines::default() }.draw()
}

/// The stage of the task in training, from each evaluation since the one before; the first from the first evaluation of
/// the task on, since that is what it is judged by.
fn stages(data: &Data, evaluations: &BTreeMap<u16, Vec<Evaluation>>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for span in &data.spans {
        let inside = |step: u64| step > span.begin && span.end.is_none_or(|end| step <= end);
        let stages = data.stages.get(&span.task).into_iter().flatten().filter(|stage| inside(stage.step));
        let first =
            evaluations.get(&span.task).into_iter().flatten().map(|found| found.step).find(|step| inside(*step));
        let mut begin = first.unwrap_or(span.begin);
        for Stage { step, trend, slope, error } in stages.copied() {
            let slope = format!("{} ± {} per step", figure(slope), cosine_error(error));
            let title = format!("{}, {} at step {step}: slope of ln loss {slope}", data.task(span.task), trend.name());
            pieces.push(Piece { begin: begin as f64, end: step as f64, paint: paint(trend), title });
            begin = step;
        }
    }
    pieces
}

fn paint(trend: Trend) -> Paint {
    match trend {
        Trend::Descent => Paint::category(2),
        Trend::Plateau => Paint("var(--hatch)".into()),
        Trend::Rise => Paint::category(1),
    }
}

fn stage_key(trend: Trend) -> Markup {
    html! { span.key style=(format!("background:{}", paint(trend).0)) {} }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::Span;

    #[test]
    fn the_strip_has_a_piece_for_each_stage_of_the_task_in_training() {
        let mut data = Data::default();
        data.spans.push(Span { task: 0, begin: 0, end: Some(100) });
        let stage = |step, trend| Stage { step, trend, slope: -0.1, error: 0.01 };
        data.stages.insert(0, vec![stage(40, Trend::Descent), stage(60, Trend::Plateau), stage(150, Trend::Rise)]);
        let evaluation = |step| Evaluation::of(step, |_| 1.0);
        let pieces = stages(&data, &BTreeMap::from([(0, vec![evaluation(20), evaluation(40)])]));
        assert_eq!(
            pieces.iter().map(|piece| (piece.begin, piece.end)).collect::<Vec<_>>(),
            [(20.0, 40.0), (40.0, 60.0)]
        );
        assert!(pieces[1].title.contains("plateau") && pieces[1].paint != pieces[0].paint);
    }
}
