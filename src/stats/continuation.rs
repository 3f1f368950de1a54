//! "Continue on A": how far attention heads move when training simply goes on with their own task.
//!
//! Every update moves every head. So a change under task B is compared with passes that were taken in a few *runs* of further
//! updates on A, each from the same weights over other batches. Changes are sizes that grow with the updates u and differ
//! between heads by a factor:
//!
//! ```text
//! ln d_hri = α_h + β·ln u_ri + run_hr + ε_hri,     0 ≤ β ≤ 1          head h, run r, pass i
//! ```
//!
//! β = 1 is drift in one direction, ½ a random walk, 0 a change that has levelled off: by least squares within heads, set to the
//! nearer end outside of 0 … 1. Passes after a single u do not show a slope: then the prediction grows like u beyond that u, and
//! does not shrink before it, which errs on the careful side.
//!
//! Passes of one run have their updates in common and are not independent; what is judged later is a run of its own. So the
//! variance of a new pass is what passes of *different* runs differ by. With z = ln d − β̂·ln u and bars for means,
//!
//! ```text
//! V = B + W,    B = Σ (z̄_hr − z̄_h)²/ν,    W = mean over h, r, of mean over i, of (z_hri − z̄_hr)²,    ν = cells hr − heads − 1
//! ```
//!
//! (ν: one more without a slope). E V is the mean variance of a pass whatever the correlation within a run. With one pass in each
//! run W = 0 and V is the residual variance of the regression; with one run nothing is determined. A new change is predicted by
//! Student's t with f degrees of freedom:
//!
//! ```text
//! t = (ln d − z̄_h − β̂·ln u)/√(V·(1 + g) + B/runs_h),    g = (ln u − x̄_h)²·Σ_hr(Σ_i |x_hri − x̄_h|)²/(Σ (x − x̄_h)²)²,    x = ln u
//! ```
//!
//! g bounds the variance of the slope for any correlation within runs; with one pass in each it is (ln u − x̄)²/S_xx. Runs may
//! differ as a whole, in all heads at once; then few runs say little, however many heads there are. The sum of squares in B is
//! split into that of the runs' means over heads, with R − 1 degrees, and the rest; f is that of Satterthwaite 1946, near ν
//! where the runs are as alike as their heads, near R − 1 where they are not.
//!
//! Cost: a few operations per head and pass.

use super::student::{Prediction, student_quantile};
use super::summary::mean;
use std::collections::BTreeMap;

/// One pass of the null: further updates on the task itself.
#[derive(Clone, Debug, PartialEq)]
pub struct NullPass {
    /// Optimizer steps since the base pass, > 0.
    pub updates: f64,
    /// Passes of one run of further updates have the same number.
    pub run: u32,
    /// d_h of every head, in the order of all passes. Heads without a positive finite value are left out.
    pub differences: Vec<f64>,
}

/// "Continue on A", fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    heads: Vec<Head>,
    slope: Option<Slope>,
    /// V and B.
    variance: f64,
    variance_of_runs: f64,
    degrees: f64,
    largest: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Slope {
    /// β.
    value: f64,
    /// Bound of its variance, in units of V.
    variance: f64,
}

/// Where one head's prediction starts from. Without runs: the head was never seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Head {
    runs: f64,
    mean_ln_updates: f64,
    mean_ln_difference: f64,
}

/// ln u and ln d of the passes of one head in one run.
type Cell = Vec<(f64, f64)>;

impl Continuation {
    /// Fits the passes. Without two runs there is no variance: the null is undetermined and so is every verdict.
    pub fn fit(passes: &[NullPass]) -> Self {
        let count = passes.iter().map(|pass| pass.differences.len()).max().unwrap_or(0);
        let cells: Vec<BTreeMap<u32, Cell>> = (0..count).map(|head| cells(passes, head)).collect();
        let updates = passes.iter().map(|pass| pass.updates).filter(|u| u.is_finite() && *u > 0.0);
        let largest = updates.fold(f64::NAN, f64::max);
        // Means over runs of means over their passes: runs weigh alike, however many passes each has.
        let centre = |cells: &BTreeMap<u32, Cell>, of: fn(&(f64, f64)) -> f64| {
            mean(cells.values().map(|cell| mean(cell.iter().map(of))))
        };
        let heads = cells.iter().map(|cells| match cells.len() {
            0 => Head::default(),
            runs => Head {
                runs: runs as f64,
                mean_ln_updates: centre(cells, |point| point.0),
                mean_ln_difference: centre(cells, |point| point.1),
            },
        });
        let heads: Vec<Head> = heads.collect();
        let slope = Slope::fit(&cells, &heads);
        let mut spread = Spread::default();
        for (cells, head) in cells.iter().zip(&heads) {
            spread.add(cells, head, slope.map_or(0.0, |slope| slope.value));
        }
        let (variance_of_runs, degrees) = spread.between(slope.is_some());
        Self { heads, slope, variance: variance_of_runs + spread.within(), variance_of_runs, degrees, largest }
    }

    /// β of the fit: 0 and 1 are where it is cut. NaN if all passes had the same number of updates.
    pub fn slope(&self) -> f64 {
        self.slope.map_or(f64::NAN, |slope| slope.value)
    }

    /// f. NaN without two runs.
    pub fn degrees(&self) -> f64 {
        self.degrees
    }

    /// There is a variance to judge by.
    pub fn is_determined(&self) -> bool {
        self.variance_of_runs > 0.0
    }

    /// Beyond the updates of all passes: the slope is trusted further than it was seen.
    pub fn extrapolates(&self, updates: f64) -> bool {
        updates > self.largest
    }

    /// The quantile of Student's t that all predictions have in common, for [`Prediction::at`]. NaN if undetermined.
    pub fn student_quantile(&self, probability: f64) -> f64 {
        student_quantile(self.degrees, probability)
    }

    /// What d of a head is after `updates`. `None` if undetermined: no variance, a head without passes, no such updates.
    pub fn predict(&self, head: usize, updates: f64) -> Option<Prediction> {
        let head = self.heads.get(head).filter(|head| head.runs > 0.0)?;
        if !self.is_determined() || !updates.is_finite() || updates <= 0.0 {
            return None;
        }
        let x = updates.ln() - head.mean_ln_updates;
        let (growth, of_slope) = self.slope.map_or((x.max(0.0), 0.0), |s| (s.value * x, s.variance * x * x));
        let scale = (self.variance * (1.0 + of_slope) + self.variance_of_runs / head.runs).sqrt();
        Prediction::new(head.mean_ln_difference + growth, scale, self.degrees)
    }
}

impl Slope {
    /// `None` if all passes of each head have the same number of updates.
    fn fit(cells: &[BTreeMap<u32, Cell>], heads: &[Head]) -> Option<Self> {
        let points = cells.iter().flat_map(BTreeMap::values).flatten();
        let first = points.clone().next()?.0;
        if points.into_iter().all(|point| point.0 == first) {
            return None;
        }
        let (mut xx, mut xy, mut reach) = (0.0, 0.0, 0.0);
        for (cells, head) in cells.iter().zip(heads) {
            for cell in cells.values() {
                let x = |point: &(f64, f64)| point.0 - head.mean_ln_updates;
                xx += cell.iter().map(|point| x(point) * x(point)).sum::<f64>();
                xy += cell.iter().map(|point| x(point) * (point.1 - head.mean_ln_difference)).sum::<f64>();
                reach += cell.iter().map(|point| x(point).abs()).sum::<f64>().powi(2);
            }
        }
        (xx > 0.0).then(|| Self { value: (xy / xx).clamp(0.0, 1.0), variance: reach / (xx * xx) })
    }
}

/// Sums of squares of what the slope leaves.
#[derive(Default)]
struct Spread {
    /// Per run, Σ over heads of z̄_hr − z̄_h, and how many.
    runs: BTreeMap<u32, (f64, f64)>,
    between: f64,
    within: f64,
    cells: f64,
    heads: f64,
}

impl Spread {
    fn add(&mut self, cells: &BTreeMap<u32, Cell>, head: &Head, slope: f64) {
        self.heads += f64::from(u8::from(!cells.is_empty()));
        for (&run, cell) in cells {
            let left =
                |point: &(f64, f64)| point.1 - head.mean_ln_difference - slope * (point.0 - head.mean_ln_updates);
            let centre = mean(cell.iter().map(left));
            let of_run = self.runs.entry(run).or_default();
            *of_run = (of_run.0 + centre, of_run.1 + 1.0);
            self.between += centre * centre;
            self.within += mean(cell.iter().map(|point| (left(point) - centre).powi(2)));
            self.cells += 1.0;
        }
    }

    /// W.
    fn within(&self) -> f64 {
        self.within / self.cells
    }

    /// B and f; NaN without degrees of freedom.
    fn between(&self, has_slope: bool) -> (f64, f64) {
        let of_slope = f64::from(u8::from(has_slope));
        let degrees = self.cells - self.heads - of_slope;
        if degrees < 1.0 {
            return (f64::NAN, f64::NAN);
        }
        let of_runs = (self.runs.len() as f64 - 1.0 - of_slope).max(1.0);
        let rest = degrees - of_runs;
        let whole: f64 = self.runs.values().map(|(sum, count)| sum * sum / count).sum();
        // A single head does not tell its own differences from those of whole runs.
        let effective = if rest >= 1.0 && self.between > 0.0 {
            let share = (whole / self.between).min(1.0);
            1.0 / (share * share / of_runs + (1.0 - share) * (1.0 - share) / rest)
        } else {
            degrees
        };
        (self.between / degrees, effective)
    }
}

/// The usable passes of a head by run.
fn cells(passes: &[NullPass], head: usize) -> BTreeMap<u32, Cell> {
    let mut cells: BTreeMap<u32, Cell> = BTreeMap::new();
    for pass in passes {
        let Some(&difference) = pass.differences.get(head) else { continue };
        if [pass.updates, difference].iter().all(|x| x.is_finite() && *x > 0.0) {
            cells.entry(pass.run).or_default().push((pass.updates.ln(), difference.ln()));
        }
    }
    cells
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three heads after 10 to 80 updates, each in a run of its own.
    pub fn passes() -> Vec<NullPass> {
        let d = [[0.010, 0.016, 0.019, 0.031], [0.05, 0.06, 0.11, 0.13], [0.2, 0.33, 0.37, 0.55]];
        let updates = [10.0, 20.0, 40.0, 80.0].into_iter().enumerate();
        let pass =
            |(i, updates)| NullPass { updates, run: i as u32, differences: d.iter().map(|row| row[i]).collect() };
        updates.map(pass).collect()
    }

    /// The same as two runs of two passes.
    fn two_runs() -> Vec<NullPass> {
        let mut passes = passes();
        passes.iter_mut().zip([0, 1, 1, 0]).for_each(|(pass, run)| pass.run = run);
        passes
    }

    #[test]
    fn agrees_with_least_squares_elsewhere() {
        // NumPy's lstsq with a dummy for each head; the sums of squares of the module's documentation written out; SciPy's
        // t.sf and t.ppf. See tests/python/test_heads.py.
        let cases = [
            (
                passes(),
                0.489_936_341_660_061_17,
                6.523_677_877_467_966,
                [
                    [0.05, 0.025_326_495_188_113_366, 0.036_522_756_507_887_8, 0.000_478_278_661_200_264_25],
                    [0.12, 0.116_985_112_679_897_2, 0.168_701_541_753_830_76, 0.419_031_381_747_563_5],
                    [0.9, 0.492_088_665_601_804_6, 0.709_629_752_580_263_4, 0.000_915_940_026_671_200_5],
                ],
            ),
            (
                two_runs(),
                0.489_936_341_660_061_17,
                1.700_543_527_465_435_2,
                [
                    [0.05, 0.025_326_495_188_113_366, 0.059_569_230_768_998_865, 0.014_652_674_086_566_994],
                    [0.12, 0.116_985_112_679_897_25, 0.275_155_054_894_322_8, 0.409_821_021_141_087_3],
                    [0.9, 0.492_088_665_601_802_3, 1.157_418_073_930_751_1, 0.017_847_590_315_522_972],
                ],
            ),
        ];
        for (passes, slope, degrees, expected) in cases {
            let null = Continuation::fit(&passes);
            // Two solvers of a well-conditioned system, two implementations of the incomplete beta function.
            assert!((null.slope() - slope).abs() < 1e-13 && (null.degrees() / degrees - 1.0).abs() < 1e-11);
            for (head, [d, median, high, p]) in expected.into_iter().enumerate() {
                let found = null.predict(head, 60.0).unwrap();
                assert!((found.median() / median - 1.0).abs() < 1e-12, "{found:?}");
                assert!((found.at(null.student_quantile(0.99)) / high - 1.0).abs() < 1e-10);
                assert!((found.p_value(d) / p - 1.0).abs() < 1e-9);
            }
            assert!(!null.extrapolates(80.0) && null.extrapolates(81.0));
        }
    }

    #[test]
    fn one_number_of_updates_has_no_slope() {
        let pass = |run, d: f64| NullPass { updates: 10.0, run, differences: vec![d, 2.0 * d * d] };
        let null = Continuation::fit(&[pass(0, 0.1), pass(1, 0.11), pass(2, 0.12)]);
        assert!(null.slope().is_nan());
        let median = |updates: f64| null.predict(0, updates).unwrap().median();
        assert!((median(30.0) / median(10.0) - 3.0).abs() < 1e-12 && median(1.0) == median(10.0));
        // Twice the deviation of the first head in the second: s² = (S + 4S)/4 with S = Σ(ln d − mean)² over three runs. Of
        // that (1 + 2)²S/2 is common to both heads: shares of .9 and .1 with two degrees each.
        let logs = [0.1f64.ln(), 0.11f64.ln(), 0.12f64.ln()];
        let centre = logs.iter().sum::<f64>() / 3.0;
        let s2 = logs.iter().map(|x| (x - centre).powi(2)).sum::<f64>() * 5.0 / 4.0;
        assert!((null.variance / s2 - 1.0).abs() < 1e-12);
        assert!((null.degrees() - 2.0 / (0.81 + 0.01)).abs() < 1e-12);
    }

    #[test]
    fn passes_of_one_run_do_not_make_up_for_runs() {
        let mut one = passes();
        one.iter_mut().for_each(|pass| pass.run = 7);
        assert!(!Continuation::fit(&one).is_determined() && Continuation::fit(&one).degrees().is_nan());
        assert!(Continuation::fit(&one).predict(0, 60.0).is_none());
        // Every pass taken twice in the same run says nothing new, but where the slope is concerned no less either.
        let twice = [passes(), passes()].concat();
        let (once, twice) = (Continuation::fit(&passes()), Continuation::fit(&twice));
        assert!((once.degrees() - twice.degrees()).abs() < 1e-9);
        for head in 0..3 {
            let (x, y) = (once.predict(head, 60.0).unwrap(), twice.predict(head, 60.0).unwrap());
            assert!((x.median() / y.median() - 1.0).abs() < 1e-12 && (x.at(1.0) / y.at(1.0) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn runs_that_differ_as_a_whole_leave_few_degrees() {
        let heads = |shift: f64, own: [f64; 4]| own.iter().map(|x| (shift + x).exp()).collect::<Vec<_>>();
        let own = [[0.1, -0.1, 0.05, -0.05], [-0.1, 0.0, 0.1, 0.0], [0.0, 0.1, -0.15, 0.05]];
        let fit = |size: f64| {
            let pass = |(run, own): (usize, [f64; 4])| {
                let shift = size * [1.0, -2.0, 1.0][run];
                NullPass { updates: 10.0, run: run as u32, differences: heads(shift, own) }
            };
            Continuation::fit(&own.into_iter().enumerate().map(pass).collect::<Vec<_>>())
        };
        let (alike, apart) = (fit(0.0).degrees(), fit(2.0).degrees());
        // Four heads in three runs: 4·3 − 4 = 8 at most; 3 − 1 = 2 at least, but for the heads' share of 10⁻³.
        assert!(alike > 5.0 && alike <= 8.0 && (2.0..2.01).contains(&apart), "{alike} {apart}");
    }

    #[test]
    fn without_enough_passes_there_is_no_prediction() {
        let all = passes();
        for passes in [&[][..], &all[..1]] {
            let null = Continuation::fit(passes);
            assert!(!null.is_determined() && null.predict(0, 60.0).is_none() && null.student_quantile(0.5).is_nan());
        }
        let null = Continuation::fit(&all);
        assert!(null.predict(3, 60.0).is_none(), "a head that was never seen");
        assert!(null.predict(0, 0.0).is_none() && null.predict(0, f64::NAN).is_none());
        let found = null.predict(0, 60.0).unwrap();
        assert_eq!(found.p_value(0.0), 1.0);
        assert!(
            found.p_value(f64::NAN).is_nan() && found.p_value(f64::INFINITY).is_nan() && found.p_value(-1.0).is_nan()
        );
        let same = |run| NullPass { updates: 10.0, run, differences: vec![0.1; 3] };
        assert!(!Continuation::fit(&[same(0), same(1)]).is_determined(), "no spread at all is not a variance");
        let mut silent = all.clone();
        silent.iter_mut().for_each(|pass| pass.differences[1] = 0.0);
        let null = Continuation::fit(&silent);
        assert!(null.predict(1, 60.0).is_none() && null.predict(2, 60.0).is_some());
        let mut late = all;
        late[0].differences.truncate(2);
        late[1].differences.truncate(2);
        assert!(Continuation::fit(&late).predict(2, 60.0).is_some(), "a head that later runs handed over");
    }

    proptest! {
        #[test]
        fn a_larger_change_is_less_likely_and_units_do_not_matter(d in 0.001f64..2.0, more in 1.0f64..3.0, unit in 1e-6f64..1e6, updates in 1.0f64..500.0) {
            let null = Continuation::fit(&two_runs());
            let p = |null: &Continuation, d: f64| null.predict(0, updates).unwrap().p_value(d);
            prop_assert!(p(&null, d * more) <= p(&null, d) && (0.0..=1.0).contains(&p(&null, d)));
            let mut scaled = two_runs();
            scaled.iter_mut().for_each(|pass| pass.differences.iter_mut().for_each(|d| *d *= unit));
            // ln(unit) rounds at 2⁻⁵³·14, over a scale of 0.1.
            let (x, y) = (p(&Continuation::fit(&scaled), d * unit), p(&null, d));
            prop_assert!((x - y).abs() <= 1e-11);
        }

        #[test]
        fn any_passes_give_a_number_or_nothing(
            values in prop::collection::vec((0u32..4, prop::num::f64::ANY, prop::collection::vec(prop::num::f64::ANY, 0..4)), 0..12),
        ) {
            let passes: Vec<NullPass> =
                values.into_iter().map(|(run, updates, differences)| NullPass { updates, run, differences }).collect();
            let null = Continuation::fit(&passes);
            for head in 0..4 {
                if let Some(found) = null.predict(head, 60.0) {
                    prop_assert!((0.0..=1.0).contains(&found.p_value(0.1)));
                }
            }
        }
    }
}
