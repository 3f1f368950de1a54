//! What probes and landscapes say, as sentences and parts of them.

use super::{capitalised, cosine, cosine_error, figure};
use crate::format::{count, plural};
use crate::report::findings::{Flatness, Representation, Severities};

/// `layers 1, 2 and 4`.
fn layers_in_words(layers: &[u32]) -> String {
    let names: Vec<String> = layers.iter().map(u32::to_string).collect();
    match &names[..] {
        [] => "no layer".into(),
        [only] => format!("layer {only}"),
        [first @ .., last] => format!("layers {} and {last}", first.join(", ")),
    }
}

/// Where the representation of the earlier task's text has changed most, as part of a sentence.
pub fn furthest_in_words(task: &str, found: &Representation) -> String {
    let Representation { layer, layers, .. } = *found;
    if found.is_unchanged {
        return format!("no layer represents the text of {task} measurably otherwise than at the end of its training");
    }
    let cka = format!("debiased CKA {} ± {}", cosine(found.cka), cosine_error(found.error));
    let mut all: Vec<u32> = found.tied.iter().copied().chain([layer]).collect();
    all.sort_unstable();
    match all.len() {
        1 if layers == 1 => format!("layer {layer} represents the text of {task} otherwise than at its end ({cka})"),
        1 => format!("of {layers} layers, layer {layer} represents the text of {task} most differently ({cka})"),
        n if n == layers => {
            format!("all {layers} layers represent the text of {task} about as differently (lowest {cka})")
        }
        n if n <= 4 => format!(
            "of {layers} layers, {} represent the text of {task} most differently and cannot be told apart (lowest {cka})",
            layers_in_words(&all)
        ),
        n => format!("{n} of {layers} layers represent the text of {task} about as differently (lowest {cka})"),
    }
}

/// How many heads changed, as part of a sentence.
pub fn severity_in_words(task: &str, found: &Severities) -> String {
    let Severities { heads, changed, severe, undetermined, .. } = *found;
    let heads_text = plural(heads as u64, "head");
    if undetermined == heads {
        return format!("whether any of {heads_text} changed more than usual is undetermined: there is no null");
    }
    let severely = match (severe, found.worst) {
        _ if !found.has_effects || changed == 0 => String::new(),
        (0, _) | (_, None) => ", none severely".into(),
        (n, Some(((layer, head), effect, error))) => format!(
            ", {n} severely ({}layer {layer} head {head}: with its old weights the loss is {} ± {} lower)",
            if n == 1 { "" } else { "most of all " },
            figure(effect),
            cosine_error(error)
        ),
    };
    let changed = if changed == 0 { "none".into() } else { count(changed as u64) };
    let null = if found.is_extrapolated { ", by an extrapolated null" } else { "" };
    format!("{changed} of {heads_text} changed more than further training on {task} would change them{null}{severely}")
}

/// What probes say.
pub fn probe_in_words(task: &str, layers: Option<&Representation>, heads: Option<&Severities>) -> Option<String> {
    let parts = layers.map(|found| furthest_in_words(task, found)).into_iter();
    let parts: Vec<String> = parts.chain(heads.map(|found| severity_in_words(task, found))).collect();
    (!parts.is_empty()).then(|| format!("{}.", capitalised(&parts.join("; "))))
}

pub fn landscape_in_words(task: &str, found: &Flatness) -> String {
    format!(
        "The loss landscape of {task} is {} than at its end: its {} is {} ± {} times what it was.",
        if found.is_flatter() { "flatter" } else { "sharper" },
        if found.is_relative { "relative trace" } else { "trace" },
        cosine(found.ratio),
        cosine_error(found.error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn representation(tied: Vec<u32>) -> Representation {
        let continued = Some(0.97);
        Representation { layer: 2, cka: 0.62, error: 0.011, layers: 4, tied, continued, is_unchanged: false }
    }

    fn severities() -> Severities {
        Severities {
            heads: 16,
            changed: 5,
            severe: 2,
            undetermined: 0,
            worst: Some(((2, 1), 0.031, 0.0042)),
            has_effects: true,
            is_extrapolated: false,
        }
    }

    #[test]
    fn a_probe_is_one_sentence() {
        let said = probe_in_words("legal", Some(&representation(vec![])), Some(&severities())).unwrap();
        assert_eq!(
            said,
            "Of 4 layers, layer 2 represents the text of legal most differently (debiased CKA 0.62 ± 0.011); 5 of 16 heads \
             changed more than further training on legal would change them, 2 severely (most of all layer 2 head 1: with its \
             old weights the loss is 0.031 ± 0.0042 lower)."
        );
        assert_eq!(probe_in_words("legal", None, None), None);
        let tied = furthest_in_words("legal", &representation(vec![1, 3]));
        assert!(tied.contains("layers 1, 2 and 3 represent") && tied.contains("cannot be told apart"));
        assert!(furthest_in_words("legal", &representation(vec![0, 1, 3])).starts_with("all 4 layers"));
        let same = Representation { is_unchanged: true, ..representation(vec![]) };
        assert!(furthest_in_words("legal", &same).starts_with("no layer represents"));
    }

    #[test]
    fn severity_needs_a_null_and_an_effect() {
        let none = Severities { changed: 0, severe: 0, worst: None, ..severities() };
        assert!(severity_in_words("legal", &none).starts_with("none of 16 heads changed"));
        assert!(!severity_in_words("legal", &none).contains("severely"));
        let mild = Severities { severe: 0, worst: None, is_extrapolated: true, ..severities() };
        assert!(severity_in_words("legal", &mild).ends_with("by an extrapolated null, none severely"));
        let unknown = Severities { has_effects: false, ..mild };
        assert!(!severity_in_words("legal", &unknown).contains("severely"));
        assert!(severity_in_words("legal", &Severities { undetermined: 16, ..none }).contains("undetermined"));
    }

    #[test]
    fn a_landscape_is_flatter_or_sharper() {
        let flatter = Flatness { ratio: 0.42, error: 0.05, is_relative: true };
        assert_eq!(
            landscape_in_words("legal", &flatter),
            "The loss landscape of legal is flatter than at its end: its relative trace is 0.42 ± 0.05 times what it was."
        );
        let sharper = landscape_in_words("legal", &Flatness { ratio: 1.5, is_relative: false, ..flatter });
        assert!(sharper.contains("sharper") && sharper.contains("its trace is 1.50"));
    }
}
