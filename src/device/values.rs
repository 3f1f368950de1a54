//! Values that the library keeps of a slice: references, snapshots, copies.
//!
//! They lie where the device that compares with them can read them. Host values carry their peak and sum of squares,
//! which the CPU needs before a pass; a CUDA device takes both within the pass.

use super::cuda::CudaValues;
use super::{DType, Place};

/// What values are kept for, which decides how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// A sum of gradients, which is added to batch by batch and compared with in between.
    Sum,
    /// A copy of parameters of this type, without loss.
    Copy(DType),
}

/// Which memory they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// That of the tensors that they are compared with.
    Near,
    /// Pinned memory of the host, which a device reads across the bus.
    Pinned,
}

/// How a CUDA device keeps sums of gradients while nothing is added to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    #[default]
    F32,
    /// Half the memory and traffic; each value is rounded by up to 2⁻⁸ of itself.
    Bf16,
    /// A quarter: OCP e4m3 in blocks of 32 values with a common power of two. Values are rounded by up to 2⁻⁴ of themselves,
    /// those below 2⁻¹³ of their block's largest by up to 2⁻¹⁷ of that.
    E4m3,
}

impl std::str::FromStr for Packing {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "e4m3" => Ok(Self::E4m3),
            _ => Err(()),
        }
    }
}

/// Numbers in memory that one device reads and writes.
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

    /// Bytes that they take.
    pub fn bytes(&self) -> u64 {
        match &self.storage {
            Storage::Host(host) => 4 * host.values.len() as u64,
            Storage::Cuda(cuda) => cuda.bytes(),
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

    /// The same for writing.
    pub fn cuda_mut(&mut self) -> Option<&mut CudaValues> {
        match &mut self.storage {
            Storage::Host(_) => None,
            Storage::Cuda(cuda) => Some(cuda),
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
