//! Each earlier task while each later one was trained: how alike the two are, how much there was to learn, and what was
//! forgotten.

use forgetscope::stats::correlation::spearman;
use maud::{Markup, html};

use super::{Part, columns, missing, or_nothing};
use crate::format::plural;
use crate::report::data::Data;
use crate::report::words::{cosine, figure};
use crate::study::{Case, Measure};

/// Fewer pairs than this correlate with anything.
const FEWEST: usize = 5;

pub fn section(data: &Data) -> Markup {
    let mut pairs = data.pairs();
    pairs.retain(|case| case.forgetting.is_finite());
    if pairs.is_empty() {
        return missing(
            "pairs",
            "Task similarity and outcome",
            "No earlier task was evaluated before and after a later one, so there is nothing to set against how alike they are. Call \
             fgs_record_loss for every task before and after the training of each.",
        );
    }
    let has_similarity = pairs.iter().any(|case| case.value(Measure::Similarity).is_finite());
    Part {
        id: "pairs",
        subject: "Task similarity and outcome",
        title: title(&pairs),
        note: html! {
            "Similarity: overlap of the two tasks' leading subspaces at the weights that the later one begins with, 0 what random subspaces \
             and 1 what two samples of one task would have. Cosine: of mean gradients, freed of noise, in the first "
            (between_steps(&pairs)) " steps of the later task. Excess loss: what the later task's loss fell by, how much there was to learn. \
             Forgotten: rise of the earlier task's loss while the later one was trained. n = " (plural(pairs.len() as u64, "pair"))
            " of one run"
            @if pairs.len() < FEWEST { ": too few to say what goes with what. " } @else {
                ", which share a model and a seed" (ranks(&pairs)) " "
            }
            code { "forgetscope study" } " takes many runs."
            @if !has_similarity { " Similarity takes probes of both tasks before the later one is trained (fgs_probe_begin)." }
        },
        body: columns(
            &["earlier, while later was trained", "similarity", "cosine", "excess loss", "forgotten"],
            &pairs.iter().map(row).collect::<Vec<_>>(),
        ),
    }
    .draw()
}

fn title(pairs: &[Case]) -> String {
    let most = pairs.iter().max_by(|a, b| a.forgetting.total_cmp(&b.forgetting));
    match most.filter(|case| case.forgetting > 0.0) {
        Some(case) if pairs.len() > 1 => {
            format!(
                "Most was forgotten of {} while {} was trained: {} of loss",
                case.earlier,
                case.later,
                figure(case.forgetting)
            )
        }
        Some(case) => {
            format!(
                "While {} was trained, the loss of {} rose by {}",
                case.later,
                case.earlier,
                figure(case.forgetting)
            )
        }
        None => "No later task raised the loss of an earlier one".into(),
    }
}

fn between_steps(pairs: &[Case]) -> String {
    super::between(pairs.iter().map(|case| case.early_steps))
}

/// Rank correlations within the run, without intervals: there is one run.
fn ranks(pairs: &[Case]) -> String {
    let rho = |measure: Measure| {
        let found = pairs.iter().map(|case| (case.value(measure), case.forgetting)).filter(|pair| pair.0.is_finite());
        let (x, y): (Vec<f64>, Vec<f64>) = found.unzip();
        (x.len() >= FEWEST).then(|| spearman(&x, &y)).filter(|rho| rho.is_finite())
    };
    let measures = [Measure::Similarity, Measure::GradientCosine, Measure::ExcessLoss];
    let said: Vec<String> = measures
        .into_iter()
        .filter_map(|measure| Some(format!("{} {}", measure.title(), cosine(rho(measure)?))))
        .collect();
    if said.is_empty() {
        ".".into()
    } else {
        format!(". Rank correlation with forgetting: {} (no interval from one run).", said.join(", "))
    }
}

fn row(case: &Case) -> Vec<Markup> {
    let value = |measure| or_nothing(case.value(measure));
    vec![
        html! { (case.earlier) ", " (case.later) },
        html! { (value(Measure::Similarity)) },
        html! { (value(Measure::GradientCosine)) },
        html! { (value(Measure::ExcessLoss)) },
        html! { (figure(case.forgetting)) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::case_of;

    #[test]
    fn few_pairs_correlate_with_nothing() {
        let cases: Vec<Case> = (0..6).map(|k| case_of(Measure::Similarity, f64::from(k), f64::from(k * k))).collect();
        assert!(ranks(&cases).contains("similarity of representations 1.00 (no interval from one run)"));
        assert_eq!(ranks(&cases[..4]), ".");
        assert!(title(&cases).starts_with("Most was forgotten of a while b was trained: 25"));
        assert!(title(&[case_of(Measure::Drift, 1.0, -0.1)]).starts_with("No later task"));
    }
}
