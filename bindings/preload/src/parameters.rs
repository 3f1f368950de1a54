//! Gathered buffers as the parameters that the reduced buckets are gradients of. Opt-in: `FGS_PRELOAD_PARAMETERS=1`.
//!
//! The library reads parameters when gradients are ready and when the step ends, so the buffers have to stay where they are.
//! That is watched: they are bound after a step in which none has moved, and unbound at once when one does, or when its memory
//! is not there any more just before it is read (0.1 to 1 ms in a sampled step: the process's list of mappings is read).
//! Each rank measures the range whose gradient it has.

use std::ops::Range;

use crate::buckets::Buckets;
use crate::instrument::{Instrument, Outcome, TensorId};
use crate::memory::{Buffer, Device};
use crate::readable::Readable;
use crate::signature::{Kind, Period};

/// Steps without a gather, after which none is expected.
const PATIENCE: u32 = 8;

/// What is known of the parameters.
#[derive(Debug, Default)]
pub struct Parameters {
    is_wanted: bool,
    /// Positions of a gather and of the reduction of the same bucket.
    pairs: Vec<(usize, usize)>,
    /// A gather's buffer has moved in the step that goes on.
    has_moved: bool,
    bound: Vec<Bound>,
    /// Steps until it is said that nothing is gathered; 0: it was said, or something is.
    waits: u32,
}

/// A tensor whose parameters are bound.
#[derive(Debug)]
struct Bound {
    id: TensorId,
    device: Device,
    bytes: Range<usize>,
}

impl Parameters {
    pub fn new(is_wanted: bool) -> Self {
        Self { is_wanted, ..Self::default() }
    }

    /// Whether drift can be measured.
    pub fn are_visible(&self) -> bool {
        !self.bound.is_empty()
    }

    /// Another sequence of collectives: which gather belongs to which bucket. Nothing is bound any more.
    pub fn plan(&mut self, period: &Period, instrument: &Instrument) -> Outcome {
        self.unbind(instrument)?;
        self.has_moved = true;
        if !self.is_wanted {
            return Ok(());
        }
        self.pairs = pairs(period);
        self.waits = 0;
        if !self.pairs.is_empty() {
            return Ok(());
        }
        let of = |kind| -> Vec<u64> {
            period.events().iter().filter(|event| event.kind == kind).map(|event| event.count).collect()
        };
        let (gathers, reductions) = (of(Kind::Gather), of(Kind::Reduce));
        if gathers.is_empty() {
            // They may be found to belong to a step that began with its reductions.
            self.waits = PATIENCE;
            return Ok(());
        }
        Err(format!(
            "FGS_PRELOAD_PARAMETERS: gathers of {gathers:?} elements cannot be told to belong to buckets of \
             {reductions:?}; parameters are not measured"
        ))
    }

    /// A gather left its result at another address than in the step before.
    pub fn moved(&mut self, instrument: &Instrument) -> Outcome {
        self.has_moved = true;
        if self.bound.is_empty() {
            return Ok(());
        }
        self.is_wanted = false;
        self.unbind(instrument)?;
        Err("FGS_PRELOAD_PARAMETERS: a gathered buffer has moved, so it does not hold parameters between steps; they are \
             not measured any more"
            .into())
    }

    /// A step is about to begin; `places` are the buffers of the step before.
    ///
    /// # Safety
    /// The buffers must stay readable until [`Parameters::unbind`] or [`Parameters::moved`].
    pub unsafe fn settle(&mut self, places: &[Option<Buffer>], buckets: &Buckets, instrument: &Instrument) -> Outcome {
        if self.waits > 0 {
            self.waits -= 1;
            let said =
                "FGS_PRELOAD_PARAMETERS: nothing is gathered or broadcast in a step; parameters are not measured";
            return if self.waits == 0 { Err(said.into()) } else { Ok(()) };
        }
        let has_moved = std::mem::take(&mut self.has_moved);
        if !self.is_wanted || has_moved || !self.bound.is_empty() {
            return Ok(());
        }
        let bucket_of = |reduction: usize| self.pairs.iter().filter(|pair| pair.1 < reduction).count();
        for &(gather, reduction) in &self.pairs {
            let (Some(gathered), Some(reduced)) = (&places[gather], &places[reduction]) else { return Ok(()) };
            if !reduced.is_measured {
                continue;
            }
            let device = Device::of(gathered)?;
            for piece in buckets.pieces(bucket_of(reduction), reduced.local.clone()) {
                let Range { start, .. } = reduced.local;
                let address = gathered.address + (start + piece.at) as usize * gathered.dtype.bytes();
                let mut shape = piece.shape;
                let tensor = device.tensor(address, gathered.dtype, &mut shape);
                // SAFETY: the caller's promise.
                unsafe { instrument.bind_parameter(piece.id, &tensor, piece.first) }?;
                let length = shape.iter().product::<i64>() as usize * gathered.dtype.bytes();
                self.bound.push(Bound { id: piece.id, device, bytes: address..address + length });
            }
        }
        Ok(())
    }

    /// They are about to be read. If their memory is not there any more nothing is bound afterwards.
    pub fn check(&mut self, instrument: &Instrument) -> Outcome {
        if self.bound.is_empty() {
            return Ok(());
        }
        let readable = Readable::now();
        let is_there = |bound: &Bound| match bound.device.is_host() {
            true => readable.has(&bound.bytes),
            false => bound.device.still_has(&bound.bytes),
        };
        if self.bound.iter().all(is_there) {
            return Ok(());
        }
        self.is_wanted = false;
        self.unbind(instrument)?;
        Err("FGS_PRELOAD_PARAMETERS: the trainer has freed a gathered buffer, so it does not hold parameters between steps; \
             they are not measured any more"
            .into())
    }

    pub fn unbind(&mut self, instrument: &Instrument) -> Outcome {
        self.bound.drain(..).try_for_each(|bound| instrument.unbind_parameter(bound.id))
    }
}

/// Which gather belongs to which reduction: in the same order, in the opposite one, or by sizes that occur once. Every
/// reduction has a gather, or there are no pairs.
fn pairs(period: &Period) -> Vec<(usize, usize)> {
    let of = |kind| -> Vec<(usize, u64)> {
        let events = period.events().iter().enumerate().filter(|(_, event)| event.kind == kind);
        events.map(|(position, event)| (position, event.count)).collect()
    };
    let (reductions, gathers) = (of(Kind::Reduce), of(Kind::Gather));
    let fits = |order: &[(usize, u64)]| {
        order.len() == reductions.len()
            && order.iter().zip(&reductions).all(|(gather, reduction)| gather.1 == reduction.1)
    };
    let backwards: Vec<_> = gathers.iter().rev().copied().collect();
    for order in [&gathers, &backwards] {
        if fits(order) {
            return order.iter().zip(&reductions).map(|(gather, reduction)| (gather.0, reduction.0)).collect();
        }
    }
    let is_single = |list: &[(usize, u64)], count| list.iter().filter(|entry| entry.1 == count).count() == 1;
    let pair = |&(reduction, count): &(usize, u64)| {
        let gather = gathers.iter().find(|gather| gather.1 == count)?;
        (is_single(&gathers, count) && is_single(&reductions, count)).then_some((gather.0, reduction))
    };
    reductions.iter().map(pair).collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::{Communicator, Event, Identity};

    fn paired(events: &[(char, u64)]) -> Vec<(usize, usize)> {
        let event = |(n, &(kind, count)): (usize, &(char, u64))| {
            let kind = if kind == 'r' { Kind::Reduce } else { Kind::Gather };
            let communicator = Communicator { handle: 0, rank: 0, size: 2, first: None };
            Event { kind, is_scattered: false, communicator, count, dtype: 0, address: n }
        };
        pairs(&Period::new(events.iter().enumerate().map(event).collect(), Identity::Address))
    }

    #[test]
    fn gathers_are_told_by_order_or_size() {
        assert_eq!(paired(&[('r', 5), ('r', 7), ('r', 5), ('g', 5), ('g', 7), ('g', 5)]), [(3, 0), (4, 1), (5, 2)]);
        assert_eq!(paired(&[('r', 5), ('r', 7), ('g', 7), ('g', 5)]), [(3, 0), (2, 1)]);
        assert_eq!(paired(&[('r', 5), ('g', 5), ('r', 7), ('g', 7)]), [(1, 0), (3, 2)]);
        assert_eq!(
            paired(&[('r', 5), ('r', 7), ('g', 9), ('g', 7), ('g', 5)]),
            [(4, 0), (3, 1)],
            "one more than buckets"
        );
        assert_eq!(paired(&[('r', 5), ('r', 7), ('g', 12)]), []);
        assert_eq!(paired(&[('r', 5), ('r', 5), ('r', 7), ('g', 5), ('g', 7), ('g', 9), ('g', 5)]), []);
        assert_eq!(paired(&[('r', 5)]), []);
    }
}
