//! How much an attention head's contribution to the residual stream changed.
//!
//! Head h adds c_h = o_h·W_hᵀ to the residual stream: o_h its outputs on n sampled tokens (n × w), W_h its columns of the
//! output projection (C × w). Against the base pass over the same tokens,
//!
//! ```text
//! d_h = ‖c_h − c_hᴬ‖_F / ‖residualᴬ‖_F
//! ```
//!
//! counts changes of the head's input, its pattern, its values and its projection alike, in units of the stream that they are
//! written to. The n × C contributions are never formed, since ⟨o·Wᵀ, oᴬ·Wᴬᵀ⟩_F = tr(W·oᵀ·oᴬ·Wᴬᵀ):
//!
//! ```text
//! ‖c − cᴬ‖² = ⟨oᵀo, WᵀW⟩ − 2⟨oᵀoᴬ, WᵀWᴬ⟩ + ⟨oᴬᵀoᴬ, WᴬᵀWᴬ⟩      products of w × w matrices, element by element
//! ```
//!
//! The three terms cancel where little changed. In fp64 their rounding is about 2⁻⁵²·‖o‖²‖W‖², so that changes below
//! 2⁻²⁶·‖o‖‖W‖ (1.5·10⁻⁸ of the contribution, unless its own terms cancel) are lost; outputs in fp32 do not resolve them
//! either (2⁻²⁴). Identical inputs give exactly 0.
//!
//! Cost per layer of width D = heads·w: 2·D·w·(n + C) operations once for each pass, and again for a comparison:
//! n·C/(w·(n + C)) times less than forming contributions, 6 for n = 1024, C = 4096, w = 128. Memory: 4·D·(n + C) bytes.

use super::linalg;
use ndarray::{Array2, s};

/// The outputs of a layer's heads on the sampled tokens of one pass, with the projection that they went through.
#[derive(Clone, Debug)]
pub struct HeadOutputs {
    outputs: Array2<f32>,
    projection: Option<Array2<f32>>,
    heads: usize,
    /// ‖o_h‖², and ‖o_h·W_hᵀ‖² (NaN without a projection).
    output_squares: Vec<f64>,
    squares: Vec<f64>,
}

/// One head, now against base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// d_h: ≥ 0. NaN without projections.
    pub difference: f64,
    /// ⟨o, oᴬ⟩_F/(‖o‖‖oᴬ‖), −1 … 1. NaN if either is zero.
    pub output_cosine: f64,
}

/// Inner products of one head between two passes.
struct Inner {
    outputs: f64,
    contributions: f64,
}

impl HeadOutputs {
    /// `outputs`: tokens × (heads·w), before the output projection. `projection`: width of the residual stream × (heads·w),
    /// as in `y = outputs·projectionᵀ`. Heads with non-finite values, and all where shapes do not fit, are NaN later.
    pub fn new(outputs: Array2<f32>, projection: Option<Array2<f32>>, heads: usize) -> Self {
        let mut this = Self { outputs, projection, heads, output_squares: Vec::new(), squares: Vec::new() };
        let own: Vec<Inner> = (0..heads).map(|head| this.inner(&this, head)).collect();
        this.output_squares = own.iter().map(|inner| inner.outputs).collect();
        this.squares = own.iter().map(|inner| inner.contributions).collect();
        this
    }

    pub fn heads(&self) -> usize {
        self.heads
    }

    pub fn tokens(&self) -> usize {
        self.outputs.nrows()
    }

    /// ‖c_h‖_F of each head: what it writes to the residual stream, in its units. NaN without a projection.
    pub fn norms(&self) -> Vec<f64> {
        self.squares.iter().map(|x| x.sqrt()).collect()
    }

    /// ⟨o, oᴬ⟩ and ⟨c, cᴬ⟩ of one head; NaN where shapes do not fit or values are not finite.
    fn inner(&self, base: &Self, head: usize) -> Inner {
        let outputs = self.product(&self.outputs, &base.outputs, head);
        let projections = match (&self.projection, &base.projection) {
            (Some(w), Some(base)) => self.product(w, base, head),
            _ => None,
        };
        let dot = |x: &Array2<f64>, y: &Array2<f64>| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        Inner {
            outputs: outputs.as_ref().map_or(f64::NAN, |outputs| outputs.diag().sum()),
            contributions: match (&outputs, &projections) {
                (Some(outputs), Some(projections)) => dot(outputs, projections),
                _ => f64::NAN,
            },
        }
    }

    /// XᵀY of the columns of one head.
    fn product(&self, x: &Array2<f32>, y: &Array2<f32>, head: usize) -> Option<Array2<f64>> {
        let columns = self.outputs.ncols();
        if x.dim() != y.dim() || x.ncols() != columns || columns == 0 || !columns.is_multiple_of(self.heads) {
            return None;
        }
        let width = columns / self.heads;
        let part = |m: &Array2<f32>| m.slice(s![.., head * width..(head + 1) * width]).mapv(f64::from);
        linalg::product(part(x).t(), part(y).view())
    }
}

/// The change of every head. `residual_norm`: ‖residualᴬ‖_F over the same tokens at the base. NaN for every head where the
/// passes differ in tokens, heads or widths.
pub fn compare(base: &HeadOutputs, now: &HeadOutputs, residual_norm: f64) -> Vec<Change> {
    let residual = if residual_norm > 0.0 { residual_norm } else { f64::NAN };
    (0..now.heads)
        .map(|head| {
            if base.heads != now.heads {
                return Change { difference: f64::NAN, output_cosine: f64::NAN };
            }
            let inner = now.inner(base, head);
            let squares = now.squares[head] - 2.0 * inner.contributions + base.squares[head];
            let norms = now.output_squares[head].sqrt() * base.output_squares[head].sqrt();
            Change {
                // Rounding may leave less than nothing; NaN stays NaN.
                difference: if squares < 0.0 { 0.0 } else { squares.sqrt() } / residual,
                output_cosine: if norms > 0.0 { (inner.outputs / norms).clamp(-1.0, 1.0) } else { f64::NAN },
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::random::Random;
    use proptest::prelude::*;

    fn draw(rows: usize, columns: usize, random: &mut Random) -> Array2<f32> {
        random.normals(rows, columns).mapv(|x| x as f32)
    }

    /// By forming the contributions.
    fn naive(base: (&Array2<f32>, &Array2<f32>), now: (&Array2<f32>, &Array2<f32>), width: usize, head: usize) -> f64 {
        let contribution = |(o, w): (&Array2<f32>, &Array2<f32>)| {
            let part = |m: &Array2<f32>| m.slice(s![.., head * width..(head + 1) * width]).mapv(f64::from);
            linalg::product(part(o).view(), part(w).t()).unwrap()
        };
        (contribution(now) - contribution(base)).iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    #[test]
    fn cancellation_costs_what_the_documentation_says() {
        let mut random = Random::new(1);
        let (n, heads, width, stream) = (64, 2, 16, 48);
        let (o, w) = (draw(n, heads * width, &mut random), draw(stream, heads * width, &mut random));
        let base = HeadOutputs::new(o.clone(), Some(w.clone()), heads);
        let noise = draw(n, heads * width, &mut random);
        for step in [1.0f32, 1e-2, 1e-4, 1e-6] {
            let moved = &o + &(&noise * step);
            let now = HeadOutputs::new(moved.clone(), Some(w.clone()), heads);
            for (head, change) in compare(&base, &now, 1.0).iter().enumerate() {
                let exact = naive((&o, &w), (&moved, &w), width, head);
                let norm = base.norms()[head];
                // |d² − exact²| ≤ c·2⁻⁵²·‖c‖², with c = 4 for three terms of many roundings that mostly cancel.
                let bound = 4.0 * f64::EPSILON * norm * norm / exact;
                assert!((change.difference - exact).abs() < bound.max(1e-13 * exact), "{step}: {change:?} {exact}");
            }
        }
        let same = compare(&base, &base.clone(), 1.0);
        assert!(same.iter().all(|change| change.difference == 0.0 && (change.output_cosine - 1.0).abs() < 1e-15));
    }

    #[test]
    fn a_change_of_the_projection_alone_is_a_change() {
        let mut random = Random::new(2);
        let (o, w) = (draw(20, 12, &mut random), draw(9, 12, &mut random));
        let mut scrambled = w.clone();
        scrambled.slice_mut(s![.., 4..8]).assign(&draw(9, 4, &mut random));
        let base = HeadOutputs::new(o.clone(), Some(w.clone()), 3);
        let now = HeadOutputs::new(o.clone(), Some(scrambled.clone()), 3);
        let found = compare(&base, &now, 2.0);
        assert_eq!((found[0].difference, found[2].difference), (0.0, 0.0));
        assert!((found[1].difference - naive((&o, &w), (&o, &scrambled), 4, 1) / 2.0).abs() < 1e-12);
        assert!(found.iter().all(|change| (change.output_cosine - 1.0).abs() < 1e-15), "outputs are the same");
    }

    #[test]
    fn undefined_is_nan() {
        let mut random = Random::new(3);
        let (o, w) = (draw(10, 6, &mut random), draw(5, 6, &mut random));
        let full = HeadOutputs::new(o.clone(), Some(w.clone()), 2);
        let bare = HeadOutputs::new(o.clone(), None, 2);
        let found = compare(&bare, &bare, 1.0);
        assert!(found.iter().all(|change| change.difference.is_nan() && !change.output_cosine.is_nan()));
        assert!(compare(&full, &bare, 1.0)[0].difference.is_nan());
        assert!(
            compare(&full, &full, 0.0)[0].difference.is_nan() && compare(&full, &full, f64::NAN)[0].difference.is_nan()
        );
        let mut broken = o.clone();
        broken[[0, 1]] = f32::NAN;
        let found = compare(&full, &HeadOutputs::new(broken, Some(w.clone()), 2), 1.0);
        assert!(found[0].difference.is_nan() && found[0].output_cosine.is_nan() && found[1].difference == 0.0);
        for bad in [
            HeadOutputs::new(o.clone(), Some(w.clone()), 4),
            HeadOutputs::new(o.slice(s![..9, ..]).to_owned(), Some(w.clone()), 2),
            HeadOutputs::new(o.clone(), Some(w.slice(s![.., ..4]).to_owned()), 2),
        ] {
            assert!(compare(&full, &bad, 1.0).iter().all(|change| change.difference.is_nan()));
        }
        assert!(compare(&full, &HeadOutputs::new(o, Some(w), 0), 1.0).is_empty());
        let silent = HeadOutputs::new(Array2::zeros((10, 6)), None, 2);
        assert!(compare(&silent, &bare, 1.0)[0].output_cosine.is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_forming_the_contributions(seed: u64, n in 1usize..20, heads in 1usize..5, width in 1usize..9, stream in 1usize..30) {
            let mut random = Random::new(seed);
            let [o, p] = [(); 2].map(|()| draw(n, heads * width, &mut random));
            let [w, v] = [(); 2].map(|()| draw(stream, heads * width, &mut random));
            let (base, now) = (HeadOutputs::new(o.clone(), Some(w.clone()), heads), HeadOutputs::new(p.clone(), Some(v.clone()), heads));
            let (there, back) = (compare(&base, &now, 3.0), compare(&now, &base, 3.0));
            // Roundings on the way to a term: sums over tokens, over the stream, over w × w products, and the oracle's own
            // over w. Each is at most 2⁻⁵³ of the sum of magnitudes, which Cauchy–Schwarz bounds by ‖o‖²‖W‖².
            let roundings = (n + stream + width * width + width + 8) as f64;
            let norm = |m: &Array2<f32>, head: usize| {
                let columns = m.slice(s![.., head * width..(head + 1) * width]).mapv(f64::from);
                columns.iter().map(|x| x * x).sum::<f64>().sqrt()
            };
            for head in 0..heads {
                let exact = naive((&o, &w), (&p, &v), width, head) / 3.0;
                let magnitude = (norm(&o, head) * norm(&w, head) + norm(&p, head) * norm(&v, head)) / 3.0;
                // |d − exact|·exact ≤ |d² − exact²|.
                let bound = roundings * 0.5 * f64::EPSILON * magnitude * magnitude;
                prop_assert!((there[head].difference - exact).abs() * exact < bound);
                prop_assert!((there[head].difference - back[head].difference).abs() * exact < 2.0 * bound);
                prop_assert!((-1.0..=1.0).contains(&there[head].output_cosine));
            }
        }
    }
}
