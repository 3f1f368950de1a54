//! What a call leaves behind while its results may still be on their way.
//!
//! The calling side never looks at a result: device memory is read in a stream's order, after the call has returned. So a
//! pass leaves a *draft*, which knows what was asked for and holds what is [`Pending`], and the drain thread *lands* it: it
//! waits, and brings what was found of each slice into sums and sketches of the whole model. What a device lost takes the
//! whole draft with it. Each kind of draft stands next to the pass that makes it. Cost on host memory, where nothing is
//! ever waited for: one addition per bucket of a sketch, on the drain thread.

use super::catalog::Slice;
use crate::device::{Lost, Pending, Stream};
use std::ops::AddAssign;

/// Other results of the same kind as some that were asked for.
pub trait Repeat {
    /// `None` if there are none.
    fn of<T: Send + 'static>(&self, found: &Pending<T>) -> Option<Pending<T>>;
}

/// Those of the n-th measured replay of a captured step.
pub struct Nth(pub u64);

impl Repeat for Nth {
    fn of<T: Send + 'static>(&self, found: &Pending<T>) -> Option<Pending<T>> {
        found.nth(self.0)
    }
}

/// Those of the same pass, made once more in the order of a stream.
pub struct Again(pub Stream);

impl Repeat for Again {
    fn of<T: Send + 'static>(&self, found: &Pending<T>) -> Option<Pending<T>> {
        found.again(self.0)
    }
}

/// None yet, but the knowledge of how to make the pass once more.
pub struct Recipe;

impl Repeat for Recipe {
    fn of<T: Send + 'static>(&self, found: &Pending<T>) -> Option<Pending<T>> {
        found.recipe()
    }
}

/// The drain thread's side: where drafts land.
pub struct Landing<'a> {
    slices: &'a [Slice],
    buckets: usize,
    idle: &'a mut dyn FnMut(),
}

impl<'a> Landing<'a> {
    /// `slices`: all that the drain thread knows, which are at least those of any draft. `idle` is called again and again
    /// while a result is waited for.
    pub fn new(slices: &'a [Slice], buckets: usize, idle: &'a mut dyn FnMut()) -> Self {
        Self { slices, buckets, idle }
    }

    pub fn wait<T: Send + 'static>(&mut self, pending: Pending<T>) -> Result<T, Lost> {
        pending.wait_with(&mut *self.idle)
    }

    /// Slices of the whole model.
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// A sketch of the whole model, all zero; empty if it is not wanted.
    pub fn sketch<T: Clone + Default>(&self, wanted: bool) -> Vec<T> {
        vec![T::default(); if wanted { self.buckets } else { 0 }]
    }

    /// Adds the sketch of one slice to that of the whole model. Where one of them is empty it does nothing.
    pub fn add<T: Copy + AddAssign>(&self, whole: &mut [T], slice: usize, part: &[T]) {
        if let Some(whole) = whole.get_mut(self.slices[slice].buckets()) {
            whole.iter_mut().zip(part).for_each(|(whole, part)| *whole += *part);
        }
    }
}
