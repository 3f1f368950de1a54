//! Principal angles between the leading subspaces of two samples, and the angles that sampling alone makes.
//!
//! The leading subspace is spanned by the first k principal axes V (d × k) of the centred hidden states. The principal angles
//! θ_i between two of them are the arc cosines of the singular values of V_AᵀV (Jordan 1875). Near zero the cosine does not
//! resolve an angle, so that small ones come from the sines: the singular values of V − V_A·V_AᵀV (Björck & Golub 1973, as
//! `scipy.linalg.subspace_angles`). Overlap is ‖V_AᵀV‖²_F/k, the mean of cos²θ_i (the subspace similarity of Ramasesh, Dyer &
//! Raghu 2020, arXiv 2007.07400): 1 for the same subspace, on average k/d for random ones.
//!
//! How large an angle means anything depends on how well n tokens determine V. [`halves`] splits the *sequences* of one sample
//! at random into halves without a common token and takes the angles between their subspaces, in the coordinates of the
//! scores, which keep all angles. A half has half the tokens, so that these angles are about √2 too large and the overlap too
//! small: a null that errs on the careful side. (A bootstrap would err on the other: its resamples share tokens, which alone
//! makes their subspaces alike when d > n.)
//!
//! Cost: 4·d·k² operations for angles; per split two eigendecompositions of order min(n/2, r), see [`super::sample`].

use super::linalg;
use super::random::Random;
use super::sample::{Sample, leading};
use super::summary::{mean, quantile};
use ndarray::{Array2, ArrayView2, Axis, s};

/// Splits that [`halves`] makes unless told otherwise.
pub const SPLITS: usize = 8;

/// The seed of all splits: the same sample always has the same null.
const SEED: u64 = 0x5eed_ba5e;

/// Leading subspaces then and now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subspace {
    /// Mean principal angle, degrees: 0 … 90.
    pub angle_mean: f64,
    /// Largest principal angle, degrees: 0 … 90.
    pub angle_max: f64,
    /// Mean of cos²: 0 … 1.
    pub overlap: f64,
    /// k/d: the mean overlap of random subspaces.
    pub overlap_null: f64,
    /// k: the smaller of both, where rank clamped one.
    pub dimensions: usize,
    /// (λ_k − λ_{k+1})/λ_k now, and at the base.
    pub eigengap: f64,
    pub eigengap_base: f64,
}

/// What sampling alone does to the leading subspace of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Halves {
    /// Mean over splits of the mean principal angle, degrees.
    pub angle_mean: f64,
    /// 95th percentile over splits of the mean principal angle, degrees.
    pub angle_high: f64,
    /// Mean over splits of the overlap: a lower bound of what two samples of one task have.
    pub overlap: f64,
}

/// Principal angles between the leading subspaces of two samples of one width, of the same or of other tokens.
pub fn subspace(base: &Sample, now: &Sample) -> Subspace {
    let dimensions = base.dimensions().min(now.dimensions());
    let mut result = Subspace {
        angle_mean: f64::NAN,
        angle_max: f64::NAN,
        overlap: f64::NAN,
        overlap_null: f64::NAN,
        dimensions,
        eigengap: now.eigengap(dimensions),
        eigengap_base: base.eigengap(dimensions),
    };
    if let (Some(a), Some(b)) = (&base.axes, &now.axes)
        && let Some(angles) =
            principal_angles(a.directions.slice(s![.., ..dimensions]), b.directions.slice(s![.., ..dimensions]))
    {
        result.angle_mean = mean(angles.iter().copied()).to_degrees();
        result.angle_max = angles[angles.len() - 1].to_degrees();
        result.overlap = overlap(&angles);
        result.overlap_null = dimensions as f64 / a.mean.len() as f64;
    }
    result
}

/// Angles between the subspaces of random halves of the sequences, over `splits` splits. NaN where halves are too small to
/// have k dimensions.
pub fn halves(sample: &Sample, splits: usize) -> Halves {
    let mut random = Random::new(SEED);
    let angles: Option<Vec<Vec<f64>>> = (0..splits).map(|_| split(sample, &mut random)).collect();
    let Some(angles) = angles.filter(|angles| !angles.is_empty()) else {
        return Halves { angle_mean: f64::NAN, angle_high: f64::NAN, overlap: f64::NAN };
    };
    let mut means: Vec<f64> = angles.iter().map(|angles| mean(angles.iter().copied()).to_degrees()).collect();
    means.sort_by(f64::total_cmp);
    Halves {
        angle_mean: mean(means.iter().copied()),
        angle_high: quantile(&means, 0.95),
        overlap: mean(angles.iter().map(|angles| overlap(angles))),
    }
}

/// Principal angles between the subspaces of one random half of the sequences and of the other.
fn split(sample: &Sample, random: &mut Random) -> Option<Vec<f64>> {
    let axes = sample.axes.as_ref()?;
    let mut order: Vec<usize> = (0..sample.layout.sequence_count).collect();
    random.shuffle(&mut order);
    let mut first = vec![false; order.len()];
    order[..order.len() / 2].iter().for_each(|&sequence| first[sequence] = true);
    let subspace = |half: bool| {
        let sequences = sample.layout.sequences.iter().enumerate();
        let rows: Vec<usize> =
            sequences.filter(|&(_, &sequence)| first[sequence] == half).map(|(row, _)| row).collect();
        let mut scores = axes.scores.select(Axis(0), &rows);
        let mean = scores.mean_axis(Axis(0))?;
        scores -= &mean;
        leading(&scores, sample.dimensions())
    };
    principal_angles(subspace(true)?.view(), subspace(false)?.view())
}

/// Principal angles in radians, ascending, between the column spaces of two matrices with orthonormal columns and the same
/// shape. `None` for other shapes, no columns, or non-finite values.
pub fn principal_angles(a: ArrayView2<f64>, b: ArrayView2<f64>) -> Option<Vec<f64>> {
    if a.dim() != b.dim() || a.is_empty() {
        return None;
    }
    let inner = linalg::product(a.t(), b)?;
    let cosines = linalg::singular_values(inner.view())?;
    let outside: Array2<f64> = &b - &linalg::product(a, inner.view())?;
    let sines = linalg::singular_values(outside.view())?;
    // Ascending angles have descending cosines and ascending sines.
    let pairs = cosines.iter().zip(sines.iter().rev());
    Some(
        pairs
            .map(|(&cosine, &sine)| if cosine * cosine >= 0.5 { sine.min(1.0).asin() } else { cosine.min(1.0).acos() })
            .collect(),
    )
}

fn overlap(angles: &[f64]) -> f64 {
    mean(angles.iter().map(|angle| angle.cos().powi(2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn basis(rows: usize, columns: usize, random: &mut Random) -> Array2<f64> {
        linalg::orthonormal(&random.normals(rows, columns)).unwrap()
    }

    fn sample(rows: &Array2<f64>, k: usize) -> Sample {
        let n = rows.nrows();
        Sample::new(&rows.mapv(|x| x as f32), &[n], &(0..n as u32).collect::<Vec<_>>(), k)
    }

    /// `a` turned by θ inside the plane of each of its columns and a column of `b`.
    fn turned(a: &Array2<f64>, b: &Array2<f64>, angle: f64) -> Array2<f64> {
        a * angle.cos() + b * angle.sin()
    }

    #[test]
    fn angles_down_to_a_billionth() {
        let both = basis(50, 6, &mut Random::new(1));
        let (a, b) = (both.slice(s![.., ..3]).to_owned(), both.slice(s![.., 3..]).to_owned());
        for angle in [0.0, 1e-9, 1e-4, 0.3, std::f64::consts::FRAC_PI_4, 1.2, std::f64::consts::FRAC_PI_2] {
            let found = principal_angles(a.view(), turned(&a, &b, angle).view()).unwrap();
            // Orthonormal to 2⁻⁵³ times a small multiple of the columns.
            assert!(found.iter().all(|x| (x - angle).abs() < 1e-14), "{angle} {found:?}");
        }
    }

    /// Data in a known 4-dimensional subspace, and the same tokens with the subspace turned. Isotropic noise of relative size
    /// ε tilts either estimate by at most ‖noise‖/gap (Davis & Kahan 1970): with loadings of variance ≥ 1, n = 400 tokens and
    /// noise σ = 0.01 in d = 300 dimensions, σ(√d + √n)/√n = 0.019 rad = 1.1° for each of both.
    #[test]
    fn recovers_a_planted_rotation() {
        let mut random = Random::new(2);
        let (n, d, k) = (400, 300, 4);
        let both = basis(d, 2 * k, &mut random);
        let (a, b) = (both.slice(s![.., ..k]).to_owned(), both.slice(s![.., k..]).to_owned());
        let loadings = random.normals(n, k) * 1.5 + 1.0;
        let mut data = |directions: &Array2<f64>| {
            linalg::product(loadings.view(), directions.t()).unwrap() + &(0.01 * &random.normals(n, d))
        };
        let base = sample(&data(&a), k);
        for degrees in [10.0f64, 30.0, 60.0] {
            let now = sample(&data(&turned(&a, &b, degrees.to_radians())), k);
            let found = subspace(&base, &now);
            assert!((found.angle_mean - degrees).abs() < 2.2, "{degrees} {found:?}");
            assert!((found.angle_max - degrees).abs() < 2.2, "{degrees} {found:?}");
            // d(cos²θ) ≤ dθ: 2.2° is 0.038.
            assert!((found.overlap - degrees.to_radians().cos().powi(2)).abs() < 0.038);
            assert!(found.eigengap > 0.9 && found.eigengap_base > 0.9 && found.dimensions == k);
            let null = halves(&base, SPLITS);
            assert!(null.angle_high < found.angle_mean && null.angle_mean <= null.angle_high, "{null:?}");
        }
    }

    #[test]
    fn the_null_is_what_other_tokens_show() {
        // Two independent samples of n/2 tokens of one distribution, again and again, against halves of one sample of n.
        let mut random = Random::new(3);
        let (n, d, k) = (120, 200, 2);
        let directions = basis(d, k, &mut random);
        let mut draw = |n: usize| {
            let loadings = random.normals(n, k) * 4.0;
            linalg::product(loadings.view(), directions.t()).unwrap() + &(0.3 * &random.normals(n, d))
        };
        let whole = sample(&draw(n), k);
        let null = halves(&whole, 16);
        assert_eq!(null, halves(&whole, 16), "neither clock nor state");
        let fresh: Vec<f64> =
            (0..16).map(|_| subspace(&sample(&draw(n / 2), k), &sample(&draw(n / 2), k)).angle_mean).collect();
        // The mean angle concentrates: it is made of k·d = 400 noise components, ± 1/√800 = 3.5 % each; the planted loadings
        // of n/2 tokens vary by 1/√(n/2·k) = 9 %. Four of the quadratic sum is 39 %; a bootstrap would be at half.
        let ratio = null.angle_mean / mean(fresh.iter().copied());
        assert!((0.61..1.39).contains(&ratio), "{null:?} {fresh:?}");
    }

    #[test]
    fn undefined_is_nan() {
        let mut random = Random::new(4);
        let good = sample(&random.normals(20, 10), 3);
        let other_width = sample(&random.normals(20, 11), 3);
        assert!(subspace(&good, &other_width).angle_mean.is_nan());
        let mut broken = random.normals(20, 10);
        broken[[3, 3]] = f64::NAN;
        let broken = sample(&broken, 3);
        assert!(subspace(&good, &broken).overlap.is_nan() && subspace(&good, &broken).eigengap.is_nan());
        assert!(halves(&broken, 4).angle_mean.is_nan() && halves(&good, 0).overlap.is_nan());
        assert!(
            halves(&sample(&random.normals(6, 10), 5), 4).angle_mean.is_nan(),
            "halves of three have no five dimensions"
        );
        assert!(subspace(&good, &sample(&Array2::ones((20, 10)), 3)).angle_mean.is_nan(), "no spread at all");
    }

    #[test]
    fn random_subspaces_overlap_by_k_over_d() {
        let mut random = Random::new(5);
        let (d, k, trials) = (60, 6, 200);
        let overlaps: Vec<f64> = (0..trials)
            .map(|_| {
                let (a, b) = (basis(d, k, &mut random), basis(d, k, &mut random));
                overlap(&principal_angles(a.view(), b.view()).unwrap())
            })
            .collect();
        let average = mean(overlaps.iter().copied());
        let spread = overlaps.iter().map(|x| (x - average).powi(2)).sum::<f64>() / (trials - 1) as f64;
        let error = (spread / trials as f64).sqrt();
        assert!((average - k as f64 / d as f64).abs() < 4.0 * error, "{average} ± {error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn symmetric_and_within_range(seed: u64, d in 1usize..30, k in 1usize..8) {
            prop_assume!(k <= d);
            let mut random = Random::new(seed);
            let (a, b) = (basis(d, k, &mut random), basis(d, k, &mut random));
            let (there, back) =
                (principal_angles(a.view(), b.view()).unwrap(), principal_angles(b.view(), a.view()).unwrap());
            let inner = linalg::product(a.t(), b.view()).unwrap();
            for (x, y) in there.iter().zip(&back) {
                prop_assert!((0.0..=std::f64::consts::FRAC_PI_2).contains(x) && (x - y).abs() < 1e-13);
            }
            prop_assert!(there.windows(2).all(|pair| pair[0] <= pair[1] + 1e-14));
            let squares: f64 = inner.iter().map(|x| x * x).sum();
            prop_assert!((overlap(&there) - squares / k as f64).abs() < 1e-13);
        }
    }
}
