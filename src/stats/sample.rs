//! A layer's hidden states on the sampled tokens of one pass, reduced to what comparisons need.
//!
//! The rows are centred and rotated into their principal axes: X − 1μᵀ = S·Qᵀ, with orthonormal Q and *scores* S of r =
//! min(n, d) columns in descending order of variance. Whatever does not depend on the choice of axes (kernel alignment,
//! Procrustes distance, subspaces of resampled rows, class means) is the same for S as for X, so that the rows themselves
//! are dropped and every later comparison costs O(n·r²) instead of O(n·d²). Of Q only the first k columns are kept.
//!
//! Through the n × n Gram matrix where n ≤ d, through the d × d covariance where n > d. In fp64 either way; singular values
//! below √(2⁻⁵³) of the largest are rounding, which fp32 input (2⁻²⁴) does not resolve anyway.
//!
//! Kernel alignment needs rows that are independent. Tokens of a sequence are not, so that rows are cut into *blocks* with at
//! most one row of each sequence: all first rows of sequences, all second ones, and so on; see [`super::cka`]. The trainer's
//! minibatches do not matter to it.
//!
//! Cost for n rows of d, m = min(n, d): 2·n·d·m + 9·m³ operations for the axes, and 2·n_b²·r for the Gram of a block of n_b
//! rows. Memory: 8·(n·r + k·d + Σn_b²) bytes: 12 MB for n = 1024, d = 4096, k = 32, four tokens a sequence. While it is made,
//! 8·(n·r + m²) bytes and a panel of 512 columns more.

use super::linalg;
use super::summary::participation_ratio;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::collections::HashMap;
use std::ops::Range;

/// Rows or columns that are converted to fp64 at a time.
const PANEL: usize = 512;

/// Most rows of a block: bounds its Gram to 8 MB. Longer ones would be no better, since the estimate's error falls with all
/// rows as soon as there is anything to find.
const BLOCK: usize = 1024;

/// Groups of the delete-a-group jackknife: enough for a standard error good to 13 % (1/√(2·31)).
const GROUPS: usize = 32;

/// Sampled rows of one layer at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    pub(super) layout: Layout,
    /// `None`: a value was not finite, or the layout does not fit. Every statistic is then NaN.
    pub(super) axes: Option<Axes>,
}

/// Which rows belong together. Samples are compared row by row only if their layouts are equal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// Rows of each of the trainer's minibatches.
    pub batches: Vec<usize>,
    /// Rows, ascending, of which no two are of one sequence. Every row is in one block.
    pub blocks: Vec<Vec<usize>>,
    /// For each row the number of its sequence, 0 .. `sequence_count` in order of appearance.
    pub sequences: Vec<usize>,
    pub sequence_count: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Axes {
    pub mean: Array1<f64>,
    /// Per column, dividing by n − 1.
    pub variances: Array1<f64>,
    /// Σ of squared scores per axis, descending: (n − 1) times the eigenvalues of the covariance.
    pub squares: Array1<f64>,
    /// n × r.
    pub scores: Array2<f64>,
    /// d × k, orthonormal: the leading right subspace.
    pub directions: Array2<f64>,
    /// Gram matrix of each block, centred over all rows, with a zero diagonal.
    pub grams: Vec<Array2<f64>>,
}

impl Sample {
    /// Reduces `rows` (tokens × width). `batches`: rows of each minibatch, in order; they add up to all rows.
    /// `sequences`: which sequence each row belongs to, any numbers. `dimensions`: k of the leading subspace, clamped to
    /// the numerical rank.
    pub fn new(rows: &Array2<f32>, batches: &[usize], sequences: &[u32], dimensions: usize) -> Self {
        let n = rows.nrows();
        let layout = Layout::new(batches, sequences);
        let fits = sequences.len() == n && batches.iter().sum::<usize>() == n && n >= 2 && rows.ncols() > 0;
        let finite = fits && rows.iter().all(|x| x.is_finite());
        let axes = if finite { Axes::new(rows, &layout.blocks, dimensions) } else { None };
        Self { layout, axes }
    }

    /// Everything could be computed. Otherwise every statistic of this sample is NaN.
    pub fn is_valid(&self) -> bool {
        self.axes.is_some()
    }

    /// Sampled rows.
    pub fn tokens(&self) -> usize {
        self.layout.sequences.len()
    }

    /// Minibatches of the trainer.
    pub fn batches(&self) -> usize {
        self.layout.batches.len()
    }

    /// k of the leading subspace after clamping; 0 if not valid.
    pub fn dimensions(&self) -> usize {
        self.axes.as_ref().map_or(0, |axes| axes.directions.ncols())
    }

    /// Participation ratio (Σλ)²/Σλ² of the covariance's eigenvalues: 1 … min(n − 1, d). (The other usual definition is the
    /// exponential of the spectrum's entropy, Roy & Vetterli 2007.) Biased downward by few rows: n isotropic rows in d
    /// dimensions have about n·d/(n + d).
    pub fn effective_rank(&self) -> f64 {
        self.axes.as_ref().map_or(f64::NAN, |axes| participation_ratio(axes.squares.iter().copied()))
    }

    /// (λ_k − λ_{k+1})/λ_k: 0 … 1. Near 0 the subspace is not determined: its last axes are interchangeable.
    pub fn eigengap(&self, k: usize) -> f64 {
        let Some(axes) = self.axes.as_ref().filter(|axes| (1..=axes.squares.len()).contains(&k)) else {
            return f64::NAN;
        };
        let next = axes.squares.get(k).copied().unwrap_or(0.0);
        (axes.squares[k - 1] - next) / axes.squares[k - 1]
    }

    /// ‖X‖_F of the rows before centring: the scale of the residual stream.
    pub fn norm(&self) -> f64 {
        self.axes.as_ref().map_or(f64::NAN, |axes| {
            let mean: f64 = axes.mean.iter().map(|x| x * x).sum();
            (self.tokens() as f64 * mean + axes.squares.sum()).sqrt()
        })
    }
}

impl Layout {
    fn new(batches: &[usize], sequences: &[u32]) -> Self {
        let mut numbers = HashMap::new();
        let sequences = sequences.iter().map(|&sequence| {
            let next = numbers.len();
            *numbers.entry(sequence).or_insert(next)
        });
        let sequences: Vec<usize> = sequences.collect();
        let sequence_count = numbers.len();
        let blocks = blocks(&sequences, sequence_count);
        Self { batches: batches.to_vec(), blocks, sequences, sequence_count }
    }

    /// Groups of the jackknife.
    pub fn groups(&self) -> usize {
        self.sequence_count.min(GROUPS)
    }

    /// Group of a row: whole sequences, dealt in turn, so that every block loses about the same share.
    pub fn group(&self, row: usize) -> usize {
        self.sequences[row] % self.groups()
    }
}

impl Axes {
    fn new(rows: &Array2<f32>, blocks: &[Vec<usize>], dimensions: usize) -> Option<Self> {
        let (n, d) = rows.dim();
        // About the first row, so that the mean of a constant column is exact and its variance zero.
        let first = rows.row(0).mapv(f64::from);
        let mean = column_sums(rows, |x, first| x - first, &first) / n as f64 + &first;
        let variances = column_sums(rows, |x, mean| (x - mean) * (x - mean), &mean) / (n - 1) as f64;
        let centred = |rows: ArrayView2<f32>, means: ndarray::ArrayView1<f64>| rows.mapv(f64::from) - means;
        let mut scores;
        let (squares, directions);
        if n <= d {
            let panels = || (0..d).step_by(PANEL).map(|start| start..d.min(start + PANEL));
            let panel = |columns: Range<usize>| centred(rows.slice(s![.., columns.clone()]), mean.slice(s![columns]));
            let mut gram = Array2::zeros((n, n));
            for columns in panels() {
                let x = panel(columns);
                linalg::add_product(x.view(), x.t(), &mut gram)?;
            }
            let (eigenvalues, vectors) = linalg::symmetric_eigen(&gram)?;
            squares = eigenvalues.mapv(|x| x.max(0.0));
            let k = clamp(dimensions, &squares, n, d);
            let scaled = &vectors.slice(s![.., ..k]) / &squares.slice(s![..k]).mapv(f64::sqrt);
            let mut basis = Array2::zeros((d, k));
            for columns in panels() {
                let part = linalg::product(panel(columns.clone()).t(), scaled.view())?;
                basis.slice_mut(s![columns, ..]).assign(&part);
            }
            // Orthonormal but for rounding, which small eigenvalues magnify.
            directions = if k > 0 { linalg::orthonormal(&basis)? } else { basis };
            scores = vectors;
            scores *= &squares.mapv(f64::sqrt);
        } else {
            let panels = || (0..n).step_by(PANEL).map(|start| start..n.min(start + PANEL));
            let panel = |range: Range<usize>| centred(rows.slice(s![range, ..]), mean.view());
            let mut covariance = Array2::zeros((d, d));
            for range in panels() {
                let x = panel(range);
                linalg::add_product(x.t(), x.view(), &mut covariance)?;
            }
            let (eigenvalues, vectors) = linalg::symmetric_eigen(&covariance)?;
            squares = eigenvalues.mapv(|x| x.max(0.0));
            directions = vectors.slice(s![.., ..clamp(dimensions, &squares, n, d)]).to_owned();
            scores = Array2::zeros((n, d));
            for range in panels() {
                let part = linalg::product(panel(range.clone()).view(), vectors.view())?;
                scores.slice_mut(s![range, ..]).assign(&part);
            }
        }
        let mut grams = Vec::with_capacity(blocks.len());
        for block in blocks {
            let x = scores.select(Axis(0), block);
            let mut gram = linalg::product(x.view(), x.t())?;
            gram.diag_mut().fill(0.0);
            grams.push(gram);
        }
        Some(Self { mean, variances, squares, scores, directions, grams })
    }

    /// Σ of all squared centred values: (n − 1)·tr Cov.
    pub fn total(&self) -> f64 {
        self.squares.sum()
    }
}

/// The k-th rows of all sequences together, for every k, in as few equal parts as [`BLOCK`] allows. Sequences are dealt to
/// groups of the jackknife in turn, so that consecutive ones in a block lose the same share to each group.
fn blocks(sequences: &[usize], sequence_count: usize) -> Vec<Vec<usize>> {
    let mut seen = vec![0; sequence_count];
    let mut places: Vec<Vec<usize>> = Vec::new();
    for (row, &sequence) in sequences.iter().enumerate() {
        let place = seen[sequence];
        seen[sequence] += 1;
        if place == places.len() {
            places.push(Vec::new());
        }
        places[place].push(row);
    }
    let parts = |rows: &Vec<usize>| {
        let count = rows.len().div_ceil(BLOCK);
        rows.chunks(rows.len().div_ceil(count)).map(<[usize]>::to_vec).collect::<Vec<_>>()
    };
    places.iter().flat_map(parts).collect()
}

/// Per column, Σ over rows of `term(value, origin of the column)`.
fn column_sums(rows: &Array2<f32>, term: impl Fn(f64, f64) -> f64, origins: &Array1<f64>) -> Array1<f64> {
    let mut sums = Array1::zeros(rows.ncols());
    for row in rows.axis_iter(Axis(0)) {
        for ((sum, &x), &origin) in sums.iter_mut().zip(row).zip(origins) {
            *sum += term(f64::from(x), origin);
        }
    }
    sums
}

/// `dimensions`, but no more than the numerical rank: eigenvalues of a Gram matrix are known to max(n, d)·2⁻⁵² of the
/// largest.
fn clamp(dimensions: usize, squares: &Array1<f64>, n: usize, d: usize) -> usize {
    let floor = squares[0] * n.max(d) as f64 * f64::EPSILON;
    dimensions.min(squares.iter().take(n - 1).filter(|&&square| square > floor).count())
}

/// The k leading right singular vectors (r × k) of rows that are centred already. `None` if their rank is smaller.
pub(super) fn leading(centred: &Array2<f64>, k: usize) -> Option<Array2<f64>> {
    let (n, r) = centred.dim();
    if k == 0 || n < 2 {
        return None;
    }
    if n > r {
        let (squares, vectors) = linalg::symmetric_eigen(&linalg::product(centred.t(), centred.view())?)?;
        return (clamp(k, &squares, n, r) == k).then(|| vectors.slice(s![.., ..k]).to_owned());
    }
    let (squares, vectors) = linalg::symmetric_eigen(&linalg::product(centred.view(), centred.t())?)?;
    if clamp(k, &squares, n, r) < k {
        return None;
    }
    let scaled = &vectors.slice(s![.., ..k]) / &squares.slice(s![..k]).mapv(f64::sqrt);
    linalg::orthonormal(&linalg::product(centred.t(), scaled.view())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;

    pub(crate) fn sample(rows: &Array2<f64>, batch: usize, k: usize) -> Sample {
        let n = rows.nrows();
        let batches: Vec<usize> = (0..n).step_by(batch).map(|start| batch.min(n - start)).collect();
        Sample::new(&rows.mapv(|x| x as f32), &batches, &(0..n as u32).collect::<Vec<_>>(), k)
    }

    /// Both ways through, wide and tall: scores have the distances of the rows, directions are those of the scores.
    #[test]
    fn scores_keep_every_inner_product() {
        for (n, d) in [(30, 700), (700, 30), (20, 20)] {
            let rows = Random::new(1).normals(n, d).mapv(|x| f64::from((x + 3.0) as f32));
            let sample = sample(&rows, 8, 5);
            let axes = sample.axes.as_ref().unwrap();
            let mean = rows.mean_axis(Axis(0)).unwrap();
            let x = &rows - &mean;
            for (i, j) in [(0, 0), (1, 2), (n - 1, 3)] {
                let exact: f64 = x.row(i).iter().zip(x.row(j)).map(|(x, y)| x * y).sum();
                let found: f64 = axes.scores.row(i).iter().zip(axes.scores.row(j)).map(|(x, y)| x * y).sum();
                // Backward error of the eigendecomposition: a small multiple of n·2⁻⁵³ of the largest eigenvalue.
                assert!((exact - found).abs() < 1e-12 * axes.squares[0], "{exact} {found}");
            }
            let projected = linalg::product(x.view(), axes.directions.view()).unwrap();
            for (column, square) in projected.axis_iter(Axis(1)).zip(&axes.squares) {
                let found: f64 = column.iter().map(|x| x * x).sum();
                assert!((found - square).abs() < 1e-11 * axes.squares[0]);
            }
            let total: f64 = x.iter().map(|x| x * x).sum();
            assert!((axes.total() / total - 1.0).abs() < 1e-12);
            assert!((axes.variances.sum() * (n - 1) as f64 / total - 1.0).abs() < 1e-12);
            let norm: f64 = rows.iter().map(|x| x * x).sum::<f64>();
            assert!((sample.norm() / norm.sqrt() - 1.0).abs() < 1e-12);
            assert_eq!(axes.grams.iter().map(Array2::nrows).sum::<usize>(), n);
        }
    }

    #[test]
    fn no_block_holds_two_rows_of_a_sequence() {
        // Sequences of 1 to 4 rows, numbered over two minibatches, one of which comes back later.
        let sequences = [7, 7, 9, 9, 9, 9, 3, 3, 3, 1, 7, 0, 0];
        let layout = Layout::new(&[9, 4], &sequences);
        assert_eq!(layout.blocks, [vec![0, 2, 6, 9, 11], vec![1, 3, 7, 12], vec![4, 8, 10], vec![5]]);
        // 2,500 sequences of two rows: two places, three parts of each.
        let sequences: Vec<u32> = (0..5000).map(|row| row / 2).collect();
        let layout = Layout::new(&[5000], &sequences);
        assert_eq!(layout.blocks.iter().map(Vec::len).collect::<Vec<_>>(), [834, 834, 832, 834, 834, 832]);
        let mut rows = layout.blocks.concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..5000).collect::<Vec<_>>());
        for block in &layout.blocks {
            assert!(block.is_sorted_by(|x, y| layout.sequences[*x] < layout.sequences[*y]));
        }
        assert!(Layout::new(&[], &[]).blocks.is_empty());
    }

    #[test]
    fn rank_and_gap_of_a_known_spectrum() {
        // Rows ±a_i e_i: the covariance is diagonal with a_i², and has mean zero.
        let a: [f64; 4] = [4.0, 2.0, 1.0, 1.0];
        let rows =
            Array2::from_shape_fn(
                (8, 6),
                |(i, j)| {
                    if i / 2 == j { a[j] * if i % 2 == 0 { 1.0 } else { -1.0 } } else { 0.0 }
                },
            );
        let sample = sample(&rows, 8, 6);
        let (sum, squares) = a.iter().fold((0.0, 0.0), |(s, q), x| (s + x * x, q + x.powi(4)));
        assert!((sample.effective_rank() - sum * sum / squares).abs() < 1e-12);
        assert_eq!(sample.dimensions(), 4, "no more than the rank");
        assert!((sample.eigengap(1) - 0.75).abs() < 1e-12 && (sample.eigengap(2) - 0.75).abs() < 1e-12);
        assert!(sample.eigengap(3).abs() < 1e-12 && (sample.eigengap(4) - 1.0).abs() < 1e-12);
        assert!(sample.eigengap(0).is_nan() && sample.eigengap(7).is_nan());
        // Rows of 4 and −4 along the first axis.
        assert!((sample.axes.as_ref().unwrap().squares[0] - 2.0 * 16.0).abs() < 1e-11);
    }

    #[test]
    fn what_cannot_be_reduced_says_so() {
        let rows = Array2::from_elem((4, 3), 0.1f32);
        let mut broken = rows.clone();
        broken[[2, 1]] = f32::NAN;
        assert!(!Sample::new(&broken, &[4], &[0, 1, 2, 3], 2).is_valid());
        assert!(Sample::new(&broken, &[4], &[0, 1, 2, 3], 2).effective_rank().is_nan());
        assert!(!Sample::new(&rows, &[3], &[0, 1, 2, 3], 2).is_valid(), "rows outside of all minibatches");
        assert!(!Sample::new(&rows, &[4], &[0, 1], 2).is_valid());
        assert!(!Sample::new(&Array2::zeros((0, 3)), &[], &[], 2).is_valid());
        let constant = Sample::new(&rows, &[4], &[0, 1, 2, 3], 2);
        assert!(constant.is_valid() && constant.dimensions() == 0 && constant.effective_rank().is_nan());
        let huge = Sample::new(&Random::new(2).normals(4, 3).mapv(|x| x as f32 * 1e38), &[4], &[0, 1, 2, 3], 2);
        assert!(huge.effective_rank() >= 1.0, "squares of the largest fp32 fit in fp64");
    }
}
