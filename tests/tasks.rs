//! What is kept of earlier tasks, and what is predicted from it: on problems whose answers are known in closed form.

use forgetscope::device::{DType, Memory};
use forgetscope::ring::{Poll, Reader, Record};
use forgetscope::scope::schema::{Role, flag, kind, level};
use forgetscope::scope::{Data, HeadMap, Options, Rule, Scope, Shard, Source, TensorSpec, View};
use forgetscope::sketch::hash::mix;

/// A scope with tensors in host memory, whose gradients and parameters the test sets at will.
struct Run {
    scope: Scope,
    directory: tempfile::TempDir,
    gradients: Vec<Vec<f32>>,
    parameters: Vec<Vec<f32>>,
    step: u64,
}

impl Run {
    /// One vector per length, named "t0", "t1", …
    fn new(lengths: &[usize], options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ring_path = Some(directory.path().join("run.ring"));
        let scope = Scope::open(Options { ring_path, every: 1, threads: 1, ..options }).unwrap();
        let buffers = || lengths.iter().map(|&length| vec![0.0f32; length]).collect::<Vec<_>>();
        let (gradients, parameters) = (buffers(), buffers());
        for (k, (gradient, parameter)) in gradients.iter().zip(&parameters).enumerate() {
            let mut front = scope.front();
            let spec = TensorSpec {
                name: format!("t{k}"),
                role: Role::Other,
                layer: Some(k as u32),
                expert: None,
                group: 0,
                numel: gradient.len() as u64,
                shape: None,
                heads: HeadMap::WHOLE,
                flags: 0,
                replica: 0,
                tied_to: None,
                stack: 1,
            };
            let id = front.register(spec).unwrap();
            for (source, buffer) in [(Source::Gradient, gradient), (Source::Parameter, parameter)] {
                let length = buffer.len() as u64;
                let view = View { rows: 1, cols: length, row_step: 0, col_step: 1 };
                // SAFETY: the vectors live as long as the scope and are never resized.
                let memory = unsafe { Memory::new(buffer.as_ptr().cast(), DType::F32) };
                front.bind(id, source, Data { memory, view, shape: (length, 1) }, None).unwrap();
            }
        }
        Self { scope, directory, gradients, parameters, step: 0 }
    }

    /// A step with the gradient that is set, and an update by `apply`.
    fn step(&mut self, apply: impl FnOnce(&mut [Vec<f32>])) {
        self.scope.front().step_begin(self.step).unwrap();
        self.scope.front().gradients_ready(1.0, false).unwrap();
        apply(&mut self.parameters);
        self.scope.front().step_end(true).unwrap();
        self.step += 1;
        // Keeps the queue short, so that no step is left out on a slow machine.
        self.scope.flush().unwrap();
    }

    fn close(self) -> Vec<Record> {
        let path = self.scope.ring_path().to_owned();
        self.scope.close();
        let mut reader = Reader::open(path).unwrap();
        let mut records = Vec::new();
        while let Poll::Record(record) = reader.poll().unwrap() {
            records.push(record);
        }
        drop(self.directory);
        records
    }
}

fn model(records: &[Record], kind: u16) -> Vec<&Record> {
    records.iter().filter(|record| record.kind == kind && record.level == level::MODEL).collect()
}

fn normal(state: &mut u64) -> f64 {
    *state += 1;
    let uniform = |word: u64| ((word >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (u, v) = (uniform(mix(*state)), uniform(mix(*state ^ 0x5555_5555)));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// L_A = g·D + ½ Σ h D² with batches whose covariance is h/examples: the prediction is the loss, at any distance.
#[test]
fn prediction_is_exact_on_a_quadratic() {
    let p = 32;
    let curvature: Vec<f64> = (0..p).map(|k| 0.5 + k as f64 / 10.0).collect();
    let slope: Vec<f64> = (0..p).map(|k| 0.01 * (k as f64 - 15.0)).collect();
    let examples = 100.0;
    let mut run = Run::new(&[p], Options::default());
    run.scope.front().task_begin("a").unwrap();
    // 2p batches: slope ± a along each axis, so that the unbiased covariance is diagonal with h/examples.
    let batches = 2.0 * p as f64;
    for (axis, h) in curvature.iter().enumerate() {
        for sign in [1.0, -1.0] {
            let a = (h / examples * (batches - 1.0) / 2.0).sqrt();
            for (k, slope) in slope.iter().enumerate() {
                run.gradients[0][k] = (slope + if k == axis { sign * a } else { 0.0 }) as f32;
            }
            run.scope.front().reference_add("a", examples as u64, 1.0).unwrap();
        }
    }
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    let mut state = 5;
    for _ in 0..6 {
        run.step(|parameters| parameters[0].iter_mut().for_each(|x| *x += 0.3 * normal(&mut state) as f32));
    }
    let parameters = run.parameters[0].clone();
    let records = run.close();
    let predictions = model(&records, kind::PREDICTION);
    assert_eq!(predictions.len(), 6);
    let last = predictions.last().unwrap();
    let d: Vec<f64> = parameters.iter().map(|&x| f64::from(x)).collect();
    let first: f64 = d.iter().zip(&slope).map(|(d, g)| d * g).sum();
    let second: f64 = d.iter().zip(&curvature).map(|(d, h)| 0.5 * h * d * d).sum();
    // The slope is known as a mean over fp32 batches; their spread is far larger than it.
    assert!((last.values[1] - first).abs() < 1e-4 * second, "{last:?} {first}");
    assert!((last.values[3] - second).abs() < 1e-4 * second, "{last:?} {second}");
    assert!((last.values[0] - first - second).abs() < 2e-4 * second);
    assert_eq!(last.flags, flag::EXACT | flag::FROZEN);
}

/// With references refreshed at the current weights, Σ⟨g_A(θ_t), Δθ_t⟩ follows the true loss through many steps.
#[test]
fn refreshed_references_follow_the_true_loss() {
    let p = 32;
    let loss = |x: &[f32]| -> f64 { x.iter().map(|&x| f64::from(x).powi(4) / 4.0 + f64::from(x).powi(2)).sum() };
    let slope = |x: f32| x.powi(3) + 2.0 * x;
    let mut run = Run::new(&[p], Options::default());
    run.scope.front().task_begin("a").unwrap();
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    let start = loss(&run.parameters[0]);
    let steps = 200;
    for step in 0..steps {
        for k in 0..p {
            run.gradients[0][k] = slope(run.parameters[0][k]);
        }
        for _ in 0..2 {
            run.scope.front().reference_add("a", 1, 1.0).unwrap();
        }
        run.step(|parameters| {
            for (k, x) in parameters[0].iter_mut().enumerate() {
                *x += if step < steps / 2 { 0.004 * (k as f32 + 1.0) / 16.0 } else { 0.01 };
            }
        });
    }
    // One more sampled step sums up to here.
    let end = loss(&run.parameters[0]);
    run.step(|_| {});
    let records = run.close();
    let last = model(&records, kind::PREDICTION).last().copied().copied().unwrap();
    assert_eq!(last.flags & flag::REFRESHED, flag::REFRESHED);
    let (path, truth) = (last.values[4], end - start);
    // A Riemann sum over steps of size h errs by about half a step's change of slope: below 2 % here.
    assert!((path / truth - 1.0).abs() < 0.02, "{path} against {truth}");
    assert_eq!(last.values[7], steps as f64 + 1.0);
}

/// Without any reference given, the mean over the task's last sampled steps stands in, and the records say so.
#[test]
fn trailing_references_stand_in() {
    let p = 512;
    let mut run = Run::new(&[p], Options { window: 8, ..Options::default() });
    let direction = |k: usize, sign: f32| sign * if k.is_multiple_of(2) { 1.0 } else { 0.5 };
    run.scope.front().task_begin("a").unwrap();
    for step in 0..20 {
        // The first twelve steps point elsewhere: a window of eight has forgotten them.
        for k in 0..p {
            run.gradients[0][k] = if step < 12 { k as f32 } else { direction(k, 1.0) };
        }
        run.step(|_| {});
    }
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    for k in 0..p {
        run.gradients[0][k] = direction(k, -3.0);
    }
    run.step(|parameters| parameters[0][0] += 1.0);
    let records = run.close();
    let last = model(&records, kind::INTERFERENCE).last().copied().copied().unwrap();
    assert!((last.values[0] + 1.0).abs() < 1e-6, "opposite to the trailing mean: {last:?}");
    assert_eq!(last.flags, flag::TRAILING);
    let last = model(&records, kind::PREDICTION).last().copied().copied().unwrap();
    assert_eq!(last.flags, flag::TRAILING | flag::UNSCALED, "from sketches, the batch size unknown");
}

/// Without references the path is summed from sketches, also when some tensors are read less often than others, and when
/// nothing may be kept exactly: Σ⟨g, Δθ⟩ for a constant g is ⟨g, θ − θ_A⟩.
#[test]
fn paths_add_up_whatever_is_kept() {
    let rule = Rule { tensors: "t1".into(), every: Some(4), ..Rule::default() };
    for (budget_bytes, select) in
        [(None, vec![]), (Some(0), vec![]), (Some(0), vec![rule.clone()]), (Some(1300), vec![rule])]
    {
        let mut run = Run::new(&[300, 300], Options { budget_bytes, select, ..Options::default() });
        run.gradients.iter_mut().for_each(|g| g.fill(2.0));
        run.parameters.iter_mut().for_each(|p| p.fill(100.0));
        run.scope.front().task_begin("a").unwrap();
        for _ in 0..8 {
            run.step(|_| {});
        }
        run.scope.front().task_end().unwrap();
        run.scope.front().task_begin("b").unwrap();
        for _ in 0..9 {
            run.step(|parameters| parameters.iter_mut().flatten().for_each(|x| *x += 0.25));
        }
        let records = run.close();
        let last = model(&records, kind::PREDICTION).last().copied().copied().unwrap();
        // Eight updates lie between the snapshot and the beginning of the last step: 600 coordinates, 2 · 0.25 each.
        assert!((last.values[4] - 8.0 * 600.0 * 0.5).abs() < 1e-6, "{budget_bytes:?}: {last:?}");
    }
}

/// A skipped step is no sample: it neither enters the window nor a trailing reference.
#[test]
fn skipped_steps_are_no_samples() {
    let mut run = Run::new(&[300], Options::default());
    run.scope.front().task_begin("a").unwrap();
    for step in 0..10 {
        run.gradients[0].fill(if step == 5 { 1e6 } else { 1.0 });
        run.scope.front().step_begin(step).unwrap();
        run.scope.front().gradients_ready(1.0, false).unwrap();
        run.scope.front().step_end(step != 5).unwrap();
        run.scope.flush().unwrap();
    }
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    run.step(|_| {});
    let records = run.close();
    let last = model(&records, kind::INTERFERENCE).last().copied().copied().unwrap();
    assert_eq!(last.values[4], 300.0, "the trailing mean is that of the nine steps that were made");
    // Nothing but a sketch, which is exact for a vector: the null is that of fair signs, not zero.
    assert!((last.values[1] - 1.0 / 300f64.sqrt()).abs() < 1e-6, "{last:?}");
}

/// Mini-batches at a signal-to-noise ratio of .02 whose means have the cosine −.30, through the whole instrument.
#[test]
fn noise_correction_finds_a_planted_cosine() {
    let p = 8192;
    let mut run = Run::new(&[p], Options::default());
    let noise = (1.0 / (0.02 * p as f64)).sqrt();
    let (mut x, mut y) = (vec![0.0; p], vec![0.0; p]);
    (x[0], y[0], y[1]) = (1.0, -0.3, (1.0f64 - 0.09).sqrt());
    let mut state = 11;
    let mut sample = |mean: &[f64], out: &mut [f32]| {
        out.iter_mut().zip(mean).for_each(|(out, mean)| *out = (mean + noise * normal(&mut state)) as f32);
    };
    run.scope.front().task_begin("a").unwrap();
    for _ in 0..64 {
        sample(&y, &mut run.gradients[0]);
        run.scope.front().reference_add("a", 1, 1.0).unwrap();
    }
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    for _ in 0..64 {
        sample(&x, &mut run.gradients[0]);
        run.step(|_| {});
    }
    let records = run.close();
    let corrected = model(&records, kind::CORRECTED);
    assert_eq!(corrected.len(), 8, "every eighth sampled step");
    let last = corrected.last().unwrap();
    let [cosine, error, ..] = last.values;
    assert_eq!((last.values[8], last.values[9]), (64.0, 64.0));
    assert!((cosine + 0.30).abs() < 3.0 * error && error < 0.25, "{cosine} ± {error}");
    // One step against the mean of 64: shrunk to −.30·√(.02/1.02)·√(1.28/2.28), about −.03.
    let plain: f64 = model(&records, kind::INTERFERENCE).iter().map(|r| r.values[0]).sum::<f64>() / 64.0;
    assert!(plain.abs() < 0.06, "{plain}");
}

/// Rules choose tensors and frequencies; records say when not everything was measured.
#[test]
fn tensors_are_selected_by_rules() {
    let rule = |tensors: &str, every| Rule { tensors: tensors.into(), every: Some(every), ..Rule::default() };
    let options = Options { select: vec![rule("t1", 3), rule("t2", 0)], ..Options::default() };
    let mut run = Run::new(&[300, 300, 300], options);
    run.scope.front().task_begin("a").unwrap();
    for _ in 0..6 {
        run.gradients.iter_mut().for_each(|g| g.fill(1.0));
        run.step(|_| {});
    }
    let records = run.close();
    let measured = |tensor: u32| {
        let of = records.iter().filter(|r| r.kind == kind::GRADIENT && r.level == level::TENSOR && r.tensor == tensor);
        of.map(|r| r.step).collect::<Vec<_>>()
    };
    assert_eq!((measured(0), measured(1), measured(2)), (vec![0, 1, 2, 3, 4, 5], vec![0, 3], vec![]));
    for record in model(&records, kind::STEP) {
        assert_eq!(record.flags, flag::PARTIAL, "t2 is never measured");
        assert_eq!(record.values[4], if record.step.is_multiple_of(3) { 600.0 } else { 300.0 });
    }
}

/// A reference whose bindings changed shape is given up and counted; snapshots that do not cover are not compared with.
#[test]
fn what_no_longer_fits_is_dropped_and_said() {
    let mut run = Run::new(&[1000], Options::default());
    let bind = |run: &Run, start: u64, end: u64| {
        let view = View { rows: 1, cols: end - start, row_step: 0, col_step: 1 };
        let shard = Some(Shard { offset: start, length: end - start, step: end - start, runs: 1 });
        for (source, buffer) in [(Source::Gradient, &run.gradients[0]), (Source::Parameter, &run.parameters[0])] {
            // SAFETY: the vectors live as long as the scope, and the range lies inside.
            let memory = unsafe { Memory::new(buffer[start as usize..].as_ptr().cast(), DType::F32) };
            run.scope.front().bind(0, source, Data { memory, view, shape: (end - start, 1) }, shard).unwrap();
        }
    };
    run.gradients[0].fill(1.0);
    bind(&run, 0, 400);
    run.scope.front().task_begin("a").unwrap();
    run.scope.front().reference_add("a", 1, 1.0).unwrap();
    bind(&run, 0, 600);
    run.scope.front().reference_add("a", 1, 1.0).unwrap();
    bind(&run, 0, 400);
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    bind(&run, 0, 500);
    run.step(|parameters| parameters[0].fill(2.0));
    let records = run.close();
    let faults = model(&records, kind::FAULT);
    assert_eq!((faults.len(), faults[0].values[0]), (1, 5.0));
    let interference = model(&records, kind::INTERFERENCE)[0];
    assert_eq!(interference.flags & flag::EXACT, 0, "{interference:?}");
    // From the sketch, which is exact for so short a tensor: ⟨1₅₀₀, (2·1₄₀₀ + 1·1₂₀₀ on 400..600)/2⟩ = 400 + 50.
    assert!((interference.values[2] - 450.0).abs() < 1e-9, "{interference:?}");
    assert!(model(&records, kind::DRIFT).is_empty(), "the snapshot knows nothing of 400..500");
}

/// The reference refreshed at moved weights: gradients of a quadratic at both ends give its curvature along the drift, and
/// the spread of the batches its error.
#[test]
fn two_references_give_the_curvature_along_the_drift() {
    let p = 300;
    let curvature: Vec<f64> = (0..p).map(|k| 0.5 + k as f64 / 100.0).collect();
    for budget_bytes in [None, Some(0)] {
        let mut run = Run::new(&[p], Options { budget_bytes, ..Options::default() });
        let mut state = 11;
        run.parameters[0].iter_mut().for_each(|x| *x = normal(&mut state) as f32);
        let batches = |run: &mut Run, state: &mut u64| {
            let mut seen: Vec<Vec<f64>> = Vec::new();
            for _ in 0..8 {
                let gradient: Vec<f64> = (0..p)
                    .map(|k| curvature[k] * f64::from(run.parameters[0][k]) + 0.2 * normal(state))
                    .map(|g| f64::from(g as f32))
                    .collect();
                run.gradients[0].iter_mut().zip(&gradient).for_each(|(out, g)| *out = *g as f32);
                run.scope.front().reference_add("a", 10, 1.0).unwrap();
                seen.push(gradient);
            }
            seen
        };
        run.scope.front().task_begin("a").unwrap();
        let then = batches(&mut run, &mut state);
        run.scope.front().task_end().unwrap();
        run.scope.front().task_begin("b").unwrap();
        let before = run.parameters[0].clone();
        let mut other = 5;
        run.step(|parameters| parameters[0].iter_mut().for_each(|x| *x += 0.5 * normal(&mut other) as f32));
        let now = batches(&mut run, &mut state);
        let drift: Vec<f64> =
            run.parameters[0].iter().zip(&before).map(|(x, y)| f64::from(*x) - f64::from(*y)).collect();
        let records = run.close();
        let found = model(&records, kind::SECANT);
        assert_eq!(found.iter().map(|r| r.values[3]).collect::<Vec<_>>(), [4.0, 8.0], "at the 4th and the 8th batch");
        let last = found[1];
        let project = |g: &Vec<f64>| g.iter().zip(&drift).map(|(g, d)| g * d).sum::<f64>();
        let summary = |list: &[Vec<f64>]| {
            let all: Vec<f64> = list.iter().map(project).collect();
            let mean = all.iter().sum::<f64>() / 8.0;
            (mean, all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 7.0 / 8.0)
        };
        let squares: f64 = drift.iter().map(|d| d * d).sum();
        let ((later, later_variance), (earlier, earlier_variance)) = (summary(&now), summary(&then));
        // A vector of 300 is sketched exactly, so with and without budget the numbers are those of the definition: fp32
        // rounding of 300 products, and in the sketched drift of parameters.
        let value = (later - earlier) / squares;
        assert!((last.values[0] / value - 1.0).abs() < 1e-5, "{} {value}", last.values[0]);
        let error = (later_variance + earlier_variance).sqrt() / squares;
        assert!((last.values[1] / error - 1.0).abs() < 1e-4, "{} {error}", last.values[1]);
        assert!((last.values[2] / squares.sqrt() - 1.0).abs() < 1e-6);
        assert_eq!(last.flags & flag::EXACT != 0, budget_bytes.is_none());
        let exact: f64 = curvature.iter().zip(&drift).map(|(h, d)| h * d * d).sum::<f64>() / squares;
        assert!((last.values[0] - exact).abs() < 4.0 * error, "{} ± {error}, exact {exact}", last.values[0]);
    }
}

/// 2p batches whose covariance is known: F's eigenvalues are the curvatures that it stands in for.
#[test]
fn the_fisher_spectrum_of_a_reference() {
    let (p, examples) = (8usize, 100.0);
    let mut run = Run::new(&[p], Options::default());
    run.scope.front().task_begin("a").unwrap();
    let batches = 2.0 * p as f64 - 4.0;
    for axis in 0..p - 2 {
        for sign in [1.0, -1.0] {
            // Two batches on each axis: variance 2a²/(batches − 1) = (axis + 1)/examples.
            let a = ((axis + 1) as f64 / examples * (batches - 1.0) / 2.0).sqrt();
            for k in 0..p {
                run.gradients[0][k] = (0.7 + if k == axis { sign * a } else { 0.0 }) as f32;
            }
            run.scope.front().reference_add("a", examples as u64, 1.0).unwrap();
        }
    }
    run.scope.front().task_end().unwrap();
    let records = run.close();
    let found = model(&records, kind::FISHER);
    assert_eq!(found.iter().map(|r| r.values[7]).collect::<Vec<_>>(), [4.0, 8.0, 12.0], "milestones, and the end");
    let values = found[2].values;
    for (value, exact) in values.iter().zip([6.0, 5.0, 4.0, 3.0, 2.0]) {
        // Gradients are rounded to fp32.
        assert!((value - exact).abs() < 1e-5, "{values:?}");
    }
    assert!((values[5] - 21.0).abs() < 1e-4 && (values[6] - 21.0 * 21.0 / 91.0).abs() < 1e-4, "{values:?}");
    assert_eq!(values[8], examples);
    assert!(found.iter().all(|r| r.flags == flag::FROZEN && r.reference == 0));
}
