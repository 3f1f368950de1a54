//! Values that the library keeps of a slice: references, snapshots, copies.
//!
//! They lie where the device that compares with them can read them. Host values carry their peak and sum of squares,
//! which the CPU needs before a pass; a CUDA device takes both within the pass.

use super::Place;
use super::cuda::CudaValues;

/// fp32 numbers in memory that one device reads and writes.
#[derive(Debug)]
pub struct Values {
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Host(HostValues),
    Cuda(CudaValues),
}

/// Values in host memory.
#[derive(Debug)]
pub struct HostValues {
    pub values: Vec<f32>,
    /// Σ v², as of the last time that they settled.
    pub squares: f64,
    /// max |v|, likewise.
    pub peak: f32,
}

impl Values {
    /// Zeros in host memory.
    pub fn zeros(len: usize) -> Self {
        Self::from(vec![0.0; len])
    }

    pub fn len(&self) -> usize {
        match &self.storage {
            Storage::Host(host) => host.values.len(),
            Storage::Cuda(cuda) => cuda.len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where reads must lie to be compared with these values.
    pub fn place(&self) -> Place {
        match &self.storage {
            Storage::Host(_) => Place::Host,
            Storage::Cuda(cuda) => Place::Cuda(cuda.ordinal()),
        }
    }

    /// The values, if they lie in host memory.
    pub fn host(&self) -> Option<&HostValues> {
        match &self.storage {
            Storage::Host(host) => Some(host),
            Storage::Cuda(_) => None,
        }
    }

    /// The same for writing.
    pub fn host_mut(&mut self) -> Option<&mut HostValues> {
        match &mut self.storage {
            Storage::Host(host) => Some(host),
            Storage::Cuda(_) => None,
        }
    }

    /// The values, if they lie where a CUDA device keeps them.
    pub fn cuda(&self) -> Option<&CudaValues> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Cuda(cuda) => Some(cuda),
        }
    }
}

impl From<CudaValues> for Values {
    fn from(cuda: CudaValues) -> Self {
        Self { storage: Storage::Cuda(cuda) }
    }
}

impl From<Vec<f32>> for Values {
    /// Values whose peak and squares are not known yet.
    fn from(values: Vec<f32>) -> Self {
        Self { storage: Storage::Host(HostValues { values, squares: 0.0, peak: 0.0 }) }
    }
}
