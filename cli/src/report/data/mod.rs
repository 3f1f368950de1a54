//! What the figures need of the records: series by step, and sums over the steps of each task.
//!
//! Records are taken in one by one and not kept, so a recording of any length fits. Kinds and values are found by their
//! names in the catalog; records of other kinds pass by.
//!
//! | file | concept |
//! |---|---|
//! | `training` | sampled steps, stretches of tasks |
//! | `outcomes` | evaluations and the stage of a loss curve |
//! | `gradients` | gradients and weights against an earlier task |
//! | `looks` | passes over a probe: base, later, continued |
//! | `representation` | hidden states and routers by layer |
//! | `heads` | attention heads on an earlier task's text |
//! | `landscape` | curvature of a task's loss |

mod gradients;
mod heads;
mod landscape;
mod looks;
mod outcomes;
mod representation;
mod training;

pub use gradients::{Conflict, Corrected, Drift, Prediction};
pub use heads::{Attention, AttentionHeads, Depth, HeadChange, HeadId, Severity};
pub use landscape::{Curvature, Fisher, Flattening, Landscape, Landscapes, Secant};
pub use looks::Purpose;
pub use outcomes::{Evaluation, Stage, Trend};
pub use representation::{Angles, Layer, Layers, Neighbour, Router, States};
pub use training::{Span, Steps};

use std::collections::BTreeMap;

use forgetscope::ring::{NONE16, Record};

use super::mean::{HeadKey, Mean};
use crate::names::Names;
use crate::recording::catalog::Catalog;
use crate::study::{Case, EARLY, Evidence, Forecast};

/// Heads and their means.
pub type Means = BTreeMap<HeadKey, Mean>;

/// The kinds that are looked at.
pub const KINDS: [&str; 23] = [
    "step",
    "task",
    "evaluation",
    "stage",
    "interference",
    "corrected",
    "drift",
    "prediction",
    "representation",
    "subspace",
    "neighbour",
    "router",
    "attention",
    "head",
    "depth",
    "similarity",
    "curvature",
    "eigenvalue",
    "density",
    "flattening",
    "loss_path",
    "fisher",
    "secant",
];

/// Everything that the report is made from. Tasks are ids.
#[derive(Debug, Default)]
pub struct Data {
    pub source: String,
    pub is_recording: bool,
    /// All ranks of the recording; empty for a ring.
    pub ranks: Vec<u32>,
    pub catalog: Catalog,
    pub steps: Steps,
    /// When which task was trained, in order.
    pub spans: Vec<Span>,
    /// By metric and evaluated task.
    pub evaluations: BTreeMap<u16, BTreeMap<u16, Vec<Evaluation>>>,
    /// By task.
    pub stages: BTreeMap<u16, Vec<Stage>>,
    /// By trained task and reference.
    pub heads: BTreeMap<(u16, u16), Means>,
    /// By reference and role.
    pub conflicts: BTreeMap<u16, BTreeMap<u16, Vec<Conflict>>>,
    /// By reference and layer.
    pub drift: BTreeMap<u16, BTreeMap<u32, Vec<Drift>>>,
    /// By reference.
    pub predictions: BTreeMap<u16, Vec<Prediction>>,
    /// The latest, by reference and layer; `None` is the whole model.
    pub corrected: BTreeMap<u16, BTreeMap<Option<u32>, Corrected>>,
    /// What references were made of, by the names of their flags.
    pub origins: BTreeMap<u16, String>,
    /// By the task whose probe it is.
    pub representations: BTreeMap<u16, Layers>,
    /// By the task whose probe it is.
    pub attention: BTreeMap<u16, AttentionHeads>,
    /// By the task whose loss it is.
    pub landscapes: BTreeMap<u16, Landscapes>,
    /// A forecast that was given to compare the run with.
    pub forecast: Option<Forecast>,
    evidence: Evidence,
    /// Earliest and latest step of each task that records name; stands in for events that are lost.
    seen: BTreeMap<u16, (u64, u64)>,
}

impl Data {
    /// Takes a record in. Its time is in nanoseconds since 1970.
    pub fn absorb(&mut self, names: &Names, record: &Record) {
        if record.task != NONE16 {
            let seen = self.seen.entry(record.task).or_insert((record.step, record.step));
            *seen = (seen.0.min(record.step), seen.1.max(record.step));
        }
        self.evidence.absorb(names, record);
        let value = |name: &str| names.value(record, name);
        let kind = names.kind(record.kind);
        match kind.as_str() {
            "step" => self.steps.add(record, value),
            "task" => Span::event(&mut self.spans, record.reference, record.step, value("event")),
            _ if record.reference == NONE16 => {}
            "evaluation" | "stage" => self.outcome(&kind, record, value),
            "interference" | "corrected" | "drift" | "prediction" => self.gradient(&kind, names, record, value),
            "representation" | "subspace" | "neighbour" | "router" => self.layer(&kind, names, record, value),
            "attention" | "head" | "depth" => self.head(&kind, names, record, value),
            "curvature" | "eigenvalue" | "density" | "flattening" | "loss_path" | "fisher" | "secant" => {
                self.landscape(&kind, names, record, value);
            }
            _ => {}
        }
    }

    fn outcome(&mut self, kind: &str, record: &Record, value: impl Fn(&str) -> f64) {
        let Record { step, reference, .. } = *record;
        match kind {
            "stage" => self.stages.entry(reference).or_default().extend(Stage::of(step, value)),
            _ => {
                let metric = value("metric");
                let metric = if metric >= 0.0 { metric as u16 } else { 0 };
                let of_task = self.evaluations.entry(metric).or_default().entry(reference).or_default();
                of_task.push(Evaluation::of(step, value));
            }
        }
    }

    fn gradient(&mut self, kind: &str, names: &Names, record: &Record, value: impl Fn(&str) -> f64) {
        let Record { step, reference, .. } = *record;
        let place = names.place(record);
        match (kind, names.level(record.level).as_str()) {
            ("interference", "head") => {
                if let (Some(layer), Some(role), Some(head)) = (place.layer, place.role, place.head) {
                    let heads = self.heads.entry((record.task, reference)).or_default();
                    heads.entry(HeadKey { role, layer, head }).or_default().add(step, value);
                }
            }
            ("interference", "role") => {
                let Some(role) = place.role else { return };
                let of_role = self.conflicts.entry(reference).or_default().entry(role).or_default();
                of_role.push(Conflict::of(step, value));
            }
            ("interference", "model") => {
                let origin = names.flags(record.flags).into_iter();
                let origin =
                    origin.filter(|flag| ["exact", "frozen", "refreshed", "trailing"].contains(&flag.as_str()));
                self.origins.insert(reference, origin.collect::<Vec<_>>().join(", "));
            }
            ("corrected", "layer" | "model") => {
                self.corrected.entry(reference).or_default().insert(place.layer, Corrected::of(step, value));
            }
            ("drift", "layer") => {
                let layers = self.drift.entry(reference).or_default();
                layers.entry(place.layer.unwrap_or_default()).or_default().push(Drift::of(step, value));
            }
            ("prediction", _) => {
                let is_unscaled = names.has_flag(record, "unscaled");
                self.predictions.entry(reference).or_default().push(Prediction::of(step, value, is_unscaled));
            }
            _ => {}
        }
    }

    /// A task in training is compared with what it was before its own training: that is learning and not forgetting.
    fn is_learning(purpose: Purpose, record: &Record) -> bool {
        purpose == Purpose::Later && record.task == record.reference
    }

    fn layer(&mut self, kind: &str, names: &Names, record: &Record, value: impl Fn(&str) -> f64) {
        let Some(number) = names.place(record).layer else { return };
        let (purpose, step) = (Purpose::of(names, record), record.step);
        if Self::is_learning(purpose, record) {
            return;
        }
        let layer = self.representations.entry(record.reference).or_default().entry(number).or_default();
        match kind {
            "representation" => layer.states.add(purpose, step, States::of(value)),
            "subspace" => layer.angles.add(purpose, step, Angles::of(value)),
            "neighbour" => layer.neighbours.add(purpose, step, Neighbour::of(value)),
            _ => layer.routers.add(purpose, step, Router::of(value)),
        }
    }

    fn head(&mut self, kind: &str, names: &Names, record: &Record, value: impl Fn(&str) -> f64) {
        let (purpose, step) = (Purpose::of(names, record), record.step);
        if Self::is_learning(purpose, record) {
            return;
        }
        let heads = self.attention.entry(record.reference).or_default();
        let place = names.place(record);
        match (kind, place.layer.zip(place.head)) {
            ("depth", _) => heads.depth.add(purpose, step, Depth::of(value)),
            ("attention", Some(id)) => heads.attention.entry(id).or_default().add(purpose, step, Attention::of(value)),
            ("head", Some(id)) => {
                let change = HeadChange::of(value, names.has_flag(record, "extrapolated"));
                heads.changes.entry(id).or_default().add(purpose, step, change);
            }
            _ => {}
        }
    }

    fn landscape(&mut self, kind: &str, names: &Names, record: &Record, value: impl Fn(&str) -> f64) {
        let landscapes = self.landscapes.entry(record.reference).or_default();
        match kind {
            "fisher" => {
                landscapes.fisher = Some(Fisher::of(value, names.has_flag(record, "unscaled")));
                return;
            }
            "secant" => {
                landscapes.secant = Some(Secant::of(record.step, value));
                return;
            }
            _ => {}
        }
        let run = landscapes.runs.entry(record.step).or_default();
        run.is_base |= names.has_flag(record, "base");
        match (kind, names.has_flag(record, "block")) {
            ("curvature", false) => run.curvature = Some(Curvature::of(value)),
            ("curvature", true) => drop(run.blocks.insert(record.tensor, Curvature::of(value))),
            ("eigenvalue", _) => run.add_eigenvalue(value),
            ("density", _) => run.density.push((value("node"), value("weight"))),
            ("loss_path", _) => run.path.push((value("position"), value("loss"))),
            _ => run.flattening = Some(Flattening::of(value)),
        }
    }

    /// To be called after the last record.
    pub fn finish(&mut self) {
        // Records of a task whose beginning is missing: its event is lost, or the task was looked at and never trained.
        if !self.is_complete() {
            for (&task, &(begin, end)) in &self.seen {
                if !self.spans.iter().any(|span| span.task == task) {
                    self.spans.push(Span { task, begin, end: Some(end) });
                }
            }
        }
        self.spans.sort_by_key(|span| span.begin);
        self.forget_tasks_to_come();
    }

    /// Nothing was overwritten before it was read.
    fn is_complete(&self) -> bool {
        let facts = &self.catalog.facts;
        facts.overwritten == 0 && facts.lost == 0
    }

    /// A task that is looked at before it is trained has nothing to forget: what changes then is no subject of this page.
    fn forget_tasks_to_come(&mut self) {
        let is_complete = self.is_complete();
        let begins = |task: u16| self.spans.iter().find(|span| span.task == task).map(|span| span.begin);
        // A task that is not known to have begun may have done so in records that are gone.
        let was_trained = |task: u16, step: u64| begins(task).map_or(!is_complete, |begin| step > begin);
        for (&task, layers) in &mut self.representations {
            layers.values_mut().for_each(|layer| layer.retain(|step| was_trained(task, step)));
        }
        for (&task, heads) in &mut self.attention {
            heads.retain(|step| was_trained(task, step));
        }
    }

    pub fn task(&self, task: u16) -> String {
        self.catalog.names.task(task).unwrap_or_else(|| "no task".into())
    }

    /// The metric that speaks for a run: the loss, or else the first.
    pub fn main_metric(&self) -> Option<u16> {
        let metrics = &self.catalog.names.metrics;
        let is_loss = |metric: &&u16| metrics.get(metric).is_some_and(|metric| metric.name == "loss");
        self.evaluations.keys().find(is_loss).or(self.evaluations.keys().next()).copied()
    }

    /// Heads during the latest task that has any, with that task, by reference.
    pub fn latest_heads(&self) -> (Option<u16>, Vec<(u16, &Means)>) {
        let has_heads = |task: &u16| self.heads.keys().any(|(trained, _)| trained == task);
        let task = self.spans.iter().rev().map(|span| span.task).find(has_heads);
        let of_task = self.heads.iter().filter(|((trained, _), _)| Some(*trained) == task);
        (task, of_task.map(|((_, reference), heads)| (*reference, heads)).collect())
    }

    /// Each earlier task while each later one was trained, by the first steps of the later one: as many as the forecast
    /// looks at, if there is one.
    pub fn pairs(&self) -> Vec<Case> {
        let early = self.forecast.as_ref().map_or(EARLY, |forecast| forecast.early);
        self.evidence.cases(0, early, &|task| self.task(task))
    }

    pub fn is_running(&self) -> bool {
        self.catalog.facts.state == "running"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgetscope::ring::Entry;
    use forgetscope::scope::schema;

    #[test]
    fn lost_events_are_made_up_for() {
        for (lost, expected) in [(1, &[Span { task: 3, begin: 20, end: Some(50) }][..]), (0, &[])] {
            let mut data = Data::default();
            data.catalog.facts.lost = lost;
            data.absorb(&Names::default(), &Record { task: 3, step: 50, ..Record::default() });
            data.absorb(&Names::default(), &Record { task: 3, step: 20, ..Record::default() });
            data.finish();
            assert_eq!(data.spans, expected, "{lost} records lost");
        }
    }

    /// The names of today's library.
    fn names() -> Names {
        let mut names = Names::default();
        schema::entries().for_each(|entry: Entry| names.add(entry));
        names
    }

    fn record(kind: u16, level: u8, slice: u32, flags: u32, values: &[f64]) -> Record {
        let mut record = Record { kind, level, slice, flags, task: 1, reference: 0, step: 7, ..Record::default() };
        record.values[..values.len()].copy_from_slice(values);
        record
    }

    #[test]
    fn every_kind_that_is_looked_at_is_one_that_the_library_writes() {
        let known: Vec<&str> = schema::KINDS.iter().map(|(_, name, _)| *name).collect();
        assert!(KINDS.iter().all(|kind| known.contains(kind)));
    }

    #[test]
    fn probes_are_sorted_by_purpose_layer_and_head() {
        use schema::{attention_head_slice, flag, kind, level};
        let (names, mut data) = (names(), Data::default());
        for (flags, cka) in [(flag::BASE, f64::NAN), (0, 0.8), (flag::CONTINUED, 0.97)] {
            data.absorb(&names, &record(kind::REPRESENTATION, level::LAYER, 2, flags, &[cka, 0.01]));
        }
        let own = record(kind::REPRESENTATION, level::LAYER, 2, 0, &[0.1, 0.01]);
        data.absorb(&names, &Record { task: 0, ..own });
        data.spans = vec![Span { task: 0, begin: 0, end: Some(5) }];
        data.finish();
        let layer = &data.representations[&0][&2];
        assert_eq!((layer.latest().unwrap().found.cka, layer.continued()), (0.8, Some(0.97)));
        let slice = attention_head_slice(2, 3);
        let values = [0.6, 0.5, 0.1, 0.2, 1e-4, 1e-3, 2.0, 0.03, 0.01, 40.0];
        data.absorb(&names, &record(kind::HEAD, level::ATTENTION_HEAD, slice, flag::EXTRAPOLATED, &values));
        let (id, head) = data.attention[&0].latest().next().unwrap();
        assert_eq!((id, head.severity, head.is_extrapolated), ((2, 3), Some(Severity::Severe), true));
        assert!((head.over_null() - 6.0).abs() < 1e-12);
        data.spans = vec![Span { task: 0, begin: 7, end: None }];
        data.finish();
        assert!(data.attention[&0].latest().next().is_none(), "it was not trained when it was looked at");
    }

    #[test]
    fn a_landscape_is_all_records_of_its_step() {
        use schema::{flag, kind, level};
        let (names, mut data) = (names(), Data::default());
        let model = |kind, flags, values: &[f64]| record(kind, level::MODEL, u32::MAX, flags, values);
        data.absorb(&names, &model(kind::CURVATURE, flag::BASE, &[9.0, 100.0, 5.0]));
        data.absorb(&names, &model(kind::EIGENVALUE, flag::BASE, &[0.0, 9.0, 0.1, f64::NAN]));
        data.absorb(&names, &model(kind::DENSITY, flag::BASE, &[1.0, 50.0, 1.0]));
        data.absorb(&names, &Record { tensor: 4, ..record(kind::CURVATURE, level::TENSOR, 0, flag::BLOCK, &[3.0]) });
        data.absorb(&names, &model(kind::SECANT, 0, &[0.5, 0.1, 2.0, 8.0]));
        let found = &data.landscapes[&0];
        let (then, now) = found.then_and_now();
        let (step, then) = then.unwrap();
        assert!(step == 7 && now.is_none() && then.eigenvalues[&0].value == 9.0 && then.density == [(1.0, 50.0)]);
        assert!(then.curvature.unwrap().trace == 100.0 && then.blocks[&4].largest == 3.0);
        assert_eq!(found.secant.unwrap().curvature, 0.5);
    }
}
