//! What a run asks the trainer for, in order: one gradient as it is, then products with the Hessian, then losses.
//!
//! A product takes two gradients, on either side of the weights along a vector. Everything is planned at the beginning, so
//! that the trainer knows how many requests there will be; Lanczos may end early, and then its remaining steps are skipped.

use std::collections::VecDeque;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The gradient and the loss at the weights.
    Gradient,
    /// A Lanczos step over the whole model from random vector `start`.
    Lanczos { start: u32 },
    /// vᵀHv of a random vector.
    Trace { vector: u32 },
    /// The same for the random vector times the weights.
    Relative { vector: u32 },
    /// Along the drift.
    Drift,
    /// Along an eigenvector that was kept at the task's base.
    Old { index: u32 },
    /// A Lanczos step inside a tensor.
    BlockLanczos { block: u32 },
    /// Hutch++: a product whose direction is taken out of the rest.
    Capture { block: u32, vector: u32 },
    /// Hutch++: the trace along such a direction.
    Captured { block: u32, vector: u32 },
    /// Hutch++: a sample of the rest.
    Residual { block: u32, vector: u32 },
    /// The loss on the line from the snapshot to the weights.
    Loss { point: u32 },
}

/// How many of each.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub starts: u32,
    pub steps: u32,
    pub traces: u32,
    pub relatives: u32,
    pub drift: bool,
    pub old: u32,
    pub points: u32,
    /// Lanczos steps in each tensor that is looked at by itself.
    pub block_steps: Vec<u32>,
    pub block_vectors: u32,
}

/// The items that are left.
#[derive(Debug)]
pub struct Plan {
    items: VecDeque<Item>,
    /// The first of the two gradients of a product was given.
    second: bool,
    index: u32,
    total: u32,
}

impl Item {
    /// Requests that it takes.
    fn requests(self) -> u32 {
        if matches!(self, Self::Gradient | Self::Loss { .. }) { 1 } else { 2 }
    }

    /// The tensor that it is about, by its place in the list; `None`: the whole model.
    pub fn block(self) -> Option<usize> {
        match self {
            Self::BlockLanczos { block }
            | Self::Capture { block, .. }
            | Self::Captured { block, .. }
            | Self::Residual { block, .. } => Some(block as usize),
            _ => None,
        }
    }
}

impl Plan {
    pub fn new(counts: &Counts) -> Self {
        let mut items = VecDeque::from([Item::Gradient]);
        for start in 0..counts.starts {
            items.extend((0..counts.steps).map(|_| Item::Lanczos { start }));
        }
        // The first product of each Lanczos run is a sample of the trace too.
        items.extend((counts.starts..counts.traces).map(|vector| Item::Trace { vector }));
        items.extend((0..counts.relatives).map(|vector| Item::Relative { vector }));
        items.extend(counts.drift.then_some(Item::Drift));
        items.extend((0..counts.old).map(|index| Item::Old { index }));
        for (block, &steps) in (0..).zip(&counts.block_steps) {
            items.extend((0..steps).map(|_| Item::BlockLanczos { block }));
            let vectors = || 0..counts.block_vectors;
            items.extend(vectors().map(|vector| Item::Capture { block, vector }));
            items.extend(vectors().map(|vector| Item::Captured { block, vector }));
            items.extend(vectors().map(|vector| Item::Residual { block, vector }));
        }
        items.extend((0..counts.points).map(|point| Item::Loss { point }));
        let total = items.iter().map(|item| item.requests()).sum();
        Self { items, second: false, index: 0, total }
    }

    /// What is being measured, and whether it is the second of its two gradients.
    pub fn current(&self) -> Option<(Item, bool)> {
        self.items.front().map(|&item| (item, self.second))
    }

    /// A request was answered. Returns the item if it is complete with it.
    pub fn answered(&mut self) -> Option<Item> {
        let item = *self.items.front()?;
        self.index += 1;
        if item.requests() == 2 && !self.second {
            self.second = true;
            return None;
        }
        self.second = false;
        self.items.pop_front()
    }

    /// Leaves out the next item.
    pub fn skip(&mut self) {
        self.index += self.items.pop_front().map_or(0, Item::requests);
    }

    /// Leaves out the items like `item` that come next.
    pub fn skip_all(&mut self, item: Item) {
        while self.items.front() == Some(&item) {
            self.skip();
        }
    }

    /// Requests answered or left out so far, and all that were planned.
    pub fn progress(&self) -> (u32, u32) {
        (self.index, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Counts {
        let block_steps = vec![2, 1];
        Counts {
            starts: 2,
            steps: 3,
            traces: 4,
            relatives: 4,
            drift: true,
            old: 1,
            points: 5,
            block_steps,
            block_vectors: 2,
        }
    }

    #[test]
    fn the_total_is_what_is_asked_for() {
        let mut plan = Plan::new(&counts());
        // 1 gradient, 5 losses, products: 2·3 Lanczos, 2 more samples, 4, 1, 1; blocks 2 + 1 and 3·2 each.
        assert_eq!(plan.progress(), (0, 1 + 5 + 2 * (6 + 2 + 4 + 1 + 1 + 3 + 12)));
        let mut seen = 0;
        while let Some((item, second)) = plan.current() {
            let complete = plan.answered();
            assert_eq!(complete.is_some(), second || item.requests() == 1);
            seen += 1;
        }
        assert_eq!(plan.progress(), (seen, seen));
    }

    #[test]
    fn what_is_left_out_counts_as_done() {
        let mut plan = Plan::new(&counts());
        plan.answered();
        plan.answered();
        let item = plan.answered().unwrap();
        assert_eq!(item, Item::Lanczos { start: 0 });
        plan.skip_all(item);
        assert_eq!(plan.current(), Some((Item::Lanczos { start: 1 }, false)));
        assert_eq!(plan.progress().0, 1 + 2 * 3);
    }
}
