//! Routers of mixtures of experts: where earlier tasks' tokens are sent now. A model without routers has no such part.

use maud::{Markup, html};

use super::{Part, columns, of_reference, or_nothing};
use crate::format::number;
use crate::report::data::{Data, Layers, Router};
use crate::report::findings::Findings;
use crate::report::words::figure;

pub fn section(data: &Data) -> Markup {
    let latest = |layers: &Layers| {
        let found = layers.iter().filter_map(|(number, layer)| Some((*number, layer.routers.latest()?.found)));
        found.filter(|(_, router)| router.js_divergence.is_finite()).collect::<Vec<_>>()
    };
    let shown = data.representations.iter().map(|(reference, layers)| (*reference, latest(layers)));
    let shown: Vec<(u16, Vec<(u32, Router)>)> = shown.filter(|(_, layers)| !layers.is_empty()).collect();
    let reference = Findings::of(data).reference;
    let Some((task, layers)) = shown.iter().find(|(task, _)| Some(*task) == reference).or(shown.first()) else {
        return html! {};
    };
    Part {
        id: "router",
        subject: "Routers",
        title: title(&data.task(*task), layers),
        note: html! {
            "Of the earlier task's tokens, now against the end of that task. Agreement: mean share of the chosen experts that are the same \
             (Jaccard; null: 1 unchanged, and in the next column what unrelated uniform choices give). Divergence: mean Jensen–Shannon of \
             the routing probabilities, at most 0.69 nats. Load: divergence of the experts' shares, beside what other tokens under one \
             routing give. Entropy of the load in nats, even load has ln of the number of experts."
        },
        body: html! {
            div.pair { @for (reference, layers) in &shown {
                (of_reference(data, *reference, &caption(&data.task(*reference), layers), table(layers)))
            } }
        },
    }
    .draw()
}

fn title(task: &str, layers: &[(u32, Router)]) -> String {
    let lowest = layers
        .iter()
        .filter(|(_, router)| router.jaccard.is_finite())
        .min_by(|a, b| a.1.jaccard.total_cmp(&b.1.jaccard));
    match lowest {
        Some((layer, router)) => format!(
            "Tokens of {task} keep {} of their experts in layer {layer}, where routing has changed most; unrelated choices would keep {}",
            figure(router.jaccard),
            figure(router.jaccard_null)
        ),
        None => format!("Where tokens of {task} are sent"),
    }
}

fn caption(task: &str, layers: &[(u32, Router)]) -> String {
    let tokens = layers.iter().map(|(_, router)| router.tokens).fold(f64::NAN, f64::max);
    format!("text of {task}: n = {} tokens", number(tokens))
}

fn table(layers: &[(u32, Router)]) -> Markup {
    let row = |(layer, router): &(u32, Router)| {
        vec![
            html! { (layer) },
            html! { (or_nothing(router.jaccard)) },
            html! { (or_nothing(router.jaccard_null)) },
            html! { (or_nothing(router.js_divergence)) },
            html! { (or_nothing(router.load_divergence)) " (" (or_nothing(router.load_divergence_null)) ")" },
            html! { (or_nothing(router.load_entropy_base)) " → " (or_nothing(router.load_entropy)) },
            html! { (number(router.experts)) },
        ]
    };
    let headings = ["layer", "agreement", "unrelated", "divergence", "load (null)", "load entropy", "experts"];
    columns(&headings, &layers.iter().map(row).collect::<Vec<_>>())
}
