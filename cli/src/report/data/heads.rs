//! Attention heads on an earlier task's text: what they add, what they attend to, and how severe the change is.

use std::collections::BTreeMap;

use super::looks::Looks;

/// Layer and head.
pub type HeadId = (u32, u32);

/// The heads of one earlier task.
#[derive(Clone, Debug, Default)]
pub struct AttentionHeads {
    pub changes: BTreeMap<HeadId, Looks<HeadChange>>,
    pub attention: BTreeMap<HeadId, Looks<Attention>>,
    pub depth: Looks<Depth>,
}

#[derive(Clone, Copy, Debug)]
pub struct HeadChange {
    pub change: f64,
    pub output_cosine: f64,
    pub null_median: f64,
    pub q_value: f64,
    pub severity: Option<Severity>,
    pub effect: f64,
    pub effect_error: f64,
    pub updates: f64,
    /// The null is extrapolated to that many updates.
    pub is_extrapolated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Unchanged,
    Changed,
    Severe,
}

#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub entropy: f64,
    pub entropy_base: f64,
    pub sink: f64,
    pub sink_base: f64,
    pub divergence: f64,
    pub rows: f64,
}

/// Upper against lower layers.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    pub lower: f64,
    pub upper: f64,
    pub lower_heads: f64,
    pub upper_heads: f64,
    pub confidence: f64,
}

impl AttentionHeads {
    pub fn retain(&mut self, qualifies: impl Fn(u64) -> bool + Copy) {
        self.changes.values_mut().for_each(|looks| looks.retain(qualifies));
        self.attention.values_mut().for_each(|looks| looks.retain(qualifies));
        self.depth.retain(qualifies);
    }

    /// The latest look at every head whose change is known.
    pub fn latest(&self) -> impl Iterator<Item = (HeadId, &HeadChange)> {
        let latest = self.changes.iter().filter_map(|(id, looks)| Some((*id, &looks.latest()?.found)));
        latest.filter(|(_, head)| head.change.is_finite())
    }

    /// Updates that the null was measured over.
    pub fn null_updates(&self) -> Option<f64> {
        let looks = self.changes.values().flat_map(|looks| &looks.continued);
        looks.map(|look| look.found.updates).filter(|updates| updates.is_finite()).reduce(f64::max)
    }
}

impl HeadChange {
    pub fn of(value: impl Fn(&str) -> f64, is_extrapolated: bool) -> Self {
        let severity = match value("severity") {
            0.0 => Some(Severity::Unchanged),
            1.0 => Some(Severity::Changed),
            2.0 => Some(Severity::Severe),
            _ => None,
        };
        HeadChange {
            change: value("contribution_change"),
            output_cosine: value("output_cosine"),
            null_median: value("null_median"),
            q_value: value("q_value"),
            severity,
            effect: value("effect"),
            effect_error: value("effect_error"),
            updates: value("updates"),
            is_extrapolated,
        }
    }

    /// Its change over the median of what further training on the task itself changes.
    pub fn over_null(&self) -> f64 {
        self.change / self.null_median
    }
}

impl Attention {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Attention {
            entropy: value("entropy"),
            entropy_base: value("entropy_base"),
            sink: value("sink"),
            sink_base: value("sink_base"),
            divergence: value("divergence"),
            rows: value("rows"),
        }
    }
}

impl Depth {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Depth {
            difference: value("difference"),
            low: value("low"),
            high: value("high"),
            lower: value("lower"),
            upper: value("upper"),
            lower_heads: value("lower_heads"),
            upper_heads: value("upper_heads"),
            confidence: value("confidence"),
        }
    }
}
