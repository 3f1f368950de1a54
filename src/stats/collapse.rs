//! Neural collapse of a layer's hidden states on their class means.
//!
//! ```text
//! NC1 = tr(Σ_W·Σ_B⁺)/C,   Σ_W = mean over rows of (h − μ_c)(h − μ_c)ᵀ,   Σ_B = mean over classes of (μ_c − μ)(μ_c − μ)ᵀ
//! ```
//!
//! μ is the mean of the class means, so that Σ_B weighs all classes alike (Papyan, Han & Donoho 2020). 0: every token lies on
//! the mean of its class. Classes are the trainer's labels; those with fewer than two rows are left out.
//!
//! Everything happens in the C − 1 dimensions of the class means M (C × r, centred): with M·Mᵀ = U·S·Uᵀ and residuals R of the
//! N rows, NC1 = Σ_j ‖R·Mᵀ·u_j‖²/s_j² / N. The scores of [`super::sample`] stand for the hidden states. Cost: 2·N·C·r + 9·C³
//! operations, for each permutation of the null again.
//!
//! Null: labels dealt anew, [`PERMUTATIONS`] times. If all rows of a sequence have one label, whole sequences swap theirs, since
//! rows of a sequence are alike for reasons other than their label.

use super::linalg;
use super::random::Random;
use super::sample::Sample;
use super::summary::mean;
use ndarray::{Array2, ArrayView2, Axis};
use std::collections::BTreeMap;

/// Permutations that the null is a mean of.
pub const PERMUTATIONS: usize = 20;

const SEED: u64 = 0xc011_a95e;

/// Collapse of one layer on one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collapse {
    /// ≥ 0; NaN for fewer than two classes of two rows.
    pub nc1: f64,
    /// Mean over permuted labels.
    pub null: f64,
    /// Classes with at least two rows, and rows in them.
    pub classes: usize,
    pub tokens: usize,
}

/// NC1 of labelled rows. `labels`: one for each row of the sample; negative: not labelled.
pub fn collapse(sample: &Sample, labels: &[i32]) -> Collapse {
    let classes = Classes::new(labels);
    let mut result = Collapse { nc1: f64::NAN, null: f64::NAN, classes: classes.count, tokens: classes.rows.len() };
    let Some(axes) = sample.axes.as_ref().filter(|_| labels.len() == sample.tokens()) else { return result };
    result.nc1 = nc1(axes.scores.view(), &classes);
    if result.nc1.is_nan() {
        return result;
    }
    let units = units(&sample.layout.sequences, labels);
    let mut random = Random::new(SEED);
    let null = |_| nc1(axes.scores.view(), &Classes::new(&permuted(labels, &units, &mut random)));
    result.null = mean((0..PERMUTATIONS).map(null));
    result
}

/// Rows of classes that have at least two.
struct Classes {
    rows: Vec<usize>,
    /// For each of `rows` its class, 0 .. `count`.
    class: Vec<usize>,
    count: usize,
}

impl Classes {
    fn new(labels: &[i32]) -> Self {
        let mut members: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (row, &label) in labels.iter().enumerate().filter(|&(_, &label)| label >= 0) {
            members.entry(label).or_default().push(row);
        }
        members.retain(|_, rows| rows.len() >= 2);
        let class = members.values().enumerate().flat_map(|(class, rows)| vec![class; rows.len()]).collect();
        Self { count: members.len(), rows: members.into_values().flatten().collect(), class }
    }
}

fn nc1(scores: ArrayView2<f64>, classes: &Classes) -> f64 {
    if classes.count < 2 {
        return f64::NAN;
    }
    let mut residuals = scores.select(Axis(0), &classes.rows);
    let mut means = Array2::zeros((classes.count, scores.ncols()));
    let mut sizes = vec![0.0; classes.count];
    for (row, &class) in residuals.outer_iter().zip(&classes.class) {
        means.row_mut(class).scaled_add(1.0, &row);
        sizes[class] += 1.0;
    }
    for (mut mean, size) in means.outer_iter_mut().zip(sizes) {
        mean /= size;
    }
    for (mut row, &class) in residuals.outer_iter_mut().zip(&classes.class) {
        row -= &means.row(class);
    }
    let Some(centre) = means.mean_axis(Axis(0)) else { return f64::NAN };
    means -= &centre;
    within_over_between(&residuals, &means).unwrap_or(f64::NAN)
}

/// Σ_j ‖R·Mᵀ·u_j‖²/s_j² / N over the axes of the class means. `None` if they coincide.
fn within_over_between(residuals: &Array2<f64>, means: &Array2<f64>) -> Option<f64> {
    let count = means.nrows();
    let (squares, vectors) = linalg::symmetric_eigen(&linalg::product(means.view(), means.t())?)?;
    // The rank is C − 1 at most, and less where means lie in fewer dimensions: eigenvalues of rounding are no axes.
    let floor = squares[0] * count as f64 * f64::EPSILON;
    let axes = squares.iter().take(count - 1).filter(|&&square| square > floor).count();
    if axes == 0 {
        return None;
    }
    let along = linalg::product(residuals.view(), linalg::product(means.t(), vectors.view())?.view())?;
    let term = |axis: usize| along.column(axis).iter().map(|x| x * x).sum::<f64>() / (squares[axis] * squares[axis]);
    Some((0..axes).map(term).sum::<f64>() / residuals.nrows() as f64)
}

/// What keeps its label together in a permutation, for each row: its sequence where sequences have one label each, else
/// the row.
fn units(sequences: &[usize], labels: &[i32]) -> Vec<usize> {
    let mut label_of = BTreeMap::new();
    let mut rows = sequences.iter().zip(labels).filter(|&(_, &label)| label >= 0);
    if rows.all(|(sequence, &label)| *label_of.entry(sequence).or_insert(label) == label) {
        sequences.to_vec()
    } else {
        (0..labels.len()).collect()
    }
}

/// Labels dealt anew to the units that have one.
fn permuted(labels: &[i32], units: &[usize], random: &mut Random) -> Vec<i32> {
    let labelled = || units.iter().zip(labels).filter(|&(_, &label)| label >= 0);
    let mut label_of: BTreeMap<usize, i32> = labelled().map(|(&unit, &label)| (unit, label)).collect();
    let mut dealt: Vec<i32> = label_of.values().copied().collect();
    random.shuffle(&mut dealt);
    label_of.values_mut().zip(dealt).for_each(|(label, dealt)| *label = dealt);
    units.iter().zip(labels).map(|(unit, &label)| if label >= 0 { label_of[unit] } else { label }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(rows: &Array2<f64>, per_sequence: usize) -> Sample {
        let n = rows.nrows();
        let sequences: Vec<u32> = (0..n).map(|row| (row / per_sequence) as u32).collect();
        Sample::new(&rows.mapv(|x| x as f32), &[n], &sequences, 2)
    }

    /// From the definition, with d × d covariances and a pseudo-inverse by eigenvalues.
    fn naive(rows: &Array2<f64>, labels: &[i32]) -> f64 {
        let d = rows.ncols();
        let present: std::collections::BTreeSet<i32> = labels.iter().copied().filter(|&label| label >= 0).collect();
        let mean = |label: i32| {
            let of: Vec<usize> = (0..labels.len()).filter(|&row| labels[row] == label).collect();
            rows.select(Axis(0), &of).mean_axis(Axis(0)).unwrap()
        };
        let outer = |x: &ndarray::Array1<f64>| Array2::from_shape_fn((d, d), |(i, j)| x[i] * x[j]);
        let classes = present.len() as f64;
        let centre =
            present.iter().map(|&label| mean(label)).fold(ndarray::Array1::<f64>::zeros(d), |a, b| a + b) / classes;
        let between = present
            .iter()
            .fold(Array2::<f64>::zeros((d, d)), |sum, &label| sum + outer(&(mean(label) - &centre)) / classes);
        let labelled: Vec<usize> = (0..labels.len()).filter(|&row| labels[row] >= 0).collect();
        let within = labelled.iter().fold(Array2::<f64>::zeros((d, d)), |sum, &row| {
            sum + outer(&(&rows.row(row) - &mean(labels[row]))) / labelled.len() as f64
        });
        let (values, vectors) = linalg::symmetric_eigen(&between).unwrap();
        (0..d).filter(|&j| values[j] > 1e-10 * values[0]).fold(0.0, |sum, j| {
            let v = vectors.column(j);
            let form: f64 =
                (0..d).flat_map(|a| (0..d).map(move |b| (a, b))).map(|(a, b)| v[a] * within[[a, b]] * v[b]).sum();
            sum + form / values[j]
        }) / classes
    }

    /// `classes` means at distance `spread`, with unit noise.
    fn clusters(per_class: usize, classes: usize, d: usize, spread: f64, seed: u64) -> (Array2<f64>, Vec<i32>) {
        let mut random = Random::new(seed);
        let means = random.normals(classes, d) * spread;
        let labels: Vec<i32> = (0..per_class * classes).map(|row| (row % classes) as i32).collect();
        let noise = random.normals(labels.len(), d);
        let rows = Array2::from_shape_fn(noise.raw_dim(), |(i, j)| means[[i % classes, j]] + noise[[i, j]]);
        (rows.mapv(|x| f64::from(x as f32)), labels)
    }

    #[test]
    fn agrees_with_the_definition() {
        for (per_class, classes, d) in [(6, 4, 30), (12, 5, 3), (2, 2, 8)] {
            let (rows, mut labels) = clusters(per_class, classes, d, 1.0, 1);
            if per_class > 2 {
                labels[0] = -1;
            }
            let found = collapse(&sample(&rows, 1), &labels);
            let exact = naive(&rows, &labels);
            // Squared condition of the class means, some hundreds, in fp64.
            assert!((found.nc1 / exact - 1.0).abs() < 1e-9, "{found:?} {exact}");
            assert_eq!((found.classes, found.tokens), (classes, labels.iter().filter(|&&label| label >= 0).count()));
        }
    }

    #[test]
    fn from_full_collapse_to_none() {
        let (rows, labels) = clusters(10, 3, 20, 1.0, 2);
        let collapsed = Array2::from_shape_fn(rows.raw_dim(), |(i, j)| rows[[i % 3, j]]);
        // Residuals of 10⁻¹⁵ of the means.
        assert!(collapse(&sample(&collapsed, 1), &labels).nc1 < 1e-25);
        let near = collapse(&sample(&(&collapsed + &(0.1 * &rows)), 1), &labels);
        assert!(near.nc1 < 0.05 * near.null, "{near:?}");
    }

    #[test]
    fn labels_that_mean_nothing_are_at_the_null() {
        // They are one more permutation: of equal mean. A ratio to a mean of 20 draws is larger by their squared coefficient
        // of variation over 20, with 2 axes at most 1/20.
        let labels: Vec<i32> = (0..30).map(|row| row % 3).collect();
        let draw = |seed| collapse(&sample(&Random::new(seed).normals(30, 20), 1), &labels);
        let ratios: Vec<f64> = (0..60).map(draw).map(|found| found.nc1 / found.null).collect();
        let mean = ratios.iter().sum::<f64>() / 60.0;
        let error = (ratios.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 59.0 / 60.0).sqrt();
        assert!((mean - 1.0).abs() < 4.0 * error + 0.05 && error < 0.1, "{mean} ± {error}");
    }

    #[test]
    fn sequences_swap_their_labels_whole() {
        // Four rows of a sequence are alike and have one label, which says nothing else about them.
        let mut random = Random::new(3);
        let shared = random.normals(24, 30);
        let noise = random.normals(96, 30);
        let rows = Array2::from_shape_fn((96, 30), |(i, j)| shared[[i / 4, j]] + 0.2 * noise[[i, j]]);
        let labels: Vec<i32> = (0..96).map(|row| row / 4 % 3).collect();
        let found = collapse(&sample(&rows, 4), &labels);
        // One draw against the mean of others: 24 sequences leave it within a factor of three.
        assert!((0.33..3.0).contains(&(found.nc1 / found.null)), "{found:?}");
        let by_rows = collapse(&sample(&rows, 1), &labels);
        assert!(by_rows.null > 2.0 * found.null, "rows of their own would make the labels look meaningful");
        let counts =
            |labels: &[i32]| (0..3).map(|c| labels.iter().filter(|&&label| label == c).count()).collect::<Vec<_>>();
        let units = units(&sample(&rows, 4).layout.sequences, &labels);
        let dealt = permuted(&labels, &units, &mut random);
        assert_eq!(counts(&labels), counts(&dealt));
        assert!(dealt.chunks(4).all(|rows| rows.iter().all(|&label| label == rows[0])) && dealt != labels);
    }

    #[test]
    fn undefined_is_nan() {
        let (rows, labels) = clusters(4, 3, 6, 1.0, 4);
        let good = sample(&rows, 1);
        assert!(collapse(&good, &[-1; 12]).nc1.is_nan() && collapse(&good, &[7; 12]).nc1.is_nan());
        assert!(collapse(&good, &(0..12).collect::<Vec<_>>()).nc1.is_nan(), "no class has two rows");
        assert!(collapse(&good, &labels[..11]).nc1.is_nan());
        let mut broken = rows.clone();
        broken[[1, 1]] = f64::NAN;
        assert!(collapse(&sample(&broken, 1), &labels).nc1.is_nan());
        assert!(collapse(&sample(&Array2::ones((12, 6)), 1), &labels).nc1.is_nan(), "means that coincide");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn names_of_classes_and_units_do_not_matter(seed: u64, scale in 0.01f64..100.0) {
            let (rows, labels) = clusters(5, 3, 7, 1.0, seed);
            let found = collapse(&sample(&rows, 1), &labels).nc1;
            let renamed: Vec<i32> = labels.iter().map(|label| 40 - 7 * label).collect();
            let scaled = collapse(&sample(&(&rows * scale), 1), &renamed).nc1;
            // Rounding to fp32 anew: 2⁻²⁴, times the condition of the means.
            prop_assert!(found >= 0.0 && (scaled / found - 1.0).abs() < 1e-3);
        }
    }
}
