//! The latest sampled gradients of the current task, as sketches: for noise correction, and as the trailing reference.

use crate::scope::catalog::Slice;
use crate::sketch::algebra::{add_scaled, dot, norm2};
use std::collections::VecDeque;

/// A window of sketches over the whole model.
#[derive(Debug)]
pub struct Window {
    capacity: usize,
    /// Scaled gradients' sketches, and per slice their squared norms.
    steps: VecDeque<(Vec<f32>, Vec<f64>)>,
    /// Slices that every step of the window measured.
    measured: Vec<bool>,
    /// Steps taken in since the task began.
    pub seen: u64,
}

/// Inner products of the window's steps, per step and slice.
pub struct WindowSums {
    pub mean: Vec<f32>,
    pub squares: Vec<Vec<f64>>,
    pub with_sum: Vec<Vec<f64>>,
}

impl Window {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, steps: VecDeque::new(), measured: Vec::new(), seen: 0 }
    }

    pub fn clear(&mut self) {
        self.steps.clear();
        self.measured.clear();
        self.seen = 0;
    }

    /// Whether a step that measured these slices belongs to the window. Where tensors are sampled at different steps, only
    /// the steps that measured most are comparable with each other: in the others a slice would count as zero.
    pub fn takes(&self, measured: &[bool]) -> bool {
        let count = |measured: &[bool]| measured.iter().filter(|measured| **measured).count();
        count(measured) > 0 && count(measured) >= count(&self.measured)
    }

    /// Takes a step in and the oldest out.
    pub fn push(&mut self, sketch: Vec<f32>, measured: Vec<bool>, slices: &[Slice]) {
        if self.capacity == 0 {
            return;
        }
        if self.measured != measured {
            self.steps.clear();
            self.measured = measured;
        }
        if self.steps.len() == self.capacity {
            self.steps.pop_front();
        }
        let squares = slices.iter().map(|slice| norm2(&sketch[slice.buckets()])).collect();
        self.steps.push_back((sketch, squares));
        self.seen += 1;
    }

    /// The model grew.
    pub fn resize(&mut self, buckets: usize, slices: usize) {
        for (sketch, squares) in &mut self.steps {
            sketch.resize(buckets, 0.0);
            squares.resize(slices, 0.0);
        }
        if !self.measured.is_empty() {
            self.measured.resize(slices, false);
        }
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The slice was measured in every step of the window.
    pub fn measures(&self, slice: usize) -> bool {
        self.measured.get(slice).is_some_and(|measured| *measured)
    }

    /// The window's sketches, oldest first.
    pub fn sketches(&self) -> impl Iterator<Item = &Vec<f32>> {
        self.steps.iter().map(|(sketch, _)| sketch)
    }

    /// What the noise correction needs of the steps.
    pub fn sums(&self, slices: &[Slice]) -> WindowSums {
        let mut sum = vec![0.0; self.steps.front().map_or(0, |(sketch, _)| sketch.len())];
        self.sketches().for_each(|sketch| add_scaled(&mut sum, 1.0, sketch));
        let with_sum = self
            .sketches()
            .map(|sketch| slices.iter().map(|s| dot(&sketch[s.buckets()], &sum[s.buckets()])).collect())
            .collect();
        let factor = 1.0 / self.len().max(1) as f32;
        let mean = sum.iter().map(|x| x * factor).collect();
        WindowSums { mean, squares: self.steps.iter().map(|(_, squares)| squares.clone()).collect(), with_sum }
    }
}
