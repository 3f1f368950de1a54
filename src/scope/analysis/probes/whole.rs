//! What needs several layers of a pass, or several tasks at the same weights.

use super::layer::LayerBase;
use super::{Probes, Running, SameWeights, layer_subject};
use crate::scope::algebra::Outbox;
use crate::scope::analysis::Subject;
use crate::scope::schema::kind;
use crate::stats::cka::{cka, neighbours};
use crate::stats::noise::Estimate;
use crate::stats::similarity::{Similarity, similarity};
use std::collections::BTreeMap;

const UNKNOWN: Estimate = Estimate { value: f64::NAN, error: f64::NAN };

impl Running {
    /// Each layer against the next one that was handed over, and what has changed in that since the base.
    pub fn neighbours(&self, outbox: &mut Outbox, base: &BTreeMap<u32, LayerBase>) {
        let then = |layer: u32| base.get(&layer).and_then(|base| Some(&*base.hidden.as_ref()?.sample));
        for ((&lower, low), (&upper, high)) in self.samples.iter().zip(self.samples.iter().skip(1)) {
            let (sample, next) = (&*low.sample, &*high.sample);
            let found = match (then(lower), then(upper)) {
                (Some(low), Some(high)) if !self.is_base() => {
                    let found = neighbours((low, high), (sample, next));
                    (found.now, found.base, found.change)
                }
                _ => (cka(sample, next).estimate(), UNKNOWN, UNKNOWN),
            };
            let (now, before, change) = found;
            let record = self.record(outbox, kind::NEIGHBOUR, layer_subject(lower));
            outbox.publish(record, &[now.value, before.value, change.value, change.error, sample.tokens() as f64]);
        }
    }
}

impl Probes {
    /// Tasks whose probes were run at the same weights: how alike their representations are, over all layers.
    pub(super) fn similarity(&mut self, outbox: &mut Outbox, running: &Running) {
        if self.same_weights_epoch != running.pass.epoch {
            self.same_weights.clear();
            self.same_weights_epoch = running.pass.epoch;
        }
        // The weights of a continued run are nobody's but its own.
        if running.samples.is_empty() || running.is_continued() {
            return;
        }
        let task = running.pass.task;
        for (&other, there) in self.same_weights.iter().filter(|(other, _)| **other != task) {
            let mut found = Similarity::default();
            for (layer, now) in &running.samples {
                if let Some(then) = there.samples.get(layer)
                    && let (Some(halves), Some(other_halves)) = (&now.halves, &then.halves)
                {
                    found.add(&similarity((&now.sample, halves), (&then.sample, other_halves)));
                }
            }
            if found.layers == 0 {
                continue;
            }
            let mut record = running.record(outbox, kind::SIMILARITY, Subject::MODEL);
            // One record per pair; neither is the earlier one.
            (record.task, record.reference) = (task.max(other), task.min(other));
            let values = [
                found.overlap(),
                found.overlap_ceiling(),
                found.overlap_null(),
                found.mean_cosine(),
                found.dimensions as f64,
                found.layers as f64,
                found.tokens as f64,
                found.tokens_other as f64,
            ];
            outbox.publish(record, &values);
        }
        let (samples, lease) = (running.samples.clone(), running.pass.lease.clone());
        self.same_weights.insert(task, SameWeights { samples, _lease: lease });
    }
}
