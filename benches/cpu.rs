//! What measuring costs on the CPU, as ratios against peers in the same run (`make bench`).
//!
//! - the fused pass over gradients, against reading the same bytes with the same threads and doing nothing;
//! - the same numbers from NumPy, one tensor after another, as a script would take them;
//! - a step that is not sampled, through the C ABI;
//! - a probe's hidden states on the trainer's thread, against a plain copy of the same rows;
//! - what the drain thread then does with a layer of it;
//! - publishing a record.
//!
//! Timings on a shared machine wander by several per cent; every figure is the best of several interleaved rounds, so
//! that both sides of a ratio saw the same machine. Figures go to stdout, and as JSON to the file named by `FGS_BENCH_OUT`.

use forgetscope::abi::*;
use forgetscope::device::cpu::Cpu;
use forgetscope::device::{DType, Device, GradientJob, Kept, Memory, Segment, SliceRead, Span, Stream, Values};
use forgetscope::ring::{Record, Writer, WriterOptions};
use forgetscope::sketch::Layout;
use forgetscope::stats::{representation, sample::Sample, subspace};
use std::hint::black_box;
use std::time::Instant;

/// Elements of the model: far beyond any cache.
const ELEMENTS: usize = 1 << 27;
/// Elements of a tensor, and heads of a tensor that has any.
const TENSOR: usize = 1 << 22;
const HEADS: usize = 16;
const ROUNDS: usize = 7;

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    println!("forgetscope, CPU: {} threads, {} M elements, best of {ROUNDS} rounds\n", threads, ELEMENTS >> 20);
    let mut report = Report::default();
    fused_pass(threads, &mut report);
    numpy(&mut report);
    unsampled_step(&mut report);
    probe(&mut report);
    algebra(&mut report);
    publish(&mut report);
    report.finish();
}

/// Figures, printed as they come and kept for the JSON file.
#[derive(Default)]
struct Report(Vec<(String, f64, &'static str)>);

impl Report {
    fn add(&mut self, name: &str, value: f64, unit: &'static str) {
        println!("{name:<58} {value:>9.3} {unit}");
        self.0.push((name.into(), value, unit));
    }

    fn finish(&self) {
        let Some(path) = std::env::var_os("FGS_BENCH_OUT") else { return };
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(name, value, unit)| {
                format!("  {{\"name\": \"{name}\", \"value\": {value:.4}, \"unit\": \"{unit}\"}}")
            })
            .collect();
        if let Err(error) = std::fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n"))) {
            eprintln!("cannot write {}: {error}", path.display());
            std::process::exit(1);
        }
    }
}

/// Seconds that `work` takes.
fn time(work: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Best time of each piece of work, in interleaved rounds.
fn best(work: &mut [Box<dyn FnMut() + '_>]) -> Vec<f64> {
    let mut times = vec![f64::INFINITY; work.len()];
    for _ in 0..ROUNDS {
        for (best, work) in times.iter_mut().zip(work.iter_mut()) {
            *best = best.min(time(work));
        }
    }
    times
}

/// Reads every byte once with `threads` threads: what the machine's memory gives at best.
fn read_all(bytes: &[u8], threads: usize) -> u64 {
    std::thread::scope(|scope| {
        let part = bytes.len() / threads / 4096 * 4096;
        let handles: Vec<_> =
            (0..threads).map(|k| scope.spawn(move || read(&bytes[k * part..(k + 1) * part]))).collect();
        handles.into_iter().map(|handle| handle.join().expect("a reading thread")).fold(0, |x, y| x ^ y)
    })
}

/// XOR of all words: nothing but loads. Four accumulators, written so that the compiler keeps them in registers.
fn read(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx2")]
        fn wide(bytes: &[u8]) -> u64 {
            let mut lanes = [_mm256_setzero_si256(); 8];
            for block in bytes.as_chunks::<256>().0 {
                for (k, lane) in lanes.iter_mut().enumerate() {
                    // SAFETY: eight vectors of 32 bytes lie inside the block.
                    *lane = _mm256_xor_si256(*lane, unsafe { _mm256_loadu_si256(block.as_ptr().add(32 * k).cast()) });
                }
            }
            let all = lanes.into_iter().fold(_mm256_setzero_si256(), |x, y| _mm256_xor_si256(x, y));
            _mm256_extract_epi64::<0>(all) as u64 ^ _mm256_extract_epi64::<3>(all) as u64
        }
        // SAFETY: the instruction set was detected.
        return unsafe { wide(bytes) };
    }
    bytes.as_chunks::<8>().0.iter().fold(0, |x, word| x ^ u64::from_ne_bytes(*word))
}

/// A buffer of the model's gradients, cheap pseudo-random numbers near 2⁻⁷.
fn gradients() -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(0x3c00_0000 | state >> 9 | (state & 1) << 31)
    };
    (0..ELEMENTS).map(|_| next()).collect()
}

/// Slices of the model: every second tensor is split into heads.
fn segments(heads: impl Fn(usize) -> usize) -> Vec<(Layout, Segment)> {
    let mut slices = Vec::new();
    for tensor in 0..ELEMENTS / TENSOR {
        let count = heads(tensor);
        let numel = TENSOR / count;
        for head in 0..count {
            let buckets = if count == 1 { 16_384 } else { 1024 };
            let layout = Layout::new(numel as u64, buckets, (tensor * HEADS + head) as u64);
            let offset = (tensor * TENSOR + head * numel) as i64;
            let length = numel as u64;
            slices.push((
                layout,
                Segment { index: 0, index_step: 0, rows: 1, length, offset, row_step: 0, column_step: 1 },
            ));
        }
    }
    slices
}

/// `references`: one per slice, or none.
fn pass(device: &Cpu, memory: Memory, slices: &[(Layout, Segment)], references: &[Values]) {
    let mut jobs = Vec::with_capacity(slices.len());
    for (number, (layout, segment)) in slices.iter().enumerate() {
        let span = Span { start: 0, end: segment.length };
        jobs.push(GradientJob {
            read: SliceRead { layout: *layout, memory, segments: std::slice::from_ref(segment) },
            references: vec![references.get(number).map(|values| Kept { span, values })],
        });
    }
    let found = device.gradients(Stream::NULL, jobs).now().expect("host memory is read inside the call");
    black_box(found.iter().map(|found| found.sums.squares).sum::<f64>());
}

/// The parts of a model-wide reference that belong to each slice, as the library keeps them.
fn references(device: &Cpu, slices: &[(Layout, Segment)], values: &[f32]) -> Vec<Values> {
    let part = |(_, segment): &(Layout, Segment)| {
        let start = segment.offset as usize;
        let mut kept = Values::from(values[start..start + segment.length as usize].to_vec());
        device.settle(Stream::NULL, &mut kept);
        kept
    };
    slices.iter().map(part).collect()
}

fn fused_pass(threads: usize, report: &mut Report) {
    let device = Cpu::new(threads).expect("threads");
    let gradient = gradients();
    let half: Vec<u16> = gradient.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    // SAFETY: both buffers outlive the passes, and segments stay inside them.
    let (single, bf16) =
        unsafe { (Memory::new(gradient.as_ptr().cast(), DType::F32), Memory::new(half.as_ptr().cast(), DType::Bf16)) };
    let slices = segments(|tensor| if tensor % 2 == 0 { HEADS } else { 1 });
    let reference = references(&device, &slices, &gradient.iter().rev().copied().collect::<Vec<_>>());
    // SAFETY: reading numbers as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(gradient.as_ptr().cast::<u8>(), 4 * ELEMENTS) };
    let times = best(&mut [
        Box::new(|| {
            black_box(read_all(bytes, threads));
        }),
        Box::new(|| pass(&device, single, &slices, &[])),
        Box::new(|| pass(&device, single, &slices, &reference)),
        Box::new(|| pass(&device, bf16, &slices, &[])),
        Box::new(|| pass(&device, bf16, &slices, &reference)),
    ]);
    let rate = |bytes: usize, seconds: f64| (bytes * ELEMENTS) as f64 / seconds / 1e9;
    let read = rate(4, times[0]);
    report.add("read bandwidth", read, "GB/s");
    for (name, bytes, seconds) in [
        ("fp32 gradient: norms, sketch", 4, times[1]),
        ("fp32 gradient and exact reference: all sums", 8, times[2]),
        ("bf16 gradient: norms, sketch", 2, times[3]),
        ("bf16 gradient and exact fp32 reference: all sums", 6, times[4]),
    ] {
        report.add(name, rate(bytes, seconds), "GB/s");
        report.add("  share of the read bandwidth", rate(bytes, seconds) / read, "");
    }
}

/// The same numbers, tensor by tensor, from NumPy (benches/numpy_peer.py, which uses all it can).
fn numpy(report: &mut Report) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    let python = std::env::var("FGS_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/numpy_peer.py");
    let output = std::process::Command::new(python).arg(script).arg((TENSOR).to_string()).output();
    let peer = output.ok().filter(|output| output.status.success());
    let Some(peer) = peer.and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse::<f64>().ok()) else {
        println!("NumPy: not measured; `make bench` provides a Python that has it");
        return;
    };
    let device = Cpu::new(threads).expect("threads");
    let gradient = gradients();
    // SAFETY: the buffer outlives the passes.
    let memory = unsafe { Memory::new(gradient.as_ptr().cast(), DType::F32) };
    let slices = segments(|_| 1);
    let reference = references(&device, &slices, &gradient.iter().rev().copied().collect::<Vec<_>>());
    let ours = best(&mut [Box::new(|| pass(&device, memory, &slices, &reference))])[0];
    let (ours, peer) = (ours / ELEMENTS as f64 * 1e9, peer * 1e9);
    report.add("all sums and the sketch, forgetscope", ours, "ns/element");
    report.add("the same sums without the sketch, NumPy per tensor", peer, "ns/element");
    report.add("  NumPy takes so many times as long", peer / ours, "");
}

/// Options with a ring of its own in which no step is sampled.
fn options(path: &std::ffi::CStr) -> fgs_options {
    fgs_options {
        size: size_of::<fgs_options>() as u32,
        magic: 0x3153_4746,
        run: std::ptr::null(),
        ring_path: path.as_ptr(),
        include: std::ptr::null(),
        exclude: std::ptr::null(),
        ring_slots: u64::MAX,
        every: 1 << 40,
        start_step: u64::MAX,
        end_step: u64::MAX,
        budget_bytes: u64::MAX,
        reference_budget: -1.0,
        threads: u32::MAX,
        rank: u32::MAX,
        world_size: u32::MAX,
        sketch_head: u32::MAX,
        sketch_matrix: u32::MAX,
        window: u32::MAX,
    }
}

/// A step that is not sampled: the three calls of a trainer, with 200 tensors registered and bound.
fn unsampled_step(report: &mut Report) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("bench.ring");
    let path = std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
    let options = options(&path);
    let mut scope = std::ptr::null_mut();
    // SAFETY: initialised options, a place for the handle; the scope is open until the end of the block.
    unsafe {
        assert_eq!(fgs_open(&options, &mut scope), fgs_status::FGS_OK);
        assert_eq!(fgs_task_begin(scope, c"task".as_ptr()), fgs_status::FGS_OK);
        const STEPS: u64 = 1_000_000;
        let mut step = 1;
        let seconds = best(&mut [Box::new(|| {
            for _ in 0..STEPS {
                fgs_step_begin(scope, step);
                fgs_gradients_ready(scope, 1.0, 0, std::ptr::null_mut());
                fgs_step_end(scope, 1, std::ptr::null_mut());
                step += 1;
            }
        })])[0];
        report.add("a step that is not sampled, all three calls", seconds / STEPS as f64 * 1e9, "ns");
        fgs_close(scope);
    }
}

fn publish(report: &mut Report) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut writer = Writer::create(&WriterOptions::new(directory.path().join("bench.ring"))).expect("a ring");
    let mut record = Record::default();
    const RECORDS: u64 = 4_000_000;
    let seconds = best(&mut [Box::new(|| {
        for _ in 0..RECORDS {
            record.step += 1;
            writer.publish(&record);
        }
    })])[0];
    report.add("publishing a record", seconds / RECORDS as f64 * 1e9, "ns");
}

/// Layers, sampled tokens and width of a probe; 16 tokens a sequence, of which four are taken.
const LAYERS: u32 = 32;
const TOKENS: usize = 1024;
const WIDTH: usize = 4096;
const LENGTH: usize = 16;

/// Hidden states of all layers, handed over from one buffer that is used again, as trainers do.
fn probe(report: &mut Report) {
    let directory = tempfile::tempdir().expect("a directory");
    let text =
        |path: std::path::PathBuf| std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).expect("a path");
    let ring = text(directory.path().join("probe.ring"));
    let options = options(&ring);
    // SAFETY: no other thread is running.
    unsafe { std::env::set_var("FGS_PROBE_BUDGET", "0.5") };
    let sequences = TOKENS / 4;
    let hidden: Vec<f32> = (0..sequences * LENGTH * WIDTH).map(|k| ((k * 2_654_435_761) >> 8) as f32 * 1e-9).collect();
    let mut shape = [sequences as i64, LENGTH as i64, WIDTH as i64];
    let tensor = fgs_dltensor {
        data: hidden.as_ptr().cast_mut().cast(),
        device_type: 1,
        device_id: 0,
        ndim: 3,
        dtype_code: 2,
        dtype_bits: 32,
        dtype_lanes: 1,
        shape: shape.as_mut_ptr(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    };
    let ok = |status| assert_eq!(status, fgs_status::FGS_OK);
    let task = c"task";
    let described = fgs_probe {
        size: size_of::<fgs_probe>() as u32,
        magic: 0x3153_4746,
        task: task.as_ptr(),
        continued_updates: u64::MAX,
        flags: 0,
        run: 0,
    };
    let (mut handed_over, mut copied) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        let mut scope = std::ptr::null_mut();
        // SAFETY (all calls): the scope is open, and everything that pointers point to is alive.
        ok(unsafe { fgs_open(&options, &mut scope) });
        ok(unsafe { fgs_probe_begin(scope, &described) });
        ok(unsafe { fgs_probe_batch(scope, sequences as u64, LENGTH as u64, std::ptr::null(), 0) });
        let mut layer = 0;
        handed_over = handed_over.min(time(&mut || {
            while layer < LAYERS {
                ok(unsafe { fgs_probe_hidden(scope, layer, &tensor, std::ptr::null_mut()) });
                layer += 1;
            }
        }));
        // The pass is given up: its algebra is not what is measured here.
        ok(unsafe { fgs_close(scope) });
        let _ = std::fs::remove_file(directory.path().join("probe.ring"));
        copied = copied.min(time(&mut || {
            // All kept, as the library keeps them: memory that is used again would be faster for both.
            let mut copies = Vec::new();
            for _ in 0..LAYERS {
                let mut copy: Vec<f32> = Vec::with_capacity(TOKENS * WIDTH);
                for row in 0..TOKENS {
                    let start = row * LENGTH / 4 * WIDTH;
                    copy.extend_from_slice(&hidden[start..start + WIDTH]);
                }
                copies.push(copy);
            }
            black_box(copies);
        }));
    }
    report.add("probe, 32 layers of 1024 x 4096: handed over", 1e3 * handed_over, "ms");
    report.add("the same rows copied on one thread into fresh memory", 1e3 * copied, "ms");
    report.add("handed over, share of the plain copy's time", handed_over / copied, "");
}

/// The drain thread's work on one layer of the same size.
fn algebra(report: &mut Report) {
    let value =
        |(row, column): (usize, usize)| ((row * 40_503 + column * 2_654_435_761) % 10_007) as f32 / 5_003.0 - 1.0;
    let rows = ndarray::Array2::from_shape_fn((TOKENS, WIDTH), value);
    let sequences: Vec<u32> = (0..TOKENS as u32 / 4).flat_map(|sequence| [sequence; 4]).collect();
    let mut sample = None;
    let reduce = time(&mut || sample = Some(Sample::new(&rows, &[TOKENS], &sequences, 10)));
    let Some(sample) = sample else { return };
    let compare = time(&mut || {
        black_box(representation::compare(&sample, &sample));
        black_box(subspace::subspace(&sample, &sample));
    });
    let null = time(&mut || {
        black_box(subspace::halves(&sample, subspace::SPLITS));
    });
    report.add("drain thread, a layer of 1024 x 4096: reduced", reduce, "s");
    report.add("drain thread, the layer against its base", compare, "s");
    report.add("drain thread, the null of angles, at the base only", null, "s");
}
