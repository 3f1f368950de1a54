//! The cosine of mean gradients, freed of mini-batch noise, layer by layer.

use maud::{Markup, html};

use super::{Part, missing, of_reference, width_of};
use crate::format::number;
use crate::report::charts::intervals::{Intervals, Row};
use crate::report::data::{Corrected, Data};
use crate::report::findings::{Findings, Verdict};
use crate::report::words::{cosine, cosine_error};

pub fn section(data: &Data) -> Markup {
    if data.corrected.is_empty() {
        return missing(
            "corrected",
            "Mean gradients, freed of noise",
            "The noise-corrected cosine was not measured. It takes at least four sampled steps in a task and a reference of at least \
             three batches of an earlier one (fgs_reference_add).",
        );
    }
    Part {
        id: "corrected",
        subject: "Mean gradients, freed of noise",
        title: title(data),
        note: html! {
            "Cosine between the mean gradient of the latest sampled steps and the mean gradient of the earlier task. Mini-batch noise \
             shrinks a plain cosine towards 0; here its part is taken out. Bars: ± two standard errors (two-sample jackknife); grey \
             points do not differ from 0 by that much. Hatched: noise hides the mean gradient itself, and there is no value."
        },
        body: html! {
            div.pair { @for (&reference, found) in &data.corrected {
                @let latest = found.values().max_by_key(|corrected| corrected.step);
                @let sizes = latest.map_or_else(String::new, |c| format!(": n = {} steps, {} batches, at step {}", number(c.steps), number(c.batches), c.step));
                @let rows: Vec<Row> = found.iter().map(|(layer, corrected)| row(*layer, corrected)).collect();
                (of_reference(data, reference, &format!("against {}{sizes}", data.task(reference)), intervals(rows, width_of(data.corrected.len()))))
            } }
        },
    }
    .draw()
}

fn intervals(rows: Vec<Row>, width: f64) -> Markup {
    Intervals { rows, width, axis_name: "noise-corrected cosine", least: 0.1, text: cosine }.draw()
}

fn verdict(corrected: &Corrected) -> Verdict {
    Verdict::of(corrected.cosine, corrected.error, corrected.steps, corrected.batches)
}

fn title(data: &Data) -> String {
    let reference = Findings::of(data).reference.filter(|task| data.corrected.contains_key(task));
    let Some(reference) = reference.or(data.corrected.keys().next().copied()) else { return String::new() };
    let layers = data.corrected[&reference].iter().filter(|(layer, _)| layer.is_some());
    let verdicts: Vec<Verdict> = layers.map(|(_, corrected)| verdict(corrected)).collect();
    let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| wanted(verdict)).count();
    let against = count(|verdict| matches!(verdict, Verdict::Signed { value, .. } if *value < 0.0));
    let along = count(|verdict| matches!(verdict, Verdict::Signed { value, .. } if *value > 0.0));
    let open = verdicts.len() - against - along;
    let task = data.task(reference);
    if open == verdicts.len() {
        return format!("No layer works against {task} or in its favour by more than noise could");
    }
    let some = |n: usize| if n == 0 { "none".into() } else { n.to_string() };
    let (against, along, open) = (some(against), some(along), some(open));
    format!(
        "Of {} layers, {against} work against {task}, {along} in its favour, {open} cannot be told from 0",
        verdicts.len()
    )
}

fn row(layer: Option<u32>, corrected: &Corrected) -> Row {
    let name = layer.map_or_else(|| "model".into(), |layer| format!("layer {layer}"));
    let title = match verdict(corrected) {
        Verdict::Signed { value, error, .. } => {
            format!("{name}: {} ± {} (standard error)", cosine(value), cosine_error(error))
        }
        Verdict::NoSign { value, error, .. } => {
            format!("{name}: {} ± {} (standard error), not told from 0", cosine(value), cosine_error(error))
        }
        Verdict::Missing | Verdict::Undetermined => format!("{name}: undetermined, noise hides the mean gradient"),
    };
    let Corrected { cosine: value, error, .. } = *corrected;
    Row { name, value, low: value - 2.0 * error, high: value + 2.0 * error, title }
}
