//! What each attention head attends to, on sampled query rows.
//!
//! | | per row p over n keys | of a head |
//! |---|---|---|
//! | entropy | −Σ p ln p: 0 for one key, ln n for a uniform row | mean over rows |
//! | sink | p of the first key (Xiao et al. 2023, arXiv 2309.17453) | mean over rows of at least two keys |
//! | dormant | sink above [`DORMANT_SINK`] (active and dormant heads: Guo et al. 2024, arXiv 2410.13835) | share of those rows |
//! | largest logit | of the scores before the softmax; its growth precedes instability (Wortsman et al. 2023, arXiv 2309.14322) | as given |
//! | divergence | Jensen–Shannon against the base pass's row, ≤ ln 2 | mean over rows |
//!
//! Probabilities are divided by their own sum, which in fp16 and bf16 is not one. Cost: two logarithms per key.

use super::divergence::{entropy, jensen_shannon};
use super::summary::mean;

/// Probability of the first key above which a row counts as dormant: the head then writes little but the first token's
/// value. A choice of this library; the share moves with it, its change between two passes hardly does.
pub const DORMANT_SINK: f32 = 0.9;

/// Attention probabilities of one layer on sampled query rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    pub heads: usize,
    /// Keys that each sampled row attends to: causal rows differ in length.
    pub keys: Vec<usize>,
    /// By row, then head, then key.
    pub probabilities: Vec<f32>,
    /// Largest logit of each head. NaN: unknown.
    pub max_logits: Vec<f32>,
}

/// One head on one pass. NaN where a row is not a distribution, and where there is no row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// Nats.
    pub entropy: f64,
    /// 0 … 1.
    pub sink: f64,
    /// 0 … 1.
    pub dormant: f64,
    pub max_logit: f64,
}

impl Rows {
    /// Query rows of each head.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Probabilities have the length that heads and keys make.
    fn is_complete(&self) -> bool {
        self.heads * self.keys.iter().sum::<usize>() == self.probabilities.len()
    }

    /// The rows of one head, in order.
    fn rows(&self, head: usize) -> impl Iterator<Item = &[f32]> {
        let mut start = 0;
        self.keys.iter().map(move |&keys| {
            let row = start + head * keys;
            start += self.heads * keys;
            &self.probabilities[row..row + keys]
        })
    }

    /// Every head by itself.
    pub fn describe(&self) -> Vec<Head> {
        (0..self.heads)
            .map(|head| {
                let max_logit = self.max_logits.get(head).map_or(f64::NAN, |&x| f64::from(x));
                if !self.is_complete() {
                    return Head { entropy: f64::NAN, sink: f64::NAN, dormant: f64::NAN, max_logit };
                }
                let rows = || self.rows(head);
                // A row of one key has nowhere else to look.
                let sinks = || rows().filter(|row| row.len() > 1).map(first_share);
                let dormant = |share: f64| match share {
                    share if share.is_nan() => f64::NAN,
                    share => f64::from(u8::from(share > f64::from(DORMANT_SINK))),
                };
                Head {
                    entropy: mean(rows().map(|row| entropy(row.iter().map(|&p| f64::from(p))))),
                    sink: mean(sinks()),
                    dormant: mean(sinks().map(dormant)),
                    max_logit,
                }
            })
            .collect()
    }
}

/// Mean Jensen–Shannon divergence of each head's rows from the same rows of the base pass, nats: 0 … ln 2. NaN where the
/// passes differ in heads or keys.
pub fn divergences(base: &Rows, now: &Rows) -> Vec<f64> {
    let comparable = base.heads == now.heads && base.keys == now.keys && base.is_complete() && now.is_complete();
    (0..now.heads)
        .map(|head| {
            if !comparable {
                return f64::NAN;
            }
            mean(base.rows(head).zip(now.rows(head)).map(|(p, q)| {
                let (p_sum, q_sum) = (total(p), total(q));
                let pairs = p.iter().zip(q).map(|(&p, &q)| (f64::from(p) / p_sum, f64::from(q) / q_sum));
                jensen_shannon(pairs)
            }))
        })
        .collect()
}

/// Sum of a row; NaN unless it can be a distribution.
fn total(row: &[f32]) -> f64 {
    let valid = row.iter().all(|p| p.is_finite() && *p >= 0.0);
    let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
    if valid && sum > 0.0 { sum } else { f64::NAN }
}

/// Share of the first key.
fn first_share(row: &[f32]) -> f64 {
    f64::from(row[0]) / total(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::f64::consts::LN_2;

    fn rows(heads: usize, keys: &[usize], probability: impl Fn(usize, usize, usize) -> f32) -> Rows {
        let mut probabilities = Vec::new();
        for (row, &keys) in keys.iter().enumerate() {
            for head in 0..heads {
                probabilities.extend((0..keys).map(|key| probability(row, head, key)));
            }
        }
        Rows { heads, keys: keys.to_vec(), probabilities, max_logits: vec![f32::NAN; heads] }
    }

    /// Head 0 is uniform, head 1 looks at the first key, head 2 at the last.
    fn three(keys: &[usize]) -> Rows {
        rows(3, keys, |row, head, key| match head {
            0 => 1.0 / keys[row] as f32,
            1 => f32::from(u8::from(key == 0)),
            _ => f32::from(u8::from(key + 1 == keys[row])),
        })
    }

    #[test]
    fn closed_forms() {
        let found = three(&[1, 2, 8]).describe();
        // fp32 probabilities are divided by their sum.
        assert!((found[0].entropy - (2f64.ln() + 8f64.ln()) / 3.0).abs() < 1e-15);
        assert!((found[0].sink - (0.5 + 0.125) / 2.0).abs() < 1e-15 && found[0].dormant == 0.0);
        assert_eq!((found[1].entropy, found[1].sink, found[1].dormant), (0.0, 1.0, 1.0));
        assert_eq!((found[2].entropy, found[2].sink, found[2].dormant), (0.0, 0.0, 0.0), "a row of one key is no sink");
        assert!(found[0].max_logit.is_nan());
    }

    #[test]
    fn divergence_of_known_rows() {
        let keys = [4, 4];
        let (base, mut now) = (three(&keys), three(&keys));
        assert_eq!(divergences(&base, &now), [0.0; 3]);
        // Head 2 turns from the last key to the first, in one row of two; scaling a row is no change.
        now.probabilities[8..12].copy_from_slice(&[1.0, 0.0, 0.0, 0.0]);
        now.probabilities[..4].iter_mut().for_each(|p| *p *= 0.5);
        let found = divergences(&base, &now);
        assert!((found[2] - LN_2 / 2.0).abs() < 1e-15 && found[0] == 0.0 && found[1] == 0.0);
    }

    #[test]
    fn undefined_is_nan() {
        let good = three(&[2, 3]);
        let mut broken = good.clone();
        broken.probabilities[0] = f32::NAN;
        let found = broken.describe();
        assert!(found[0].entropy.is_nan() && found[0].sink.is_nan() && found[0].dormant.is_nan());
        assert_eq!(found[1].sink, 1.0, "other heads are not touched");
        let found = divergences(&good, &broken);
        assert!(found[0].is_nan() && found[1] == 0.0);
        assert!(divergences(&good, &three(&[3, 2]))[0].is_nan(), "other rows");
        let mut short = good.clone();
        short.probabilities.pop();
        assert!(short.describe()[0].entropy.is_nan() && divergences(&good, &short)[0].is_nan());
        let nothing = rows(1, &[3], |_, _, _| 0.0);
        assert!(nothing.describe()[0].entropy.is_nan() && divergences(&nothing, &nothing)[0].is_nan());
        let none = three(&[]);
        assert!(none.is_empty() && none.describe()[0].entropy.is_nan());
        assert!(three(&[1]).describe()[1].sink.is_nan(), "only rows of one key");
    }

    proptest! {
        #[test]
        fn bounds(keys in prop::collection::vec(1usize..9, 1..5), seed: u64) {
            let draw = |seed| {
                let mut random = crate::stats::random::Random::new(seed);
                let mut all = three(&keys);
                all.probabilities.iter_mut().for_each(|p| *p = random.uniform() as f32 + 1e-6);
                all
            };
            let (base, now) = (draw(seed), draw(seed ^ 1));
            let longest = *keys.iter().max().unwrap() as f64;
            for (head, divergence) in now.describe().iter().zip(divergences(&base, &now)) {
                // Rounding of sums of at most eight terms.
                prop_assert!((0.0..=LN_2 + 1e-14).contains(&divergence));
                prop_assert!(head.entropy >= 0.0 && head.entropy <= longest.ln() + 1e-14);
                prop_assert!(head.sink.is_nan() || (0.0..=1.0).contains(&head.sink));
            }
        }
    }
}
