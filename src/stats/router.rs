//! How a router of a mixture of experts sends the same tokens now and at the task's base pass.
//!
//! | | |
//! |---|---|
//! | divergence | mean over tokens of KL(base ‖ now) of the softmax over experts, nats |
//! | Jensen–Shannon | the same, symmetric and ≤ ln 2 |
//! | Jaccard | mean over tokens of \|T ∩ T_A\|/\|T ∪ T_A\| of the top-k sets; equal logits go to the lower number |
//! | load | share of the n·k assignments that each expert gets |
//! | load divergence | KL(base ‖ now) of loads, with half an assignment added to every expert (Krichevsky & Trofimov 1981) |
//! | load entropy | of the load over all experts: ln E for even load |
//!
//! **Nulls.** Two independent uniform choices of k out of E share j experts with hypergeometric probability, so that Jaccard is
//! Σ_j P(j)·j/(2k − j) without any relation. The load of *other* tokens under the same routing differs by sampling: an expert
//! that takes a share p of assignments is chosen by a token with probability kp, which gives its share the variance
//! p(1 − kp)/(nk), and to second order
//!
//! ```text
//! E KL ≈ ½ Σ (difference of shares)²/p = ½ Σ_e 2·(1 − k·p_e)/(nk) = (E − k)/(nk)
//! ```
//!
//! On the same tokens an unchanged router has no load divergence at all; below the null, others would not have shown it.
//!
//! Experts with fewer than [`MINIMUM_ASSIGNMENTS`] assignments in both passes together are left out of the load divergence:
//! a ratio of a few counts is noise. Cost: E exponentials and a selection per token and pass.

use super::divergence::{entropy, jensen_shannon, kullback_leibler, log_softmax};
use ndarray::{Array2, ArrayView1};

/// Assignments, in both passes together, below which an expert's load is not compared: the second order of the null needs
/// about five counts a cell and pass (Cochran 1954).
pub const MINIMUM_ASSIGNMENTS: usize = 10;

/// One router, now against base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Nats, ≥ 0.
    pub divergence: f64,
    /// Nats, 0 … ln 2.
    pub js_divergence: f64,
    /// 0 … 1.
    pub jaccard: f64,
    /// Its mean for unrelated uniform choices.
    pub jaccard_null: f64,
    /// Nats, ≥ 0.
    pub load_divergence: f64,
    /// Its mean for other tokens and the same routing.
    pub load_divergence_null: f64,
    /// Nats, 0 … ln E, now and at the base.
    pub load_entropy: f64,
    pub load_entropy_base: f64,
    /// Experts whose load is compared; the others have too few assignments.
    pub experts: usize,
    /// Tokens with finite logits in both passes.
    pub tokens: usize,
}

/// Compares router logits (tokens × experts) of the same tokens. `top_k`: experts that a token is sent to. Tokens with a
/// non-finite logit in either pass are left out. NaN if shapes differ, no token is left, or k is not in 1 … E.
pub fn compare(base: &Array2<f32>, now: &Array2<f32>, top_k: usize) -> Routing {
    let experts = now.ncols();
    let fits = base.dim() == now.dim() && (1..=experts).contains(&top_k);
    let (mut tokens, mut divergence, mut js, mut jaccard) = (0usize, 0.0, 0.0, 0.0);
    let (mut load_base, mut load_now) = (vec![0usize; experts], vec![0usize; experts]);
    let (mut p, mut q) = (Vec::new(), Vec::new());
    for (x, y) in base.outer_iter().zip(now.outer_iter()).filter(|_| fits) {
        if x.iter().chain(y).any(|logit| !logit.is_finite()) {
            continue;
        }
        tokens += 1;
        log_softmax(x, &mut p);
        log_softmax(y, &mut q);
        divergence += kullback_leibler(&p, &q);
        js += jensen_shannon(p.iter().zip(&q).map(|(p, q)| (p.exp(), q.exp())));
        let (chosen_base, chosen_now) = (top(x, top_k), top(y, top_k));
        let shared = chosen_base.iter().filter(|expert| chosen_now.contains(expert)).count();
        jaccard += shared as f64 / (2 * top_k - shared) as f64;
        chosen_base.iter().for_each(|&expert| load_base[expert] += 1);
        chosen_now.iter().for_each(|&expert| load_now[expert] += 1);
    }
    let n = if tokens > 0 { tokens as f64 } else { f64::NAN };
    let kept: Vec<(f64, f64)> = load_base
        .iter()
        .zip(&load_now)
        .filter(|&(x, y)| x + y >= MINIMUM_ASSIGNMENTS)
        .map(|(&x, &y)| (x as f64, y as f64))
        .collect();
    Routing {
        divergence: divergence / n,
        js_divergence: js / n,
        jaccard: jaccard / n,
        jaccard_null: if fits { random_jaccard(experts, top_k) } else { f64::NAN },
        load_divergence: load_divergence(&kept),
        load_divergence_null: if kept.is_empty() {
            f64::NAN
        } else {
            // Experts that were left out hardly take any assignments, so that the kept shares still add up to one.
            kept.len().saturating_sub(top_k) as f64 / (n * top_k as f64)
        },
        load_entropy: entropy(load_now.iter().map(|&x| x as f64)),
        load_entropy_base: entropy(load_base.iter().map(|&x| x as f64)),
        experts: kept.len(),
        tokens,
    }
}

/// The k largest logits' experts, in any order.
fn top(logits: ArrayView1<f32>, k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let by_logit = |&i: &usize, &j: &usize| logits[j].total_cmp(&logits[i]).then(i.cmp(&j));
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, by_logit);
    }
    order.truncate(k);
    order
}

/// KL(base ‖ now) of loads that are counts, over the experts given. NaN without any.
fn load_divergence(counts: &[(f64, f64)]) -> f64 {
    if counts.is_empty() {
        return f64::NAN;
    }
    let (base, now) = counts.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x + 0.5, b + y + 0.5));
    let log = |pick: fn(&(f64, f64)) -> f64, total: f64| -> Vec<f64> {
        counts.iter().map(|pair| ((pick(pair) + 0.5) / total).ln()).collect()
    };
    kullback_leibler(&log(|pair| pair.0, base), &log(|pair| pair.1, now))
}

/// Mean Jaccard index of two independent uniform k-subsets of E.
fn random_jaccard(experts: usize, k: usize) -> f64 {
    // P(j) = C(k, j)·C(E − k, k − j)/C(E, k), from one j to the next; those below 2k − E cannot be.
    let least = (2 * k).saturating_sub(experts);
    let (mut weight, mut total, mut sum) = (1.0, 0.0, 0.0);
    for j in least..=k {
        total += weight;
        sum += weight * j as f64 / (2 * k - j) as f64;
        let (left, j) = ((k - j) as f64, j as f64);
        weight *= left * left / ((j + 1.0) * (experts as f64 - 2.0 * k as f64 + j + 1.0));
    }
    sum / total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;
    use ndarray::arr2;
    use proptest::prelude::*;

    fn logits(tokens: usize, bias: &[f64], random: &mut Random) -> Array2<f32> {
        Array2::from_shape_fn((tokens, bias.len()), |(_, expert)| (bias[expert] + random.normal()) as f32)
    }

    #[test]
    fn closed_forms() {
        let (a, b) = (2f32.ln(), 0.0);
        // Softmax of (ln 2, 0) is (2/3, 1/3); turned over, KL is (1/3)·ln 2.
        let found = compare(&arr2(&[[a, b]; 12]), &arr2(&[[b, a]; 12]), 1);
        // ln 2 in fp32.
        assert!((found.divergence - 2f64.ln() / 3.0).abs() < 1e-7 && found.jaccard == 0.0);
        let middle = 0.5f64.ln();
        let js = (2.0 / 3.0) * ((2.0f64 / 3.0).ln() - middle) + (1.0 / 3.0) * ((1.0f64 / 3.0).ln() - middle);
        assert!((found.js_divergence - js).abs() < 1e-7);
        assert_eq!((found.load_entropy, found.load_entropy_base, found.experts, found.tokens), (0.0, 0.0, 2, 12));
        // All twelve moved: shares (12.5, ½)/13 against (½, 12.5)/13.
        assert!((found.load_divergence - 12.0 / 13.0 * 25f64.ln()).abs() < 1e-14);
    }

    #[test]
    fn random_choice_by_enumeration() {
        for (experts, k) in [(2usize, 1usize), (6, 2), (7, 5), (8, 8), (9, 4)] {
            let subsets: Vec<u32> = (0..1u32 << experts).filter(|set| set.count_ones() as usize == k).collect();
            let first = subsets[0];
            let jaccard = |set: &u32| f64::from((set & first).count_ones()) / f64::from((set | first).count_ones());
            let exact = subsets.iter().map(jaccard).sum::<f64>() / subsets.len() as f64;
            assert!((random_jaccard(experts, k) - exact).abs() < 1e-14, "{experts} {k}");
        }
    }

    #[test]
    fn the_null_of_loads_is_what_other_tokens_show() {
        let mut random = Random::new(1);
        let bias: Vec<f64> = (0..16).map(|expert| 0.05 * f64::from(expert)).collect();
        let (n, k, trials) = (600, 4, 200);
        let found: Vec<Routing> =
            (0..trials).map(|_| compare(&logits(n, &bias, &mut random), &logits(n, &bias, &mut random), k)).collect();
        let mean = found.iter().map(|r| r.load_divergence).sum::<f64>() / trials as f64;
        let spread = found.iter().map(|r| (r.load_divergence - mean).powi(2)).sum::<f64>() / (trials - 1) as f64;
        let null = found[0].load_divergence_null;
        assert!((null - (16.0 - 4.0) / (600.0 * 4.0)).abs() < 1e-15);
        // Second order of KL in deviations of 1/√(nk/E) = 8 %: 2 % more or less, and assignments of one token are not exactly
        // chosen without preference, with four standard errors.
        let error = (spread / trials as f64).sqrt();
        assert!((mean - null).abs() < 0.05 * null + 4.0 * error, "{mean} ± {error}, null {null}");
        let jaccard = found.iter().map(|r| r.jaccard).sum::<f64>() / trials as f64;
        assert!(jaccard > found[0].jaccard_null, "loads that are not even agree more often by chance");
    }

    #[test]
    fn an_expert_that_dies_is_seen_and_a_rare_one_is_not_compared() {
        let mut random = Random::new(2);
        let base = logits(400, &[0.0, 0.0, 0.0, -30.0], &mut random);
        let mut now = base.clone();
        now.column_mut(0).fill(-30.0);
        let found = compare(&base, &now, 1);
        assert_eq!(found.experts, 3, "the fourth has too few assignments");
        assert!(found.load_divergence.is_finite() && found.load_divergence > 50.0 * found.load_divergence_null);
        assert!(found.load_entropy < found.load_entropy_base);
    }

    #[test]
    fn undefined_is_nan() {
        let x = arr2(&[[0.0f32, 1.0, 2.0]; 6]);
        let mut broken = x.clone();
        broken[[2, 0]] = f32::NAN;
        broken[[3, 0]] = f32::NEG_INFINITY;
        let found = compare(&x, &broken, 1);
        assert_eq!((found.tokens, found.divergence, found.jaccard), (4, 0.0, 1.0));
        assert!(found.load_divergence.is_nan() && found.experts == 0, "four assignments are too few");
        for bad in [compare(&x, &arr2(&[[0.0f32, 1.0]; 6]), 1), compare(&x, &x, 0), compare(&x, &x, 4)] {
            assert!(
                bad.divergence.is_nan() && bad.jaccard_null.is_nan() && bad.load_entropy.is_nan() && bad.tokens == 0
            );
        }
        let none = compare(&Array2::zeros((0, 3)), &Array2::zeros((0, 3)), 1);
        assert!(none.divergence.is_nan() && none.load_divergence_null.is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ranges(
            seed: u64,
            (experts, k) in (1usize..12).prop_flat_map(|experts| (Just(experts), 1..=experts)),
            tokens in 1usize..60,
            scale in 0.0f64..20.0,
        ) {
            let mut random = Random::new(seed);
            let bias = vec![0.0; experts];
            let base = logits(tokens, &bias, &mut random);
            let now = Array2::from_shape_fn(base.raw_dim(), |at| base[at] + (scale * random.normal()) as f32);
            let found = compare(&base, &now, k);
            prop_assert!(found.divergence >= 0.0 && found.divergence.is_finite());
            prop_assert!((0.0..=std::f64::consts::LN_2 + 1e-14).contains(&found.js_divergence));
            prop_assert!((0.0..=1.0).contains(&found.jaccard) && (0.0..=1.0).contains(&found.jaccard_null));
            prop_assert!(found.load_divergence.is_nan() || found.load_divergence >= 0.0);
            prop_assert!(found.load_entropy <= (experts as f64).ln() + 1e-14);
            prop_assert!(found.experts <= experts);
            let same = compare(&base, &base, k);
            prop_assert_eq!((same.divergence, same.js_divergence, same.jaccard), (0.0, 0.0, 1.0));
        }
    }
}
