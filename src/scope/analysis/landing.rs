//! Drafts land here: what the calling side asked for is waited for, and what never comes is counted.
//!
//! While a draft is waited for the heart beats on, and later messages wait: what they mean may depend on this one. A device
//! that does not answer says so itself after a while, so the wait ends.

use super::Analysis;
use crate::device::Lost;
use crate::ring::Entry;
use crate::scope::algebra::Work;
use crate::scope::draft::Landing;
use crate::scope::probe::{PassDraft, Purpose};
use crate::scope::references::ReferenceDraft;
use crate::scope::schema::Fault;

/// Attribute of the ring's catalog: what was said when something of a device was lost first.
const LOST: &str = "device_lost";

impl Analysis {
    /// What a draft becomes; `None` if a device lost it, which is counted at `step`.
    pub(super) fn land<T>(&mut self, step: u64, land: impl FnOnce(&mut Landing) -> Result<T, Lost>) -> Option<T> {
        let Self { publisher, slices, buckets, .. } = self;
        let mut idle = || publisher.heartbeat();
        match land(&mut Landing::new(slices, *buckets, &mut idle)) {
            Ok(landed) => Some(landed),
            Err(Lost(why)) => {
                if !std::mem::replace(&mut self.told_of_device, true) {
                    self.publisher.name(&Entry::Attribute { key: LOST.into(), value: why });
                }
                self.fault(Fault::Device as u8, step);
                None
            }
        }
    }

    pub(super) fn land_reference(&mut self, draft: ReferenceDraft) {
        let (task, step, origin, first) = (draft.task, draft.step, draft.origin, draft.first);
        match self.land(step, |landing| draft.land(landing)) {
            Some((batch, not_finite)) => {
                (0..not_finite).for_each(|_| self.fault(Fault::NonFinite as u8, step));
                self.reference(batch);
            }
            // Later batches do not belong to what was there before.
            None if first => *self.reference_of(task, origin, first) = None,
            None => {}
        }
    }

    pub(super) fn land_pass(&mut self, draft: PassDraft) {
        let (task, step, purpose) = (draft.pass.task, draft.pass.step, draft.pass.purpose);
        match self.land(step, |landing| draft.land(landing)) {
            Some((pass, left_out)) => {
                (0..left_out).for_each(|_| self.fault(Fault::ProbeLeftOut as u8, step));
                self.compute(Work::Pass(Box::new(pass)));
            }
            // What it was to replace is of other weights.
            None if purpose == Purpose::Base => self.forget_bases(task),
            None => {}
        }
    }
}
