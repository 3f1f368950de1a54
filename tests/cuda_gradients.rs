//! The CUDA device's pass over gradients against fp64 sums and the CPU device: norms, pairs, conflicts, sketches.

mod cuda_support;
mod device_support;
mod emulation_support;

use cuda_support::oracle::{self, BOUND, CPU_BOUND, KeptValues, NARROW, check_sketch};
use cuda_support::{Devices, Slice, Tensor, bits};
use device_support::{TYPES, float8, segment, values};
use emulation_support::on_device;
use forgetscope::device::{
    DType, Device, GradientFound, GradientJob, Kept, Machine, PairSums, Segment, Span, Stream, Values,
};
use forgetscope::sketch::Layout;
use half::f16;
use proptest::prelude::*;

/// A slice and what it is paired with.
struct Case {
    slice: Slice,
    references: Vec<Option<KeptValues>>,
}

impl Case {
    /// With one reference over the indices that are read.
    fn paired(slice: Slice) -> Self {
        let reference = reference(&slice, 99, Span::of(&slice.segments), 1.0);
        Self { slice, references: vec![Some(reference)] }
    }

    fn plain(slice: Slice) -> Self {
        Self { slice, references: Vec::new() }
    }
}

/// Values over a span, zero where the slice owns nothing: what the library keeps.
fn reference(slice: &Slice, key: u64, span: Span, scale: f32) -> KeptValues {
    let all = values(key, span.len());
    let mut kept = KeptValues { span, values: vec![0.0; span.len()] };
    for (index, _) in slice.elements() {
        if (span.start..span.end).contains(&index) {
            let at = (index - span.start) as usize;
            kept.values[at] = scale * all[at];
        }
    }
    kept
}

/// The values of a case's references, made by `make`.
fn hold(case: &Case, make: impl Fn(&[f32]) -> Values) -> Vec<Option<Values>> {
    case.references.iter().map(|reference| reference.as_ref().map(|reference| make(&reference.values))).collect()
}

fn kept<'a>(case: &Case, held: &'a [Option<Values>]) -> Vec<Option<Kept<'a>>> {
    let pair = |(reference, held): (&Option<KeptValues>, &'a Option<Values>)| {
        reference.as_ref().zip(held.as_ref()).map(|(reference, values)| Kept { span: reference.span, values })
    };
    case.references.iter().zip(held).map(pair).collect()
}

/// One pass over all cases.
fn on_cuda(devices: &Devices, cases: &[Case]) -> Vec<GradientFound> {
    let held: Vec<_> = cases.iter().map(|case| hold(case, |values| devices.kept(values))).collect();
    let job = |(case, held)| {
        let case: &Case = case;
        GradientJob { read: case.slice.on_device(), references: kept(case, held) }
    };
    let jobs = cases.iter().zip(held.iter().map(Vec::as_slice)).map(job).collect();
    devices.cuda.gradients(Stream::NULL, jobs).wait().expect("found")
}

fn on_cpu(devices: &Devices, case: &Case) -> GradientFound {
    let held = hold(case, |values| devices.kept_on_host(values));
    let job = GradientJob { read: case.slice.on_host(), references: kept(case, &held) };
    devices.cpu.gradients(Stream::NULL, vec![job]).wait().expect("found").remove(0)
}

fn check_found(case: &Case, found: &GradientFound, bound: f64) {
    let elements = case.slice.elements();
    oracle::check_gradient(&found.sums, &elements, bound);
    let (clean, _) = oracle::cleaned(&elements);
    check_sketch(&found.sketch, &case.slice.layout, &clean, NARROW);
    assert_eq!(found.pairs.len(), case.references.len());
    for (found, reference) in found.pairs.iter().zip(&case.references) {
        match reference {
            Some(reference) => oracle::check_pair(found, &clean, reference, bound),
            None => assert_eq!(*found, PairSums::default(), "no reference, no sums"),
        }
    }
}

/// Both devices find the same, each within its own rounding.
fn check(devices: &Devices, cases: &[Case]) {
    let found = on_cuda(devices, cases);
    assert_eq!(found.len(), cases.len());
    for (case, found) in cases.iter().zip(&found) {
        check_found(case, found, BOUND);
        // That one wants references of all that is read.
        let span = Span::of(&case.slice.segments);
        if case.references.iter().flatten().all(|reference| reference.span.contains(span)) {
            check_found(case, &on_cpu(devices, case), CPU_BOUND);
        }
    }
}

fn run(start: u64, length: u64, offset: i64) -> Segment {
    Segment { index: start, ..segment(1, length, offset, 0, 1) }
}

#[test]
fn every_type_whole_ragged_and_strided() {
    on_device("every_type_whole_ragged_and_strided", &[], || {
        let devices = Devices::open();
        let source = values(1, 30_000);
        for dtype in TYPES {
            let slice = |segments, numel| Case::paired(Slice::new(dtype, &source, segments, numel, 1024));
            check(
                &devices,
                &[
                    slice(vec![segment(1, 20_000, 0, 0, 1)], 20_000),
                    // The addresses of most elements are odd multiples of their size: no two are read at once.
                    slice(vec![segment(1, 20_000, 3, 0, 1)], 20_000),
                    // Begins and ends inside chunks and tiles.
                    slice(vec![run(5_001, 9_000, 7)], 30_000),
                    // A head in rows of a matrix, a head in its columns, every second element, a transposed matrix.
                    slice(vec![segment(50, 32, 64, 512, 1)], 1_600),
                    slice(vec![segment(300, 7, 1, 90, 1)], 2_100),
                    slice(vec![segment(1, 9_000, 1, 0, 2)], 9_000),
                    slice(vec![segment(100, 40, 1, 2, 700)], 4_000),
                    // A shard that was cut anywhere: the end of a row, whole rows, the beginning of a row.
                    slice(vec![run(130, 70, 5), Segment { index: 200, ..segment(40, 100, 100, 120, 1) }], 4_300),
                ],
            );
        }
    });
}

/// Every code of the types of 8 and 16 bits is read as what it stands for.
#[test]
fn every_code() {
    on_device("every_code", &[], || {
        let devices = Devices::open();
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let codes: Vec<u8> = (0..=255).collect();
        let half = |code| f16::from_bits(code).to_f32();
        let brain = |code: u16| f32::from_bits(u32::from(code) << 16);
        let tensors = [
            Tensor::from_bytes(DType::F16, &halves, (0..=u16::MAX).map(half).collect()),
            Tensor::from_bytes(DType::Bf16, &halves, (0..=u16::MAX).map(brain).collect()),
            Tensor::from_bytes(DType::F8E4M3, &codes, codes.iter().map(|&code| float8(code, 3, true)).collect()),
            Tensor::from_bytes(DType::F8E5M2, &codes, codes.iter().map(|&code| float8(code, 2, false)).collect()),
        ];
        for tensor in tensors {
            let numel = tensor.seen.len() as u64;
            let seen = tensor.seen.clone();
            let layout = Layout::new(numel, numel as usize, 7);
            let slice = Slice { tensor, segments: vec![segment(1, numel, 0, 0, 1)], layout, shift: 0 };
            let case = Case::plain(slice);
            check(&devices, std::slice::from_ref(&case));
            // The sketch is the slice itself.
            let sketch = &on_cuda(&devices, &[case])[0].sketch;
            let clean: Vec<f32> = seen.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
            assert!(sketch.iter().zip(&clean).all(|(found, x)| found == x));
        }
    });
}

#[test]
fn sketches_of_every_size() {
    on_device("sketches_of_every_size", &[], || {
        let devices = Devices::open();
        let source = values(2, 200_000);
        let slice = |numel: u64, buckets| {
            Case::plain(Slice::new(DType::F32, &source, vec![segment(1, numel, 0, 0, 1)], numel, buckets))
        };
        check(&devices, &[slice(200_000, 256), slice(200_000, 1024), slice(200_000, 16_384)]);
        // More rows than shared memory has, beside one that has few.
        check(&devices, &[slice(100_000, 300 * 256), slice(20_000, 512)]);
        // A slice that is its own sketch, whole and cut.
        let cut = |start, length| {
            let segments = vec![run(start, length, 11)];
            Case::paired(Slice::new(DType::Bf16, &source, segments, 16_000, 16_384))
        };
        check(&devices, &[slice(16_384, 16_384), cut(0, 5_000), cut(4_097, 1), cut(2_048, 2_048), cut(15_000, 1_000)]);
    });
}

#[test]
fn a_thousand_small_slices_in_one_pass() {
    on_device("a_thousand_small_slices_in_one_pass", &[], || {
        let devices = Devices::open();
        let small = |k: u64| {
            let source = values(k, 1 + k as usize % 70);
            Case::paired(Slice::whole(DType::Bf16, &source, 1024))
        };
        check(&devices, &(0..1000).map(small).collect::<Vec<_>>());
    });
}

#[test]
fn anything_that_is_no_number_is_zero_and_counted() {
    on_device("anything_that_is_no_number_is_zero_and_counted", &[], || {
        let devices = Devices::open();
        let mut source = values(3, 10_000);
        for (index, bad) in [(0, f32::NAN), (2_047, f32::INFINITY), (2_048, f32::NEG_INFINITY), (9_999, f32::NAN)] {
            source[index] = bad;
        }
        let wrong: Vec<f32> = (0..5_000).map(|k| if k % 2 == 0 { f32::NAN } else { f32::INFINITY }).collect();
        let mut cases = vec![
            Case::paired(Slice::whole(DType::F32, &wrong, 1024)),
            Case::paired(Slice::whole(DType::F32, &[0.0; 5_000], 1024)),
            Case::paired(Slice::whole(DType::F32, &[-0.0; 5_000], 1024)),
        ];
        cases.extend(TYPES.map(|dtype| Case::paired(Slice::whole(dtype, &source, 1024))));
        // Finite in 64 bits and not in 32.
        let large: Vec<u8> = [1e300f64, -1e39, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = Tensor::from_bytes(DType::F64, &large, vec![f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        let layout = Layout::new(3, 256, 1);
        cases.push(Case::plain(Slice { tensor, segments: vec![segment(1, 3, 0, 0, 1)], layout, shift: 0 }));
        check(&devices, &cases);
    });
}

/// Squares and products of these leave the range of fp32; sums do not.
#[test]
fn magnitudes_at_both_ends_of_the_range() {
    on_device("magnitudes_at_both_ends_of_the_range", &[], || {
        let devices = Devices::open();
        let source = values(4, 9_000);
        let scaled = |gradient: f32, reference_scale: f32| {
            let source: Vec<f32> = source.iter().map(|x| gradient * x).collect();
            let slice = Slice::whole(DType::F32, &source, 1024);
            let reference = reference(&slice, 5, Span { start: 0, end: 9_000 }, reference_scale);
            Case { slice, references: vec![Some(reference)] }
        };
        let ends = [1.0, 1e30, 1e-30, 1e38, 1e-37, 1e-41, 1e-43];
        let cases: Vec<_> = ends.iter().flat_map(|&x| ends.iter().map(move |&y| (x, y))).collect();
        let mut cases: Vec<_> = cases.into_iter().map(|(x, y)| scaled(x, y)).collect();
        // All at once, in one tile.
        let mixed: Vec<f32> = source.iter().zip(0..).map(|(x, k)| x * ends[k % ends.len()]).collect();
        cases.push(Case::paired(Slice::whole(DType::F32, &mixed, 1024)));
        // The largest and the smallest numbers that there are.
        let extremes = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), -f32::from_bits(1), 0.0];
        let mixed: Vec<f32> = (0..5_000).map(|k| extremes[k % 6]).collect();
        cases.push(Case::plain(Slice::whole(DType::F32, &mixed, 1 << 14)));
        check(&devices, &cases);
    });
}

/// More references than an item is paired with take several items; what is not kept exactly leaves a gap.
#[test]
fn any_number_of_references_over_any_span() {
    on_device("any_number_of_references_over_any_span", &[], || {
        let devices = Devices::open();
        let source = values(6, 9_000);
        let with = |count: u64, span: fn(u64) -> Span| {
            let slice = Slice::new(DType::Bf16, &source, vec![run(3_000, 7_000, 3)], 30_000, 1024);
            let one = |k| (k % 3 != 1 || count < 5).then(|| reference(&slice, 100 + k, span(k), 1.0));
            let references = (0..count).map(one).collect();
            Case { slice, references }
        };
        let whole = |_| Span { start: 3_000, end: 10_000 };
        // From a multiple of 32 and not, beyond what is read and less than it, at either end and both.
        let odd = |k| Span { start: 2_900 + 31 * k, end: 10_100 - 57 * k };
        let beyond = |k| Span { start: 2_048 - k, end: 12_288 + k };
        let inside = |k| Span { start: 4_096 + k, end: 4_100 + 3 * k };
        let cases = (0..10).flat_map(|count| [with(count, whole), with(count, odd)]);
        let few = [3, 5].into_iter().flat_map(|count| [with(count, beyond), with(count, inside)]);
        check(&devices, &cases.chain(few).collect::<Vec<_>>());
    });
}

/// What is beyond 2³² is a matter of numbers: the slice's index, and where element 0 of the memory would lie.
#[test]
fn indices_and_offsets_beyond_32_bits() {
    on_device("indices_and_offsets_beyond_32_bits", &[], || {
        let devices = Devices::open();
        let source = values(7, 6_000);
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::F64, DType::Bf16, DType::F8E5M2] {
            for start in [1u64 << 31, 1 << 33, (1 << 40) + 77] {
                for shift in [0, (1 << 31) + 5, 1 << 33, -(1 << 35)] {
                    let mut slice = Slice::new(dtype, &source, vec![run(start, 5_000, shift + 9)], 1 << 41, 1024);
                    slice.shift = shift;
                    cases.push(Case::paired(slice));
                }
            }
            let segments = vec![Segment { index: (1 << 33) + 9, ..segment(20, 90, (1 << 34) + 2, 200, 2) }];
            let mut slice = Slice::new(dtype, &source, segments, 1 << 41, 1024);
            slice.shift = 1 << 34;
            cases.push(Case::paired(slice));
        }
        check(&devices, &cases);
    });
}

#[test]
fn a_slice_of_which_nothing_is_owned() {
    on_device("a_slice_of_which_nothing_is_owned", &[], || {
        let devices = Devices::open();
        let none = || Case::plain(Slice::new(DType::F32, &[], Vec::new(), 10_000, 1024));
        let some = || Case::paired(Slice::whole(DType::F32, &values(8, 3_000), 1024));
        for cases in [vec![none()], vec![none(), some()], vec![some(), none(), some(), none()]] {
            for (case, found) in cases.iter().zip(on_cuda(&devices, &cases)) {
                check_found(case, &found, BOUND);
            }
        }
        let machine = Machine::new(devices.cpu);
        assert!(machine.gradients(Stream::NULL, Vec::new()).wait().expect("found").is_empty());
    });
}

fn same_bits(found: &GradientFound, other: &GradientFound) -> bool {
    let numbers = |found: &GradientFound| {
        let of_pair = |pair: &PairSums| [pair.dot, pair.opposing, pair.dot_squares, pair.reference_squares];
        let sums: Vec<u64> = found.pairs.iter().flat_map(of_pair).map(f64::to_bits).collect();
        (found.sums.squares.to_bits(), sums, bits(&found.sketch))
    };
    numbers(found) == numbers(other)
}

/// The same launch gives the same bits, in whatever order blocks run; and what one block measures alone does not depend on
/// how many there are, nor on what is measured beside it.
#[test]
fn results_are_deterministic() {
    for multiprocessors in ["1", "3", "20"] {
        let variables = [("FGS_FAKE_SMS", multiprocessors), ("FGS_EMULATION_SEED", "5")];
        on_device("results_are_deterministic", &variables, || {
            let devices = Devices::open();
            let case = |key: u64, length| Case::paired(Slice::whole(DType::Bf16, &values(key, length), 1024));
            let cases = [case(1, 60_000), case(2, 2_000), case(3, 40_001), case(4, 300), case(5, 2_048)];
            let first = on_cuda(&devices, &cases);
            for _ in 0..3 {
                let again = on_cuda(&devices, &cases);
                assert!(first.iter().zip(&again).all(|(first, again)| same_bits(first, again)));
            }
            for at in [1, 3, 4] {
                let alone = on_cuda(&devices, &cases[at..=at]);
                assert!(same_bits(&alone[0], &first[at]), "one tile is one block's");
            }
        });
    }
}

/// Rectangles one behind the other, with gaps between them.
fn rectangles() -> impl Strategy<Value = Vec<Segment>> {
    let one = (1u64..40, 1u64..90, 0u64..30, 0i64..9, 1i64..4, 0u64..2_500);
    prop::collection::vec(one, 1..4).prop_map(|parts| {
        let (mut index, mut offset, mut segments) = (parts[0].5, 1i64, Vec::new());
        for (rows, length, index_gap, gap, column_step, behind) in parts {
            let (index_step, row_step) = (length + index_gap, length as i64 * column_step + gap);
            let segment = Segment { index, index_step, rows, length, offset, row_step, column_step };
            index = segment.end() + behind;
            offset += rows as i64 * row_step;
            segments.push(segment);
        }
        segments
    })
}

#[test]
fn random_shapes() {
    on_device("random_shapes", &[("FGS_EMULATION_SEED", "11")], || {
        let devices = Devices::open();
        let slices = prop::collection::vec((rectangles(), 0usize..6, 0u64..4, 1usize..6), 1..6);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(48));
        let outcome = runner.run(&slices, |slices| {
            let case = |(segments, dtype, references, rows): (Vec<Segment>, usize, u64, usize)| {
                let reach = segments.last().map_or(0, |s| s.offset + s.rows as i64 * s.row_step);
                let span = Span::of(&segments);
                let source = values(span.end, reach as usize);
                let slice = Slice::new(TYPES[dtype], &source, segments, span.end + 77, 256 * rows);
                let one = |k| Some(reference(&slice, k, Span { start: span.start / 2, end: span.end + k }, 1.0));
                let references = (0..2 * references).map(one).collect();
                Case { slice, references }
            };
            check(&devices, &slices.into_iter().map(case).collect::<Vec<_>>());
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    });
}
