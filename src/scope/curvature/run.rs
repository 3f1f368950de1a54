//! One run: moves the parameters, takes the gradients that the trainer answers with, and puts the parameters back.
//!
//! A product with the Hessian is a central difference of gradients along v,
//!
//! ```text
//! Hv ≈ (g(θ + εv) − g(θ − εv)) / 2ε       ε|v| = relative_step · |θ|
//! ```
//!
//! whose error is ε²/6 of the third derivative plus the rounding of the gradients, 2⁻²⁴/relative_step: at 10⁻³ both are
//! far below what a probe batch says of a task. |θ| is that of the tensors that are moved. Memory: the originals and three
//! vectors as long as the model; the whole Lanczos basis where the budget allows it.

use super::claim::Claim;
use super::lanczos::Lanczos;
use super::plan::{Counts, Item, Plan};
use super::space::Space;
use super::sums::{BlockSums, CurvatureSums};
use super::work::{Earlier, Eigenvectors, Ground, Work};
use super::{Request, Settings, Want};
use crate::device::{Device, Gather, Perturb};
use crate::scope::Result;
use crate::scope::catalog::{Catalog, Source};
use crate::scope::storage::Budget;

/// Why a run cannot go on.
pub enum Ended {
    /// Every request was answered.
    Complete,
    /// So many values of the gradient were not finite.
    NonFinite(u64),
}

/// A run under way.
pub struct Run {
    settings: Settings,
    space: Space,
    /// Tensors that are looked at by themselves.
    blocks: Vec<Space>,
    original: Vec<f32>,
    plan: Plan,
    pub is_waiting: bool,
    /// The run becomes what later ones of its task are compared with, and keeps so many eigenvectors.
    pub is_base: bool,
    kept: usize,
    keeps_basis: bool,
    /// Bytes of the budget.
    pub reserved: u64,
    /// Nobody else moves these parameters meanwhile.
    pub claim: Claim,
    work: Work,
    eigenvectors: Vec<Vec<f32>>,
    pub sums: CurvatureSums,
}

impl Run {
    /// Prepares a run: reserves memory and copies the parameters. On failure the bytes that are missing.
    pub fn new(
        settings: Settings,
        space: Space,
        earlier: &Earlier,
        device: &dyn Device,
        budget: &mut Budget,
        is_base: bool,
    ) -> std::result::Result<Self, u64> {
        let steps = |space: &Space| settings.steps(space) as u32;
        let blocks: Vec<Space> = settings.blocks.iter().filter_map(|&tensor| space.of_tensor(tensor)).collect();
        let has_drift = space.parts.iter().all(|part| earlier.snapshot_of(part).is_some());
        let old = earlier.eigenvectors.filter(|kept| !is_base && kept.fits(&space));
        let counts = Counts {
            starts: settings.density_vectors,
            steps: steps(&space),
            traces: settings.trace_vectors,
            relatives: settings.trace_vectors,
            drift: has_drift,
            old: old.map_or(0, |kept| kept.vectors.len() as u32),
            points: if has_drift { settings.path_points } else { 0 },
            block_steps: blocks.iter().map(steps).collect(),
            block_vectors: settings.block_vectors,
        };
        // The original, a product, and the two latest vectors of Lanczos or a direction; in a tensor likewise.
        let one = space.bytes();
        let hutch = blocks.iter().map(|block| (2 + u64::from(settings.block_vectors)) * block.bytes());
        let least = (4 * one).max(one + hutch.max().unwrap_or(0));
        let whole = least.max((2 + u64::from(counts.steps.max(2))) * one);
        let wanted = if is_base { settings.eigenvectors.min(counts.steps) as usize } else { 0 };
        let with_basis = (0..=wanted).rev().find(|&kept| budget.reserve(device, whole + kept as u64 * one).is_ok());
        let (kept, keeps_basis, reserved) = match with_basis {
            Some(kept) => (kept, true, whole + kept as u64 * one),
            None => budget.reserve(device, least).map(|()| (0, false, least))?,
        };
        let sums = CurvatureSums {
            elements: space.elements as f64,
            resolution: settings.resolution(),
            eigenvalues: settings.eigenvectors as usize,
            gradient_norm: f64::NAN,
            loss: f64::NAN,
            blocks: blocks
                .iter()
                .map(|block| BlockSums { tensor: block.parts[0].tensor, ..BlockSums::default() })
                .collect(),
            ..CurvatureSums::default()
        };
        let (plan, original) = (Plan::new(&counts), space.zeros());
        Ok(Self {
            settings,
            space,
            blocks,
            original,
            plan,
            is_waiting: false,
            is_base,
            kept,
            keeps_basis,
            reserved,
            claim: Claim::default(),
            work: Work::default(),
            eigenvectors: Vec::new(),
            sums,
        })
    }

    /// Copies the parameters. Returns how many of them are not finite.
    pub fn keep_originals(&mut self, catalog: &Catalog, device: &dyn Perturb) -> Result<u64> {
        let bad = self.space.gather(catalog, device, Source::Parameter, Gather::Copy, &mut self.original)?;
        self.enter(None, device);
        Ok(bad)
    }

    /// Every bit of the parameters is as it was. `false`: a device failed, and they are not.
    #[must_use]
    pub fn restore(&self, device: &dyn Perturb) -> bool {
        self.space.scatter(device, &self.original, &[], 0.0)
    }

    /// Moves the parameters to where the next gradient or loss is wanted. `None`: a device failed.
    pub fn request(&mut self, device: &dyn Perturb, earlier: &Earlier) -> Option<Request> {
        while let Some((item, second)) = self.plan.current() {
            if !second {
                if self.work.block != item.block() {
                    if !self.restore(device) {
                        return None;
                    }
                    self.enter(item.block(), device);
                }
                let Self { work, space, blocks, original, settings, .. } = self;
                let space = item.block().map_or(&*space, |block| &blocks[block]);
                if !work.prepare(item, &Ground { device, space, original, settings, earlier }) {
                    self.leave_out(item);
                    continue;
                }
            }
            if !self.move_to(item, second, device) {
                return None;
            }
            self.is_waiting = true;
            let (index, total) = self.plan.progress();
            let want = if matches!(item, Item::Loss { .. }) { Want::Loss } else { Want::Gradient };
            return Some(Request { want, index, total });
        }
        let (index, total) = self.plan.progress();
        Some(Request { want: Want::Done, index, total })
    }

    /// Takes the answer. `Err` as an argument that is refused: the same request stands.
    pub fn accept(&mut self, catalog: &Catalog, device: &dyn Perturb, loss: f64, scale: f64) -> Result<Option<Ended>> {
        let Some((item, second)) = self.plan.current() else { return Ok(Some(Ended::Complete)) };
        if !matches!(item, Item::Loss { .. }) {
            let gather = match (item, second) {
                (Item::Gradient, _) | (_, false) => Gather::Scale(scale as f32),
                (_, true) => Gather::Subtract(scale as f32, (0.5 / self.work.step(&self.settings)) as f32),
            };
            let mut w = std::mem::take(&mut self.work.w);
            let bad = self.active().gather(catalog, device, Source::Gradient, gather, &mut w);
            self.work.w = w;
            let bad = bad?;
            if bad > 0 {
                return Ok(Some(Ended::NonFinite(bad)));
            }
        }
        self.is_waiting = false;
        if let Some(item) = self.plan.answered() {
            self.complete(item, device, loss);
        }
        // What cannot be asked for any more is found out by asking; a plan without items is at its end.
        Ok(self.plan.current().is_none().then_some(Ended::Complete))
    }

    /// The eigenvectors of a run that is complete, and what it found.
    pub fn finish(self) -> (Option<Eigenvectors>, CurvatureSums) {
        let kept = (!self.eigenvectors.is_empty()).then(|| Eigenvectors::new(&self.space, self.eigenvectors));
        (kept, self.sums)
    }

    /// Requests that were answered or left out, and all.
    pub fn progress(&self) -> (u32, u32) {
        self.plan.progress()
    }

    fn active(&self) -> &Space {
        self.work.block.map_or(&self.space, |block| &self.blocks[block])
    }

    /// Turns to the whole model or to one tensor: fresh vectors, and the length that steps are relative to.
    fn enter(&mut self, block: Option<usize>, device: &dyn Perturb) {
        // What is not needed any more is freed before as much is allocated.
        self.work = Work::default();
        let space = block.map_or(&self.space, |block| &self.blocks[block]);
        let squares = |space: &Space| {
            let own = &self.original[space.offset..space.offset + space.elements];
            device.dot(own, own)
        };
        // A tensor of zeros (a fresh bias) has no length of its own: it takes its share of the model's.
        let share = || squares(&self.space) * space.elements as f64 / self.space.elements as f64;
        let positive = |squares: &f64| *squares > 0.0;
        let size = Some(squares(space)).filter(positive).or_else(|| Some(share()).filter(positive)).unwrap_or(1.0);
        let steps = u64::from(self.settings.lanczos_steps.max(2));
        let keeps_basis = self.keeps_basis || (1 + steps) * space.bytes() + self.space.bytes() <= self.reserved;
        self.work = Work::new(block, space, size.sqrt(), keeps_basis);
    }

    /// An item without a direction: a sample along nothing is nothing, and the rest is not known.
    fn leave_out(&mut self, item: Item) {
        match item {
            Item::Relative { .. } => self.sums.relative.push(0.0),
            Item::Residual { block, .. } => self.sums.blocks[block as usize].residual.push(0.0),
            _ => {}
        }
        self.plan.skip();
    }

    /// `false`: a device failed.
    fn move_to(&self, item: Item, second: bool, device: &dyn Perturb) -> bool {
        match item {
            Item::Gradient => true,
            Item::Loss { point } => {
                self.space.scatter(device, &self.original, self.work.direction(), self.position(point) - 1.0)
            }
            _ => {
                let step = self.work.step(&self.settings);
                let step = if second { -step } else { step };
                self.active().scatter(device, &self.original, self.work.direction(), step)
            }
        }
    }

    /// Where a point lies between the snapshot (0) and the weights (1).
    fn position(&self, point: u32) -> f64 {
        f64::from(point) / f64::from(self.settings.path_points - 1)
    }

    /// Draws from an item what it was for. Signs are drawn with the square 1.
    fn complete(&mut self, item: Item, device: &dyn Perturb, loss: f64) {
        let elements = self.active().elements as f64;
        let position = if let Item::Loss { point } = item { self.position(point) } else { f64::NAN };
        let Self { work, sums, .. } = self;
        match item {
            Item::Gradient => {
                sums.gradient_norm = device.dot(&work.w, &work.w).sqrt();
                sums.loss = loss;
                for (block, space) in sums.blocks.iter_mut().zip(&self.blocks) {
                    let own = &work.w[space.offset..space.offset + space.elements];
                    block.gradient_norm = device.dot(own, own).sqrt();
                }
            }
            Item::Lanczos { .. } | Item::BlockLanczos { .. } => self.lanczos_step(item, device),
            Item::Trace { .. } => {
                sums.traces.push(elements * work.along(device));
                sums.squares.push(elements * device.dot(&work.w, &work.w));
            }
            Item::Relative { .. } => sums.relative.push(elements * work.along(device)),
            Item::Drift => sums.along_drift = Some(work.along(device) / work.squares),
            Item::Old { .. } => sums.along_old.push(work.along(device) / work.squares),
            Item::Capture { .. } => work.capture(device, sums.resolution),
            Item::Captured { block, .. } => {
                sums.blocks[block as usize].captured.push(work.along(device) / work.squares);
            }
            Item::Residual { block, .. } => {
                sums.blocks[block as usize].residual.push(elements * work.along(device));
            }
            Item::Loss { .. } => {
                sums.distance = work.squares.sqrt();
                sums.path.push((position, loss));
            }
        }
    }

    fn lanczos_step(&mut self, item: Item, device: &dyn Perturb) {
        let Self { work, sums, plan, .. } = self;
        if matches!(item, Item::Lanczos { .. }) && work.lanczos.as_ref().is_some_and(Lanczos::is_fresh) {
            sums.traces.push(sums.elements * work.along(device));
            sums.squares.push(sums.elements * device.dot(&work.w, &work.w));
        }
        let Some(lanczos) = &mut work.lanczos else { return };
        lanczos.advance(device, &mut work.w);
        if !lanczos.is_over() {
            return;
        }
        plan.skip_all(item);
        let Some(lanczos) = work.lanczos.take() else { return };
        match item {
            Item::BlockLanczos { block } => sums.blocks[block as usize].lanczos = lanczos.into_recurrence(),
            _ => {
                if sums.lanczos.is_empty() {
                    self.eigenvectors = lanczos.eigenvectors(device, self.kept);
                }
                sums.lanczos.push(lanczos.into_recurrence());
            }
        }
    }
}
