//! The cosine between *mean* gradients, freed of mini-batch noise.
//!
//! A mini-batch gradient is mostly noise, and noise shrinks a cosine towards zero: with a signal-to-noise ratio of .02
//! and a true cosine of −.30, the plain cosine of two batches is about −.006. The inner product is unbiased, so only the
//! norms need correction. From n independent gradients, with G = Σ g,
//!
//! ```text
//! |μ|² is estimated by (|G|² − Σ|g|²)/(n(n − 1)), the mean of ⟨gᵢ, gⱼ⟩ over i ≠ j
//! ```
//!
//! a U-statistic (Hoeffding 1948), for the steps and for the reference's batches alike. The standard error is a
//! two-sample jackknife: over steps, and over batches. Where a squared norm is not above two of its standard errors the
//! ratio means nothing and the result is *undetermined*.
//!
//! Input: for each step its squared norm, its inner product with the sum of all steps, and with the mean reference; the
//! same for batches. Cost: three short inner products per step and batch, on sketches.

use super::hypot::hypot;

/// One sample (steps, or batches of the reference) reduced to inner products.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// |gᵢ|².
    pub squares: Vec<f64>,
    /// ⟨gᵢ, Σⱼ gⱼ⟩.
    pub with_sum: Vec<f64>,
    /// ⟨gᵢ, mean of the other sample⟩.
    pub with_other: Vec<f64>,
    /// Variance that sketching adds to the squared norm of the mean: Σ over slices of 2|mean|⁴/m. Zero if exact.
    pub norm_variance: f64,
}

/// An estimate and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub error: f64,
}

impl Estimate {
    /// The value is beyond two standard errors above zero.
    pub fn is_positive(self) -> bool {
        self.value > 2.0 * self.error && self.value > 0.0
    }
}

/// The noise-corrected cosine and all that it was made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Corrected {
    /// NaN if undetermined. Not clamped: an estimate may leave [−1, 1] by chance.
    pub cosine: Estimate,
    /// ⟨μ, ν⟩ of the two means.
    pub dot: Estimate,
    /// |μ|² of the first sample's mean.
    pub steps_norm2: Estimate,
    /// |ν|² of the second sample's mean.
    pub batches_norm2: Estimate,
}

impl Gradients {
    /// Independent gradients.
    pub fn len(&self) -> usize {
        self.squares.len()
    }

    pub fn is_empty(&self) -> bool {
        self.squares.is_empty()
    }

    /// Adds the inner products of another slice: inner products over more coordinates are sums.
    pub fn add(&mut self, other: &Self) {
        let add = |x: &mut Vec<f64>, y: &[f64]| {
            x.resize(y.len(), 0.0);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        };
        add(&mut self.squares, &other.squares);
        add(&mut self.with_sum, &other.with_sum);
        add(&mut self.with_other, &other.with_other);
        self.norm_variance += other.norm_variance;
    }

    /// Unbiased squared norm of the mean, with its jackknife standard error. NaN for fewer than three gradients.
    pub fn norm2(&self) -> Estimate {
        let n = self.len();
        if n < 3 {
            return Estimate { value: f64::NAN, error: f64::NAN };
        }
        let value = self.cross() / (n * (n - 1)) as f64;
        let spread = jackknife(value, (0..n).map(|left_out| self.norm2_without(left_out)));
        Estimate { value, error: (spread * spread + self.norm_variance).sqrt() }
    }

    /// Σ over i ≠ j of ⟨gᵢ, gⱼ⟩.
    fn cross(&self) -> f64 {
        self.with_sum.iter().zip(&self.squares).map(|(sum, square)| sum - square).sum()
    }

    /// The U-statistic of all but one gradient.
    fn norm2_without(&self, left_out: usize) -> f64 {
        let n = self.len() - 1;
        let cross = self.cross() - 2.0 * (self.with_sum[left_out] - self.squares[left_out]);
        cross / (n * (n - 1)) as f64
    }

    fn mean_with_other(&self) -> f64 {
        self.with_other.iter().sum::<f64>() / self.len() as f64
    }

    fn mean_with_other_without(&self, left_out: usize) -> f64 {
        (self.with_other.iter().sum::<f64>() - self.with_other[left_out]) / (self.len() - 1) as f64
    }
}

/// Jackknife standard error: √((n − 1)/n · Σ(value₍ᵢ₎ − mean)²) (Tukey 1958).
pub(super) fn jackknife(value: f64, leave_one_out: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = leave_one_out.map(|x| x - value).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    ((n - 1.0) / n * values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>()).sqrt()
}

/// The corrected cosine between the mean of `steps` and the mean of `batches`. `sketch_error` is the standard deviation
/// that sketching adds to the inner product of the two means (zero if exact).
pub fn corrected_cosine(steps: &Gradients, batches: &Gradients, sketch_error: f64) -> Corrected {
    let (steps_norm2, batches_norm2) = (steps.norm2(), batches.norm2());
    let value = steps.mean_with_other();
    let spread = |sample: &Gradients| jackknife(value, (0..sample.len()).map(|k| sample.mean_with_other_without(k)));
    let dot = Estimate { value, error: hypot3(spread(steps), spread(batches), sketch_error) };
    let cosine = if steps_norm2.is_positive() && batches_norm2.is_positive() {
        let (a, b) = (steps_norm2.value.sqrt(), batches_norm2.value.sqrt());
        let cosine = value / (a * b);
        let over_steps = jackknife(
            cosine,
            (0..steps.len()).map(|k| {
                let norm2 = steps.norm2_without(k).max(f64::MIN_POSITIVE);
                steps.mean_with_other_without(k) / (norm2.sqrt() * b)
            }),
        );
        let over_batches = jackknife(
            cosine,
            (0..batches.len()).map(|k| {
                let norm2 = batches.norm2_without(k).max(f64::MIN_POSITIVE);
                batches.mean_with_other_without(k) / (norm2.sqrt() * a)
            }),
        );
        // Sketching disturbs the inner product and both norms.
        let norms = (steps.norm_variance / a.powi(4) + batches.norm_variance / b.powi(4)).sqrt() * cosine / 2.0;
        let sketching = hypot(sketch_error / (a * b), norms);
        Estimate { value: cosine, error: hypot3(over_steps, over_batches, sketching) }
    } else {
        Estimate { value: f64::NAN, error: f64::NAN }
    };
    Corrected { cosine, dot, steps_norm2, batches_norm2 }
}

fn hypot3(x: f64, y: f64, z: f64) -> f64 {
    (x * x + y * y + z * z).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A standard normal variate from a counter, by Box and Muller.
    fn normal(state: &mut u64) -> f64 {
        let mut uniform = || {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mixed = (*state ^ (*state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            ((mixed ^ (mixed >> 33)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let (u, v) = (1.0 - uniform(), uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// `count` noisy copies of `mean`.
    fn sample(mean: &[f64], noise: f64, count: usize, state: &mut u64) -> Vec<Vec<f64>> {
        (0..count).map(|_| mean.iter().map(|m| m + noise * normal(state)).collect()).collect()
    }

    fn dot(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    fn sum(rows: &[Vec<f64>]) -> Vec<f64> {
        (0..rows[0].len()).map(|k| rows.iter().map(|row| row[k]).sum()).collect()
    }

    fn reduce(rows: &[Vec<f64>], others: &[Vec<f64>]) -> Gradients {
        let (total, other) = (sum(rows), sum(others));
        Gradients {
            squares: rows.iter().map(|g| dot(g, g)).collect(),
            with_sum: rows.iter().map(|g| dot(g, &total)).collect(),
            with_other: rows.iter().map(|g| dot(g, &other) / others.len() as f64).collect(),
            norm_variance: 0.0,
        }
    }

    /// Means of norm 1 with cosine −.30 in `p` dimensions.
    fn means(p: usize) -> (Vec<f64>, Vec<f64>) {
        let mut x = vec![0.0; p];
        let mut y = vec![0.0; p];
        x[0] = 1.0;
        y[0] = -0.30;
        y[1] = (1.0f64 - 0.09).sqrt();
        (x, y)
    }

    #[test]
    fn recovers_a_planted_cosine_at_low_signal_to_noise() {
        // |μ|² / E|noise|² = .02 per gradient.
        let p = 2000;
        let noise = (1.0 / (0.02 * p as f64)).sqrt();
        let (x, y) = means(p);
        let mut state = 1;
        let (mut estimates, mut covered, mut plain) = (Vec::new(), 0, 0.0);
        let trials = 60;
        for _ in 0..trials {
            let steps = sample(&x, noise, 64, &mut state);
            let batches = sample(&y, noise, 64, &mut state);
            let result = corrected_cosine(&reduce(&steps, &batches), &reduce(&batches, &steps), 0.0);
            covered += usize::from((result.cosine.value + 0.30).abs() <= 2.0 * result.cosine.error);
            plain += cosine_of(&steps[0], &batches[0]) / trials as f64;
            estimates.push(result.cosine.value);
        }
        let mean = estimates.iter().sum::<f64>() / trials as f64;
        let variance = estimates.iter().map(|e| (e - mean) * (e - mean)).sum::<f64>() / (trials - 1) as f64;
        let error = (variance / trials as f64).sqrt();
        assert!((mean + 0.30).abs() < 4.0 * error, "{mean} ± {error}");
        assert!(plain.abs() < 0.03, "one batch against another shows nothing: {plain}");
        // Two standard errors cover about 95 %: 60 trials, 99.9 % binomial interval from 50 up.
        assert!(covered >= 50, "{covered} of {trials}");
    }

    fn cosine_of(x: &[f64], y: &[f64]) -> f64 {
        dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
    }

    #[test]
    fn pure_noise_is_undetermined() {
        let mut state = 7;
        let p = 500;
        let mut determined = 0;
        for _ in 0..100 {
            let steps = sample(&vec![0.0; p], 1.0, 16, &mut state);
            let batches = sample(&vec![0.0; p], 1.0, 16, &mut state);
            let result = corrected_cosine(&reduce(&steps, &batches), &reduce(&batches, &steps), 0.0);
            determined += usize::from(!result.cosine.value.is_nan());
        }
        // Both norms above two errors by chance: (2.3 % to 5 %)², far under one in a hundred.
        assert!(determined <= 2, "{determined}");
    }

    #[test]
    fn without_noise_it_is_the_cosine() {
        let (x, y) = means(10);
        let (steps, batches) = (vec![x; 4], vec![y; 5]);
        let result = corrected_cosine(&reduce(&steps, &batches), &reduce(&batches, &steps), 0.0);
        assert!((result.cosine.value + 0.30).abs() < 1e-12);
        assert!(result.cosine.error < 1e-9);
    }

    #[test]
    fn slices_add_up() {
        let (x, y) = means(40);
        let mut state = 3;
        let steps = sample(&x, 0.1, 8, &mut state);
        let batches = sample(&y, 0.1, 8, &mut state);
        let part = |rows: &[Vec<f64>], from: usize, to: usize| -> Vec<Vec<f64>> {
            rows.iter().map(|row| row[from..to].to_vec()).collect()
        };
        let mut sums = Gradients::default();
        for (from, to) in [(0, 7), (7, 40)] {
            sums.add(&reduce(&part(&steps, from, to), &part(&batches, from, to)));
        }
        let whole = reduce(&steps, &batches);
        for (x, y) in sums.with_sum.iter().zip(&whole.with_sum) {
            assert!((x - y).abs() < 1e-12);
        }
    }
}
