//! The statistics by their definitions, in fp64, element by element.

use crate::tape::{Step, Tape};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Width and heads of the test's model.
const WIDTH: usize = 64;
const HEADS: usize = 4;

/// What a statistic is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Head(usize, &'static str, usize),
    Tensor(usize),
    Role(&'static str),
    Layer(usize),
    Model,
}

/// Where one element of the model belongs.
#[derive(Clone, Copy)]
struct Place {
    tensor: usize,
    role: &'static str,
    head: Option<usize>,
    layer: Option<usize>,
    /// Elements of its slice, and whether the slice is a vector.
    slice: usize,
    vector: bool,
}

pub struct Oracle {
    tape: Rc<Tape>,
    places: Rc<Vec<Place>>,
    elements: RefCell<HashMap<Subject, Rc<Vec<usize>>>>,
    /// Mean reference of each task.
    references: Rc<Vec<Vec<f64>>>,
    sketch_head: usize,
    sketch_matrix: usize,
}

#[derive(Debug, Default)]
pub struct Gradient {
    pub squares: f64,
    pub peak: f64,
    pub count: f64,
}

#[derive(Debug, Default)]
pub struct Pair {
    pub dot: f64,
    /// Σ|x·y|: what rounding is relative to.
    pub magnitude: f64,
    pub squares: f64,
    pub reference_squares: f64,
    pub conflicts: f64,
    pub active: f64,
    pub opposing: f64,
    pub dot_squares: f64,
}

pub struct Update {
    pub updates: f64,
    pub weights: f64,
}

pub struct Drift {
    pub drift: f64,
    pub snapshot: f64,
    pub angle: f64,
    pub first_order: f64,
    pub magnitude: f64,
}

pub struct Prediction {
    pub first_order: f64,
    pub first_order_error: f64,
    pub quadratic: f64,
    pub path: f64,
    pub magnitude: f64,
    pub drift: f64,
    pub reference_squares: f64,
}

pub struct Corrected {
    pub dot: f64,
    pub gradient_norm2: f64,
    pub reference_norm2: f64,
    pub gradient_squares: f64,
    pub reference_squares: f64,
}

pub struct Forgetting {
    pub own: f64,
    pub since_own: f64,
    pub maximum: f64,
}

/// Places of all elements of a tensor, row by row.
fn places(tensor: usize, name: &str, numel: usize) -> Vec<Place> {
    let layer = name.strip_prefix("blocks.").map(|rest| rest.split('.').next().unwrap().parse().unwrap());
    let vector = name.ends_with(".bias") || name.contains("norm");
    let cols = if vector {
        1
    } else if name.contains("mlp.out") {
        4 * WIDTH
    } else {
        WIDTH
    };
    let per_head = WIDTH / HEADS;
    (0..numel)
        .map(|index| {
            let (row, col) = (index / cols, index % cols);
            let (role, head) = match name {
                _ if name.contains("attn.qkv") => (["q", "k", "v"][row / WIDTH], Some(row % WIDTH / per_head)),
                _ if name.contains("attn.out.weight") => ("o", Some(col / per_head)),
                _ if name.contains("attn.out.bias") => ("o", None),
                _ if name.contains("mlp.in") => ("mlp_in", None),
                _ if name.contains("mlp.out") => ("mlp_out", None),
                _ if name.contains("norm") => ("norm", None),
                _ if name.contains("token") => ("embedding", None),
                _ if name.contains("position") => ("position", None),
                _ if name.contains("lm_head") => ("lm_head", None),
                other => panic!("{other}"),
            };
            let parts = if name.contains("attn.qkv") {
                3 * HEADS
            } else if head.is_some() {
                HEADS
            } else {
                1
            };
            Place { tensor, role, head, layer, slice: numel / parts, vector }
        })
        .collect()
}

impl Oracle {
    pub fn new(tape: Tape, sketch_head: usize, sketch_matrix: usize) -> Self {
        let tensors = tape.tensors.iter().enumerate();
        let places = tensors.flat_map(|(id, (name, numel))| places(id, name, *numel)).collect();
        let references = tape.references.iter().map(|batches| {
            let n = batches.len() as f64;
            (0..batches[0].len()).map(|k| batches.iter().map(|b| f64::from(b[k])).sum::<f64>() / n).collect()
        });
        let references = Rc::new(references.collect());
        let (tape, places, elements) = (Rc::new(tape), Rc::new(places), RefCell::default());
        Self { tape, places, elements, references, sketch_head, sketch_matrix }
    }

    /// The same data, for a run with other sketches.
    pub fn with_sketches(&self, sketch_head: usize, sketch_matrix: usize) -> Self {
        let (tape, places, references) = (self.tape.clone(), self.places.clone(), self.references.clone());
        Self { tape, places, references, elements: self.elements.clone(), sketch_head, sketch_matrix }
    }

    fn elements(&self, subject: Subject) -> Rc<Vec<usize>> {
        let select = |place: &Place| match subject {
            Subject::Head(tensor, role, head) => {
                place.tensor == tensor && place.role == role && place.head == Some(head)
            }
            Subject::Tensor(tensor) => place.tensor == tensor,
            Subject::Role(role) => place.role == role,
            Subject::Layer(layer) => place.layer == Some(layer),
            Subject::Model => true,
        };
        let mut known = self.elements.borrow_mut();
        let collect = || Rc::new((0..self.places.len()).filter(|&k| select(&self.places[k])).collect::<Vec<_>>());
        let found = known.entry(subject).or_insert_with(collect).clone();
        assert!(!found.is_empty(), "{subject:?}");
        found
    }

    fn step(&self, step: u64) -> &Step {
        &self.tape.steps[step as usize]
    }

    fn pair(&self, subject: Subject, x: impl Fn(usize) -> f64, y: impl Fn(usize) -> f64) -> Pair {
        let mut pair = Pair::default();
        for &k in self.elements(subject).iter() {
            let (x, y) = (x(k), y(k));
            let product = x * y;
            pair.dot += product;
            pair.magnitude += product.abs();
            pair.squares += x * x;
            pair.reference_squares += y * y;
            pair.dot_squares += product * product;
            pair.active += f64::from(u8::from(product != 0.0));
            if product < 0.0 {
                pair.conflicts += 1.0;
                pair.opposing -= product;
            }
        }
        pair
    }

    pub fn gradient(&self, step: u64, subject: Subject) -> Gradient {
        let step = self.step(step);
        let mut result = Gradient::default();
        for &k in self.elements(subject).iter() {
            let g = step.scale * f64::from(step.gradients[k]);
            result.squares += g * g;
            result.peak = result.peak.max(g.abs());
            result.count += 1.0;
        }
        result
    }

    pub fn interference(&self, step: u64, task: usize, subject: Subject) -> Pair {
        let step = self.step(step);
        self.pair(subject, |k| step.scale * f64::from(step.gradients[k]), |k| self.references[task][k])
    }

    pub fn alignment(&self, step: u64, task: usize, subject: Subject) -> Pair {
        let step = self.step(step);
        self.pair(subject, |k| f64::from(step.after[k]) - f64::from(step.before[k]), |k| self.references[task][k])
    }

    pub fn update(&self, step: u64, subject: Subject) -> Update {
        let step = self.step(step);
        let pair =
            self.pair(subject, |k| f64::from(step.after[k]) - f64::from(step.before[k]), |k| f64::from(step.after[k]));
        Update { updates: pair.squares, weights: pair.reference_squares }
    }

    pub fn drift(&self, step: u64, task: usize, subject: Subject) -> Drift {
        let (after, snapshot) = (&self.step(step).after, &self.tape.snapshots[task]);
        let drift = |k: usize| f64::from(after[k]) - f64::from(snapshot[k]);
        let first = self.pair(subject, drift, |k| self.references[task][k]);
        let angle = self.pair(subject, |k| f64::from(after[k]), |k| f64::from(snapshot[k]));
        // |u − v| and |u + v| of unit vectors: exact also for small angles (Kahan).
        let (a, b) = (angle.squares.sqrt(), angle.reference_squares.sqrt());
        let (mut minus, mut plus) = (0.0, 0.0);
        for &k in self.elements(subject).iter() {
            let (u, v) = (f64::from(after[k]) / a, f64::from(snapshot[k]) / b);
            minus += (u - v) * (u - v);
            plus += (u + v) * (u + v);
        }
        Drift {
            drift: first.squares,
            snapshot: angle.reference_squares,
            angle: 2.0 * minus.sqrt().atan2(plus.sqrt()),
            first_order: first.dot,
            magnitude: first.magnitude,
        }
    }

    pub fn prediction(&self, step: u64, task: usize) -> Prediction {
        let (now, snapshot) = (self.step(step), &self.tape.snapshots[task]);
        let drift = |k: usize| f64::from(now.after[k]) - f64::from(snapshot[k]);
        let first = self.pair(Subject::Model, drift, |k| self.references[task][k]);
        let path = self.pair(
            Subject::Model,
            |k| f64::from(now.before[k]) - f64::from(snapshot[k]),
            |k| self.references[task][k],
        );
        let batches = &self.tape.references[task];
        let n = batches.len() as f64;
        let projections: Vec<f64> =
            batches.iter().map(|batch| batch.iter().enumerate().map(|(k, g)| f64::from(*g) * drift(k)).sum()).collect();
        let mean = projections.iter().sum::<f64>() / n;
        let variance = projections.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Prediction {
            first_order: first.dot,
            first_order_error: (variance / n).sqrt(),
            quadratic: 0.5 * self.tape.examples * variance,
            path: path.dot,
            // The path is a sum over steps whose parts may be larger than the whole.
            magnitude: 10.0 * (first.magnitude + path.magnitude),
            drift: first.squares,
            reference_squares: first.reference_squares,
        }
    }

    /// From the last `count` sampled steps of the task that was trained at `step`.
    pub fn corrected(&self, step: u64, task: usize, subject: Subject, count: usize) -> Corrected {
        let elements = self.elements(subject);
        let current = self.step(step).task;
        let sampled = (0..=step).filter(|s| s.is_multiple_of(3) && self.step(*s).task == current);
        let sampled: Vec<&Step> = sampled.map(|s| self.step(s)).collect();
        assert_eq!(sampled.len(), count, "fewer steps than the window holds");
        let steps: Vec<Vec<f64>> =
            sampled.iter().map(|s| elements.iter().map(|&k| s.scale * f64::from(s.gradients[k])).collect()).collect();
        let batches: Vec<Vec<f64>> = self.tape.references[task]
            .iter()
            .map(|batch| elements.iter().map(|&k| f64::from(batch[k])).collect())
            .collect();
        let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        let over_pairs = |list: &[Vec<f64>]| -> f64 {
            let n = list.len();
            let pairs = (0..n).flat_map(|i| (0..n).filter(move |&j| j != i).map(move |j| (i, j)));
            pairs.map(|(i, j)| dot(&list[i], &list[j])).sum::<f64>() / (n * (n - 1)) as f64
        };
        let mean_square = |list: &[Vec<f64>]| list.iter().map(|x| dot(x, x)).sum::<f64>() / list.len() as f64;
        let mut total = 0.0;
        for step in &steps {
            total += batches.iter().map(|batch| dot(step, batch)).sum::<f64>();
        }
        Corrected {
            dot: total / (steps.len() * batches.len()) as f64,
            gradient_norm2: over_pairs(&steps),
            reference_norm2: over_pairs(&batches),
            gradient_squares: mean_square(&steps),
            reference_squares: mean_square(&batches),
        }
    }

    /// Of the evaluation of `task` that gave `value`.
    pub fn forgetting(&self, task: usize, value: f64) -> Forgetting {
        let losses = &self.tape.losses;
        let name = &self.tape.tasks[task];
        let position = losses.iter().position(|(_, n, v)| n == name && *v == value).expect("a recorded loss");
        let current = losses[position].0;
        let at_end_of = |trained: usize| -> f64 {
            let mut of_this = losses[..=position].iter().filter(|(c, n, _)| *c == Some(trained) && n == name);
            of_this.next_back().map_or(f64::NAN, |(_, _, v)| *v)
        };
        if current.is_none_or(|current| current <= task) {
            return Forgetting { own: f64::NAN, since_own: f64::NAN, maximum: f64::NAN };
        }
        let own = at_end_of(task);
        let best = (0..current.unwrap()).map(at_end_of).fold(f64::INFINITY, f64::min);
        Forgetting { own, since_own: value - own, maximum: value - best }
    }

    /// Buckets of the coarsest sketch among the slices of a subject; `None` if all of them are kept exactly.
    fn coarsest(&self, subject: Subject) -> Option<usize> {
        let elements = self.elements(subject);
        let hashed = elements.iter().map(|&k| &self.places[k]).filter_map(|place| {
            let buckets = if place.head.is_some() { self.sketch_head } else { self.sketch_matrix };
            (!place.vector && place.slice > buckets).then_some(buckets)
        });
        hashed.min()
    }

    /// Standard deviation of a sketched inner product; an upper bound where slices differ.
    pub fn sketch_error(&self, subject: Subject, xx: f64, yy: f64, xy: f64) -> f64 {
        self.coarsest(subject).map_or(0.0, |buckets| ((xx * yy + xy * xy) / buckets as f64).sqrt())
    }

    /// Error of sketched squared norms and their like, as a share of them: five and a half standard errors √(2/m).
    pub fn sketch_share(&self) -> f64 {
        self.coarsest(Subject::Model).map_or(1e-4, |buckets| 5.5 * (2.0 / buckets as f64).sqrt())
    }
}
