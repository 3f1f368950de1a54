//! All memory that tensors may lie in: each call goes to the device of the place that it reads.
//!
//! Tensors of one model may lie in different places (embeddings offloaded to the host, layers on several GPUs), and so may
//! the jobs of one call. Cost where all lie in one place, which is the common case: a comparison per job.

use super::cpu::Cpu;
use super::{
    AccumulateFound, AccumulateJob, AttentionFound, AttentionJob, Device, GatherJob, GradientFound, GradientJob, Lost,
    ParameterFound, ParameterJob, Pending, Perturb, Place, RowsJob, ScatterJob, Stream, Values,
};
use std::collections::BTreeMap;

/// The devices of this process.
pub struct Machine {
    cpu: Cpu,
}

impl Machine {
    pub fn new(cpu: Cpu) -> Self {
        Self { cpu }
    }

    /// The device that reads `place`, if this build has one.
    fn device(&self, place: Place) -> Option<&dyn Device> {
        match place {
            Place::Host => Some(&self.cpu),
            Place::Cuda(_) => None,
        }
    }

    /// Hands each job to the device of its place; what is found comes back in the order of the jobs.
    fn share<J, F: Send + 'static>(
        &self,
        jobs: Vec<J>,
        place: impl Fn(&J) -> Place,
        call: impl Fn(&dyn Device, Vec<J>) -> Pending<Vec<F>>,
    ) -> Pending<Vec<F>> {
        let call = |place, jobs| self.device(place).map_or_else(|| lost(place), |device| call(device, jobs));
        let Some(first) = jobs.first().map(&place) else { return Pending::ready(Vec::new()) };
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

fn lost<T: Send + 'static>(place: Place) -> Pending<T> {
    Pending::lost(Lost(format!("there is no device that reads {place}")))
}

impl Device for Machine {
    fn values(&self, place: Place, len: usize) -> Option<Values> {
        self.device(place)?.values(place, len)
    }

    fn copy_values(&self, stream: Stream, source: &Values, target: &mut Values, at: usize) {
        if let Some(device) = self.device(source.place()) {
            device.copy_values(stream, source, target, at);
        }
    }

    fn settle(&self, values: &mut Values) {
        if let Some(device) = self.device(values.place()) {
            device.settle(values);
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
        self.device(place).map_or_else(|| lost(place), |device| device.rows(stream, job))
    }

    fn attention(&self, stream: Stream, job: AttentionJob) -> Pending<AttentionFound> {
        let Some(place) = job.source.place() else {
            return Pending::lost(Lost("queries, keys and log-sum-exp lie in different places".into()));
        };
        self.device(place).map_or_else(|| lost(place), |device| device.attention(stream, job))
    }

    fn memory_bytes(&self, place: Place) -> u64 {
        self.device(place).map_or(0, |device| device.memory_bytes(place))
    }
}

impl Perturb for Machine {
    fn gather(&self, jobs: &mut [GatherJob]) -> u64 {
        let shares = jobs.chunk_by_mut(|one, next| one.read.memory.place == next.read.memory.place);
        let gather = |jobs: &mut [GatherJob]| match self.device(jobs[0].read.memory.place) {
            Some(device) => device.gather(jobs),
            // What cannot be read is no number.
            None => jobs
                .iter_mut()
                .map(|job| {
                    job.values.fill(f32::NAN);
                    job.values.len() as u64
                })
                .sum(),
        };
        shares.map(gather).sum()
    }

    fn scatter(&self, jobs: &mut [ScatterJob]) {
        for jobs in jobs.chunk_by_mut(|one, next| one.target.place == next.target.place) {
            if let Some(device) = self.device(jobs[0].target.place) {
                device.scatter(jobs);
            }
        }
    }

    fn dot(&self, x: &[f32], y: &[f32]) -> f64 {
        self.cpu.dot(x, y)
    }

    fn combine(&self, y: &mut [f32], keep: f64, terms: &[(f64, &[f32])]) {
        self.cpu.combine(y, keep, terms);
    }

    fn multiply(&self, y: &mut [f32], x: &[f32]) {
        self.cpu.multiply(y, x);
    }

    fn signs(&self, y: &mut [f32], seed: u64, scale: f32) {
        self.cpu.signs(y, seed, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DType, Gather, Memory, Segment, SliceRead};
    use crate::sketch::Layout;

    const RUN: [Segment; 1] =
        [Segment { index: 0, index_step: 0, rows: 1, length: 4, offset: 0, row_step: 0, column_step: 1 }];

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
            [host(0), host(1), read(Memory::on_device(at(2), DType::F32, 0))]
        };
        let squares = |found: Vec<GradientFound>| found.iter().map(|found| found.sums.squares).collect::<Vec<_>>();
        let found = machine.gradients(Stream::NULL, vec![job(second), job(first)]).now().expect("host memory");
        assert_eq!(squares(found), [16.0, 4.0]);
        let found = machine.gradients(Stream::NULL, vec![job(first), job(elsewhere), job(second)]);
        assert!(found.wait().unwrap_err().0.contains("CUDA device 0"));
        assert_eq!(in_order(vec![1, 4, 0, 2, 3], "beacd".chars()), ['a', 'b', 'c', 'd', 'e']);
    }

    #[test]
    fn what_cannot_be_reached_is_no_number() {
        let machine = Machine::new(Cpu::new(1).unwrap());
        let data = [1.0f32; 4];
        // SAFETY: there is no device for this place, so nothing is read.
        let memory = unsafe { Memory::on_device(data.as_ptr().cast(), DType::F32, 1) };
        assert!(machine.values(memory.place, 4).is_none());
        assert_eq!(machine.memory_bytes(memory.place), 0);
        let mut values = [0.0; 4];
        let gather = GatherJob { read: read(memory), gather: Gather::Copy, values: &mut values };
        assert_eq!(machine.gather(&mut [gather]), 4);
        assert!(values.iter().all(|value| value.is_nan()));
    }
}
