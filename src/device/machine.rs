//! All memory that tensors may lie in: each call goes to the device of the place that it reads.
//!
//! Tensors of one model may lie in different places (embeddings offloaded to the host, layers on several GPUs), and so may
//! the jobs of one call. Cost where all lie in one place, which is the common case: a comparison per job.

use super::cpu::Cpu;
use super::cuda::{Cuda, CudaError, Replays};
use super::{
    AccumulateFound, AccumulateJob, AttentionFound, AttentionJob, Device, GatherJob, GradientFound, GradientJob, Home,
    Keeping, Lost, Packing, ParameterFound, ParameterJob, Pending, Perturb, Place, RowsJob, ScatterJob, Stream, Values,
};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// More than any machine has.
const CUDA_DEVICES: usize = 64;

/// The devices of this process.
pub struct Machine {
    cpu: Cpu,
    /// By ordinal, from the first time that memory of theirs is named and they could be opened.
    cuda: [OnceLock<Arc<Cuda>>; CUDA_DEVICES],
    packing: Packing,
}

impl Machine {
    pub fn new(cpu: Cpu) -> Self {
        Self { cpu, cuda: [const { OnceLock::new() }; CUDA_DEVICES], packing: Packing::default() }
    }

    /// The same, with sums of gradients on CUDA devices kept like this.
    pub fn with_packing(self, packing: Packing) -> Self {
        Self { packing, ..self }
    }

    /// The device that reads `place`, or why there is none.
    fn device(&self, place: Place) -> Result<&dyn Device, CudaError> {
        match place {
            Place::Host => Ok(&self.cpu),
            Place::Cuda(ordinal) => self.cuda(ordinal).map(|cuda| cuda as &dyn Device),
        }
    }

    fn cuda(&self, ordinal: u32) -> Result<&Arc<Cuda>, CudaError> {
        let none = || CudaError::Pointer(format!("there are at most {CUDA_DEVICES} CUDA devices"));
        let device = self.cuda.get(ordinal as usize).ok_or_else(none)?;
        match device.get() {
            Some(cuda) => Ok(cuda),
            // Not remembered where it fails: a device that has no memory now may have some when the next tensor is bound.
            None => Cuda::open(ordinal, self.packing).map(|cuda| device.get_or_init(|| cuda)),
        }
    }

    /// The devices that were opened.
    fn opened(&self) -> impl Iterator<Item = &Arc<Cuda>> {
        self.cuda.iter().filter_map(OnceLock::get)
    }

    /// Gets the device that reads `place` ready; says why where there is none.
    pub fn reach(&self, place: Place) -> Result<(), CudaError> {
        match place {
            Place::Host => Ok(()),
            Place::Cuda(ordinal) => {
                let failure = self.cuda(ordinal)?.failure();
                failure.map_or(Ok(()), |reason| Err(CudaError::Failed(reason)))
            }
        }
    }

    /// The device whose stream this is, if the stream is being captured into a graph.
    fn capturing(&self, stream: Stream) -> Option<&Arc<Cuda>> {
        // The legacy default stream cannot be captured.
        let mut open = self.opened().filter(|_| stream != Stream::NULL);
        open.find(|cuda| cuda.is_capturing(stream))
    }

    /// Work on the stream goes into a graph instead of running.
    pub fn is_capturing(&self, stream: Stream) -> bool {
        self.capturing(stream).is_some()
    }

    /// Passes on `stream` go into a graph from now on, of whose replays every so many-th is measured.
    pub fn begin_capture(&self, stream: Stream, every: u64) -> Result<Arc<Replays>, CudaError> {
        let none = || CudaError::Pointer("the stream is not being captured".into());
        self.capturing(stream).ok_or_else(none)?.begin_capture(stream, every)
    }

    /// The step that is captured is complete.
    pub fn end_capture(&self) {
        self.opened().for_each(|cuda| cuda.end_capture());
    }

    /// Waits until devices have run what was enqueued on them, graphs too. What cannot be waited for is not.
    pub fn wait_all(&self) {
        self.opened().for_each(|cuda| cuda.wait_all());
    }

    /// The same at the end: what has not landed then never will.
    pub fn settle_all(&self) {
        self.opened().for_each(|cuda| cuda.settle_all());
    }

    /// Hands each job to the device of its place; what is found comes back in the order of the jobs.
    fn share<J, F: Send + 'static>(
        &self,
        jobs: Vec<J>,
        place: impl Fn(&J) -> Place,
        call: impl Fn(&dyn Device, Vec<J>) -> Pending<Vec<F>>,
    ) -> Pending<Vec<F>> {
        let call =
            |place, jobs| self.device(place).map_or_else(|error| lost(place, &error), |device| call(device, jobs));
        let Some(first) = jobs.first().map(&place) else { return Pending::nothing() };
        if jobs.iter().all(|job| place(job) == first) {
            return call(first, jobs);
        }
        let count = jobs.len();
        let mut shares: BTreeMap<Place, (Vec<usize>, Vec<J>)> = BTreeMap::new();
        for (number, job) in jobs.into_iter().enumerate() {
            let (numbers, share) = shares.entry(place(&job)).or_default();
            numbers.push(number);
            share.push(job);
        }
        let (mut numbers, mut found) = (Vec::with_capacity(count), Vec::with_capacity(shares.len()));
        for (place, (of_share, share)) in shares {
            numbers.extend(of_share);
            found.push(call(place, share));
        }
        Pending::all(found).map(move |found| in_order(numbers, found.into_iter().flatten()))
    }
}

/// The results in the order of the numbers that they belong to.
fn in_order<F>(numbers: Vec<usize>, found: impl Iterator<Item = F>) -> Vec<F> {
    let mut numbered: Vec<_> = numbers.into_iter().zip(found).collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, found)| found).collect()
}

fn lost<T: Send + 'static>(place: Place, error: &CudaError) -> Pending<T> {
    Pending::lost(Lost(format!("no device reads {place}: {error}")))
}

impl Device for Machine {
    fn values(&self, place: Place, len: usize, keeping: Keeping, home: Home) -> Option<Values> {
        self.device(place).ok()?.values(place, len, keeping, home)
    }

    fn value_bytes(&self, place: Place, len: usize, keeping: Keeping) -> u64 {
        self.device(place).map_or(0, |device| device.value_bytes(place, len, keeping))
    }

    fn copy_values(&self, stream: Stream, source: &Values, target: &mut Values, at: usize) -> bool {
        self.device(source.place()).is_ok_and(|device| device.copy_values(stream, source, target, at))
    }

    fn settle(&self, stream: Stream, values: &mut Values) {
        if let Ok(device) = self.device(values.place()) {
            device.settle(stream, values);
        }
    }

    fn gradients(&self, stream: Stream, jobs: Vec<GradientJob>) -> Pending<Vec<GradientFound>> {
        self.share(jobs, |job| job.read.memory.place, |device, jobs| device.gradients(stream, jobs))
    }

    fn accumulate(&self, stream: Stream, jobs: Vec<AccumulateJob>) -> Pending<Vec<AccumulateFound>> {
        self.share(jobs, |job| job.read.memory.place, |device, jobs| device.accumulate(stream, jobs))
    }

    fn parameters(&self, stream: Stream, jobs: Vec<ParameterJob>) -> Pending<Vec<ParameterFound>> {
        self.share(jobs, |job| job.read.memory.place, |device, jobs| device.parameters(stream, jobs))
    }

    fn rows(&self, stream: Stream, job: RowsJob) -> Pending<Vec<f32>> {
        let place = job.memory.place;
        self.device(place).map_or_else(|error| lost(place, &error), |device| device.rows(stream, job))
    }

    fn attention(&self, stream: Stream, job: AttentionJob) -> Pending<AttentionFound> {
        let Some(place) = job.source.place() else {
            return Pending::lost(Lost("queries, keys and log-sum-exp lie in different places".into()));
        };
        self.device(place).map_or_else(|error| lost(place, &error), |device| device.attention(stream, job))
    }

    fn memory_bytes(&self, place: Place) -> u64 {
        self.device(place).map_or(0, |device| device.memory_bytes(place))
    }
}

/// Moving parameters. Vectors are in host memory, and algebra on them is the CPU's.
impl Machine {
    /// Reads slices into vectors, and waits for them. Returns how many values are not finite afterwards.
    pub fn gather(&self, stream: Stream, jobs: &mut [GatherJob]) -> u64 {
        let shares = jobs.chunk_by_mut(|one, next| one.read.memory.place == next.read.memory.place);
        let gather = |jobs: &mut [GatherJob]| match jobs[0].read.memory.place {
            Place::Host => self.cpu.gather(jobs),
            Place::Cuda(ordinal) => match self.cuda(ordinal).and_then(|cuda| cuda.gather(stream, jobs)) {
                Ok(bad) => bad,
                // What cannot be read is no number.
                Err(_) => jobs.iter_mut().fold(0, |bad, job| {
                    job.values.fill(f32::NAN);
                    bad + job.values.len() as u64
                }),
            },
        };
        shares.map(gather).sum()
    }

    /// Copies values that the library keeps, and waits for them. `false`: the device failed.
    pub fn read(&self, stream: Stream, values: &Values, out: &mut [f32]) -> bool {
        match values.cuda() {
            None => self.cpu.read(values, out),
            Some(found) => self.cuda(found.ordinal()).is_ok_and(|cuda| cuda.read(stream, found, out)),
        }
    }

    /// Writes slices of the parameters, and waits until that is done. `false`: a device failed.
    pub fn scatter(&self, stream: Stream, jobs: &mut [ScatterJob]) -> bool {
        let shares = jobs.chunk_by_mut(|one, next| one.target.place == next.target.place);
        // Each of them is tried, whatever becomes of the others.
        shares.fold(true, |done, jobs| {
            let is_done = match jobs[0].target.place {
                Place::Host => self.cpu.scatter(jobs),
                Place::Cuda(ordinal) => self.cuda(ordinal).is_ok_and(|cuda| cuda.scatter(stream, jobs)),
            };
            done && is_done
        })
    }

    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DType, Gather, Memory, Segment, SliceRead};
    use crate::sketch::Layout;

    const RUN: [Segment; 1] =
        [Segment { index: 0, index_step: 0, rows: 1, length: 4, offset: 0, row_step: 0, column_step: 1 }];

    /// No machine has a device of this ordinal.
    const NOWHERE: u32 = 1000;

    fn read(memory: Memory) -> SliceRead<'static> {
        SliceRead { layout: Layout::new(4, 4, 1), memory, segments: &RUN }
    }

    fn job(read: SliceRead) -> GradientJob {
        GradientJob { read, references: Vec::new() }
    }

    #[test]
    fn jobs_of_several_places_come_back_in_their_order() {
        let machine = Machine::new(Cpu::new(1).unwrap());
        let data = [[1.0f32; 4], [2.0; 4], [3.0; 4]];
        // SAFETY: the arrays outlive the call; the last one's place has no device, so it is not read.
        let [first, second, elsewhere] = unsafe {
            let at = |k: usize| data[k].as_ptr().cast();
            let host = |k| read(Memory::new(at(k), DType::F32));
            [host(0), host(1), read(Memory::on_device(at(2), DType::F32, NOWHERE))]
        };
        let squares = |found: Vec<GradientFound>| found.iter().map(|found| found.sums.squares).collect::<Vec<_>>();
        let found = machine.gradients(Stream::NULL, vec![job(second), job(first)]).now().expect("host memory");
        assert_eq!(squares(found), [16.0, 4.0]);
        let found = machine.gradients(Stream::NULL, vec![job(first), job(elsewhere), job(second)]);
        assert!(found.wait().unwrap_err().0.contains("CUDA device 1000"));
        assert_eq!(in_order(vec![1, 4, 0, 2, 3], "beacd".chars()), ['a', 'b', 'c', 'd', 'e']);
    }

    #[test]
    fn what_cannot_be_reached_is_no_number() {
        let machine = Machine::new(Cpu::new(1).unwrap());
        let data = [1.0f32; 4];
        // SAFETY: there is no device for this place, so nothing is read.
        let memory = unsafe { Memory::on_device(data.as_ptr().cast(), DType::F32, NOWHERE) };
        assert!(machine.values(memory.place, 4, Keeping::Sum, Home::Near).is_none());
        assert_eq!(machine.memory_bytes(memory.place), 0);
        let mut values = [0.0; 4];
        let gather = GatherJob { read: read(memory), gather: Gather::Copy, values: &mut values };
        assert_eq!(machine.gather(Stream::NULL, &mut [gather]), 4);
        assert!(values.iter().all(|value| value.is_nan()));
    }
}
