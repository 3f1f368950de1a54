//! The CPU device against fp64 sums, for every type, layout and instruction set.

mod device_support;

use device_support::{TYPES, elements, encode, segment, values};
use forgetscope::device::cpu::{Cpu, kernels::Kernels};
use forgetscope::device::{
    AccumulateFound, AccumulateJob, Copy, DType, Device, GradientFound, GradientJob, GradientSums, Home, Keeping, Kept,
    Memory, PairSums, ParameterFound, ParameterJob, Place, Segment, SliceRead, Span, Stream, TaskJob, Values,
};
use forgetscope::sketch::hash::mix;
use forgetscope::sketch::{Layout, add};
use proptest::prelude::*;

/// Relative error of a sum of squares or products: 64 fp32 terms a lane, one rounding of each term, two of the lanes of four accumulators.
const BOUND: f64 = 68.0 * 5.960_464_477_539_063e-8;

/// A buffer of some type, and the fp32 values that a reader of it sees.
struct Buffer {
    bytes: Vec<u64>,
    dtype: DType,
    seen: Vec<f32>,
}

impl Buffer {
    fn new(dtype: DType, source: &[f32]) -> Self {
        let (bytes, seen) = encode(dtype, source);
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..part.len()].copy_from_slice(part);
            *word = u64::from_ne_bytes(whole);
        }
        Self { bytes: words, dtype, seen }
    }

    fn memory(&self) -> Memory {
        // SAFETY: the buffer outlives every use in these tests, and segments stay inside it.
        unsafe { Memory::new(self.bytes.as_ptr().cast(), self.dtype) }
    }
}

fn devices() -> Vec<Cpu> {
    let mut devices: Vec<Cpu> =
        Kernels::available().into_iter().map(|kernels| Cpu::with_kernels(2, kernels).unwrap()).collect();
    devices.push(Cpu::new(1).unwrap());
    devices.push(Cpu::new(3).unwrap());
    devices
}

/// Values as the device keeps them: settled.
fn kept_values(device: &Cpu, values: &[f32]) -> Values {
    let mut kept = Values::from(values.to_vec());
    device.settle(Stream::NULL, &mut kept);
    kept
}

fn gradient(device: &Cpu, job: GradientJob) -> GradientFound {
    device.gradients(Stream::NULL, vec![job]).wait().unwrap().remove(0)
}

fn accumulate(device: &Cpu, job: AccumulateJob) -> AccumulateFound {
    device.accumulate(Stream::NULL, vec![job]).wait().unwrap().remove(0)
}

fn parameter(device: &Cpu, job: ParameterJob) -> ParameterFound {
    device.parameters(Stream::NULL, vec![job]).wait().unwrap().remove(0)
}

/// The numbers of values in host memory.
fn floats(values: &Values) -> &[f32] {
    &values.host().unwrap().values
}

/// What one gradient job gives, as bits.
fn run_gradient(device: &Cpu, read: SliceRead, reference: Kept) -> (GradientSums, PairSums, Vec<u32>) {
    let found = gradient(device, GradientJob { read, references: vec![Some(reference), None] });
    assert_eq!(found.sketch.len(), read.layout.buckets);
    assert_eq!(found.pairs[1], PairSums::default(), "no reference, no sums");
    (found.sums, found.pairs[0], found.sketch.iter().map(|x| x.to_bits()).collect())
}

fn check_gradient(dtype: DType, segments: &[Segment], numel: u64, source: &[f32], buckets: usize) {
    let buffer = Buffer::new(dtype, source);
    let layout = Layout::new(numel, buckets, mix(numel));
    let read = SliceRead { layout, memory: buffer.memory(), segments };
    let span = Span::of(segments);
    let reference = values(99, span.len());
    let devices = devices();
    let held = kept_values(&devices[0], &reference);
    let kept = Kept { span, values: &held };
    let first = run_gradient(&devices[0], read, kept);
    for device in &devices[1..] {
        assert_eq!(run_gradient(device, read, kept), first, "same bits on every instruction set and thread count");
    }

    let (sums, pair, sketch) = first;
    let elements = elements(&buffer.seen, segments);
    let finite: Vec<(u64, f32)> = elements.iter().copied().filter(|(_, x)| x.is_finite()).collect();
    assert_eq!(sums.count, elements.len() as u64);
    assert_eq!(sums.non_finite, (elements.len() - finite.len()) as u64);
    let squares: f64 = finite.iter().map(|&(_, x)| f64::from(x) * f64::from(x)).sum();
    assert!((sums.squares - squares).abs() <= BOUND * squares, "{} {squares}", sums.squares);
    assert_eq!(sums.peak, finite.iter().fold(0.0f32, |m, (_, x)| m.max(x.abs())));
    let products: Vec<f64> =
        finite.iter().map(|&(index, x)| f64::from(x) * f64::from(reference[(index - span.start) as usize])).collect();
    let magnitude: f64 = products.iter().map(|p| p.abs()).sum();
    assert!((pair.dot - products.iter().sum::<f64>()).abs() <= BOUND * magnitude);
    let opposing: f64 = products.iter().filter(|p| **p < 0.0).map(|p| -p).sum();
    assert!((pair.opposing - opposing).abs() <= BOUND * magnitude);
    assert_eq!(pair.conflicts, products.iter().filter(|p| **p < 0.0).count() as u64);
    assert_eq!(pair.active, products.iter().filter(|p| **p != 0.0).count() as u64);
    let dot_squares: f64 = products.iter().map(|p| p * p).sum();
    assert!((pair.dot_squares - dot_squares).abs() <= 2.0 * BOUND * dot_squares);
    // Over the whole span: where a shard has holes, the reference has zeros in the library.
    let squares: f64 = reference.iter().map(|&r| f64::from(r) * f64::from(r)).sum();
    assert!((pair.reference_squares - squares).abs() <= BOUND * squares);
    let mut oracle = vec![0.0; layout.buckets];
    finite.iter().for_each(|&(index, x)| add(&layout, index, &[x], &mut oracle));
    // A bucket sums |x| in fp32: numel/buckets terms, each rounding by 2⁻²⁴ of the running sum.
    let terms = numel as f64 / layout.buckets as f64 + 8.0;
    let largest = oracle.iter().fold(f64::from(sums.peak), |m, x| m.max(x.abs()));
    for (bucket, oracle) in sketch.iter().zip(&oracle) {
        let error = (f64::from(f32::from_bits(*bucket)) - oracle).abs();
        assert!(error <= terms * 2f64.powi(-24) * largest * 4.0, "{error}");
    }
}

#[test]
fn every_type_contiguous_and_strided() {
    let source = values(1, 300_000);
    for dtype in TYPES {
        check_gradient(dtype, &[segment(1, 200_000, 3, 0, 1)], 200_000, &source, 1024);
        check_gradient(dtype, &[segment(500, 32, 64, 512, 1)], 16_000, &source, 1024);
        check_gradient(dtype, &[segment(100, 40, 1, 2, 700)], 4_000, &source, 1024);
    }
}

#[test]
fn slices_of_several_units_have_the_same_bits_on_any_number_of_threads() {
    let source = values(2, 2_500_000);
    check_gradient(DType::F32, &[segment(1, 2_500_000, 0, 0, 1)], 2_500_000, &source, 16_384);
    check_gradient(DType::Bf16, &[segment(1, 2_499_999, 1, 0, 1)], 2_499_999, &source, 16_384);
}

#[test]
fn non_finite_values_are_zeroed_and_counted() {
    let mut source = values(3, 10_000);
    for (index, bad) in [(0, f32::NAN), (4095, f32::INFINITY), (4096, f32::NEG_INFINITY), (9_999, f32::NAN)] {
        source[index] = bad;
    }
    for dtype in TYPES {
        check_gradient(dtype, &[segment(1, 10_000, 0, 0, 1)], 10_000, &source, 1024);
    }
    check_gradient(DType::F32, &[segment(1, 5_000, 0, 0, 1)], 5_000, &vec![f32::NAN; 5_000], 1024);
    check_gradient(DType::F32, &[segment(1, 5_000, 0, 0, 1)], 5_000, &vec![0.0; 5_000], 1024);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Up to three rectangles of a slice, cut anywhere, as a flat shard of a head leaves them.
    #[test]
    fn ragged_shards(start in 0u64..9_000, lengths in prop::collection::vec(1u64..9_000, 1..4), kind in 0usize..6) {
        let dtype = TYPES[kind];
        let (mut segments, mut index, mut offset) = (Vec::new(), start, 5i64);
        for length in lengths {
            segments.push(Segment { index, index_step: 0, rows: 1, length, offset, row_step: 0, column_step: 1 });
            index += length + start % 300;
            offset += length as i64 + 7;
        }
        check_gradient(dtype, &segments, index + 100, &values(start, offset as usize), 1024);
    }
}

#[test]
fn references_accumulate() {
    let source = values(4, 30_000);
    let buffer = Buffer::new(DType::Bf16, &source);
    let segments = [segment(100, 200, 0, 300, 1)];
    let span = Span::of(&segments);
    let layout = Layout::new(20_000, 1024, 5);
    let read = SliceRead { layout, memory: buffer.memory(), segments: &segments };
    let device = Cpu::new(2).unwrap();
    // A sum that reaches further than what is read.
    let wide = Span { start: span.start, end: span.end + 100 };
    let mut sum = device.values(Place::Host, wide.len(), Keeping::Sum, Home::Near).unwrap();
    let mut sketch = Vec::new();
    for _ in 0..3 {
        let found = accumulate(&device, AccumulateJob { read, scale: 0.25, sum: Some((wide, &mut sum)) });
        assert_eq!(found.sums.count, 20_000);
        sketch = found.sketch;
    }
    let sum = floats(&sum);
    assert!(sum[span.len()..].iter().all(|x| *x == 0.0));
    let mut oracle = vec![0.0; 1024];
    for (index, x) in elements(&buffer.seen, &segments) {
        // A multiple of a bf16 number by 3/4 is exact in fp32.
        assert_eq!(sum[index as usize], 0.75 * x);
        add(&layout, index, &[0.25 * x], &mut oracle);
    }
    assert!(sketch.iter().zip(&oracle).all(|(s, o)| (f64::from(*s) - o).abs() < 1e-4));
}

#[test]
fn updates_and_drift() {
    let (old, new) = (values(6, 50_000), values(7, 50_000));
    // A small update, as optimizers make them.
    let new: Vec<f32> = old.iter().zip(&new).map(|(x, y)| x + 1e-3 * y).collect();
    let (snapshot, reference) = (values(8, 50_000), values(9, 50_000));
    let buffer = Buffer::new(DType::F32, &new);
    let segments = [segment(1, 50_000, 0, 0, 1)];
    let span = Span::of(&segments);
    let layout = Layout::new(50_000, 16_384, 5);
    let read = SliceRead { layout, memory: buffer.memory(), segments: &segments };
    let device = Cpu::new(2).unwrap();
    let [of_reference, of_snapshot] = [&reference, &snapshot].map(|values| kept_values(&device, values));
    let kept = |values| Some(Kept { span, values });
    let mut copy = Values::from(old.clone());
    let task = TaskJob {
        reference: kept(&of_reference),
        anchor: kept(&of_reference),
        snapshot: kept(&of_snapshot),
        drift_sketch: true,
    };
    let job = parameter(
        &device,
        ParameterJob {
            read,
            copy: Some(Copy { span, values: &mut copy, compare: true, replace: true }),
            update_sketch: true,
            sketch: true,
            tasks: vec![task],
        },
    );
    let sum = |f: &dyn Fn(usize) -> f64| (0..50_000).map(f).sum::<f64>();
    // Differences are fp32, as the optimizer's own arithmetic is.
    let delta = |k: usize| f64::from(new[k] - old[k]);
    let drift = |k: usize| f64::from(new[k] - snapshot[k]);
    let close = |found: f64, exact: f64, magnitude: f64| {
        assert!((found - exact).abs() <= BOUND * magnitude, "{found} {exact}");
    };
    let squares = |f: &dyn Fn(usize) -> f64| sum(&|k| f(k) * f(k));
    close(job.update.weights, squares(&|k| f64::from(new[k])), squares(&|k| f64::from(new[k])));
    close(job.update.updates, squares(&delta), squares(&delta));
    let task = &job.tasks[0];
    let product = |k: usize| delta(k) * f64::from(reference[k]);
    close(task.update.dot, sum(&product), sum(&|k| product(k).abs()));
    close(task.drift.drift, squares(&drift), squares(&drift));
    let old_squares = squares(&|k| f64::from(snapshot[k]));
    close(task.drift.snapshot, old_squares, old_squares);
    let product = |k: usize| drift(k) * f64::from(snapshot[k]);
    close(task.drift.drift_dot_snapshot, sum(&product), sum(&|k| product(k).abs()));
    let product = |k: usize| drift(k) * f64::from(reference[k]);
    close(task.drift.reference_dot, sum(&product), sum(&|k| product(k).abs()));
    let reference_squares = squares(&|k| f64::from(reference[k]));
    close(task.update.reference_squares, reference_squares, reference_squares);
    assert_eq!(floats(&copy), new, "the copy was replaced after it was compared");
    let mut oracle = vec![0.0; 16_384];
    add(&layout, 0, &new, &mut oracle);
    assert_eq!(job.sketch, oracle, "fp64 buckets, one unit: the same additions in the same order");
}

/// Everything that the three passes give for a slice of several waves of units, as bits.
fn all_passes(device: &Cpu, source: &[f32], before: &[f32]) -> (Vec<u64>, Vec<f32>, Vec<f32>) {
    let buffer = Buffer::new(DType::F32, source);
    let segments = [segment(1, source.len() as u64, 0, 0, 1)];
    let span = Span::of(&segments);
    let layout = Layout::new(source.len() as u64, 1 << 20, 5);
    let read = SliceRead { layout, memory: buffer.memory(), segments: &segments };
    let held = kept_values(device, before);
    let kept = Kept { span, values: &held };
    let (sums, pair, mut sketches) = run_gradient(device, read, kept);
    let (mut sum, mut copy) = (Values::from(before.to_vec()), Values::from(before.to_vec()));
    let found = accumulate(device, AccumulateJob { read, scale: 0.5, sum: Some((span, &mut sum)) });
    assert_eq!(found.sums, sums);
    sketches.extend(found.sketch.iter().map(|x| x.to_bits()));
    let task = TaskJob { reference: Some(kept), anchor: Some(kept), snapshot: Some(kept), drift_sketch: true };
    let copied = Some(Copy { span, values: &mut copy, compare: true, replace: true });
    let job = ParameterJob { read, copy: copied, update_sketch: true, sketch: true, tasks: vec![task] };
    let ParameterFound { update, update_sketch, sketch: wide, tasks } = parameter(device, job);
    let (update_pair, drift, drift_sketch) = (tasks[0].update, tasks[0].drift, &tasks[0].drift_sketch);
    let counts = [sums.count, pair.conflicts, update.count, update_pair.conflicts, update_pair.active];
    let numbers = [sums.squares, pair.dot, update.weights, update.updates, update_pair.dot, drift.drift];
    let mut bits: Vec<u64> = counts.into_iter().chain(numbers.map(f64::to_bits)).collect();
    bits.extend([drift.drift_dot_snapshot.to_bits(), drift.reference_dot.to_bits()]);
    bits.extend(wide.iter().map(|x| x.to_bits()));
    bits.extend(update_sketch.iter().chain(drift_sketch).map(|x| u64::from(x.to_bits())));
    bits.extend(sketches.into_iter().map(u64::from));
    (bits, floats(&sum).to_vec(), floats(&copy).to_vec())
}

#[test]
fn several_waves_have_the_same_bits_on_any_number_of_threads() {
    let (source, before) = (values(11, 3_300_000), values(12, 3_300_000));
    let (bits, sum, copy) = all_passes(&Cpu::new(1).unwrap(), &source, &before);
    assert_eq!(copy, source);
    assert!(sum.iter().zip(&source).zip(&before).all(|((sum, x), before)| *sum == before + 0.5 * x));
    check_gradient(DType::F32, &[segment(1, 3_300_000, 0, 0, 1)], 3_300_000, &source, 1 << 20);
    for threads in [2, 5] {
        assert!(all_passes(&Cpu::new(threads).unwrap(), &source, &before) == (bits.clone(), sum.clone(), copy.clone()));
    }
}

/// A trainer that was built with -Ofast, or set its own mode, changes nothing: what is added is added on the pool's threads.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_float_mode_of_the_calling_thread_does_not_matter() {
    let small: Vec<f32> = values(13, 2_000).iter().map(|x| x * 1e-37).collect();
    assert!(small.iter().any(|x| x.is_subnormal()));
    let device = Cpu::new(2).unwrap();
    let expected = all_passes(&device, &small, &values(14, 2_000));
    let set = |mode: u32| {
        // SAFETY: loads a valid control word from memory.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &mode, options(nostack, readonly)) };
    };
    let other = std::thread::spawn(move || {
        let reference = values(14, 2_000);
        // Exceptions masked as at the start; flush denormals, take them for zero, round towards zero.
        set(0x1f80 | 0x8000 | 0x0040 | 0x6000);
        let found = all_passes(&device, &small, &reference);
        set(0x1f80);
        found
    });
    assert!(other.join().unwrap() == expected);
}

#[test]
fn values_that_the_scale_makes_infinite_are_zeroed_and_counted() {
    let mut source = values(15, 5_000);
    (source[17], source[4_500]) = (3e38, -2e38);
    let buffer = Buffer::new(DType::F32, &source);
    let segments = [segment(1, 5_000, 0, 0, 1)];
    let (span, layout) = (Span::of(&segments), Layout::new(5_000, 1024, 5));
    let read = SliceRead { layout, memory: buffer.memory(), segments: &segments };
    let mut sum = Values::zeros(5_000);
    let AccumulateFound { sums, sketch } =
        accumulate(&Cpu::new(2).unwrap(), AccumulateJob { read, scale: 4.0, sum: Some((span, &mut sum)) });
    assert_eq!((sums.non_finite, sums.count, sums.peak), (2, 5_000, 3e38));
    (source[17], source[4_500]) = (0.0, 0.0);
    assert!(floats(&sum).iter().zip(&source).all(|(sum, x)| *sum == 4.0 * x));
    assert!(sketch.iter().all(|x| x.is_finite()));
}

#[test]
fn differences_beyond_the_range_are_infinite_not_nan() {
    let device = Cpu::new(2).unwrap();
    let (mut new, mut old) = (values(16, 5_000), values(17, 5_000));
    (new[3], old[3], new[4_999], old[4_999]) = (3e38, -3e38, -3e38, 3e38);
    let buffer = Buffer::new(DType::F32, &new);
    let segments = [segment(1, 5_000, 0, 0, 1)];
    let (span, layout) = (Span::of(&segments), Layout::new(5_000, 1024, 5));
    // Zero where the difference is infinite: such a product is zero.
    let mut reference = values(18, 5_000);
    (reference[3], reference[4_999]) = (0.0, 0.0);
    let [of_reference, of_snapshot] = [&reference, &old].map(|values| kept_values(&device, values));
    let [reference, snapshot] = [&of_reference, &of_snapshot].map(|values| Some(Kept { span, values }));
    let mut old = Values::from(old);
    let job = ParameterJob {
        read: SliceRead { layout, memory: buffer.memory(), segments: &segments },
        copy: Some(Copy { span, values: &mut old, compare: true, replace: false }),
        update_sketch: true,
        sketch: false,
        tasks: vec![TaskJob { reference, anchor: reference, snapshot, drift_sketch: true }],
    };
    let ParameterFound { update, update_sketch, tasks, .. } = parameter(&device, job);
    let task = &tasks[0];
    assert_eq!((update.updates, update.peak, update.non_finite), (f64::INFINITY, f32::INFINITY, 0));
    assert!(update.weights.is_finite());
    assert_eq!(task.drift.drift, f64::INFINITY);
    assert!(task.drift.snapshot.is_finite() && task.drift.drift_dot_snapshot < -1e76);
    assert!(task.update.dot.is_finite() && task.drift.reference_dot.is_finite());
    assert!(update_sketch.iter().chain(&task.drift_sketch).all(|x| !x.is_nan()));
}

/// A reference that covers more than is read: its squares are those of what is read.
#[test]
fn squares_are_of_what_was_read() {
    let device = Cpu::new(2).unwrap();
    let (source, reference) = (values(19, 3_000), values(20, 9_000));
    let buffer = Buffer::new(DType::F32, &source);
    let segments = [Segment { index: 1_234, ..segment(1, 3_000, 0, 0, 1) }];
    let read = SliceRead { layout: Layout::new(9_000, 1024, 5), memory: buffer.memory(), segments: &segments };
    let held = kept_values(&device, &reference);
    let kept = Kept { span: Span { start: 0, end: 9_000 }, values: &held };
    let exact: f64 = reference[1_234..4_234].iter().map(|&r| f64::from(r) * f64::from(r)).sum();
    let (_, pair, _) = run_gradient(&device, read, kept);
    assert!((pair.reference_squares - exact).abs() <= BOUND * exact);
    let mut copy = Values::zeros(3_000);
    let mut update = |compare| {
        let copy = Some(Copy { span: Span::of(&segments), values: &mut copy, compare, replace: false });
        let tasks = vec![TaskJob { reference: Some(kept), ..TaskJob::default() }];
        let job = ParameterJob { read, copy, update_sketch: true, sketch: false, tasks };
        let mut found = parameter(&device, job);
        (found.tasks.remove(0).update, found.update_sketch.len())
    };
    assert_eq!(update(true), (pair, 1024), "from zeros the update is what was read");
    assert_eq!(update(false), (PairSums::default(), 0), "nothing to compare with");
}

#[test]
fn values_are_copied_where_they_belong() {
    let device = Cpu::new(1).unwrap();
    let mut target = device.values(Place::Host, 7, Keeping::Sum, Home::Near).unwrap();
    assert!(device.copy_values(Stream::NULL, &Values::from(vec![1.0, 2.0]), &mut target, 3));
    assert_eq!(floats(&target), [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
    device.settle(Stream::NULL, &mut target);
    let host = target.host().unwrap();
    assert_eq!((host.squares, host.peak), (5.0, 2.0));
    assert!(device.values(Place::Cuda(0), 7, Keeping::Sum, Home::Near).is_none());
}
