//! The vectors that a run works with at present: the direction that is moved along and the product with it.

use super::Settings;
use super::lanczos::Lanczos;
use super::plan::Item;
use super::space::{Family, Part, Space};
use crate::device::{Perturb, Values};
use crate::scope::storage::Exact;

/// What is kept of a task at its base.
#[derive(Debug)]
pub struct Eigenvectors {
    /// Slices and their elements, to tell whether they still fit.
    layout: Vec<(usize, usize)>,
    pub vectors: Vec<Vec<f32>>,
}

impl Eigenvectors {
    pub fn new(space: &Space, vectors: Vec<Vec<f32>>) -> Self {
        Self { layout: space.layout(), vectors }
    }

    pub fn bytes(&self) -> u64 {
        self.vectors.iter().map(|vector| 4 * vector.len() as u64).sum()
    }

    /// They are over the same parameters.
    pub fn fits(&self, space: &Space) -> bool {
        self.layout == space.layout()
    }
}

/// What was measured of a task before.
pub struct Earlier<'a> {
    pub snapshot: Option<&'a [Option<Exact>]>,
    pub eigenvectors: Option<&'a Eigenvectors>,
}

impl Earlier<'_> {
    /// The exact snapshot of all of a part, if there is one.
    pub fn snapshot_of(&self, part: &Part) -> Option<&Values> {
        let exact = self.snapshot?.get(part.slice)?.as_ref()?;
        exact.is_whole(part.range.len()).then_some(&exact.values)
    }
}

/// What directions are made from.
pub struct Ground<'a> {
    pub device: &'a dyn Perturb,
    /// The whole model or one tensor.
    pub space: &'a Space,
    /// The parameters, over the whole model.
    pub original: &'a [f32],
    pub settings: &'a Settings,
    pub earlier: &'a Earlier<'a>,
}

/// The vectors in use.
#[derive(Default)]
pub struct Work {
    /// The tensor that they are over, by its place in the list; `None`: the whole model.
    pub block: Option<usize>,
    /// |θ|, which steps are relative to.
    size: f64,
    /// The direction, unless Lanczos has it.
    v: Vec<f32>,
    /// Its square.
    pub squares: f64,
    /// Half a product, then the product.
    pub w: Vec<f32>,
    pub lanczos: Option<Lanczos>,
    keeps_basis: bool,
    /// Hutch++: orthonormal directions that were taken out.
    captured: Vec<Vec<f32>>,
}

/// A random vector is drawn with the square 1; below this only the rounding of the basis that it was taken out of remains.
const NOTHING_LEFT: f64 = 1e-12;

impl Work {
    /// Fresh vectors. `size`: the length that steps are relative to.
    pub fn new(block: Option<usize>, space: &Space, size: f64, keeps_basis: bool) -> Self {
        Self { block, size, v: space.zeros(), w: space.zeros(), keeps_basis, ..Self::default() }
    }

    /// Makes the direction of an item. `false`: there is none.
    pub fn prepare(&mut self, item: Item, ground: &Ground) -> bool {
        let &Ground { device, space, original, settings, earlier } = ground;
        let unit = 1.0 / (space.elements as f64).sqrt();
        let signs = |v: &mut Vec<f32>, family, vector| space.signs(device, v, family, vector, settings.seed, unit);
        if self.lanczos.is_none() && self.v.is_empty() {
            self.v = space.zeros();
        }
        match item {
            Item::Gradient => return true,
            Item::Lanczos { .. } | Item::BlockLanczos { .. } => {
                self.squares = 1.0;
                if self.lanczos.is_none() {
                    let mut start = std::mem::take(&mut self.v);
                    match item {
                        Item::Lanczos { start: vector } => signs(&mut start, Family::Trace, vector),
                        _ => signs(&mut start, Family::BlockLanczos, 0),
                    }
                    let steps = settings.steps(space);
                    self.lanczos = Some(Lanczos::new(start, steps, self.keeps_basis, settings.resolution()));
                }
                return true;
            }
            Item::Trace { vector } => signs(&mut self.v, Family::Trace, vector),
            Item::Relative { vector } => {
                signs(&mut self.v, Family::Relative, vector);
                device.multiply(&mut self.v, original);
            }
            Item::Drift | Item::Loss { .. } => {
                if !space.collect(device, &mut self.v, |part| earlier.snapshot_of(part)) {
                    return false;
                }
                device.combine(&mut self.v, -1.0, &[(1.0, original)]);
            }
            Item::Old { index } => {
                let Some(kept) = earlier.eigenvectors else { return false };
                self.v.copy_from_slice(&kept.vectors[index as usize]);
            }
            Item::Capture { vector, .. } => signs(&mut self.v, Family::Capture, vector),
            Item::Captured { vector, .. } => {
                let Some(direction) = self.captured.get(vector as usize) else { return false };
                self.v.copy_from_slice(direction);
            }
            Item::Residual { vector, .. } => {
                signs(&mut self.v, Family::Residual, vector);
                take_out(device, &mut self.v, &self.captured);
            }
        }
        self.squares = device.dot(&self.v, &self.v);
        self.squares > if matches!(item, Item::Residual { .. }) { NOTHING_LEFT } else { 0.0 }
    }

    /// The direction.
    pub fn direction(&self) -> &[f32] {
        self.lanczos.as_ref().map_or(&self.v, Lanczos::current)
    }

    /// ε: the direction times it is `relative_step` of the weights.
    pub fn step(&self, settings: &Settings) -> f64 {
        settings.relative_step * self.size / self.squares.sqrt()
    }

    /// vᵀHv.
    pub fn along(&self, device: &dyn Perturb) -> f64 {
        device.dot(self.direction(), &self.w)
    }

    /// Hutch++: takes the product's direction out of the rest, unless it lies in what was taken out already.
    pub fn capture(&mut self, device: &dyn Perturb, resolution: f64) {
        let before = device.dot(&self.w, &self.w);
        take_out(device, &mut self.w, &self.captured);
        let left = device.dot(&self.w, &self.w);
        // Below the error of the product only noise is left: the range of H is spanned.
        if left > resolution * resolution * before {
            device.combine(&mut self.w, 1.0 / left.sqrt(), &[]);
            let fresh = vec![0.0; self.w.len()];
            self.captured.push(std::mem::replace(&mut self.w, fresh));
        }
    }
}

/// Removes from `x` what lies along orthonormal vectors, twice: see [`Lanczos::advance`].
fn take_out(device: &dyn Perturb, x: &mut [f32], basis: &[Vec<f32>]) {
    for _ in 0..2 {
        let terms: Vec<(f64, &[f32])> = basis.iter().map(|q| (-device.dot(q, x), q.as_slice())).collect();
        device.combine(x, 1.0, &terms);
    }
}
