//! What the CUDA device keeps and moves: sums of gradients, copies, vectors read from slices and written to them.

mod cuda_support;
mod device_support;
mod emulation_support;

use cuda_support::oracle::{self, BOUND, NARROW, check_sketch};
use cuda_support::{Devices, PLACE, Slice, Tensor, bits};
use device_support::{TYPES, float8, segment, values};
use emulation_support::on_device;
use forgetscope::device::{
    AccumulateFound, AccumulateJob, Copy, DType, Device, Gather, GatherJob, GradientJob, Home, Keeping, Kept, Packing,
    ParameterJob, ScatterJob, Segment, Span, Stream, Values,
};
use forgetscope::sketch::Layout;
use half::f16;

fn run(start: u64, length: u64, offset: i64) -> Segment {
    Segment { index: start, ..segment(1, length, offset, 0, 1) }
}

/// Adds a slice to a sum over `span`, so many times.
fn accumulate(devices: &Devices, slice: &Slice, scale: f32, span: Span, times: usize) -> (AccumulateFound, Vec<f32>) {
    let mut sum = devices.sum(span.len());
    let mut found = Vec::new();
    for _ in 0..times {
        let job = AccumulateJob { read: slice.on_device(), scale, sum: Some((span, &mut sum)) };
        found = devices.cuda.accumulate(Stream::NULL, vec![job]).wait().expect("found");
    }
    (found.remove(0), devices.read(&sum))
}

#[test]
fn gradients_add_up() {
    on_device("gradients_add_up", &[], || {
        let devices = Devices::open();
        let source = values(1, 20_000);
        for dtype in TYPES {
            let shapes = [vec![run(0, 20_000, 0)], vec![run(3_001, 9_000, 7)], vec![segment(50, 30, 3, 200, 2)]];
            for segments in shapes {
                let slice = Slice::new(dtype, &source, segments, 20_000, 1024);
                let read = Span::of(&slice.segments);
                // The sum reaches further than what is read.
                let span = Span { start: read.start / 2, end: read.end + 100 };
                let (found, sum) = accumulate(&devices, &slice, 0.3, span, 3);
                let elements = slice.elements();
                oracle::check_gradient(&found.sums, &elements, BOUND);
                let scaled = elements.iter().map(|&(index, x)| (index, 0.3 * x)).collect();
                check_sketch(&found.sketch, &slice.layout, &scaled, NARROW);
                // Additions of fp32 in the order of the calls, so the very same bits.
                let mut expected = vec![0.0f32; span.len()];
                for _ in 0..3 {
                    scaled.iter().for_each(|&(index, x)| expected[(index - span.start) as usize] += x);
                }
                assert!(bits(&sum) == bits(&expected), "{dtype:?}");
                let mut other = Values::zeros(span.len());
                for _ in 0..3 {
                    let job = AccumulateJob { read: slice.on_host(), scale: 0.3, sum: Some((span, &mut other)) };
                    devices.cpu.accumulate(Stream::NULL, vec![job]).wait().expect("found");
                }
                assert!(bits(&other.host().expect("in host memory").values) == bits(&sum), "{dtype:?}");
            }
        }
    });
}

/// Without an exact sum there is the sketch alone.
#[test]
fn a_sum_that_is_only_sketched() {
    on_device("a_sum_that_is_only_sketched", &[], || {
        let devices = Devices::open();
        let slice = Slice::whole(DType::Bf16, &values(2, 9_000), 512);
        let job = AccumulateJob { read: slice.on_device(), scale: -2.0, sum: None };
        let found = devices.cuda.accumulate(Stream::NULL, vec![job]).wait().expect("found").remove(0);
        oracle::check_gradient(&found.sums, &slice.elements(), BOUND);
        let scaled = slice.elements().into_iter().map(|(index, x)| (index, -2.0 * x)).collect();
        check_sketch(&found.sketch, &slice.layout, &scaled, NARROW);
    });
}

/// What only the scale makes infinite is added as zero, and counted as what was no number before.
#[test]
fn values_that_the_scale_makes_infinite_are_zeroed_and_counted() {
    on_device("values_that_the_scale_makes_infinite_are_zeroed_and_counted", &[], || {
        let devices = Devices::open();
        let mut source = values(3, 5_000);
        (source[17], source[4_500], source[100], source[2_048]) = (3e38, -2e38, f32::NAN, f32::INFINITY);
        let slice = Slice::whole(DType::F32, &source, 1024);
        let (found, sum) = accumulate(&devices, &slice, 4.0, Span { start: 0, end: 5_000 }, 1);
        assert_eq!((found.sums.non_finite, found.sums.count, found.sums.peak), (4, 5_000, 3e38));
        for at in [17, 4_500, 100, 2_048] {
            source[at] = 0.0;
        }
        assert!(sum.iter().zip(&source).all(|(sum, x)| *sum == 4.0 * x));
        let scaled = source.iter().zip(0..).map(|(x, index)| (index, 4.0 * x)).collect();
        check_sketch(&found.sketch, &slice.layout, &scaled, NARROW);
    });
}

#[test]
fn values_are_zero_at_first_and_copied_where_they_belong() {
    on_device("values_are_zero_at_first_and_copied_where_they_belong", &[], || {
        let devices = Devices::open();
        // Memory that is handed out again is not clean.
        drop(devices.kept(&[7.0; 1_000]));
        let mut target = devices.sum(1_000);
        assert_eq!(devices.read(&target), [0.0; 1_000]);
        drop(devices.kept(&[7.0; 1_000]));
        let source = devices.kept(&values(4, 500));
        let mut fresh = devices.sum(1_000);
        for target in [&mut target, &mut fresh] {
            assert!(devices.cuda.copy_values(Stream::NULL, &source, target, 300));
            let found = devices.read(target);
            assert_eq!(bits(&found[300..800]), bits(&values(4, 500)));
            assert!(found[..300].iter().chain(&found[800..]).all(|x| *x == 0.0));
        }
        // More than crosses the bus at once.
        let many = values(5, (1 << 22) + 4_321);
        assert!(bits(&devices.read(&devices.kept(&many))) == bits(&many));
    });
}

#[test]
fn slices_are_read_into_vectors() {
    on_device("slices_are_read_into_vectors", &[], || {
        let devices = Devices::open();
        let mut source = values(6, 20_000);
        source[15] = f32::NAN;
        for dtype in TYPES {
            let shapes = [vec![run(0, 9_000, 0)], vec![run(2_000, 5_000, 10)], vec![segment(50, 30, 3, 200, 2)]];
            for segments in shapes {
                let slice = Slice::new(dtype, &source, segments, 20_000, 1024);
                let end = Span::of(&slice.segments).end as usize;
                let mut expected = vec![0.0f32; end];
                slice.elements().into_iter().for_each(|(index, x)| expected[index as usize] = x);
                let before = values(7, end);
                for (gather, make) in [
                    (Gather::Copy, (|_, x| x) as fn(f32, f32) -> f32),
                    (Gather::Scale(0.3), |_, x| 0.3 * x),
                    (Gather::Subtract(0.3, 1.7), |y, x| (y - 0.3 * x) * 1.7),
                ] {
                    let mut vector = before.clone();
                    let job = GatherJob { read: slice.on_device(), gather, values: &mut vector };
                    let bad = devices.cuda.gather(Stream::NULL, &mut [job]).expect("read");
                    let expected: Vec<f32> = before.iter().zip(&expected).map(|(&y, &x)| make(y, x)).collect();
                    let is_same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
                    assert!(vector.iter().zip(&expected).all(is_same), "{dtype:?} {gather:?}");
                    assert_eq!(bad, expected.iter().filter(|x| !x.is_finite()).count() as u64);
                }
            }
        }
    });
}

/// Only elements of the slice are written, and with an empty direction they get their bits back, NaN's too.
#[test]
fn slices_are_written_and_put_back() {
    on_device("slices_are_written_and_put_back", &[], || {
        let devices = Devices::open();
        let mut source = values(8, 20_000);
        source[700] = f32::from_bits(0x7fc1_2345);
        for segments in [vec![run(0, 9_000, 0)], vec![run(2_000, 5_000, 10)], vec![segment(50, 30, 3, 200, 2)]] {
            let slice = Slice::new(DType::F32, &source, segments, 20_000, 1024);
            let end = Span::of(&slice.segments).end as usize;
            let (direction, step) = (values(9, end), 0.37);
            let mut original = vec![0.0; end];
            let job = GatherJob { read: slice.on_device(), gather: Gather::Copy, values: &mut original };
            devices.cuda.gather(Stream::NULL, &mut [job]).expect("read");
            // SAFETY: the tensor is the test's, and no element of it is two of a slice.
            let target = unsafe { slice.tensor.on_device(0).writable() }.expect("fp32");
            let scatter = |direction: &[f32]| {
                let job = ScatterJob { target, segments: &slice.segments, original: &original, direction, step };
                assert!(devices.cuda.scatter(Stream::NULL, &[job]));
                let words = slice.tensor.device_bytes().read();
                words.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect::<Vec<f32>>()
            };
            let mut expected = source.clone();
            for s in &slice.segments {
                for (row, col) in (0..s.rows).flat_map(|row| (0..s.length).map(move |col| (row, col))) {
                    let at = (s.offset + row as i64 * s.row_step + col as i64 * s.column_step) as usize;
                    let moved = f64::from(source[at])
                        + step * f64::from(direction[(s.index + row * s.index_step + col) as usize]);
                    expected[at] = moved as f32;
                }
            }
            let found = scatter(&direction);
            let is_same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
            assert!(found.iter().zip(&expected).all(is_same));
            assert!(bits(&scatter(&[])) == bits(&source));
        }
    });
}

/// A vector that crosses the bus in parts.
#[test]
fn long_slices_are_moved_in_parts() {
    on_device("long_slices_are_moved_in_parts", &[], || {
        let devices = Devices::open();
        let source = values(10, (1 << 22) + 3_000);
        let slice = Slice::whole(DType::F32, &source, 1024);
        let mut vector = vec![0.0; source.len()];
        let job = GatherJob { read: slice.on_device(), gather: Gather::Copy, values: &mut vector };
        assert_eq!(devices.cuda.gather(Stream::NULL, &mut [job]).expect("read"), 0);
        assert!(bits(&vector) == bits(&source));
    });
}

/// Copies are kept in a type that has every value of the parameters', wherever they lie: what comes back is what was read.
#[test]
fn copies_have_every_value_of_the_parameters() {
    on_device("copies_have_every_value_of_the_parameters", &[], || {
        let devices = Devices::open();
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let half = |code| f16::from_bits(code).to_f32();
        let brain = |code: u16| f32::from_bits(u32::from(code) << 16);
        let codes: Vec<u8> = (0..=255).collect();
        let tensors = [
            Tensor::from_bytes(DType::F16, &all, (0..=u16::MAX).map(half).collect()),
            Tensor::from_bytes(DType::Bf16, &all, (0..=u16::MAX).map(brain).collect()),
            Tensor::from_bytes(DType::F8E4M3, &codes, codes.iter().map(|&code| float8(code, 3, true)).collect()),
            Tensor::from_bytes(DType::F8E5M2, &codes, codes.iter().map(|&code| float8(code, 2, false)).collect()),
            Tensor::new(DType::F32, &values(11, 5_000)),
            Tensor::new(DType::F64, &values(12, 5_000)),
        ];
        for tensor in tensors {
            let numel = tensor.seen.len() as u64;
            let keeping = Keeping::Copy(tensor.dtype);
            let slice =
                Slice { layout: Layout::new(numel, 256, 1), segments: vec![run(0, numel, 0)], tensor, shift: 0 };
            for home in [Home::Near, Home::Pinned] {
                let mut copy = devices.cuda.values(PLACE, numel as usize, keeping, home).expect("room");
                let span = Span { start: 0, end: numel };
                let mut pass = |compare, replace| {
                    let copy = Some(Copy { span, values: &mut copy, compare, replace });
                    let read = slice.on_device();
                    let job = ParameterJob { read, copy, update_sketch: compare, sketch: false, tasks: Vec::new() };
                    devices.cuda.parameters(Stream::NULL, vec![job]).wait().expect("found").remove(0)
                };
                pass(false, true);
                let found = pass(true, true);
                assert_eq!((found.update.updates, found.update.peak), (0.0, 0.0), "nothing has changed");
                assert!(found.update_sketch.iter().all(|x| *x == 0.0));
                let (clean, _) = oracle::cleaned(&slice.elements());
                let kept = devices.read(&copy);
                assert!(kept.iter().zip(&clean).all(|(kept, (_, x))| kept.to_bits() == x.to_bits()));
            }
        }
    });
}

/// Sums in fewer bits, when nothing is added to them: rounded as documented, compared with as they are kept, and widened
/// again to be added to.
#[test]
fn sums_that_have_settled_are_packed() {
    on_device("sums_that_have_settled_are_packed", &[], || {
        for packing in [Packing::F32, Packing::Bf16, Packing::E4m3] {
            let devices = Devices::with(packing);
            for (length, scale) in [(9_000, 1.0f32), (8_192, 1e30), (4_099, 1e-30), (31, 1.0), (5_000, 1e-41)] {
                let source: Vec<f32> = values(13, length).iter().map(|x| scale * x).collect();
                let mut sum = devices.kept(&source);
                devices.cuda.settle(Stream::NULL, &mut sum);
                let packed = devices.read(&sum);
                for (packed, exact) in packed.chunks(32).zip(source.chunks(32)) {
                    // The power of two below the block's largest. Multiples of 2⁻¹⁶ of it are kept, and its own numbers' least
                    // exponent is that of fp32.
                    let peak = exact.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    let unit = f64::from(f32::from_bits((peak.to_bits() >> 23).max(8) << 23));
                    for (packed, exact) in packed.iter().zip(exact) {
                        let (packed, exact) = (f64::from(*packed), f64::from(*exact));
                        let room = match packing {
                            Packing::F32 => 0.0,
                            // Half a unit in the last of eight places; those of subnormal numbers are fixed.
                            Packing::Bf16 => (exact.abs() * 2f64.powi(-8)).max(2f64.powi(-134)),
                            Packing::E4m3 => (exact.abs() * 2f64.powi(-4)).max(unit * 2f64.powi(-17)),
                        };
                        assert!((packed - exact).abs() <= room, "{packing:?}: {packed:e}, {exact:e}");
                    }
                }
                let slice = Slice::whole(DType::F32, &values(14, length), 1024);
                let span = Span { start: 0, end: length as u64 };
                let references = vec![Some(Kept { span, values: &sum })];
                let job = GradientJob { read: slice.on_device(), references };
                let found = devices.cuda.gradients(Stream::NULL, vec![job]).wait().expect("found").remove(0);
                let kept = oracle::KeptValues { span, values: packed.clone() };
                oracle::check_pair(&found.pairs[0], &slice.elements(), &kept, BOUND);
                let job = AccumulateJob { read: slice.on_device(), scale: scale * 0.5, sum: Some((span, &mut sum)) };
                devices.cuda.accumulate(Stream::NULL, vec![job]).wait().expect("found");
                let expected = packed.iter().zip(slice.elements()).map(|(sum, (_, x))| sum + scale * 0.5 * x);
                assert!(bits(&devices.read(&sum)) == bits(&expected.collect::<Vec<f32>>()), "{packing:?} {length}");
            }
        }
    });
}
