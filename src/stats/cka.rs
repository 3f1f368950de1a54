//! Debiased centred kernel alignment: how alike two sets of hidden states of the same tokens are, up to rotation and scale.
//!
//! ```text
//! CKA = Σn_b·HSIC₁(K_b, L_b) / √(Σn_b·HSIC₁(K_b, K_b) · Σn_b·HSIC₁(L_b, L_b)),   sums over blocks b of n_b rows
//!
//! HSIC₁(K, L) = [tr K̃L̃ + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)),   K̃: K with zero diagonal
//! ```
//!
//! The estimator of Song et al. 2012 (J. Mach. Learn. Res. 13), averaged as in Nguyen, Raghu & Kornblith 2021. It is unbiased
//! *for independent rows*, so that blocks of any size agree and independent states give 0; the usual biased estimator
//! (Kornblith et al. 2019) of independent Gaussians is near 1 as soon as the width exceeds the tokens. K = X·Xᵀ; the choice of
//! origin does not matter.
//!
//! Tokens of one sequence are alike for reasons of their own, and blocks that hold several of them show an alignment of
//! unrelated states: .44 at width 64 and .86 at 512, for four tokens correlated by .5. So the k-th sampled tokens of all
//! sequences make a block: its rows are independent, each term of the sums is unbiased, and so is their sum, since the mean
//! of a sum does not depend on how its terms depend on each other. (What they do to the *variance* is the jackknife's
//! business.) What differs between the places in a sequence, but not between sequences, is in no block and in no alignment.
//!
//! The standard error is a delete-a-group jackknife over sequences: one that is left out leaves all blocks. All replicates
//! come out of sums over the Grams that are there already: O(n_b²) for a block, not per group. Where the states are
//! independent, the estimator is degenerate and the jackknife's variance is about twice the true one.

use super::noise::{Estimate, jackknife};
use super::sample::Sample;
use super::summary::ratio;
use ndarray::Array2;

/// An alignment with its jackknife replicates.
#[derive(Clone, Debug)]
pub struct Cka {
    /// −1 … 1 but for noise: not clamped. NaN if undefined.
    pub value: f64,
    replicates: Vec<f64>,
}

/// A layer against the next one, then and now.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    /// Debiased CKA between both layers now.
    pub now: Estimate,
    /// The same at the base.
    pub base: Estimate,
    /// now − base, with the error of the difference: the tokens are the same, so most of their noise cancels.
    pub change: Estimate,
}

impl Cka {
    const UNDEFINED: Self = Self { value: f64::NAN, replicates: Vec::new() };

    /// With the standard error; NaN for fewer than two sequences.
    pub fn estimate(&self) -> Estimate {
        let error =
            if self.replicates.len() < 2 { f64::NAN } else { jackknife(self.value, self.replicates.iter().copied()) };
        Estimate { value: self.value, error }
    }
}

/// Debiased CKA of two samples of the same tokens: two moments of a layer, or two layers. NaN unless both are valid, agree on
/// minibatches and sequences, and come from at least four sequences.
pub fn cka(a: &Sample, b: &Sample) -> Cka {
    let (Some(x), Some(y)) = (&a.axes, &b.axes) else { return Cka::UNDEFINED };
    if a.layout != b.layout {
        return Cka::UNDEFINED;
    }
    let layout = &a.layout;
    let groups = layout.groups();
    let mut total = [0.0; 3];
    let mut without = vec![[0.0; 3]; groups];
    for ((rows, k), l) in layout.blocks.iter().zip(&x.grams).zip(&y.grams) {
        let block = Block::new(rows.iter().map(|&row| layout.group(row)).collect(), groups);
        let (rows_k, rows_l) = (block.row_sums(k), block.row_sums(l));
        for (index, (m, of_m, n, of_n)) in
            [(k, &rows_k, l, &rows_l), (k, &rows_k, k, &rows_k), (l, &rows_l, l, &rows_l)].into_iter().enumerate()
        {
            let traces = block.traces(m, n);
            total[index] += block.hsic(None, of_m, of_n, &traces);
            for (group, sums) in without.iter_mut().enumerate() {
                sums[index] += block.hsic(Some(group), of_m, of_n, &traces);
            }
        }
    }
    Cka { value: alignment(total), replicates: without.into_iter().map(alignment).collect() }
}

/// Debiased CKA between two layers at the same moment, and its change against the base. (Layers whose likeness to their
/// neighbour changes most are the critical ones, arXiv 2506.00382.)
pub fn neighbours(base: (&Sample, &Sample), now: (&Sample, &Sample)) -> Neighbours {
    let (then, now) = (cka(base.0, base.1), cka(now.0, now.1));
    let same = then.replicates.len() == now.replicates.len();
    let change = Cka {
        value: now.value - then.value,
        replicates: if same {
            now.replicates.iter().zip(&then.replicates).map(|(x, y)| x - y).collect()
        } else {
            Vec::new()
        },
    };
    Neighbours { now: now.estimate(), base: then.estimate(), change: change.estimate() }
}

/// NaN where a self-similarity is not positive: then noise hides the states' own spread.
fn alignment([xy, xx, yy]: [f64; 3]) -> f64 {
    ratio(xy, xx.sqrt() * yy.sqrt())
}

/// Rows of different sequences, each in a group of the jackknife.
struct Block {
    group: Vec<usize>,
    sizes: Vec<usize>,
}

/// Row sums of a Gram matrix: over all columns, and over the columns of each group (rows × groups).
struct RowSums {
    all: Vec<f64>,
    within: Array2<f64>,
}

/// Σ K_ij·L_ij: over all pairs, over pairs whose first row is in a group, over pairs within a group.
struct Traces {
    all: f64,
    rows: Vec<f64>,
    within: Vec<f64>,
}

impl Block {
    fn new(group: Vec<usize>, groups: usize) -> Self {
        let mut sizes = vec![0; groups];
        group.iter().for_each(|&g| sizes[g] += 1);
        Self { group, sizes }
    }

    fn row_sums(&self, gram: &Array2<f64>) -> RowSums {
        let mut within = Array2::zeros((self.group.len(), self.sizes.len()));
        for (row, mut sums) in gram.outer_iter().zip(within.outer_iter_mut()) {
            for (&value, &group) in row.iter().zip(&self.group) {
                sums[group] += value;
            }
        }
        RowSums { all: within.outer_iter().map(|sums| sums.sum()).collect(), within }
    }

    fn traces(&self, k: &Array2<f64>, l: &Array2<f64>) -> Traces {
        let groups = self.sizes.len();
        let mut traces = Traces { all: 0.0, rows: vec![0.0; groups], within: vec![0.0; groups] };
        for ((x, y), &group) in k.outer_iter().zip(l.outer_iter()).zip(&self.group) {
            let (mut sum, mut own) = (0.0, 0.0);
            for ((x, y), &other) in x.iter().zip(y).zip(&self.group) {
                let term = x * y;
                sum += term;
                own += if other == group { term } else { 0.0 };
            }
            traces.all += sum;
            traces.rows[group] += sum;
            traces.within[group] += own;
        }
        traces
    }

    /// HSIC₁ of the rows outside the group `left_out`, times their number; nothing if fewer than four remain.
    fn hsic(&self, left_out: Option<usize>, k: &RowSums, l: &RowSums, traces: &Traces) -> f64 {
        let rows = self.group.len() - left_out.map_or(0, |group| self.sizes[group]);
        if rows < 4 {
            return 0.0;
        }
        let trace = left_out.map_or(traces.all, |g| traces.all - 2.0 * traces.rows[g] + traces.within[g]);
        let (mut sum_k, mut sum_l, mut cross) = (0.0, 0.0, 0.0);
        for row in (0..self.group.len()).filter(|&row| left_out != Some(self.group[row])) {
            let x = k.all[row] - left_out.map_or(0.0, |group| k.within[[row, group]]);
            let y = l.all[row] - left_out.map_or(0.0, |group| l.within[[row, group]]);
            sum_k += x;
            sum_l += y;
            cross += x * y;
        }
        let n = rows as f64;
        (trace + sum_k * sum_l / ((n - 1.0) * (n - 2.0)) - 2.0 / (n - 2.0) * cross) / (n - 3.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;
    use proptest::prelude::*;

    fn sample(rows: &Array2<f64>, batches: &[usize], per_sequence: usize) -> Sample {
        let sequences: Vec<u32> = (0..rows.nrows()).map(|row| (row / per_sequence) as u32).collect();
        Sample::new(&rows.mapv(|x| x as f32), batches, &sequences, 4)
    }

    /// HSIC₁ from its definition as a U-statistic: the mean over ordered quadruples of different rows (i, j, q, r) of
    /// k_ij·(l_ij + l_qr − 2·l_iq), on uncentred Grams.
    fn hsic_by_quadruples(x: &Array2<f64>, y: &Array2<f64>, keep: &[usize]) -> f64 {
        let dot = |m: &Array2<f64>, i: usize, j: usize| m.row(i).iter().zip(m.row(j)).map(|(a, b)| a * b).sum::<f64>();
        let (mut sum, mut count) = (0.0, 0.0);
        for &i in keep {
            for &j in keep {
                for &q in keep {
                    for &r in keep {
                        if i != j && i != q && i != r && j != q && j != r && q != r {
                            sum += dot(x, i, j) * (dot(y, i, j) + dot(y, q, r) - 2.0 * dot(y, i, q));
                            count += 1.0;
                        }
                    }
                }
            }
        }
        sum / count
    }

    #[test]
    fn agrees_with_the_definition_and_its_replicates() {
        let mut random = Random::new(3);
        let x = random.normals(14, 5).mapv(|x| f64::from((x + 2.0) as f32));
        let y = (&x.slice(ndarray::s![.., ..3]) + &random.normals(14, 3)).mapv(|x| f64::from(x as f32));
        let (a, b) = (sample(&x, &[8, 6], 2), sample(&y, &[8, 6], 2));
        let found = cka(&a, &b);
        let expected = |without: Option<usize>| {
            let hsic = |x: &Array2<f64>, y: &Array2<f64>| {
                let block = |place: usize| (0..14).filter(move |row| row % 2 == place && Some(row / 2) != without);
                (0..2).map(|place| hsic_by_quadruples(x, y, &block(place).collect::<Vec<_>>())).sum::<f64>()
            };
            hsic(&x, &y) / (hsic(&x, &x) * hsic(&y, &y)).sqrt()
        };
        // Sums of 10⁴ terms up to 10³ times their mean, in fp64.
        assert!((found.value - expected(None)).abs() < 1e-10, "{} {}", found.value, expected(None));
        assert_eq!(found.replicates.len(), 7);
        for (group, replicate) in found.replicates.iter().enumerate() {
            assert!((replicate - expected(Some(group))).abs() < 1e-10);
        }
        let mean = found.replicates.iter().sum::<f64>() / 7.0;
        let variance = found.replicates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() * 6.0 / 7.0;
        assert!((found.estimate().error - variance.sqrt()).abs() < 1e-14);
    }

    #[test]
    fn independent_states_have_none() {
        let mut random = Random::new(4);
        let (n, p) = (256, 4096);
        let (a, b) = (sample(&random.normals(n, p), &[64; 4], 2), sample(&random.normals(n, p), &[64; 4], 2));
        let found = cka(&a, &b).estimate();
        assert!(found.value.abs() < 4.0 * found.error && found.error < 0.05, "{found:?}");
    }

    /// Unrelated states, in which tokens of a sequence are correlated by .5 in each.
    #[test]
    fn likeness_within_sequences_is_no_alignment() {
        let mut random = Random::new(8);
        let (sequences, d, trials) = (64, 64, 100);
        let mut states = || {
            let (shared, own) = (random.normals(sequences, d), random.normals(4 * sequences, d));
            sample(&Array2::from_shape_fn(own.raw_dim(), |(i, j)| shared[[i / 4, j]] + own[[i, j]]), &[16; 16], 4)
        };
        let found: Vec<Estimate> = (0..trials).map(|_| cka(&states(), &states()).estimate()).collect();
        let mean = found.iter().map(|x| x.value).sum::<f64>() / f64::from(trials);
        let variance = found.iter().map(|x| (x.value - mean).powi(2)).sum::<f64>() / f64::from(trials - 1);
        let jackknife = found.iter().map(|x| x.error * x.error).sum::<f64>() / f64::from(trials);
        // Blocks of whole minibatches gave 0.44.
        assert!(mean.abs() < 4.0 * (variance / f64::from(trials)).sqrt(), "{mean} ± {variance}");
        // Twice, as the module says; the variance over 100 trials is known to 14 % (√(2/99)): three of them either way.
        assert!((1.4..2.8).contains(&(jackknife / variance)), "{}", jackknife / variance);
        // Errors that are √2 too large cover nearly all.
        assert!(found.iter().filter(|x| x.value.abs() <= 2.0 * x.error).count() >= 95);
    }

    #[test]
    fn the_error_is_the_spread_of_new_sequences() {
        // Four tokens of a sequence share a component, so that tokens are far from independent.
        let mut random = Random::new(5);
        let (sequences, d, trials) = (48, 12, 80);
        let (mut values, mut errors) = (Vec::new(), 0.0);
        for _ in 0..trials {
            let shared = random.normals(sequences, d);
            let noise = random.normals(4 * sequences, d);
            let x = Array2::from_shape_fn((4 * sequences, d), |(i, j)| shared[[i / 4, j]] + 0.3 * noise[[i, j]]);
            let other = random.normals(sequences, d);
            let y = Array2::from_shape_fn(x.raw_dim(), |(i, j)| x[[i, j]] + other[[i / 4, j]]);
            let found = cka(&sample(&x, &[64; 3], 4), &sample(&y, &[64; 3], 4)).estimate();
            values.push(found.value);
            errors += found.error / f64::from(trials);
        }
        let mean = values.iter().sum::<f64>() / f64::from(trials);
        let spread = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(trials - 1)).sqrt();
        // The spread of 80 trials is known to 8 % (1/√(2·79)), the jackknife of 32 groups to less on average; its bias is
        // of the order of 1/sequences. Four of the former, and the latter: 0.68 … 1.35.
        assert!((0.68..1.35).contains(&(errors / spread)), "{errors} {spread}");
    }

    #[test]
    fn neighbours_cancel_the_noise_of_their_tokens() {
        let mut random = Random::new(6);
        let x = random.normals(96, 10);
        let y = &x + &random.normals(96, 10);
        let z = &y + &(0.05 * &random.normals(96, 10));
        let [x, y, z] = [x, y, z].map(|rows| sample(&rows, &[48; 2], 1));
        let still = neighbours((&x, &y), (&x, &y));
        assert_eq!((still.change.value, still.change.error), (0.0, 0.0));
        let moved = neighbours((&x, &y), (&x, &z));
        assert!(moved.change.error < 0.5 * moved.now.error, "{moved:?}");
        assert!((moved.change.value - (moved.now.value - moved.base.value)).abs() < 1e-15);
    }

    #[test]
    fn undefined_is_nan() {
        let mut random = Random::new(7);
        let x = random.normals(8, 3);
        let good = sample(&x, &[8], 1);
        let mut broken = x.clone();
        broken[[0, 0]] = f64::INFINITY;
        assert!(cka(&good, &sample(&broken, &[8], 1)).value.is_nan());
        assert!(cka(&good, &sample(&x, &[4, 4], 1)).value.is_nan(), "other minibatches");
        assert!(cka(&sample(&x, &[8], 3), &sample(&x, &[8], 3)).value.is_nan(), "three sequences cannot be debiased");
        let four = cka(&sample(&x, &[8], 2), &sample(&x, &[8], 2)).estimate();
        assert!((four.value - 1.0).abs() < 1e-14 && four.error.is_nan(), "with one of four left out too few remain");
        let flat = sample(&Array2::ones((8, 3)), &[8], 1);
        assert!(cka(&good, &flat).value.is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn rotation_shift_and_scale_change_nothing(seed: u64, angle in 0.0f64..6.0, scale in 0.1f64..10.0, shift in -5.0f64..5.0) {
            let mut random = Random::new(seed);
            let x = random.normals(24, 3);
            let y = &x + &random.normals(24, 3);
            let (sin, cos) = angle.sin_cos();
            let turned = Array2::from_shape_fn((24, 3), |(i, j)| {
                let v = y.row(i);
                let rotated = [cos * v[0] - sin * v[1], sin * v[0] + cos * v[1], v[2]];
                scale * rotated[j] + shift
            });
            let plain = cka(&sample(&x, &[24], 1), &sample(&y, &[24], 1)).value;
            let found = cka(&sample(&x, &[24], 1), &sample(&turned, &[24], 1)).value;
            // Rows are rounded to fp32 with values up to |shift| + 5·scale: 2⁻²⁴·100 relative to the smallest scale, squared sums
            // of 24 rows average it out.
            prop_assert!((plain - found).abs() < 1e-4, "{} {}", plain, found);
            let own = cka(&sample(&x, &[24], 1), &sample(&x, &[24], 1)).value;
            prop_assert!((own - 1.0).abs() < 1e-14);
        }
    }
}
