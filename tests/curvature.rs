//! The loss landscape through the scope: on a quadratic loss whose spectrum is known, and on a small network against its
//! exact Hessian.

mod curvature_support;

use curvature_support::{Quadratic, Run, dot, of_kind, start};
use forgetscope::ring::Record;
use forgetscope::scope::schema::{flag, kind, level};
use forgetscope::scope::{CurvatureSettings, Options};
use forgetscope::stats::linalg::symmetric_eigenvalues;
use ndarray::Array2;
use std::ops::{Add, Mul, Sub};

const N: usize = 600;

fn model_record(records: &[Record]) -> &Record {
    let all = of_kind(records, kind::CURVATURE);
    let found: Vec<_> = all.into_iter().filter(|record| record.level == level::MODEL).collect();
    assert_eq!(found.len(), 1);
    found[0]
}

#[track_caller]
fn near(name: &str, found: f64, exact: f64, relative: f64) {
    let error = (found / exact - 1.0).abs();
    println!("{name}: {found:.7} of {exact:.7}, {error:.1e} relative");
    assert!(error <= relative, "{name}: {found} is not {exact}");
}

#[track_caller]
fn within(name: &str, found: f64, error: f64, exact: f64, errors: f64) {
    println!("{name}: {found:.6} ± {error:.6}, exact {exact:.6}");
    assert!((found - exact).abs() <= errors * error, "{name}: {found} ± {error} is not {exact}");
}

#[test]
fn a_quadratic_whose_spectrum_is_known() {
    let quadratic = Quadratic::like_a_network(N);
    let parameters = start(N);
    let mut run = Run::new(&[400, 200], parameters.clone(), Options::default());
    run.scope.front().task_begin("a").unwrap();
    let settings = CurvatureSettings { density_vectors: 8, ..CurvatureSettings::default() };
    let requests = run.measure("a", settings, &|x| quadratic.loss_and_gradient(x));
    // One gradient, 8 runs of 32 steps whose first are samples of the trace, 8 samples of the relative trace.
    assert_eq!(requests, 1 + 2 * (8 * 32 + 8));
    let records = run.close();
    let record = model_record(&records);
    assert_eq!(record.flags, flag::BASE);
    let [largest, trace, trace_error, rank, relative, relative_error, along_drift, along_old, norm, loss] =
        record.values;
    // A product has the error 2⁻²⁴/10⁻³ = 6·10⁻⁵; the eigenvalue's is second order in it, and 32 steps have converged.
    near("largest", largest, 25.0, 1e-4);
    // Student's t with 7 degrees leaves four errors once in 200 draws; below it is seen over many seeds.
    within("trace", trace, trace_error, quadratic.trace(), 4.0);
    within("relative trace", relative, relative_error, quadratic.relative_trace(&parameters), 4.0);
    let (exact_loss, exact_gradient) = quadratic.loss_and_gradient(&parameters);
    assert_eq!(loss, exact_loss);
    near("gradient norm", norm, dot(&exact_gradient, &exact_gradient).sqrt(), 1e-6);
    assert!(along_drift.is_nan() && along_old.is_nan(), "there is nothing earlier");
    let values: Vec<_> = of_kind(&records, kind::EIGENVALUE).iter().map(|record| record.values).collect();
    for (index, (found, exact)) in values.iter().zip([25.0, 10.0, 6.0]).enumerate() {
        assert_eq!(found[0], index as f64);
        near("eigenvalue", found[1], exact, 1e-3);
        assert!(found[2] < 1e-2 && found[3].is_nan());
    }
    assert_eq!(values.len(), 3);

    let nodes = of_kind(&records, kind::DENSITY);
    let moment = |power: i32| -> f64 { nodes.iter().map(|r| r.values[1] * r.values[0].powi(power)).sum() };
    near("density, total", moment(0), N as f64, 1e-6);
    // The first moment is the mean of the very samples of the trace; the second is that of |Hv|².
    near("density, mean", moment(1), trace, 1e-3);
    // tr² without the bias of its noise, over that second moment.
    near("effective rank", rank * moment(2), trace * trace - trace_error * trace_error, 1e-3);
    let near_bulk: f64 = nodes.iter().filter(|r| r.values[0] < 1.0).map(|r| r.values[1]).sum();
    // 597 of 600 eigenvalues are in the bulk; the weights of the other three are squares of fair sums, of variance 2 each,
    // averaged over eight vectors: 3 ± √(6/8), three standard deviations.
    assert!((near_bulk - 597.0).abs() < 2.6, "{near_bulk}");
    assert!(nodes.iter().all(|r| r.values[2] == 8.0));
}

#[test]
fn errors_are_what_they_say() {
    let quadratic = Quadratic::like_a_network(N);
    let parameters = start(N);
    let exact = (quadratic.trace(), quadratic.relative_trace(&parameters));
    let trials = 40;
    let mut run = Run::new(&[N], parameters, Options::default());
    for seed in 0..trials {
        let settings = CurvatureSettings { density_vectors: 0, seed, ..CurvatureSettings::default() };
        run.measure("a", settings, &|x| quadratic.loss_and_gradient(x));
    }
    let records = run.close();
    let found = of_kind(&records, kind::CURVATURE);
    assert!(found.iter().all(|record| record.values[0].is_nan()), "without Lanczos the largest is not known");
    for (value, exact) in [(1, exact.0), (4, exact.1)] {
        let mean = found.iter().map(|r| r.values[value]).sum::<f64>() / trials as f64;
        let squares = found.iter().map(|r| (r.values[value] - mean).powi(2)).sum::<f64>();
        let error = (squares / (trials * (trials - 1)) as f64).sqrt();
        // Four standard errors of the mean over 40 seeds.
        within("mean over seeds", mean, error, exact, 4.0);
        let covered = found.iter().filter(|r| (r.values[value] - exact).abs() <= 2.0 * r.values[value + 1]).count();
        // Student's t with 7 degrees: two errors cover 91 %; 40 trials have at least 30 of them in 99.9 % of cases.
        assert!(covered >= 30, "{covered} of {trials}");
    }
}

#[test]
fn two_vectors_suffice_and_ghosts_are_not_published() {
    let quadratic = Quadratic::like_a_network(N);
    // Four vectors, and not a byte for a basis.
    let budget_bytes = Some(4 * N as u64 * 4);
    let mut run = Run::new(&[N], start(N), Options { budget_bytes, ..Options::default() });
    let settings =
        CurvatureSettings { lanczos_steps: 150, trace_vectors: 0, eigenvectors: 4, ..CurvatureSettings::default() };
    run.measure("a", settings, &|x| quadratic.loss_and_gradient(x));
    let records = run.close();
    let values: Vec<f64> = of_kind(&records, kind::EIGENVALUE).iter().map(|record| record.values[1]).collect();
    for (found, exact) in values.iter().zip([25.0, 10.0, 6.0]) {
        near("eigenvalue", *found, exact, 1e-3);
    }
    // The fourth is the edge of the bulk, not a copy of the first three.
    assert!((values[3] - 0.6).abs() < 0.1, "{values:?}");
}

#[test]
fn an_earlier_task_is_compared_with_its_base() {
    let quadratic = Quadratic::like_a_network(N);
    let parameters = start(N);
    let mut run = Run::new(&[100, 500], parameters.clone(), Options::default());
    run.scope.front().task_begin("a").unwrap();
    let settings = CurvatureSettings { path_points: 5, seed: 3, ..CurvatureSettings::default() };
    run.measure("a", settings.clone(), &|x| quadratic.loss_and_gradient(x));
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    // Training moves the weights; the loss of `a` has become half as curved everywhere.
    run.scope.front().step_begin(1).unwrap();
    run.scope.front().gradients_ready(1.0, false).unwrap();
    let drift: Vec<f64> = (0..N).map(|k| 0.05 * curvature_support::uniform(6, k)).collect();
    run.parameters.iter_mut().zip(&drift).for_each(|(x, d)| *x += *d as f32);
    run.scope.front().step_end(true).unwrap();
    let half = |x: &[f32]| {
        let (loss, gradient) = quadratic.loss_and_gradient(x);
        (loss / 2.0, gradient.into_iter().map(|g| g / 2.0).collect())
    };
    let moved = run.parameters.clone();
    run.measure("a", settings, &half);
    let records = run.close();
    let drift: Vec<f64> = moved.iter().zip(&parameters).map(|(x, y)| f64::from(*x) - f64::from(*y)).collect();
    let now = of_kind(&records, kind::CURVATURE)[1];
    assert_eq!((now.flags, now.task, now.reference, now.step), (0, 1, 0, 1));
    let along = dot(&drift, &quadratic.times(&drift)) / dot(&drift, &drift) / 2.0;
    near("along the drift", now.values[6], along, 1e-3);
    near("along old eigenvectors", now.values[7], (25.0 + 10.0 + 6.0) / 6.0, 1e-3);
    let eigenvalues: Vec<_> = of_kind(&records, kind::EIGENVALUE).into_iter().filter(|r| r.flags == 0).collect();
    for (record, exact) in eigenvalues.iter().zip([12.5, 5.0, 3.0]) {
        near("eigenvalue now", record.values[1], exact, 1e-3);
        near("along an old eigenvector", record.values[3], exact, 1e-3);
    }
    let path = of_kind(&records, kind::LOSS_PATH);
    // At the base there was no snapshot, and so no line.
    assert_eq!(path.len(), 5);
    for (k, record) in path.iter().enumerate() {
        let [position, loss, distance, ..] = record.values;
        assert_eq!(position, k as f64 / 4.0);
        near("distance", distance + 1.0, 1.0 + position * dot(&drift, &drift).sqrt(), 1e-6);
        let at: Vec<f32> = parameters.iter().zip(&drift).map(|(x, d)| (f64::from(*x) + position * d) as f32).collect();
        near("loss", loss, half(&at).0, 1e-6);
    }
    let flattening = of_kind(&records, kind::FLATTENING);
    assert_eq!(flattening.len(), 1);
    let [largest, trace, trace_error, relative, relative_error, norm, ..] = flattening[0].values;
    near("largest ratio", largest, 0.5, 1e-3);
    // The same vectors of signs: what is left is the products' error, relative to |Hv|/trace.
    near("trace ratio", trace, 0.5, 1e-2);
    assert!(trace_error > 0.0 && relative_error > 0.0);
    within(
        "relative trace ratio",
        relative,
        relative_error,
        {
            let (now, base) = (quadratic.relative_trace(&moved) / 2.0, quadratic.relative_trace(&parameters));
            now / base
        },
        2.0,
    );
    let size = |x: &[f32]| dot(&quadratic.loss_and_gradient(x).1, &quadratic.loss_and_gradient(x).1).sqrt();
    near("gradient norm ratio", norm, 0.5 * size(&moved) / size(&parameters), 1e-5);
}

/// A number that may carry a derivative.
trait Number: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    fn constant(value: f64) -> Self;
    fn tanh(self) -> Self;
}

impl Number for f64 {
    fn constant(value: f64) -> Self {
        value
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
}

/// A value and its derivative in one direction.
#[derive(Clone, Copy)]
struct Dual(f64, f64);

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1)
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0, self.1 - other.1)
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0, self.0 * other.1 + self.1 * other.0)
    }
}

impl Number for Dual {
    fn constant(value: f64) -> Self {
        Self(value, 0.0)
    }
    fn tanh(self) -> Self {
        let t = self.0.tanh();
        Self(t, (1.0 - t * t) * self.1)
    }
}

const INPUTS: usize = 5;
const HIDDEN: usize = 8;
const OUTPUTS: usize = 3;
const TENSORS: [usize; 4] = [HIDDEN * INPUTS, HIDDEN, OUTPUTS * HIDDEN, OUTPUTS];
const BATCH: usize = 20;

/// Mean squared error of W₂ tanh(W₁x + b₁) + b₂ over a fixed batch, and its gradient by hand-written backpropagation.
fn network<T: Number>(p: &[T]) -> (T, Vec<T>) {
    let zero = T::constant(0.0);
    let [w1, b1, w2, b2] = [0, TENSORS[0], TENSORS[0] + TENSORS[1], TENSORS[0] + TENSORS[1] + TENSORS[2]];
    let (mut loss, mut gradient) = (zero, vec![zero; p.len()]);
    let mean = T::constant(1.0 / (BATCH * OUTPUTS) as f64);
    for example in 0..BATCH {
        let input: Vec<T> =
            (0..INPUTS).map(|k| T::constant(curvature_support::uniform(20, example * INPUTS + k))).collect();
        let wanted = |o| T::constant(curvature_support::uniform(21, example * OUTPUTS + o));
        let hidden: Vec<T> = (0..HIDDEN)
            .map(|h| (0..INPUTS).fold(p[b1 + h], |sum, k| sum + p[w1 + h * INPUTS + k] * input[k]).tanh())
            .collect();
        let mut back = [zero; HIDDEN];
        for o in 0..OUTPUTS {
            let output = (0..HIDDEN).fold(p[b2 + o], |sum, h| sum + p[w2 + o * HIDDEN + h] * hidden[h]);
            let error = output - wanted(o);
            loss = loss + mean * error * error;
            let slope = T::constant(2.0) * mean * error;
            gradient[b2 + o] = gradient[b2 + o] + slope;
            for h in 0..HIDDEN {
                gradient[w2 + o * HIDDEN + h] = gradient[w2 + o * HIDDEN + h] + slope * hidden[h];
                back[h] = back[h] + slope * p[w2 + o * HIDDEN + h];
            }
        }
        for h in 0..HIDDEN {
            let slope = back[h] * (T::constant(1.0) - hidden[h] * hidden[h]);
            gradient[b1 + h] = gradient[b1 + h] + slope;
            for k in 0..INPUTS {
                gradient[w1 + h * INPUTS + k] = gradient[w1 + h * INPUTS + k] + slope * input[k];
            }
        }
    }
    (loss, gradient)
}

/// Forward over reverse: each column is the derivative of the gradient along one axis.
fn hessian(p: &[f64]) -> Array2<f64> {
    let n = p.len();
    let mut h = Array2::zeros((n, n));
    for j in 0..n {
        let dual: Vec<Dual> = p.iter().enumerate().map(|(k, &x)| Dual(x, f64::from(u8::from(k == j)))).collect();
        for (i, g) in network(&dual).1.iter().enumerate() {
            h[[i, j]] = g.1;
        }
    }
    h
}

#[test]
fn a_network_against_its_exact_hessian() {
    let n: usize = TENSORS.iter().sum();
    let parameters: Vec<f32> = (0..n).map(|k| curvature_support::uniform(30, k) as f32).collect();
    let exact_parameters: Vec<f64> = parameters.iter().map(|&x| f64::from(x)).collect();
    let h = hessian(&exact_parameters);
    let eigenvalues = symmetric_eigenvalues(&h).unwrap();
    let mut run = Run::new(&TENSORS, parameters, Options::default());
    let settings =
        CurvatureSettings { trace_vectors: 32, blocks: vec![0, 3], block_vectors: 6, ..CurvatureSettings::default() };
    run.measure("a", settings, &|x| network(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()));
    let records = run.close();
    let record = model_record(&records);
    let [largest, trace, trace_error, _, relative, relative_error, _, _, norm, loss] = record.values;
    near("largest", largest, eigenvalues[n - 1], 1e-3);
    let found: Vec<f64> = of_kind(&records, kind::EIGENVALUE).iter().map(|record| record.values[1]).collect();
    for (index, found) in found.iter().enumerate() {
        near("eigenvalue", *found, eigenvalues[n - 1 - index], 1e-3);
    }
    // Student's t with 31 degrees: three errors hold in 99.5 % of draws.
    within("trace", trace, trace_error, h.diag().sum(), 3.0);
    let weighted = h.diag().iter().zip(&exact_parameters).map(|(h, x)| h * x * x).sum();
    within("relative trace", relative, relative_error, weighted, 3.0);
    let (exact_loss, gradient) = network(&exact_parameters);
    assert_eq!(loss, exact_loss);
    near("gradient norm", norm, dot(&gradient, &gradient).sqrt(), 1e-6);

    let blocks: Vec<_> =
        of_kind(&records, kind::CURVATURE).into_iter().filter(|r| r.flags & flag::BLOCK != 0).collect();
    assert_eq!(blocks.len(), 2);
    for (record, tensor) in blocks.into_iter().zip([0usize, 3]) {
        assert_eq!((record.level, record.tensor), (level::TENSOR, tensor as u32));
        let first: usize = TENSORS[..tensor].iter().sum();
        let range = first..first + TENSORS[tensor];
        let block = h.slice(ndarray::s![range.clone(), range.clone()]).to_owned();
        let eigenvalues = symmetric_eigenvalues(&block).unwrap();
        near("block, largest", record.values[0], eigenvalues[TENSORS[tensor] - 1], 1e-3);
        let trace = block.diag().sum();
        // A tensor of three elements is captured whole: what is left is the error of the products.
        let error = record.values[2].max(1e-3 * trace);
        within("block, trace", record.values[1], error, trace, 2.0);
        near("block, gradient norm", record.values[8], dot(&gradient[range.clone()], &gradient[range]).sqrt(), 1e-6);
    }
}

/// Rounding of the gradients against curvature of the third order: what the step of a thousandth is a compromise of.
#[test]
fn a_larger_step_is_seen_in_the_result() {
    let n: usize = TENSORS.iter().sum();
    let parameters: Vec<f32> = (0..n).map(|k| curvature_support::uniform(30, k) as f32).collect();
    let exact: Vec<f64> = parameters.iter().map(|&x| f64::from(x)).collect();
    let eigenvalues = symmetric_eigenvalues(&hessian(&exact)).unwrap();
    let error = |relative_step| {
        let mut run = Run::new(&TENSORS, parameters.clone(), Options::default());
        let settings = CurvatureSettings { relative_step, trace_vectors: 0, ..CurvatureSettings::default() };
        run.measure("a", settings, &|x| network(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()));
        let records = run.close();
        let error = (model_record(&records).values[0] / eigenvalues[n - 1] - 1.0).abs();
        println!("relative_step {relative_step:e}: {error:.1e}");
        error
    };
    let (small, usual, large) = (error(1e-5), error(1e-3), error(1e-1));
    assert!(usual < 1e-4 && usual < large && usual < small, "{small} {usual} {large}");
}
