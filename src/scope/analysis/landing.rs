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

#[cfg(test)]
mod tests {
    use crate::device::{DType, Memory, Strided};
    use crate::ring::{Entry, Poll, Reader};
    use crate::scope::schema::{Fault, Role, kind};
    use crate::scope::{Data, Front, HeadMap, Options, Scope, Source, TensorSpec, View};
    use std::path::Path;

    const SHAPE: (u64, u64) = (4, 8);

    fn tensor(name: &str) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            role: Role::Other,
            layer: None,
            expert: None,
            group: 0,
            numel: SHAPE.0 * SHAPE.1,
            shape: Some(SHAPE),
            heads: HeadMap::WHOLE,
            flags: 0,
            replica: 0,
            tied_to: None,
            stack: 1,
        }
    }

    fn step(front: &mut Front, number: u64) {
        front.step_begin(number).unwrap();
        front.gradients_ready(1.0, false).unwrap();
        front.step_end(true).unwrap();
    }

    fn count(path: &Path, fault: Fault) -> u64 {
        Reader::open(path).unwrap().counter(fault as usize)
    }

    /// No machine has a device of this ordinal.
    const NOWHERE: u32 = 1000;

    /// There is no device for this memory, so everything that is asked of it is lost.
    #[test]
    fn what_is_lost_is_left_out_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.ring");
        let options = Options { ring_path: Some(path.clone()), every: 1, ..Options::default() };
        let scope = Scope::open(options).unwrap();
        let values = [1.0f32; (SHAPE.0 * SHAPE.1) as usize];
        // SAFETY: the array outlives the scope, and what is said to be elsewhere is not read.
        let (here, elsewhere) = unsafe {
            let address = values.as_ptr().cast();
            (Memory::new(address, DType::F32), Memory::on_device(address, DType::F32, NOWHERE))
        };
        let view = View::collapse(&[SHAPE.0 as i64, SHAPE.1 as i64], None).unwrap();
        let mut front = scope.front();
        for (name, memory) in [("here", here), ("elsewhere", elsewhere)] {
            let id = front.register(tensor(name)).unwrap();
            for source in [Source::Gradient, Source::Parameter] {
                // Past the check that the device is there.
                let Front { catalog, options, .. } = &mut *front;
                catalog.bind(id, source, Data { memory, view, shape: SHAPE }, None, options).unwrap();
            }
        }
        step(&mut front, 1);
        // A path that is lost, and the snapshot at its end.
        front.snapshot(Some("task")).unwrap();
        front.reference_add("task", 1, 1.0).unwrap();
        front.probe_begin("task", None, false).unwrap();
        front.probe_batch(SHAPE.0, 1, &[]).unwrap();
        front.probe_hidden(0, Strided::new(elsewhere, [(SHAPE.0, 8), (SHAPE.1, 1)]).unwrap()).unwrap();
        front.probe_end().unwrap();
        drop(front);
        scope.flush().unwrap();
        assert_eq!(count(&path, Fault::Device), 5);
        let mut front = scope.front();
        front.unbind(1, Source::Gradient).unwrap();
        front.unbind(1, Source::Parameter).unwrap();
        step(&mut front, 2);
        drop(front);
        scope.close();
        assert_eq!(count(&path, Fault::Device), 5, "host memory is measured as before");
        let mut reader = Reader::open(&path).unwrap();
        let told = |entry: &&Entry| matches!(entry, Entry::Attribute { key, .. } if key == super::LOST);
        assert_eq!(reader.catalog().unwrap().iter().filter(told).count(), 1, "said once");
        let mut steps = Vec::new();
        while let Ok(Poll::Record(record)) = reader.poll() {
            if record.kind == kind::STEP {
                steps.push(record.step);
            }
        }
        assert_eq!(steps, [2]);
    }
}
