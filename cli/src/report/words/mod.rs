//! Findings as sentences.
//!
//! Every number comes with its sample size and what it was compared with; where there is no answer the sentence says so
//! and, if something can be done about it, what.

mod probes;

pub use probes::{furthest_in_words, landscape_in_words, severity_in_words};

use super::data::Data;
use super::findings::{Findings, Head, Heads, LayerDrift, Loss, Outcome, Verdict};
use crate::format::{count, number, plural, significant};

/// The headline: one sentence that is read even if nothing else is, and the sentences after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headline {
    pub first: String,
    pub rest: Vec<String>,
}

/// A measurement: three significant digits, with a real minus sign.
pub fn figure(value: f64) -> String {
    minus(&significant(value, 3))
}

/// A cosine or a share: two or three decimals are all that there is in it.
pub fn cosine(value: f64) -> String {
    if value.is_nan() { number(value) } else { minus(&format!("{value:.2}")) }
}

pub fn percent(share: f64) -> String {
    minus(&format!("{} %", significant(100.0 * share, 2)))
}

fn minus(text: &str) -> String {
    text.replace('-', "−")
}

/// Puts the findings into words.
pub fn headline(data: &Data, findings: &Findings) -> Headline {
    let mut rest = Vec::new();
    let first = match &findings.outcome {
        Outcome::NotEvaluated => {
            "Whether anything is being forgotten is not known: no evaluation was reported. Call fgs_record_loss or \
             fgs_record_eval with each earlier task now and then."
                .into()
        }
        Outcome::NoEarlierTask => {
            "There is nothing to forget yet: no task has been evaluated after the end of its own training.".into()
        }
        Outcome::NotWorse { metric, tasks } => {
            let metric = data.catalog.names.metric(*metric);
            match tasks {
                1 => format!("The earlier task is not worse than at the end of its own training, by its {metric}."),
                n => format!(
                    "None of the {n} earlier tasks is worse than at the end of its own training, by its {metric}."
                ),
            }
        }
        Outcome::Forgotten { worst, others, unharmed } => {
            rest.push(evidence(data, worst));
            rest.extend(others_in_words(data, others, *unharmed));
            forgotten(data, worst, !others.is_empty())
        }
    };
    if let Some(reference) = findings.reference {
        let reference = data.task(reference);
        rest.push(mean_gradients(&reference, findings.mean_gradients));
        rest.extend(findings.heads.as_ref().map(|heads| heads_in_words(data, &reference, heads)));
        rest.extend(findings.drift.as_ref().map(|drift| drift_in_words(&reference, drift)));
        rest.extend(probes::probe_in_words(&reference, findings.representation.as_ref(), findings.severity.as_ref()));
        rest.extend(findings.landscape.as_ref().map(|landscape| landscape_in_words(&reference, landscape)));
    }
    Headline { first, rest }
}

/// `higher` or `lower`: the direction in which the metric has become worse.
fn worse(data: &Data, metric: u16) -> &'static str {
    let higher_is_better = data.catalog.names.metrics.get(&metric).is_some_and(|metric| metric.higher_is_better);
    if higher_is_better { "lower" } else { "higher" }
}

fn forgotten(data: &Data, loss: &Loss, is_one_of_many: bool) -> String {
    let (task, metric) = (data.task(loss.task), data.catalog.names.metric(loss.metric));
    let verb = if data.is_running() { "is being forgotten" } else { "was forgotten" };
    let most = if is_one_of_many { " most" } else { "" };
    let share = match loss.own.abs() > 0.0 {
        true => format!(" ({})", percent(loss.since_own / loss.own.abs())),
        false => String::new(),
    };
    format!(
        "{task} {verb}{most}: its {metric} is {}, which is {}{share} {} than the {} at the end of its own training.",
        figure(loss.now),
        figure(loss.since_own),
        worse(data, loss.metric),
        figure(loss.own),
    )
}

fn evidence(data: &Data, loss: &Loss) -> String {
    let maximum = match loss.maximum.is_finite() && loss.maximum != loss.since_own {
        true => format!("Forgetting is {} against its best", figure(loss.maximum)),
        false => format!("Forgetting against its best is the same {}", figure(loss.since_own)),
    };
    let series = match (loss.evaluations, loss.worse) {
        (1, _) => "this rests on a single evaluation".into(),
        (2, 2) => "both evaluations since then are worse than that one".into(),
        (n, worse) if n == worse => format!("all {n} evaluations since then are worse than that one"),
        (n, worse) => format!("{worse} of {n} evaluations since then are worse than that one"),
    };
    let metric = data.catalog.names.metric(loss.metric);
    format!("{maximum}; {series}. The trainer reports no error for its {metric}, so none is given.")
}

fn others_in_words(data: &Data, others: &[Loss], unharmed: usize) -> Option<String> {
    let list: Vec<String> = others
        .iter()
        .map(|loss| format!("{} by {} to {}", data.task(loss.task), figure(loss.since_own), figure(loss.now)))
        .collect();
    let unharmed = match unharmed {
        0 => String::new(),
        1 => "one earlier task is no worse".into(),
        n => format!("{n} earlier tasks are no worse"),
    };
    match (list.is_empty(), unharmed.is_empty()) {
        (true, true) => None,
        (false, true) => Some(format!("Also worse: {}.", list.join(", "))),
        (true, false) => Some(capitalised(&unharmed) + "."),
        (false, false) => Some(format!("Also worse: {}; {unharmed}.", list.join(", "))),
    }
}

pub fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn mean_gradients(reference: &str, verdict: Verdict) -> String {
    let sizes = |steps: f64, batches: f64| format!("{} steps, {} batches", number(steps), number(batches));
    match verdict {
        Verdict::Missing => format!(
            "Whether training works against {reference} on average was not measured: that takes a reference of at least \
             three batches (fgs_reference_add) and four sampled steps."
        ),
        Verdict::Undetermined => format!(
            "Whether training works against {reference} on average is undetermined: noise hides the mean gradient. More \
             sampled steps or reference batches would show more."
        ),
        Verdict::NoSign { value, error, steps, batches } => format!(
            "Whether training works against {reference} on average is undetermined: freed of mini-batch noise, the cosine \
             of the mean gradients is {} with a standard error of {} ({}), within two errors of zero.",
            cosine(value),
            cosine(error),
            sizes(steps, batches)
        ),
        Verdict::Signed { value, error, steps, batches } => format!(
            "Training works {} {reference} on average: freed of mini-batch noise, the cosine of the mean gradients is {} ± {} \
             (standard error; {}).",
            if value < 0.0 { "against" } else { "in favour of" },
            cosine(value),
            cosine(error),
            sizes(steps, batches)
        ),
    }
}

/// `layer 2 q.1`.
pub fn head_name(data: &Data, head: &Head) -> String {
    format!("layer {} {}.{}", head.key.layer, data.catalog.names.role(head.key.role), head.key.head)
}

fn heads_in_words(data: &Data, reference: &str, heads: &Heads) -> String {
    let task = data.task(heads.task);
    let n = count(heads.looked_at as u64);
    let bound =
        format!("{:.1} null errors, which among {n} heads chance exceeds in one run of twenty", heads.threshold);
    let list: Vec<String> = heads
        .opposing
        .iter()
        .take(3)
        .map(|head| {
            let cosine = cosine(head.cosine);
            let null = cosine_error(head.null_error);
            format!(
                "{} (mean cosine {cosine}, null error {null}, {})",
                head_name(data, head),
                plural(head.steps, "step")
            )
        })
        .collect();
    let along = match heads.along {
        0 => "none went along with it by as much".into(),
        1 => "one went along with it by as much".into(),
        n => format!("{n} went along with it by as much"),
    };
    let opposing = heads.opposing.len();
    match &list[..] {
        [] => format!("While {task} was trained, none of {n} heads opposed {reference} by more than {bound}; {along}."),
        [only] => {
            format!(
                "While {task} was trained, one of {n} heads opposed {reference} by more than {bound}: {only}; {along}."
            )
        }
        several => {
            let strongest = if several.len() < opposing { ", most of all " } else { ": " };
            let list = several.join(", ");
            format!(
                "While {task} was trained, {opposing} of {n} heads opposed {reference} by more than {bound}{strongest}{list}; {along}."
            )
        }
    }
}

/// An error is given to the digits that matter.
pub fn cosine_error(error: f64) -> String {
    minus(&significant(error, 2))
}

fn drift_in_words(reference: &str, drift: &LayerDrift) -> String {
    let LayerDrift { layer, relative, layers, is_unresolved } = *drift;
    if is_unresolved {
        return format!(
            "Weight drift since {reference} is undetermined: it is no larger than the rounding of the weights' type. Bind fp32 \
             master weights to see it."
        );
    }
    let share = percent(relative);
    match layers {
        1 => format!("The weights of layer {layer} have moved by {share} of their norm since {reference} ended."),
        n => format!(
            "Of {n} layers, layer {layer} has moved furthest since {reference} ended: by {share} of the norm of its weights."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::mean::HeadKey;
    use forgetscope::ring::Entry;

    fn data() -> Data {
        let mut data = Data::default();
        data.catalog.names.add(Entry::Task { id: 0, name: "legal".into() });
        data.catalog.names.add(Entry::Task { id: 1, name: "code".into() });
        data.catalog.names.add(Entry::Role { id: 3, name: "q".into() });
        data.catalog.names.add(Entry::Metric { id: 0, name: "loss".into(), higher_is_better: false });
        data.catalog.names.add(Entry::Metric { id: 1, name: "accuracy".into(), higher_is_better: true });
        data
    }

    fn loss() -> Loss {
        Loss { task: 0, metric: 0, now: 2.45, own: 1.96, since_own: 0.49, maximum: 0.6, evaluations: 4, worse: 4 }
    }

    fn findings(outcome: Outcome, mean_gradients: Verdict) -> Findings {
        Findings {
            outcome,
            reference: Some(0),
            heads: None,
            mean_gradients,
            drift: None,
            representation: None,
            severity: None,
            landscape: None,
        }
    }

    #[test]
    fn forgetting_is_said_with_both_variants() {
        let outcome = Outcome::Forgotten { worst: loss(), others: vec![], unharmed: 0 };
        let said = headline(&data(), &findings(outcome, Verdict::Missing));
        assert_eq!(
            said.first,
            "legal was forgotten: its loss is 2.45, which is 0.49 (25 %) higher than the 1.96 at the end of its own training."
        );
        assert!(said.rest[0].starts_with("Forgetting is 0.6 against its best; all 4 evaluations"), "{}", said.rest[0]);
        assert!(said.rest[1].contains("was not measured"));
    }

    #[test]
    fn higher_may_be_better() {
        let worst = Loss { metric: 1, now: 0.5, own: 0.8, since_own: 0.3, ..loss() };
        let mut data = data();
        data.catalog.facts.state = "running".into();
        let outcome = Outcome::Forgotten { worst, others: vec![loss()], unharmed: 1 };
        let said = headline(&data, &findings(outcome, Verdict::Undetermined));
        assert!(said.first.starts_with("legal is being forgotten most: its accuracy is 0.5"));
        assert!(said.first.contains("lower than the 0.8"));
        assert_eq!(said.rest[1], "Also worse: legal by 0.49 to 2.45; one earlier task is no worse.");
    }

    #[test]
    fn no_sign_is_stated_that_is_not_there() {
        for verdict in [Verdict::Missing, Verdict::Undetermined, Verdict::of(-0.1, 0.06, 20.0, 32.0)] {
            let said = mean_gradients("legal", verdict);
            assert!(said.starts_with("Whether training works against legal"), "{said}");
        }
        assert!(mean_gradients("legal", Verdict::of(-0.1, 0.06, 20.0, 32.0)).contains("undetermined"));
        let signed = mean_gradients("legal", Verdict::of(-0.19, 0.04, 20.0, 32.0));
        assert!(signed.starts_with("Training works against legal on average") && signed.contains("−0.19 ± 0.04"));
        assert!(mean_gradients("legal", Verdict::of(0.19, 0.04, 20.0, 32.0)).contains("in favour of legal"));
    }

    #[test]
    fn heads_are_named_only_beyond_chance() {
        let heads = Heads { task: 1, looked_at: 64, opposing: vec![], along: 0, threshold: 3.36 };
        let said = heads_in_words(&data(), "legal", &heads);
        assert!(
            said.contains("none of 64 heads opposed legal") && said.ends_with("; none went along with it by as much.")
        );
        let key = HeadKey { role: 3, layer: 2, head: 1 };
        let head = Head { key, cosine: -0.42, null_error: 0.03, steps: 20 };
        let said = heads_in_words(&data(), "legal", &Heads { opposing: vec![head], ..heads });
        assert!(
            said.contains("one of 64 heads")
                && said.contains("layer 2 q.1 (mean cosine −0.42, null error 0.03, 20 steps)")
        );
    }

    #[test]
    fn drift_below_the_resolution_is_not_drift() {
        let drift = LayerDrift { layer: 2, relative: 0.036, layers: 4, is_unresolved: false };
        assert!(drift_in_words("legal", &drift).contains("layer 2 has moved furthest since legal ended: by 3.6 %"));
        assert!(drift_in_words("legal", &LayerDrift { is_unresolved: true, ..drift }).contains("undetermined"));
    }

    #[test]
    fn nothing_is_worse() {
        let said = headline(&data(), &findings(Outcome::NotWorse { metric: 0, tasks: 2 }, Verdict::Missing));
        assert_eq!(
            said.first,
            "None of the 2 earlier tasks is worse than at the end of its own training, by its loss."
        );
        assert_eq!(others_in_words(&data(), &[], 1).unwrap(), "One earlier task is no worse.");
        assert_eq!(others_in_words(&data(), &[], 2).unwrap(), "2 earlier tasks are no worse.");
    }
}
