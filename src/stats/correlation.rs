//! Pearson's and Spearman's correlation over pairs that come from several runs, with intervals by bootstrap over runs.
//!
//! Pairs of one run (task A forgotten while B was trained, A while C, B while C) share a model, a seed and tasks, so they
//! are not independent: whole runs are resampled, not pairs (cluster bootstrap, Davison & Hinkley 1997, §3.8). With few runs
//! the interval is what it is: wide. Cost: `RESAMPLES` passes over the pairs.

use super::random::Random;
use super::summary::{mean, quantile};

/// Resamples of an interval.
pub const RESAMPLES: usize = 2000;

/// A coefficient with its 95 % percentile interval; NaN where fewer than three runs allow none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficient {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correlation {
    /// Linear relation.
    pub pearson: Coefficient,
    /// Monotonic relation: Pearson's of the ranks.
    pub spearman: Coefficient,
    /// Pairs with both values.
    pub pairs: usize,
    pub runs: usize,
}

/// One pair of values, and the run that it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub run: usize,
    pub x: f64,
    pub y: f64,
}

/// Correlates; pairs with a value that is not finite are left out.
pub fn correlate(pairs: &[Pair], seed: u64) -> Correlation {
    let pairs: Vec<Pair> = pairs.iter().copied().filter(|pair| pair.x.is_finite() && pair.y.is_finite()).collect();
    let mut runs: Vec<usize> = pairs.iter().map(|pair| pair.run).collect();
    runs.sort_unstable();
    runs.dedup();
    let of_run = |run: &usize| pairs.iter().copied().filter(|pair| pair.run == *run).collect::<Vec<_>>();
    let clusters: Vec<Vec<Pair>> = runs.iter().map(of_run).collect();
    let (mut pearsons, mut spearmans) = (Vec::new(), Vec::new());
    if clusters.len() >= 3 {
        let mut random = Random::new(seed);
        for _ in 0..RESAMPLES {
            let drawn = (0..clusters.len()).flat_map(|_| &clusters[random.below(clusters.len())]);
            let (x, y): (Vec<f64>, Vec<f64>) = drawn.map(|pair| (pair.x, pair.y)).unzip();
            pearsons.push(pearson(&x, &y));
            spearmans.push(spearman(&x, &y));
        }
    }
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().map(|pair| (pair.x, pair.y)).unzip();
    Correlation {
        pearson: with_interval(pearson(&x, &y), pearsons),
        spearman: with_interval(spearman(&x, &y), spearmans),
        pairs: pairs.len(),
        runs: runs.len(),
    }
}

/// Resamples in which a variable does not vary have no coefficient and are left out.
fn with_interval(value: f64, mut resampled: Vec<f64>) -> Coefficient {
    resampled.retain(|coefficient| coefficient.is_finite());
    resampled.sort_unstable_by(f64::total_cmp);
    Coefficient { value, low: quantile(&resampled, 0.025), high: quantile(&resampled, 0.975) }
}

/// Pearson's r; NaN for fewer than three pairs or a variable that does not vary.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    if x.len() < 3 {
        return f64::NAN;
    }
    let (x_mean, y_mean) = (mean(x.iter().copied()), mean(y.iter().copied()));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - x_mean, y - y_mean);
        (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
    }
    // Rounding may leave [−1, 1] by a few ulps.
    if xx > 0.0 && yy > 0.0 { (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0) } else { f64::NAN }
}

/// Spearman's ρ; equal values share the mean of their ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

/// Ranks from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let first = order.iter().position(|index| index == &tied[0]).unwrap_or(0);
        let rank = first as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&index| ranks[index] = rank);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(runs: usize, per_run: usize, noise: f64, seed: u64) -> Vec<Pair> {
        let mut random = Random::new(seed);
        let pair = |index| {
            let x = random.normal();
            Pair { run: index / per_run, x, y: x + noise * random.normal() }
        };
        (0..runs * per_run).map(pair).collect()
    }

    /// Digits from scipy.stats.pearsonr and spearmanr.
    #[test]
    fn agrees_with_scipy() {
        let (x, y) = ([1.0, 2.0, 3.0, 4.0, 5.0, 5.0], [2.0, 1.0, 4.0, 3.0, 7.0, 5.0]);
        assert!((pearson(&x, &y) - 0.831_521_840_620_299_8).abs() < 1e-14, "{}", pearson(&x, &y));
        assert!((spearman(&x, &y) - 0.869_656_553_478_672_7).abs() < 1e-14, "{}", spearman(&x, &y));
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 3.0]), [3.0, 1.0, 3.0, 3.0]);
    }

    #[test]
    fn undefined_is_nan() {
        assert!(pearson(&[1.0, 2.0], &[1.0, 2.0]).is_nan());
        assert!(pearson(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]).is_nan());
        let found = correlate(&pairs(2, 9, 0.1, 1), 7);
        assert!(found.pearson.value > 0.9 && found.pearson.low.is_nan(), "two runs allow no interval");
        assert_eq!(correlate(&[], 7).pairs, 0);
    }

    /// Coverage of the 95 % interval over 200 draws of 20 runs. Percentile intervals of few clusters are somewhat narrow
    /// (about .92 here); 180 of 200 is five standard errors below that.
    #[test]
    fn intervals_cover_the_truth() {
        let truth = 1.0 / 2f64.sqrt();
        let covers = |seed| {
            let found = correlate(&pairs(20, 3, 1.0, seed), seed).pearson;
            found.low <= truth && truth <= found.high
        };
        let covered = (0..200).filter(|&seed| covers(seed)).count();
        assert!((170..=200).contains(&covered), "{covered} of 200");
    }

    proptest! {
        #[test]
        fn symmetric_and_without_unit(seed in 0u64..1000, scale in 0.01f64..100.0, shift in -9.0f64..9.0) {
            let (x, y): (Vec<f64>, Vec<f64>) = pairs(4, 5, 1.0, seed).iter().map(|p| (p.x, p.y)).unzip();
            let other: Vec<f64> = x.iter().map(|x| scale * x + shift).collect();
            prop_assert!((pearson(&x, &y) - pearson(&y, &x)).abs() < 1e-12);
            prop_assert!((pearson(&other, &y) - pearson(&x, &y)).abs() < 1e-9);
            // Ranks know of order only.
            let cubes: Vec<f64> = x.iter().map(|x| x.powi(3)).collect();
            prop_assert_eq!(spearman(&cubes, &y), spearman(&x, &y));
        }
    }
}
