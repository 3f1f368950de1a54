//! A scope over parameters that a test owns, the trainer's loop of a curvature run, and a quadratic loss whose spectrum is
//! known.

#![allow(dead_code)] // Each test uses a part of it.

use forgetscope::device::{DType, Memory};
use forgetscope::ring::{Poll, Reader, Record};
use forgetscope::scope::schema::Role;
use forgetscope::scope::{CurvatureSettings, CurvatureWant, Data, HeadMap, Options, Scope, Source, TensorSpec, View};
use forgetscope::sketch::hash::mix;

/// The loss and its gradient at some parameters.
pub type Model<'a> = dyn Fn(&[f32]) -> (f64, Vec<f64>) + 'a;

/// Tensors "t0", "t1", … side by side in one buffer, and their gradients in another.
pub struct Run {
    pub scope: Scope,
    directory: tempfile::TempDir,
    pub parameters: Vec<f32>,
    pub gradients: Vec<f32>,
    pub lengths: Vec<usize>,
}

pub fn spec(name: &str, numel: usize) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        role: Role::Other,
        layer: None,
        expert: None,
        group: 0,
        numel: numel as u64,
        shape: None,
        heads: HeadMap::WHOLE,
        flags: 0,
        replica: 0,
        tied_to: None,
        stack: 1,
    }
}

/// `buffer` from `start` on, as data of `length` elements.
pub fn data(buffer: &mut [f32], start: usize, length: usize) -> Data {
    let view = View { rows: 1, cols: length as u64, row_step: 0, col_step: 1 };
    // SAFETY: the buffers of these tests live as long as the scope and are never resized.
    let memory = unsafe { Memory::new(buffer[start..start + length].as_mut_ptr().cast(), DType::F32) };
    Data { memory, view, shape: (length as u64, 1) }
}

impl Run {
    pub fn new(lengths: &[usize], parameters: Vec<f32>, options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ring_path = Some(directory.path().join("run.ring"));
        let scope = Scope::open(Options { ring_path, every: 1, threads: 2, ..options }).unwrap();
        let gradients = vec![0.0; parameters.len()];
        let mut run = Self { scope, directory, parameters, gradients, lengths: lengths.to_vec() };
        let mut start = 0;
        for (k, &length) in lengths.iter().enumerate() {
            let mut front = run.scope.front();
            let id = front.register(spec(&format!("t{k}"), length)).unwrap();
            front.bind(id, Source::Gradient, data(&mut run.gradients, start, length), None).unwrap();
            front.bind(id, Source::Parameter, data(&mut run.parameters, start, length), None).unwrap();
            start += length;
        }
        assert_eq!(start, run.parameters.len());
        run
    }

    pub fn begin(&self, task: &str, settings: CurvatureSettings) -> forgetscope::scope::Result<()> {
        // SAFETY: the buffers live as long as the scope, and are left alone during calls.
        unsafe { self.scope.front().curvature_begin(task, settings) }
    }

    /// The trainer's loop. Returns the number of requests that it was told of.
    pub fn measure(&mut self, task: &str, settings: CurvatureSettings, model: &Model) -> u32 {
        self.begin(task, settings).unwrap();
        let before = bits(&self.parameters);
        let mut total = 0;
        for count in 0.. {
            let request = self.scope.front().curvature_next().unwrap();
            if request.want == CurvatureWant::Done {
                break;
            }
            assert!(count <= request.index && request.index < request.total);
            total = request.total;
            let loss = self.compute(model, request.want);
            self.scope.front().curvature_submit(loss, 1.0).unwrap();
        }
        assert_eq!(bits(&self.parameters), before, "to the last bit");
        self.scope.front().curvature_end().unwrap();
        total
    }

    /// What the trainer does about a request.
    pub fn compute(&mut self, model: &Model, want: CurvatureWant) -> f64 {
        let (loss, gradient) = model(&self.parameters);
        // Gradients that were not asked for are never read.
        let give = |(out, g): (&mut f32, f64)| *out = if want == CurvatureWant::Gradient { g as f32 } else { f32::NAN };
        self.gradients.iter_mut().zip(gradient).for_each(give);
        loss
    }

    pub fn close(self) -> Vec<Record> {
        self.close_keeping().0
    }

    /// Records, and the parameters as the scope leaves them.
    pub fn close_keeping(self) -> (Vec<Record>, Vec<f32>) {
        let path = self.scope.ring_path().to_owned();
        self.scope.close();
        let mut reader = Reader::open(path).unwrap();
        let mut records = Vec::new();
        while let Poll::Record(record) = reader.poll().unwrap() {
            records.push(record);
        }
        drop(self.directory);
        (records, self.parameters)
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub fn of_kind(records: &[Record], kind: u16) -> Vec<&Record> {
    records.iter().filter(|record| record.kind == kind).collect()
}

/// Uniform in [−1, 1).
pub fn uniform(key: u64, k: usize) -> f64 {
    (mix(mix(key) ^ k as u64) >> 11) as f64 / 2f64.powi(52) - 1.0
}

pub fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// ½(θ − c)ᵀH(θ − c) with H = QᵀΛQ, Q a product of three reflections, each of which turns one of the last three axes into
/// a random direction: the large eigenvalues belong to no coordinate.
pub struct Quadratic {
    pub eigenvalues: Vec<f64>,
    pub centre: Vec<f64>,
    mirrors: [Vec<f64>; 3],
}

impl Quadratic {
    pub fn new(eigenvalues: Vec<f64>) -> Self {
        let n = eigenvalues.len();
        let unit = |x: Vec<f64>| {
            let norm = dot(&x, &x).sqrt();
            x.into_iter().map(|x| x / norm).collect::<Vec<f64>>()
        };
        // Halfway between an axis and a random direction: the reflection changes one into the other.
        let mirrors = [1, 2, 3].map(|last| {
            let mut halfway = unit((0..n).map(|k| uniform(last as u64, k)).collect());
            halfway[n - last] += 1.0;
            unit(halfway)
        });
        Self { eigenvalues, centre: (0..n).map(|k| 0.3 * uniform(9, k)).collect(), mirrors }
    }

    /// Three large eigenvalues over a bulk with a negative part: what Hessians of networks look like.
    pub fn like_a_network(n: usize) -> Self {
        let bulk = (0..n - 3).map(|k| 0.8 * k as f64 / n as f64 - 0.2);
        Self::new(bulk.chain([6.0, 10.0, 25.0]).collect())
    }

    pub fn times(&self, v: &[f64]) -> Vec<f64> {
        let reflect = |mirror: &[f64], x: &mut Vec<f64>| {
            let c = 2.0 * dot(mirror, x);
            x.iter_mut().zip(mirror).for_each(|(x, u)| *x -= c * u);
        };
        let mut x = v.to_vec();
        self.mirrors.iter().for_each(|mirror| reflect(mirror, &mut x));
        x.iter_mut().zip(&self.eigenvalues).for_each(|(x, h)| *x *= h);
        self.mirrors.iter().rev().for_each(|mirror| reflect(mirror, &mut x));
        x
    }

    pub fn loss_and_gradient(&self, parameters: &[f32]) -> (f64, Vec<f64>) {
        let offset: Vec<f64> = parameters.iter().zip(&self.centre).map(|(x, c)| f64::from(*x) - c).collect();
        let gradient = self.times(&offset);
        (0.5 * dot(&offset, &gradient), gradient)
    }

    pub fn trace(&self) -> f64 {
        self.eigenvalues.iter().sum()
    }

    /// Σ θᵢ²Hᵢᵢ.
    pub fn relative_trace(&self, parameters: &[f32]) -> f64 {
        let n = parameters.len();
        let unit = |i: usize| (0..n).map(|k| f64::from(u8::from(k == i))).collect::<Vec<f64>>();
        (0..n).map(|i| f64::from(parameters[i]).powi(2) * self.times(&unit(i))[i]).sum()
    }
}

pub fn start(n: usize) -> Vec<f32> {
    (0..n).map(|k| 0.5 * uniform(4, k) as f32).collect()
}
