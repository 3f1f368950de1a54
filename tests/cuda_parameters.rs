//! The CUDA device's pass over parameters against fp64 sums and the CPU device: updates, drift, copies, fp64 sketches.

mod cuda_support;
mod device_support;
mod emulation_support;

use cuda_support::oracle::{self, BOUND, CPU_BOUND, Elements, KeptValues, NARROW, WIDE, check_sketch};
use cuda_support::{Devices, Slice, bits};
use device_support::{TYPES, segment, values};
use emulation_support::on_device;
use forgetscope::device::{
    Copy, DType, Device, DriftSums, Kept, PairSums, ParameterFound, ParameterJob, Segment, SliceRead, Span, Stream,
    TaskFound, TaskJob, UpdateSums, Values,
};
use proptest::prelude::*;

/// A copy of an earlier moment, and what is done with it.
#[derive(Clone)]
struct CopyCase {
    before: KeptValues,
    compare: bool,
    replace: bool,
}

#[derive(Clone, Default)]
struct TaskCase {
    reference: Option<KeptValues>,
    anchor: Option<KeptValues>,
    snapshot: Option<KeptValues>,
    drift_sketch: bool,
}

struct Case {
    slice: Slice,
    copy: Option<CopyCase>,
    update_sketch: bool,
    sketch: bool,
    tasks: Vec<TaskCase>,
}

/// Values over a span, zero where the slice owns nothing.
fn owned(slice: &Slice, key: u64, span: Span) -> KeptValues {
    let all = values(key, span.len());
    let mut kept = KeptValues { span, values: vec![0.0; span.len()] };
    for (index, _) in slice.elements() {
        if (span.start..span.end).contains(&index) {
            let at = (index - span.start) as usize;
            kept.values[at] = all[at];
        }
    }
    kept
}

impl Case {
    /// Everything that can be asked for at once, of so many tasks.
    fn full(slice: Slice, tasks: u64) -> Self {
        let span = Span::of(&slice.segments);
        let task = |k| TaskCase {
            reference: Some(owned(&slice, 100 + k, span)),
            anchor: Some(owned(&slice, 200 + k, span)),
            snapshot: Some(owned(&slice, 300 + k, span)),
            drift_sketch: true,
        };
        let tasks = (0..tasks).map(task).collect();
        let copy = Some(CopyCase { before: owned(&slice, 400, span), compare: true, replace: true });
        Self { slice, copy, update_sketch: true, sketch: true, tasks }
    }

    fn kept(&self) -> impl Iterator<Item = &KeptValues> {
        let tasks = self.tasks.iter().flat_map(|task| [&task.reference, &task.anchor, &task.snapshot]);
        tasks.flatten().chain(self.copy.as_ref().map(|copy| &copy.before))
    }
}

/// A case's values where a device has them.
struct Held {
    copy: Option<Values>,
    tasks: Vec<[Option<Values>; 3]>,
}

impl Held {
    fn new(case: &Case, make: impl Fn(&[f32]) -> Values) -> Self {
        let one = |kept: &Option<KeptValues>| kept.as_ref().map(|kept| make(&kept.values));
        let task = |task: &TaskCase| [one(&task.reference), one(&task.anchor), one(&task.snapshot)];
        Self {
            copy: case.copy.as_ref().map(|copy| make(&copy.before.values)),
            tasks: case.tasks.iter().map(task).collect(),
        }
    }
}

fn job<'a>(case: &'a Case, read: SliceRead<'a>, held: &'a mut Held) -> ParameterJob<'a> {
    let kept = |case: &Option<KeptValues>, values: &'a Option<Values>| {
        case.as_ref().zip(values.as_ref()).map(|(case, values)| Kept { span: case.span, values })
    };
    let task = |(case, [reference, anchor, snapshot]): (&TaskCase, &'a [Option<Values>; 3])| TaskJob {
        reference: kept(&case.reference, reference),
        anchor: kept(&case.anchor, anchor),
        snapshot: kept(&case.snapshot, snapshot),
        drift_sketch: case.drift_sketch,
    };
    let copy = case.copy.as_ref().zip(held.copy.as_mut()).map(|(copy, values)| Copy {
        span: copy.before.span,
        values,
        compare: copy.compare,
        replace: copy.replace,
    });
    let tasks = case.tasks.iter().zip(&held.tasks).map(task).collect();
    ParameterJob { read, copy, update_sketch: case.update_sketch, sketch: case.sketch, tasks }
}

/// x − y in fp32, as the optimizer's own arithmetic is.
fn difference(clean: &Elements, from: &KeptValues) -> Elements {
    clean.iter().map(|&(index, x)| (index, x - from.at(index))).collect()
}

fn of(elements: &Elements) -> impl Iterator<Item = f32> + Clone {
    elements.iter().map(|(_, x)| *x)
}

fn check_found(case: &Case, found: &ParameterFound, bound: f64) {
    let elements = case.slice.elements();
    let (clean, non_finite) = oracle::cleaned(&elements);
    assert_eq!((found.update.count, found.update.non_finite), (elements.len() as u64, non_finite));
    oracle::check_squares("Σ θ²", found.update.weights, of(&clean), bound);
    if case.sketch {
        check_sketch(&found.sketch, &case.slice.layout, &clean, WIDE);
    } else {
        assert!(found.sketch.is_empty());
    }
    let compared = case.copy.as_ref().filter(|copy| copy.compare).map(|copy| difference(&clean, &copy.before));
    if let Some(delta) = &compared {
        oracle::check_squares("Σ Δ²", found.update.updates, of(delta), bound);
        assert_eq!(found.update.peak, of(delta).fold(0.0, |most: f32, x| most.max(x.abs())));
    } else {
        let UpdateSums { updates, peak, .. } = found.update;
        assert_eq!((updates, peak), (0.0, 0.0));
    }
    match compared.as_ref().filter(|_| case.update_sketch) {
        Some(delta) => check_sketch(&found.update_sketch, &case.slice.layout, delta, NARROW),
        None => assert!(found.update_sketch.is_empty()),
    }
    assert_eq!(found.tasks.len(), case.tasks.len());
    for (found, task) in found.tasks.iter().zip(&case.tasks) {
        match (&compared, &task.reference) {
            (Some(delta), Some(reference)) => oracle::check_pair(&found.update, delta, reference, bound),
            _ => assert_eq!(found.update, PairSums::default()),
        }
        check_drift(case, task, found, &clean, bound);
    }
}

fn check_drift(case: &Case, task: &TaskCase, found: &TaskFound, clean: &Elements, bound: f64) {
    let Some(snapshot) = &task.snapshot else {
        assert_eq!((found.drift, found.drift_sketch.len()), (DriftSums::default(), 0));
        return;
    };
    let drift = difference(clean, snapshot);
    oracle::check_squares("Σ D²", found.drift.drift, of(&drift), bound);
    let with = |other: &KeptValues| -> Vec<_> { drift.iter().map(|&(index, d)| (d, other.at(index))).collect() };
    let pairs = with(snapshot);
    oracle::check_dot("Σ D·θ_A", found.drift.drift_dot_snapshot, pairs.iter().copied(), bound);
    oracle::check_squares("Σ θ_A²", found.drift.snapshot, pairs.iter().map(|(_, y)| *y), bound);
    match &task.anchor {
        Some(anchor) => {
            oracle::check_dot("Σ r·D", found.drift.reference_dot, with(anchor).iter().copied(), bound);
        }
        None => assert_eq!(found.drift.reference_dot, 0.0),
    }
    if task.drift_sketch {
        check_sketch(&found.drift_sketch, &case.slice.layout, &drift, NARROW);
    } else {
        assert!(found.drift_sketch.is_empty());
    }
}

/// What a copy has to hold afterwards.
fn check_copy(case: &Case, found: &[f32]) {
    let Some(CopyCase { before, replace, .. }) = &case.copy else { return };
    let mut expected = before.values.clone();
    if *replace {
        for (index, x) in oracle::cleaned(&case.slice.elements()).0 {
            if (before.span.start..before.span.end).contains(&index) {
                expected[(index - before.span.start) as usize] = x;
            }
        }
    }
    assert!(bits(found) == bits(&expected), "the copy is not what it should be");
}

/// One pass over all cases.
fn on_cuda(devices: &Devices, cases: &[Case]) -> Vec<ParameterFound> {
    let mut held: Vec<_> = cases.iter().map(|case| Held::new(case, |values| devices.kept(values))).collect();
    let jobs = cases.iter().zip(&mut held).map(|(case, held)| job(case, case.slice.on_device(), held)).collect();
    let found = devices.cuda.parameters(Stream::NULL, jobs).wait().expect("found");
    for (case, held) in cases.iter().zip(&held) {
        if let Some(copy) = &held.copy {
            check_copy(case, &devices.read(copy));
        }
    }
    found
}

fn check(devices: &Devices, cases: &[Case]) {
    for (case, found) in cases.iter().zip(on_cuda(devices, cases)) {
        check_found(case, &found, BOUND);
        // That one wants values of exactly what is read.
        let span = Span::of(&case.slice.segments);
        if case.kept().all(|kept| kept.span == span) {
            let mut held = Held::new(case, |values| devices.kept_on_host(values));
            let jobs = vec![job(case, case.slice.on_host(), &mut held)];
            check_found(case, &devices.cpu.parameters(Stream::NULL, jobs).wait().expect("found")[0], CPU_BOUND);
            if let Some(copy) = &held.copy {
                check_copy(case, &copy.host().expect("in host memory").values);
            }
        }
    }
}

fn run(start: u64, length: u64, offset: i64) -> Segment {
    Segment { index: start, ..segment(1, length, offset, 0, 1) }
}

/// Shapes that take each way through the kernel: whole tiles, ragged ends, odd addresses, rows and columns of a matrix.
fn shapes() -> Vec<(Vec<Segment>, u64)> {
    vec![
        (vec![segment(1, 12_000, 0, 0, 1)], 12_000),
        (vec![run(5_001, 9_000, 7)], 30_000),
        (vec![segment(50, 32, 64, 200, 1)], 1_600),
        (vec![run(130, 70, 5), Segment { index: 200, ..segment(40, 100, 100, 120, 1) }], 4_300),
    ]
}

#[test]
fn every_type_and_shape() {
    on_device("every_type_and_shape", &[], || {
        let devices = Devices::open();
        let source = values(1, 20_000);
        for dtype in TYPES {
            let case = |(segments, numel)| Case::full(Slice::new(dtype, &source, segments, numel, 1024), 2);
            check(&devices, &shapes().into_iter().map(case).collect::<Vec<_>>());
        }
    });
}

/// Each part alone: with a copy that is compared, replaced, both, neither; without one; with any tasks.
#[test]
fn whatever_is_asked_for() {
    on_device("whatever_is_asked_for", &[], || {
        let devices = Devices::open();
        let source = values(2, 20_000);
        let mut cases = Vec::new();
        for (number, wanted) in (0..64).enumerate() {
            let (segments, numel) = shapes().remove(number % 4);
            let mut case = Case::full(Slice::new(DType::Bf16, &source, segments, numel, 1024), 2);
            let is = |bit: u32| wanted >> bit & 1 == 1;
            if let Some(copy) = &mut case.copy {
                (copy.compare, copy.replace) = (is(0), is(1));
            }
            case.copy.take_if(|_| is(2) && is(3));
            (case.update_sketch, case.sketch) = (is(2), is(3));
            (case.tasks[0].reference, case.tasks[1].snapshot) = (None, None);
            (case.tasks[0].drift_sketch, case.tasks[1].drift_sketch) = (is(4), is(5));
            case.tasks[0].anchor.take_if(|_| is(5));
            case.tasks.truncate(usize::from(is(4)) + usize::from(is(5)));
            cases.push(case);
        }
        check(&devices, &cases);
    });
}

/// More references than an item is paired with: the copy is replaced when all have been compared with.
#[test]
fn any_number_of_tasks() {
    on_device("any_number_of_tasks", &[("FGS_EMULATION_SEED", "7")], || {
        let devices = Devices::open();
        let source = values(3, 20_000);
        let case =
            |tasks| Case::full(Slice::new(DType::F32, &source, vec![run(2_000, 11_000, 5)], 20_000, 1024), tasks);
        check(&devices, &(0..10).map(case).collect::<Vec<_>>());
        // Some tasks without a reference that is kept exactly.
        let mut gaps = case(9);
        gaps.tasks.iter_mut().step_by(2).for_each(|task| task.reference = None);
        check(&devices, &[gaps]);
    });
}

/// Kept values that begin and end elsewhere than what is read: zero where nothing is kept, and nothing else is written.
#[test]
fn kept_values_over_other_spans() {
    on_device("kept_values_over_other_spans", &[], || {
        let devices = Devices::open();
        let source = values(4, 20_000);
        let spans = [(4_000, 13_500), (4_096, 16_384), (5_500, 9_000), (6_144, 8_192), (7_000, 7_001)];
        let mut cases = Vec::new();
        for (start, end) in spans {
            for (segments, numel) in [(vec![run(5_001, 8_000, 7)], 30_000), (vec![run(4_096, 8_192, 0)], 30_000)] {
                let slice = Slice::new(DType::F32, &source, segments, numel, 1024);
                let kept = |key| owned(&slice, key, Span { start, end });
                let task = TaskCase {
                    reference: Some(kept(1)),
                    anchor: Some(kept(2)),
                    snapshot: Some(kept(3)),
                    drift_sketch: true,
                };
                let copy = Some(CopyCase { before: kept(4), compare: true, replace: true });
                cases.push(Case { slice, copy, update_sketch: true, sketch: true, tasks: vec![task] });
            }
        }
        check(&devices, &cases);
    });
}

/// The sketches of parameters are fp64: more rows than shared memory has of those, whole slices and parts of them.
#[test]
fn sketches_of_every_size() {
    on_device("sketches_of_every_size", &[], || {
        let devices = Devices::open();
        let source = values(5, 100_000);
        let case = |numel: u64, buckets| {
            let slice = Slice::new(DType::F32, &source, vec![segment(1, numel, 0, 0, 1)], numel, buckets);
            Case { tasks: Vec::new(), ..Case::full(slice, 0) }
        };
        check(&devices, &[case(60_000, 300 * 256), case(100_000, 300 * 256), case(3_000, 256)]);
        let cut = |start, length| {
            Case::full(Slice::new(DType::Bf16, &source, vec![run(start, length, 11)], 16_000, 16_384), 1)
        };
        check(&devices, &[case(16_384, 16_384), cut(0, 5_000), cut(4_097, 1), cut(2_048, 2_048), cut(15_000, 1_000)]);
    });
}

#[test]
fn magnitudes_at_both_ends_of_the_range() {
    on_device("magnitudes_at_both_ends_of_the_range", &[], || {
        let devices = Devices::open();
        let mut cases = Vec::new();
        for scale in [1e30, 1e37, 1e-30, 1e-37, 1e-41] {
            let source: Vec<f32> = values(6, 9_000).iter().map(|x| scale * x).collect();
            let mut case = Case::full(Slice::whole(DType::F32, &source, 1024), 2);
            let scale = |kept: &mut KeptValues| kept.values.iter_mut().for_each(|x| *x *= scale);
            case.tasks[0].snapshot.as_mut().map(scale);
            case.copy.as_mut().map(|copy| scale(&mut copy.before));
            case.tasks[1].reference.as_mut().map(scale);
            cases.push(case);
        }
        let mut source = values(7, 9_000);
        (source[0], source[2_048], source[8_999]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        cases.push(Case::full(Slice::whole(DType::F32, &source, 1024), 2));
        cases.push(Case::full(Slice::whole(DType::F16, &source, 16_384), 6));
        cases.push(Case::full(Slice::whole(DType::F32, &[f32::NAN; 3_000], 256), 1));
        check(&devices, &cases);
    });
}

/// Both ends are finite and their difference is not: its square is infinite, nothing is NaN.
#[test]
fn differences_beyond_the_range_are_infinite_not_nan() {
    on_device("differences_beyond_the_range_are_infinite_not_nan", &[], || {
        let devices = Devices::open();
        let mut source = values(8, 9_000);
        (source[3], source[2_500]) = (3e38, 3e38);
        for length in [9_000, 8_998] {
            let slice = Slice::new(DType::F32, &source, vec![segment(1, length, 0, 0, 1)], length, 1024);
            let mut case = Case::full(slice, 1);
            let TaskCase { reference, anchor, snapshot, .. } = &mut case.tasks[0];
            let (Some(reference), Some(anchor), Some(snapshot)) = (reference, anchor, snapshot) else { unreachable!() };
            (snapshot.values[3], snapshot.values[2_500]) = (-3e38, -3e38);
            // Zero where the difference is infinite: such a product is zero.
            for kept in [reference, anchor] {
                (kept.values[3], kept.values[2_500]) = (0.0, 0.0);
            }
            let before = snapshot.clone();
            case.copy = Some(CopyCase { before, compare: true, replace: false });
            let found = on_cuda(&devices, std::slice::from_ref(&case)).remove(0);
            let mut held = Held::new(&case, |values| devices.kept_on_host(values));
            let jobs = vec![job(&case, case.slice.on_host(), &mut held)];
            let other = devices.cpu.parameters(Stream::NULL, jobs).wait().expect("found").remove(0);
            for found in [&found, &other] {
                let task = &found.tasks[0];
                assert_eq!((found.update.updates, found.update.peak), (f64::INFINITY, f32::INFINITY));
                assert_eq!((found.update.non_finite, task.drift.drift), (0, f64::INFINITY));
                assert!(found.update.weights.is_finite() && task.drift.snapshot.is_finite());
                assert!(task.update.dot.is_finite() && task.drift.reference_dot.is_finite());
                assert!(task.drift.drift_dot_snapshot < -1e76);
                assert!(found.update_sketch.iter().chain(&task.drift_sketch).all(|x| !x.is_nan()));
            }
            let near = |x: f64, y: f64| (x - y).abs() <= 2.0 * CPU_BOUND * y.abs();
            assert!(near(found.tasks[0].drift.drift_dot_snapshot, other.tasks[0].drift.drift_dot_snapshot));
        }
    });
}

#[test]
fn indices_beyond_32_bits() {
    on_device("indices_beyond_32_bits", &[], || {
        let devices = Devices::open();
        let source = values(9, 8_000);
        let case = |(start, shift): (u64, i64)| {
            let mut slice = Slice::new(DType::F32, &source, vec![run(start, 7_000, shift + 3)], 1 << 41, 1024);
            slice.shift = shift;
            Case::full(slice, 5)
        };
        check(&devices, &[(1 << 33, 0), ((1 << 32) + 1, 1 << 33), (1 << 40, -(1 << 33))].map(case));
    });
}

#[test]
fn slices_of_which_nothing_is_owned() {
    on_device("slices_of_which_nothing_is_owned", &[], || {
        let devices = Devices::open();
        let case = || Case::full(Slice::new(DType::F32, &[], Vec::new(), 10_000, 1024), 1);
        for (case, found) in [case(), case()].iter().zip(on_cuda(&devices, &[case(), case()])) {
            check_found(case, &found, BOUND);
        }
    });
}

#[test]
fn random_shapes() {
    on_device("random_shapes", &[("FGS_EMULATION_SEED", "3")], || {
        let devices = Devices::open();
        let one = (0u64..6_000, 1u64..9_000, 0i64..9, 0usize..6, 0u64..7, 1usize..70);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(32));
        let outcome = runner.run(&prop::collection::vec(one, 1..5), |slices| {
            let case = |(start, length, offset, dtype, tasks, rows): (u64, u64, i64, usize, u64, usize)| {
                let source = values(start ^ length, length as usize + 10);
                let segments = vec![run(start, length, offset)];
                Case::full(Slice::new(TYPES[dtype], &source, segments, 20_000, 256 * rows), tasks)
            };
            check(&devices, &slices.into_iter().map(case).collect::<Vec<_>>());
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    });
}
