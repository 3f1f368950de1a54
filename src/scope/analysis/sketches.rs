//! Sketched references: the mean gradient of a task, and its batches.

use crate::scope::catalog::Slice;
use crate::sketch::algebra::{add_scaled, dot, norm2};
use ndarray::Array2;

/// Batches of a reference whose sketches are kept one by one. More than these gain little.
const BATCHES: usize = 64;

/// Sketches of batch gradients over the whole model.
#[derive(Debug, Default)]
pub struct Batches {
    list: Vec<Vec<f32>>,
    sum: Vec<f32>,
    count: u32,
    /// Mean number of loss terms per batch; 0: unknown.
    pub examples: f64,
    spread: Option<Spread>,
    /// Per kept batch: its inner products with those before it and with itself.
    gram: Vec<Vec<f64>>,
}

/// What is derived from the batches, per slice.
#[derive(Debug)]
pub struct Spread {
    /// Sketch of the mean.
    pub mean: Vec<f32>,
    /// Squared norm of the mean.
    pub mean_squares: Vec<f64>,
    /// Mean squared distance of batches from the mean, unbiased.
    pub variance: Vec<f64>,
    /// Per batch, per slice: |g_b|².
    pub squares: Vec<Vec<f64>>,
    /// Per batch, per slice: ⟨g_b, Σ g⟩.
    pub with_sum: Vec<Vec<f64>>,
}

impl Batches {
    /// Adds a batch; `buckets` is the size of a sketch of the whole model as of now.
    pub fn add(&mut self, mut sketch: Vec<f32>, examples: f64, buckets: usize) {
        sketch.resize(buckets, 0.0);
        self.resize(buckets);
        add_scaled(&mut self.sum, 1.0, &sketch);
        self.count += 1;
        // Batches may be ragged: the mean is what their spread belongs to.
        self.examples += (examples - self.examples) / f64::from(self.count);
        self.spread = None;
        if self.list.len() < BATCHES {
            self.list.push(sketch);
        }
    }

    /// Takes the inner products of the latest batch, so that their cost is spread over the batches. Returns whether it was
    /// kept, and so new.
    pub fn extend_gram(&mut self) -> bool {
        let row = self.gram.len();
        let batch = self.list.get(row);
        let products = batch.map(|batch| self.list[..=row].iter().map(|other| dot(batch, other)).collect());
        products.map(|products| self.gram.push(products)).is_some()
    }

    /// Inner products of all kept batches.
    pub fn gram(&self) -> Array2<f64> {
        let n = self.gram.len();
        Array2::from_shape_fn((n, n), |(i, j)| self.gram[i.max(j)][i.min(j)])
    }

    /// Batches from sketches that are there already.
    pub fn from_list(list: Vec<Vec<f32>>) -> Self {
        let mut batches = Self::default();
        for sketch in list {
            let buckets = sketch.len();
            batches.add(sketch, 0.0, buckets);
        }
        batches
    }

    /// The model grew: new slices are zero in old sketches.
    pub fn resize(&mut self, buckets: usize) {
        if self.sum.len() != buckets {
            self.list.iter_mut().chain([&mut self.sum]).for_each(|sketch| sketch.resize(buckets, 0.0));
            self.spread = None;
        }
    }

    pub fn list(&self) -> &[Vec<f32>] {
        &self.list
    }

    /// What was derived, if it was asked for since the last batch.
    pub fn known_spread(&self) -> Option<&Spread> {
        self.spread.as_ref()
    }

    /// Everything derived, computed when first asked for.
    pub fn spread(&mut self, slices: &[Slice]) -> &Spread {
        self.spread.get_or_insert_with(|| {
            let factor = 1.0 / self.count.max(1) as f32;
            let mean: Vec<f32> = self.sum.iter().map(|x| x * factor).collect();
            let n = self.list.len() as f64;
            // Of the batches that are kept: U-statistics need their own sum, not that of all.
            let mut kept_sum = vec![0.0; self.sum.len()];
            self.list.iter().for_each(|batch| add_scaled(&mut kept_sum, 1.0, batch));
            let per_slice = |f: &dyn Fn(std::ops::Range<usize>) -> f64| -> Vec<f64> {
                slices.iter().map(|slice| f(slice.buckets())).collect()
            };
            let squares: Vec<Vec<f64>> = self.list.iter().map(|b| per_slice(&|r| norm2(&b[r]))).collect();
            let with_sum: Vec<Vec<f64>> =
                self.list.iter().map(|b| per_slice(&|r| dot(&b[r.clone()], &kept_sum[r]))).collect();
            let sum_squares = per_slice(&|r| norm2(&kept_sum[r]));
            let variance = (0..slices.len()).map(|slice| {
                let total: f64 = squares.iter().map(|batch| batch[slice]).sum();
                ((total - sum_squares[slice] / n) / (n - 1.0)).max(0.0)
            });
            let variance = variance.collect();
            Spread { mean_squares: per_slice(&|r| norm2(&mean[r])), mean, variance, squares, with_sum }
        })
    }
}
