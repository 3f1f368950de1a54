//! How alike the hidden states of two tasks are at the same weights.
//!
//! The tokens are different ones, so that no row of one sample belongs to a row of the other, and only what describes a whole
//! sample can be compared: its leading subspace and its mean.
//!
//! | | per layer | over layers |
//! |---|---|---|
//! | overlap | ‖V_AᵀV_B‖²_F/k, the mean squared cosine of the principal angles, see [`super::subspace`] | Σ‖V_AᵀV_B‖²/Σk |
//! | ceiling | √(overlap of A's halves · overlap of B's halves): what sampling leaves of a perfect overlap | Σk·ceiling/Σk |
//! | null | k/d, random subspaces | Σk·(k/d)/Σk |
//! | cosine of the means | ⟨μ_A, μ_B⟩/(‖μ_A‖‖μ_B‖), every coordinate divided by its pooled standard deviation | Σ⟨⟩/√(Σ‖‖²·Σ‖‖²) |
//!
//! The ceiling has the form of the correction for attenuation (Spearman 1904). Halves have half the tokens, so that it is too
//! low and an overlap may be above it by chance.
//!
//! The means are compared about zero: about a pooled mean they are opposite by construction, and zero is where normalisation
//! layers scale about. A few coordinates with large means would decide a plain cosine (Timkey & van Schijndel 2021), hence the
//! division. Noise of n tokens shortens it: with no mean at all it is 0 ± 1/√d.
//!
//! Cost: 2·d·k² operations per layer, beside the halves of each sample.

use super::sample::Sample;
use super::subspace::{Halves, subspace};

/// Sums of one layer or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Similarity {
    /// Σ‖V_AᵀV_B‖²_F.
    squares: f64,
    ceiling: f64,
    null: f64,
    dot: f64,
    norm2: f64,
    norm2_other: f64,
    /// Σk.
    pub dimensions: usize,
    /// Layers in the sums; a layer that cannot be compared is not.
    pub layers: usize,
    /// Rows of a layer's sample, the most over layers.
    pub tokens: usize,
    pub tokens_other: usize,
}

/// The similarity of one layer, from a sample of each task with the halves of that sample.
pub fn similarity(task: (&Sample, &Halves), other: (&Sample, &Halves)) -> Similarity {
    let angles = subspace(task.0, other.0);
    let (Some(a), Some(b)) = (&task.0.axes, &other.0.axes) else { return Similarity::default() };
    if angles.overlap.is_nan() {
        return Similarity::default();
    }
    let k = angles.dimensions as f64;
    let mut result = Similarity {
        squares: k * angles.overlap,
        ceiling: k * (task.1.overlap * other.1.overlap).sqrt(),
        null: k * angles.overlap_null,
        dimensions: angles.dimensions,
        layers: 1,
        tokens: task.0.tokens(),
        tokens_other: other.0.tokens(),
        ..Similarity::default()
    };
    for (((x, y), v), w) in a.mean.iter().zip(&b.mean).zip(&a.variances).zip(&b.variances) {
        let variance = 0.5 * (v + w);
        if variance > 0.0 {
            result.dot += x * y / variance;
            result.norm2 += x * x / variance;
            result.norm2_other += y * y / variance;
        }
    }
    result
}

impl Similarity {
    /// Adds another layer.
    pub fn add(&mut self, layer: &Self) {
        self.squares += layer.squares;
        self.ceiling += layer.ceiling;
        self.null += layer.null;
        self.dot += layer.dot;
        self.norm2 += layer.norm2;
        self.norm2_other += layer.norm2_other;
        self.dimensions += layer.dimensions;
        self.layers += layer.layers;
        self.tokens = self.tokens.max(layer.tokens);
        self.tokens_other = self.tokens_other.max(layer.tokens_other);
    }

    /// Mean squared cosine of the principal angles: 0 … 1. NaN without a layer.
    pub fn overlap(&self) -> f64 {
        self.per_dimension(self.squares)
    }

    /// What two samples of one task would have, or a little less: 0 … 1. NaN where a sample is too small to be halved.
    pub fn overlap_ceiling(&self) -> f64 {
        self.per_dimension(self.ceiling)
    }

    /// Overlap of random subspaces.
    pub fn overlap_null(&self) -> f64 {
        self.per_dimension(self.null)
    }

    /// −1 … 1. NaN without a layer, and where a mean is zero.
    pub fn mean_cosine(&self) -> f64 {
        let norms = self.norm2.sqrt() * self.norm2_other.sqrt();
        if norms > 0.0 { (self.dot / norms).clamp(-1.0, 1.0) } else { f64::NAN }
    }

    fn per_dimension(&self, sum: f64) -> f64 {
        if self.dimensions > 0 { sum / self.dimensions as f64 } else { f64::NAN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;
    use crate::stats::{linalg, subspace};
    use ndarray::{Array1, Array2, s};
    use proptest::prelude::*;

    const K: usize = 3;

    fn sample(rows: &Array2<f64>) -> (Sample, Halves) {
        let n = rows.nrows();
        let sample = Sample::new(&rows.mapv(|x| x as f32), &[n], &(0..n as u32).collect::<Vec<_>>(), K);
        let halves = subspace::halves(&sample, 8);
        (sample, halves)
    }

    fn compare(a: &(Sample, Halves), b: &(Sample, Halves)) -> Similarity {
        similarity((&a.0, &a.1), (&b.0, &b.1))
    }

    /// Loadings of a task on its directions, its mean, and noise.
    fn task(directions: &Array2<f64>, mean: &Array1<f64>, n: usize, random: &mut Random) -> Array2<f64> {
        let loadings = random.normals(n, directions.ncols()) * 3.0;
        let noise = random.normals(n, directions.nrows()) * 0.5;
        linalg::product(loadings.view(), directions.t()).unwrap() + noise + mean
    }

    #[test]
    fn the_same_task_reaches_its_ceiling_and_another_its_overlap() {
        let mut random = Random::new(1);
        let (n, d) = (300, 100);
        let basis = linalg::orthonormal(&random.normals(d, 2 * K)).unwrap();
        let (a, b) = (basis.slice(s![.., ..K]).to_owned(), basis.slice(s![.., K..]).to_owned());
        let mean = random.normals(1, d).row(0).to_owned();
        let first = sample(&task(&a, &mean, n, &mut random));
        let again = compare(&first, &sample(&task(&a, &mean, n, &mut random)));
        // Halves have twice the noise, so that the ceiling is below; noise of either: a variance of σ²/(λn) in each of d − k
        // directions, 1 − overlap ≈ 2·(d − k)·0.25/(9·300) = 0.018, twice that between halves.
        assert!((again.overlap() - 0.982).abs() < 0.01 && (again.overlap_ceiling() - 0.964).abs() < 0.02, "{again:?}");
        // The mean's own noise: squared norms Σμ²/σ² of about d/9 … 4d against d/n of noise.
        assert!(again.mean_cosine() > 0.97);
        // Turned by 60° in every plane: cos² = 0.25.
        let turned = &a * 0.5 + &(&b * 0.75f64.sqrt());
        let other = compare(&first, &sample(&task(&turned, &(-&mean), n, &mut random)));
        assert!((other.overlap() - 0.25).abs() < 0.05 && other.mean_cosine() < -0.97, "{other:?}");
        assert_eq!(other.overlap_null(), K as f64 / d as f64);
    }

    #[test]
    fn layers_add_up() {
        let mut random = Random::new(2);
        let [a, b, c, d] = [(20, 9), (25, 9), (20, 30), (25, 30)].map(|(n, d)| sample(&(random.normals(n, d) + 1.0)));
        let (first, second) = (compare(&a, &b), compare(&c, &d));
        let mut both = Similarity::default();
        both.add(&first);
        both.add(&compare(&a, &d));
        both.add(&second);
        assert_eq!((both.layers, both.dimensions, both.tokens, both.tokens_other), (2, 2 * K, 20, 25));
        assert!((both.overlap() - 0.5 * (first.overlap() + second.overlap())).abs() < 1e-15);
        assert!((both.overlap_null() - 0.5 * (K as f64 / 9.0 + K as f64 / 30.0)).abs() < 1e-15);
        let none = Similarity::default();
        assert!(none.overlap().is_nan() && none.mean_cosine().is_nan() && none.overlap_ceiling().is_nan());
        let mut broken = random.normals(20, 9);
        broken[[0, 0]] = f64::NAN;
        assert_eq!(compare(&a, &sample(&broken)).layers, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn ranges_and_symmetry(seed: u64, n in 10usize..30, d in 4usize..30, shift in -2.0f64..2.0) {
            let mut random = Random::new(seed);
            let (a, b) = (sample(&random.normals(n, d)), sample(&(random.normals(n + 1, d) + shift)));
            let (there, back) = (compare(&a, &b), compare(&b, &a));
            // Orthonormal bases in fp64.
            prop_assert!((there.overlap() - back.overlap()).abs() < 1e-13);
            prop_assert!((there.mean_cosine() - back.mean_cosine()).abs() < 1e-13);
            prop_assert!((0.0..=1.0 + 1e-13).contains(&there.overlap()) && (-1.0..=1.0).contains(&there.mean_cosine()));
            let own = compare(&a, &a);
            prop_assert!((own.overlap() - 1.0).abs() < 1e-13 && (own.mean_cosine() - 1.0).abs() < 1e-13);
        }
    }
}
