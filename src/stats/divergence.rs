//! Entropy and divergences of discrete distributions, in nats.
//!
//! ```text
//! H(p) = −Σ p ln p          KL(p‖q) = Σ p ln(p/q)          JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m),  m = (p + q)/2
//! ```
//!
//! Shannon 1948, Kullback & Leibler 1951, Lin 1991. JS is symmetric, finite for every pair and at most ln 2. Cost: one or
//! two logarithms per outcome.

/// H(p) of non-negative weights that need not add up to one (fp16 probabilities do not): 0 … ln n. NaN if a weight is
/// negative or not finite, or all are zero.
pub fn entropy(weights: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut sum) = (0.0, 0.0);
    for weight in weights {
        if !weight.is_finite() || weight < 0.0 {
            return f64::NAN;
        }
        if weight > 0.0 {
            total += weight;
            sum += weight * weight.ln();
        }
    }
    if total > 0.0 { (total.ln() - sum / total).max(0.0) } else { f64::NAN }
}

/// KL(p‖q) of two normalised distributions given by their logarithms. Infinite where q forbids what p allows.
pub fn kullback_leibler(log_p: &[f64], log_q: &[f64]) -> f64 {
    let terms = log_p.iter().zip(log_q).filter(|&(&p, _)| p != f64::NEG_INFINITY);
    let sum: f64 = terms.map(|(p, q)| p.exp() * (p - q)).sum();
    // Never negative in exact arithmetic. Not `max`, which would make a number of NaN.
    if sum < 0.0 { 0.0 } else { sum }
}

/// JS(p, q) of pairs (p, q) of normalised probabilities: 0 … ln 2.
///
/// With m = (p + q)/2 and δ = |q − p|/(p + q), an outcome adds ½m·[ln(1 − δ²) + 2δ·artanh δ]: no term is negative, so
/// that distributions which differ in the tenth digit still have an exact divergence. Where one probability is several
/// times the other, it is the definition that loses nothing, whereas 1 − δ² would be rounded away.
pub fn jensen_shannon(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let mut sum = 0.0;
    for (p, q) in pairs {
        let m = 0.5 * (p + q);
        if m == 0.0 {
            continue;
        }
        // Even in δ, and atanh is accurate on the positive side alone.
        let delta = ((q - p) / (2.0 * m)).abs();
        sum += if delta < 0.5 {
            0.5 * m * ((-delta * delta).ln_1p() + 2.0 * delta * delta.atanh())
        } else {
            0.5 * (relative_information(p, m) + relative_information(q, m))
        };
    }
    sum
}

/// p ln(p/m), which is 0 for p = 0. NaN stays NaN.
fn relative_information(p: f64, m: f64) -> f64 {
    if p == 0.0 { 0.0 } else { p * (p / m).ln() }
}

/// Logarithms of the probabilities that a row of logits stands for.
pub fn log_softmax(logits: ndarray::ArrayView1<f32>, out: &mut Vec<f64>) {
    out.clear();
    out.extend(logits.iter().map(|&x| f64::from(x)));
    let peak = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = peak + out.iter().map(|x| (x - peak).exp()).sum::<f64>().ln();
    out.iter_mut().for_each(|x| *x -= total);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::f64::consts::LN_2;

    #[test]
    fn closed_forms() {
        assert!((entropy([3.0; 8].into_iter()) - 8f64.ln()).abs() < 1e-15);
        assert_eq!(entropy([0.0, 5.0, 0.0].into_iter()), 0.0);
        assert!(entropy([0.0].into_iter()).is_nan() && entropy([1.0, -1.0].into_iter()).is_nan());
        assert!(entropy([f64::NAN, 1.0].into_iter()).is_nan() && entropy([].into_iter()).is_nan());
        assert!((jensen_shannon([(1.0, 0.0), (0.0, 1.0)].into_iter()) - LN_2).abs() < 1e-15);
        assert_eq!(jensen_shannon([(0.5, 0.5), (0.5, 0.5)].into_iter()), 0.0);
        assert!(jensen_shannon([(f64::NAN, 0.5)].into_iter()).is_nan());
        // KL of Bernoulli ½ against ¼: ½ ln 2 + ½ ln(2/3).
        let log = |p: f64| [p.ln(), (1.0 - p).ln()];
        let expected = 0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln();
        assert!((kullback_leibler(&log(0.5), &log(0.25)) - expected).abs() < 1e-15);
        assert_eq!(kullback_leibler(&log(0.5), &log(0.0)), f64::INFINITY);
        assert!(kullback_leibler(&[f64::NAN], &[0.0]).is_nan());
    }

    #[test]
    fn tiny_differences_are_not_rounded_away() {
        // p = ½ ± ε: JS = ε²/2·(1 + O(ε²)) for (½, ½) against (½ + ε, ½ − ε).
        let e = 1e-9;
        let js = jensen_shannon([(0.5, 0.5 + e), (0.5, 0.5 - e)].into_iter());
        // ε itself is rounded to 2⁻⁵³/ε = 10⁻⁷ of itself when it is added to ½.
        assert!((js / (0.5 * e * e) - 1.0).abs() < 1e-6, "{js:e}");
    }

    #[test]
    fn one_probability_may_be_any_fraction_of_the_other() {
        // (e, 1 − e) against (½, ½), by the entropies: H(m) − ½H(p) − ½ ln 2, each of them to a rounding or two.
        for exponent in 1..300 {
            let e = 0.5f64.powi(exponent);
            let js = jensen_shannon([(e, 0.5), (1.0 - e, 0.5)].into_iter());
            let entropy = |weights: [f64; 2]| entropy(weights.into_iter());
            let oracle = entropy([0.5 * (e + 0.5), 0.5 * (1.5 - e)]) - 0.5 * entropy([e, 1.0 - e]) - 0.5 * LN_2;
            assert!((js - oracle).abs() < 4.0 * f64::EPSILON, "2^-{exponent}: {js:e} against {oracle:e}");
        }
    }

    proptest! {
        #[test]
        fn bounds(x in prop::collection::vec((0.0f64..1.0, 0.0f64..1.0), 2..20)) {
            let (sp, sq) = x.iter().fold((0.0, 0.0), |(a, b), (p, q)| (a + p, b + q));
            prop_assume!(sp > 1e-3 && sq > 1e-3);
            let pairs: Vec<(f64, f64)> = x.iter().map(|(p, q)| (p / sp, q / sq)).collect();
            let js = jensen_shannon(pairs.iter().copied());
            let swapped = jensen_shannon(pairs.iter().map(|&(p, q)| (q, p)));
            // Twenty terms of a few roundings each.
            prop_assert!((0.0..=LN_2 + 1e-14).contains(&js) && (js - swapped).abs() < 1e-14);
            let h = entropy(pairs.iter().map(|pair| pair.0));
            prop_assert!(h >= 0.0 && h <= (pairs.len() as f64).ln() + 1e-14);
            // JS from entropies: H(m) − ½H(p) − ½H(q).
            let mixed = entropy(pairs.iter().map(|(p, q)| 0.5 * (p + q)));
            let oracle = mixed - 0.5 * h - 0.5 * entropy(pairs.iter().map(|pair| pair.1));
            prop_assert!((js - oracle).abs() < 1e-13);
        }

        #[test]
        fn softmax_is_normalised(logits in prop::collection::vec(-80.0f32..80.0, 1..40)) {
            let mut out = Vec::new();
            log_softmax(ndarray::ArrayView1::from(&logits), &mut out);
            prop_assert!((out.iter().map(|x| x.exp()).sum::<f64>() - 1.0).abs() < 1e-13);
            prop_assert!(((out[0] - f64::from(logits[0])) - (out[out.len() - 1] - f64::from(logits[logits.len() - 1]))).abs() < 1e-12);
        }
    }
}
