//! The Lanczos recurrence over vectors as long as the model.
//!
//! q₁ is a random unit vector; each step takes w = H·q from the trainer, removes from it what lies along the vectors that
//! are kept, and what remains is the next q. With the whole basis kept (full reorthogonalisation) every Ritz value is
//! genuine and eigenvectors can be formed; with only the latest two, ghosts appear, and `stats::spectrum` tells them.
//!
//! Vectors are fp32: rounding them to 2⁻²⁴ is far below the error of products by differences, and inner products are fp64.
//! Cost of a step over n elements: 2k + 1 reads of n for k vectors kept, and two writes.

use crate::device::Perturb;
use crate::stats::spectrum::Recurrence;
use crate::stats::tridiagonal::Eigen;

/// A run of Lanczos.
#[derive(Debug)]
pub struct Lanczos {
    basis: Vec<Vec<f32>>,
    keeps_basis: bool,
    steps: usize,
    /// Relative error of a product: a remainder below it is noise.
    resolution: f64,
    found: Recurrence,
    is_over: bool,
}

impl Lanczos {
    /// Begins from a unit vector.
    pub fn new(start: Vec<f32>, steps: usize, keeps_basis: bool, resolution: f64) -> Self {
        let (found, is_over) = (Recurrence::default(), false);
        Self { basis: vec![start], keeps_basis, steps, resolution, found, is_over }
    }

    /// The vector whose product is wanted.
    pub fn current(&self) -> &[f32] {
        self.basis.last().map_or(&[], Vec::as_slice)
    }

    /// No step was made yet.
    pub fn is_fresh(&self) -> bool {
        self.found.alphas.is_empty()
    }

    /// Every step is made, or nothing but noise remained.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes w = H·current and makes the next vector of it; w becomes a buffer to be used again.
    pub fn advance(&mut self, device: &dyn Perturb, w: &mut Vec<f32>) {
        let alpha = device.dot(self.current(), w);
        // Twice is enough (Kahan; Giraud, Langou & Rozložník 2005): the second pass removes what rounding left of the first.
        for _ in 0..2 {
            let terms: Vec<(f64, &[f32])> = self.basis.iter().map(|q| (-device.dot(q, w), q.as_slice())).collect();
            device.combine(w, 1.0, &terms);
        }
        let beta = device.dot(w, w).sqrt();
        self.found.alphas.push(alpha);
        self.found.betas.push(beta);
        let size = self.found.tridiagonal().norm();
        // NaN ends it as well.
        let goes_on = self.found.alphas.len() < self.steps && beta > self.resolution * size;
        self.is_over = !goes_on;
        if goes_on {
            device.combine(w, 1.0 / beta, &[]);
            let free =
                if !self.keeps_basis && self.basis.len() == 2 { self.basis.remove(0) } else { vec![0.0; w.len()] };
            self.basis.push(std::mem::replace(w, free));
        }
    }

    /// The eigenvectors of the `count` largest eigenvalues, largest first, of a run that kept its basis.
    pub fn eigenvectors(&self, device: &dyn Perturb, count: usize) -> Vec<Vec<f32>> {
        if !self.keeps_basis {
            return Vec::new();
        }
        let Eigen { values, vectors } = self.found.tridiagonal().eigen();
        let largest = self.found.ritz(self.resolution).into_iter().rev().take(count);
        let form = |value: f64| {
            let nearest =
                (0..values.len()).min_by(|&i, &j| (values[i] - value).abs().total_cmp(&(values[j] - value).abs()));
            let coefficients = vectors.get(nearest?)?;
            let terms: Vec<_> = coefficients.iter().zip(&self.basis).map(|(c, q)| (*c, q.as_slice())).collect();
            let mut vector = vec![0.0; self.current().len()];
            device.combine(&mut vector, 0.0, &terms);
            Some(vector)
        };
        largest.filter_map(|ritz| form(ritz.value)).collect()
    }

    pub fn into_recurrence(self) -> Recurrence {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Perturb, cpu::Cpu};

    /// A diagonal matrix: a product is a product of elements.
    fn run(device: &Cpu, eigenvalues: &[f32], steps: usize, keeps_basis: bool) -> Lanczos {
        let n = eigenvalues.len();
        let mut start = vec![0.0; n];
        device.signs(&mut start, 3, (1.0 / (n as f64).sqrt()) as f32);
        let mut lanczos = Lanczos::new(start, steps, keeps_basis, 1e-6);
        let mut w = vec![0.0; n];
        while !lanczos.is_over() {
            w.copy_from_slice(lanczos.current());
            device.multiply(&mut w, eigenvalues);
            lanczos.advance(device, &mut w);
        }
        lanczos
    }

    #[test]
    fn finds_the_ends_and_their_eigenvectors() {
        let n = 1001;
        let device = Cpu::new(2).unwrap();
        let eigenvalues: Vec<f32> = (0..n).map(|k| if k == 7 { 50.0 } else { k as f32 / n as f32 - 0.5 }).collect();
        let lanczos = run(&device, &eigenvalues, 40, true);
        let vectors = lanczos.eigenvectors(&device, 2);
        assert_eq!(vectors.len(), 2);
        // Rounding of the basis to fp32, amplified by nothing: the gap is the whole of the norm.
        assert!(vectors[0][7].abs() > 1.0 - 1e-6);
        assert!((device.dot(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-5);
        assert!(device.dot(&vectors[0], &vectors[1]).abs() < 1e-5);
        let ritz = lanczos.into_recurrence().ritz(1e-6);
        assert!((ritz.last().unwrap().value - 50.0).abs() < 1e-4, "{ritz:?}");
        assert!((ritz[0].value + 0.5).abs() < 0.02);
    }

    #[test]
    fn two_vectors_see_ghosts_and_the_same_spectrum() {
        let n = 500;
        let device = Cpu::new(1).unwrap();
        let eigenvalues: Vec<f32> =
            (0..n).map(|k| [40.0, 25.0, 9.0].get(k).copied().unwrap_or(k as f32 / 600.0)).collect();
        let found = run(&device, &eigenvalues, 150, false).into_recurrence();
        let copies = found.tridiagonal().eigenvalues().iter().filter(|x| (*x - 40.0).abs() < 1e-3).count();
        assert!(copies > 1, "{copies}");
        let ritz = found.ritz(6e-5);
        let large: Vec<f64> = ritz.iter().rev().take_while(|r| r.value > 1.0).map(|r| r.value).collect();
        assert_eq!(large.len(), 3, "{large:?}");
        for (value, exact) in large.iter().zip([40.0, 25.0, 9.0]) {
            assert!((value - exact).abs() < 6e-5 * 40.0, "{value} {exact}");
        }
    }

    #[test]
    fn ends_when_only_noise_remains() {
        let device = Cpu::new(1).unwrap();
        let eigenvalues: Vec<f32> = (0..200).map(|k| if k < 3 { 1.0 + k as f32 } else { 0.0 }).collect();
        // Three eigenvalues and zero: four steps say everything.
        assert_eq!(run(&device, &eigenvalues, 32, true).into_recurrence().alphas.len(), 4);
        assert_eq!(run(&device, &vec![0.0; 200], 32, true).into_recurrence().alphas, [0.0]);
    }
}
