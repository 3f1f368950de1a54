//! One layer of a pass: hidden states, attention, router; head outputs are kept for the end of the pass.

use super::heads::HeadChange;
use super::{Measured, Running, layer_subject};
use crate::ring::NONE32;
use crate::scope::algebra::Outbox;
use crate::scope::analysis::Subject;
use crate::scope::probe::{AttentionPass, LayerPass, OutputsPass, RouterPass};
use crate::scope::schema::{attention_head_slice, flag, kind, level};
use crate::stats::attention::{Head, Rows, divergences};
use crate::stats::collapse::{Collapse, collapse};
use crate::stats::contribution::{HeadOutputs, compare as compare_outputs};
use crate::stats::representation::compare;
use crate::stats::router::compare as compare_routers;
use crate::stats::sample::Sample;
use crate::stats::subspace::{SPLITS, halves, subspace};
use std::sync::Arc;

/// A layer at the base pass.
pub struct LayerBase {
    pub hidden: Option<Measured>,
    collapse: Option<Collapse>,
    attention: Option<AttentionBase>,
    pub outputs: Option<(u32, HeadOutputs)>,
    router: Option<RouterPass>,
}

struct AttentionBase {
    first_head: u32,
    rows: Rows,
    heads: Vec<Head>,
}

impl Running {
    /// Measures one layer against its base, if it has one, and publishes.
    pub fn layer(
        &mut self,
        outbox: &mut Outbox,
        number: u32,
        layer: LayerPass,
        base: Option<&LayerBase>,
        dimensions: usize,
    ) {
        let is_base = self.is_base();
        let base = base.filter(|_| !is_base);
        let LayerPass { hidden, attention, outputs, router } = layer;
        let hidden = hidden.map(|rows| {
            let sample = Sample::new(&rows, &self.pass.batches, &self.pass.sequences, dimensions);
            let halves = if is_base {
                Some(halves(&sample, SPLITS))
            } else {
                base.and_then(|base| base.hidden.as_ref()).and_then(|then| then.halves)
            };
            Measured { sample: Arc::new(sample), halves }
        });
        let mut collapsed = None;
        if let Some(now) = &hidden {
            self.representation(outbox, number, now, base);
            if !self.pass.labels.is_empty() {
                let found = collapse(&now.sample, &self.pass.labels);
                self.collapse(outbox, number, &found, base);
                collapsed = Some(found);
            }
            self.samples.insert(number, now.clone());
        }
        let attention = attention.map(|pass| self.attention(outbox, number, pass, base));
        let router = router.map(|pass| self.router(outbox, number, pass, base));
        let outputs = outputs.map(|OutputsPass { first_head, heads, outputs, projection }| {
            (first_head, HeadOutputs::new(outputs, projection, heads))
        });
        if let (Some((first_head, now)), Some((first_then, then))) =
            (&outputs, base.and_then(|base| base.outputs.as_ref()))
            && first_head == first_then
        {
            let residual = base.and_then(|base| base.hidden.as_ref()).map_or(f64::NAN, |then| then.sample.norm());
            let changes = compare_outputs(then, now, residual).into_iter().zip(*first_head..);
            self.heads.extend(changes.map(|(change, head)| HeadChange { layer: number, head, change }));
        }
        if is_base {
            self.base.insert(number, LayerBase { hidden, collapse: collapsed, attention, outputs, router });
        }
    }

    fn representation(&self, outbox: &mut Outbox, layer: u32, now: &Measured, base: Option<&LayerBase>) {
        let Measured { sample: now, halves } = now;
        let (tokens, batches) = (now.tokens() as f64, now.batches() as f64);
        let then = base.and_then(|base| base.hidden.as_ref()).map(|then| &then.sample);
        let mut record = self.record(outbox, kind::REPRESENTATION, layer_subject(layer));
        if !now.is_valid() {
            record.flags |= flag::NON_FINITE;
        }
        let values = then.map_or([f64::NAN; 8], |then| {
            let found = compare(then, now);
            [
                found.cka.value,
                found.cka.error,
                found.cka_biased,
                found.procrustes,
                found.mean_shift,
                found.variance_shift,
                found.effective_rank,
                found.effective_rank_base,
            ]
        });
        let mut values = values.to_vec();
        values[6] = now.effective_rank();
        values.extend([tokens, batches]);
        outbox.publish(record, &values);

        let record = self.record(outbox, kind::SUBSPACE, layer_subject(layer));
        let found = subspace(then.map_or(now, |then| then), now);
        // Of the base itself only the null and the gap mean anything.
        let compared = |value: f64| if then.is_some() { value } else { f64::NAN };
        outbox.publish(
            record,
            &[
                compared(found.angle_mean),
                compared(found.angle_max),
                halves.map_or(f64::NAN, |null| null.angle_mean),
                halves.map_or(f64::NAN, |null| null.angle_high),
                compared(found.overlap),
                found.overlap_null,
                found.dimensions as f64,
                found.eigengap,
                found.eigengap_base,
                tokens,
            ],
        );
    }

    fn collapse(&self, outbox: &mut Outbox, layer: u32, now: &Collapse, base: Option<&LayerBase>) {
        let record = self.record(outbox, kind::COLLAPSE, layer_subject(layer));
        let then = base.and_then(|base| base.collapse.as_ref()).map_or(f64::NAN, |then| then.nc1);
        outbox.publish(record, &[now.nc1, then, now.null, now.classes as f64, now.tokens as f64]);
    }

    fn attention(
        &self,
        outbox: &mut Outbox,
        layer: u32,
        pass: AttentionPass,
        base: Option<&LayerBase>,
    ) -> AttentionBase {
        let AttentionPass { first_head, rows } = pass;
        let heads = rows.describe();
        let then = base.and_then(|base| base.attention.as_ref()).filter(|then| then.first_head == first_head);
        let divergences = then.map(|then| divergences(&then.rows, &rows));
        for (index, now) in heads.iter().enumerate() {
            let slice = attention_head_slice(layer, first_head + index as u32);
            let subject = Subject { level: level::ATTENTION_HEAD, tensor: NONE32, slice };
            let then = then.and_then(|then| then.heads.get(index));
            let of_base = |value: fn(&Head) -> f64| then.map_or(f64::NAN, value);
            let divergence = divergences.as_ref().and_then(|all| all.get(index)).copied().unwrap_or(f64::NAN);
            outbox.publish(
                self.record(outbox, kind::ATTENTION, subject),
                &[
                    now.entropy,
                    of_base(|head| head.entropy),
                    now.sink,
                    of_base(|head| head.sink),
                    now.dormant,
                    of_base(|head| head.dormant),
                    divergence,
                    now.max_logit,
                    of_base(|head| head.max_logit),
                    rows.keys.len() as f64,
                ],
            );
        }
        AttentionBase { first_head, rows, heads }
    }

    fn router(&self, outbox: &mut Outbox, layer: u32, pass: RouterPass, base: Option<&LayerBase>) -> RouterPass {
        let record = self.record(outbox, kind::ROUTER, layer_subject(layer));
        let then = base.and_then(|base| base.router.as_ref()).filter(|then| then.top_k == pass.top_k);
        // Of the base itself only the load means anything.
        let compared = |value: f64| if then.is_some() { value } else { f64::NAN };
        let found = compare_routers(&then.unwrap_or(&pass).logits, &pass.logits, pass.top_k);
        outbox.publish(
            record,
            &[
                compared(found.divergence),
                compared(found.js_divergence),
                compared(found.jaccard),
                found.jaccard_null,
                compared(found.load_divergence),
                found.load_divergence_null,
                found.load_entropy,
                compared(found.load_entropy_base),
                found.experts as f64,
                found.tokens as f64,
            ],
        );
        pass
    }
}
