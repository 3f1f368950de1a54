//! The device, and the order in which it works.

use crate::device::{GatherJob, Machine, Perturb, ScatterJob, Stream, Values};

/// The devices as a call uses them: what is enqueued now comes after what `stream` holds already.
pub struct Queue {
    pub device: Machine,
    /// Of the call that is going on, or of the latest one that named a stream.
    pub stream: Stream,
}

impl Queue {
    pub fn new(device: Machine) -> Self {
        Self { device, stream: Stream::NULL }
    }
}

/// Vectors are in host memory; what is moved lies where the jobs say.
impl Perturb for Queue {
    fn gather(&self, jobs: &mut [GatherJob]) -> u64 {
        self.device.gather(self.stream, jobs)
    }

    fn read(&self, values: &Values, out: &mut [f32]) -> bool {
        self.device.read(self.stream, values, out)
    }

    fn scatter(&self, jobs: &mut [ScatterJob]) -> bool {
        self.device.scatter(self.stream, jobs)
    }

    fn dot(&self, x: &[f32], y: &[f32]) -> f64 {
        self.device.cpu().dot(x, y)
    }

    fn combine(&self, y: &mut [f32], keep: f64, terms: &[(f64, &[f32])]) {
        self.device.cpu().combine(y, keep, terms);
    }

    fn multiply(&self, y: &mut [f32], x: &[f32]) {
        self.device.cpu().multiply(y, x);
    }

    fn signs(&self, y: &mut [f32], seed: u64, scale: f32) {
        self.device.cpu().signs(y, seed, scale);
    }
}
