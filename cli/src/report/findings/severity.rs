//! How many heads changed beyond what further training on their own task changes, and how many severely.

use crate::report::data::{AttentionHeads, HeadId, Severity};

#[derive(Clone, Debug, PartialEq)]
pub struct Severities {
    /// Heads whose change is known.
    pub heads: usize,
    /// Changed or severe.
    pub changed: usize,
    pub severe: usize,
    pub undetermined: usize,
    /// The severe head with the largest effect, with the effect on the loss and its error.
    pub worst: Option<(HeadId, f64, f64)>,
    /// Some heads' effect on the loss was measured: without it no head can be severe.
    pub has_effects: bool,
    /// The null is extrapolated for some of them.
    pub is_extrapolated: bool,
}

pub fn of(heads: &AttentionHeads) -> Option<Severities> {
    let all: Vec<_> = heads.latest().collect();
    let count = |least| all.iter().filter(|(_, head)| head.severity >= Some(least)).count();
    let severe = all.iter().filter(|(_, head)| head.severity == Some(Severity::Severe));
    let worst = severe.max_by(|a, b| a.1.effect.total_cmp(&b.1.effect));
    (!all.is_empty()).then(|| Severities {
        heads: all.len(),
        changed: count(Severity::Changed),
        severe: count(Severity::Severe),
        undetermined: all.iter().filter(|(_, head)| head.severity.is_none()).count(),
        worst: worst.map(|(id, head)| (*id, head.effect, head.effect_error)),
        has_effects: all.iter().any(|(_, head)| head.effect.is_finite()),
        is_extrapolated: all.iter().any(|(_, head)| head.is_extrapolated),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::{HeadChange, Purpose};

    #[test]
    fn heads_are_counted_by_class() {
        let mut heads = AttentionHeads::default();
        for (head, severity, effect) in [(0, 0.0, 0.9), (1, 1.0, 0.1), (2, 2.0, 0.3), (3, f64::NAN, 0.0), (4, 2.0, 0.5)]
        {
            let value = |name: &str| match name {
                "severity" => severity,
                "effect" => effect,
                _ => 0.1,
            };
            heads.changes.entry((1, head)).or_default().add(Purpose::Later, 9, HeadChange::of(value, head == 2));
        }
        let found = of(&heads).unwrap();
        assert_eq!((found.heads, found.changed, found.severe, found.undetermined), (5, 3, 2, 1));
        assert_eq!(found.worst, Some(((1, 4), 0.5, 0.1)), "the effect of an unchanged head is not the worst");
        assert!(found.is_extrapolated && found.has_effects);
        assert_eq!(of(&AttentionHeads::default()), None);
    }
}
