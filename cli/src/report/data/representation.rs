//! Hidden states of an earlier task's text, layer by layer, against those at the end of that task; and routers.

use std::collections::BTreeMap;

use super::looks::{Look, Looks};

/// Layers by number.
pub type Layers = BTreeMap<u32, Layer>;

#[derive(Clone, Debug, Default)]
pub struct Layer {
    pub states: Looks<States>,
    pub angles: Looks<Angles>,
    /// Likeness to the next layer.
    pub neighbours: Looks<Neighbour>,
    pub routers: Looks<Router>,
}

#[derive(Clone, Copy, Debug)]
pub struct States {
    pub cka: f64,
    pub error: f64,
    pub biased: f64,
    pub mean_shift: f64,
    pub effective_rank: f64,
    pub effective_rank_base: f64,
    pub tokens: f64,
}

/// Degrees.
#[derive(Clone, Copy, Debug)]
pub struct Angles {
    pub mean: f64,
    pub max: f64,
    pub null_mean: f64,
    pub null_high: f64,
    pub dimensions: f64,
    pub eigengap: f64,
    pub eigengap_base: f64,
    pub tokens: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Neighbour {
    pub change: f64,
    pub error: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Router {
    pub js_divergence: f64,
    pub jaccard: f64,
    pub jaccard_null: f64,
    pub load_divergence: f64,
    pub load_divergence_null: f64,
    pub load_entropy: f64,
    pub load_entropy_base: f64,
    pub experts: f64,
    pub tokens: f64,
}

impl Layer {
    pub fn retain(&mut self, qualifies: impl Fn(u64) -> bool + Copy) {
        self.states.retain(qualifies);
        self.angles.retain(qualifies);
        self.neighbours.retain(qualifies);
        self.routers.retain(qualifies);
    }

    /// The latest comparison with the base, if it has a value.
    pub fn latest(&self) -> Option<&Look<States>> {
        self.states.latest().filter(|look| look.found.cka.is_finite())
    }

    /// Lowest CKA that further training on the task itself has left.
    pub fn continued(&self) -> Option<f64> {
        let found = self.states.continued.iter().map(|look| look.found.cka);
        found.filter(|cka| cka.is_finite()).reduce(f64::min)
    }

    /// Its likeness to the next layer has changed by more than two errors.
    pub fn is_critical(&self) -> bool {
        self.neighbours.latest().is_some_and(|look| look.found.change.abs() > 2.0 * look.found.error)
    }
}

impl States {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        States {
            cka: value("cka"),
            error: value("cka_error"),
            biased: value("cka_biased"),
            mean_shift: value("mean_shift"),
            effective_rank: value("effective_rank"),
            effective_rank_base: value("effective_rank_base"),
            tokens: value("tokens"),
        }
    }
}

impl Angles {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Angles {
            mean: value("angle_mean"),
            max: value("angle_max"),
            null_mean: value("null_mean"),
            null_high: value("null_high"),
            dimensions: value("dimensions"),
            eigengap: value("eigengap"),
            eigengap_base: value("eigengap_base"),
            tokens: value("tokens"),
        }
    }
}

impl Neighbour {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Neighbour { change: value("change"), error: value("change_error") }
    }
}

impl Router {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Router {
            js_divergence: value("js_divergence"),
            jaccard: value("jaccard"),
            jaccard_null: value("jaccard_null"),
            load_divergence: value("load_divergence"),
            load_divergence_null: value("load_divergence_null"),
            load_entropy: value("load_entropy"),
            load_entropy_base: value("load_entropy_base"),
            experts: value("experts"),
            tokens: value("tokens"),
        }
    }
}
